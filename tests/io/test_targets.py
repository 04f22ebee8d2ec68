"""A TARGET makes the model it names, or says in one line why it does not."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.io.targets import load_target, parse_arguments, parse_shape

NETS = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=3):
        super().__init__(nn.Linear(width, 2))

class zoo:
    inner = Net

def build(width=3):
    return Net(width)

def broken(width=3):
    raise ValueError(f"width {width} is odd\\nand that is all")

def leaves():
    raise SystemExit(3)

ready = Net()
number = 7
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def nets(here):
    (here / "my_nets.py").write_text(NETS)
    return here


def refusal(*args):
    with pytest.raises(EvenkeelError) as caught:
        load_target(*args)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("name", ["Net", "build", "zoo.inner"])
def test_classes_functions_and_dotted_names_are_called_with_the_arguments(nets, name):
    assert load_target(f"my_nets:{name}")[0].in_features == 3
    assert load_target(f"my_nets:{name}", {"width": 5})[0].in_features == 5


def test_a_module_is_taken_as_it_is_and_takes_no_arguments(nets):
    assert load_target("my_nets:ready") is sys.modules["my_nets"].ready
    assert "takes no arguments, 1 were given" in refusal("my_nets:ready", {"width": 5})


def test_a_package_in_the_current_directory_is_found(nets):
    (nets / "pack" / "sub").mkdir(parents=True)
    (nets / "pack" / "sub" / "nets.py").write_text(NETS)
    assert isinstance(load_target("pack.sub.nets:Net"), nn.Sequential)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("my_nets", ["'my_nets' names no model", "package.module:callable"]),
        ("my_nets:", ["names no model"]),
        (":Net", ["names no model"]),
        ("", ["names no model"]),
        ("my_nets.py:Net", ["'my_nets.py' is no name of a module", "without .py"]),
        ("nets/mine.py:Net", ["'nets/mine.py' is no name of a module", "without .py"]),
        ("absent.nets:Net", ["no module 'absent'", "install it"]),
        ("my_nets:biuld", ["'my_nets:biuld'", "no 'biuld'", "did you mean build?"]),
        ("my_nets:zoo.outer.x", ["zoo has no 'outer'"]),
        ("my_nets:number", ["type int, not a callable"]),
        ("my_nets:broken", ["ValueError: width 3 is odd", "(my_nets.py:16)", "--arg"]),
        ("my_nets:leaves", ["raised SystemExit: 3"]),
        ("my_nets:torch.eye", ["raised TypeError"]),
        ("builtins:dict", ["type dict, not a torch.nn.Module"]),
    ],
)
def test_what_makes_no_model_is_told_in_one_line(nets, target, parts):
    message = refusal(target)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import absent_dependency", "ModuleNotFoundError: No module named 'absent_dependency' (failing.py:1)"),
        ("x = (", "SyntaxError"),
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU (failing.py:1)"),
        ("raise SystemExit(2)", "SystemExit: 2"),
        ("def __getattr__(name): raise ImportError(f'lazy {name}')", "ImportError: lazy Net"),
    ],
)
def test_a_module_that_fails_on_import_is_told_in_one_line(here, source, reason):
    (here / "failing.py").write_text(source)
    message = refusal("failing:Net")
    assert reason in message
    assert "failing" in message


def library(make):
    """A stand-in for torchvision.models and for timm."""

    def create(name, **arguments):
        if name.partition(".")[0] not in ("resnet18", "resnet34", "resnet50"):
            raise ValueError("Unknown model")
        return make(name, **arguments)

    names = ["resnet18", "resnet34", "resnet50"]
    return SimpleNamespace(get_model=create, create_model=create, list_models=lambda: names)


LIBRARIES = [
    ("torchvision", "torchvision.models", {"weights": None}),
    ("timm", "timm", {"pretrained": False}),
]


@pytest.mark.parametrize(("name", "module", "defaults"), LIBRARIES)
def test_a_library_makes_the_model_without_downloading_weights(monkeypatch, name, module, defaults):
    calls = []
    monkeypatch.setitem(sys.modules, module, library(lambda *a, **k: calls.append((a, k)) or nn.Identity()))
    assert isinstance(load_target(f"{name}:resnet18", {"num_classes": 10}), nn.Identity)
    assert calls == [(("resnet18",), {**defaults, "num_classes": 10})]


@pytest.mark.parametrize(("name", "module", "defaults"), LIBRARIES)
def test_a_library_without_that_model_suggests_three(monkeypatch, name, module, defaults):
    monkeypatch.setitem(sys.modules, module, library(nn.Identity))
    message = refusal(f"{name}:resnet19")
    assert f"{name} has no model 'resnet19'" in message
    assert all(known in message for known in ("resnet18", "resnet34", "resnet50"))
    assert "list_models() lists 3" in refusal(f"{name}:qqq")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "resnet18.a1_in1k"])
def test_a_library_that_refuses_the_arguments_is_told_apart_from_one_without_the_model(monkeypatch, model):
    def refuse(name, pretrained, num_classes):
        raise AssertionError

    monkeypatch.setitem(sys.modules, "timm", library(refuse))
    message = refusal(f"timm:{model}", {"depth": 3})
    assert "raised TypeError" in message
    assert "unexpected keyword argument 'depth'" in message
    assert "--arg" in message


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_library_that_is_not_installed_is_told(monkeypatch, name):
    for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)

    class Finder:
        @staticmethod
        def find_spec(wanted, path=None, target=None):
            if wanted == name:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert refusal(f"{name}:resnet18") == f"{name} is not installed: pip install {name}"


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_library_without_its_compiled_operators_is_told(here, monkeypatch, name):
    for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    (here / name).mkdir()
    (here / name / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(here)
    message = refusal(f"{name}:resnet18")
    assert f"importing {name} raised RuntimeError: operator torchvision::nms does not exist" in message
    assert "install the torchvision that matches torch" in message


@given(st.lists(st.integers(1, 9999), min_size=1, max_size=4))
def test_shapes_are_read_as_they_are_written(sizes):
    assert parse_shape("x".join(map(str, sizes))) == tuple(sizes)


@pytest.mark.parametrize("text", ["", "x", "3x", "3,224,224", "3x-1x2", "3x0x2", "3 x 2", "3x2.5", "axb", "3x²", "٣x2"])
def test_what_is_no_shape_is_told(text):
    with pytest.raises(EvenkeelError, match="is no shape: write positive sizes"):
        parse_shape(text)


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.dictionaries(st.from_regex("[a-z_]{1,8}", fullmatch=True), values | st.lists(values) | st.tuples(values)))
def test_arguments_written_as_python_literals_come_back(arguments):
    assert parse_arguments([f"{name}={value!r}" for name, value in arguments.items()]) == arguments


@given(st.text())
def test_any_text_is_a_value(text):
    value = parse_arguments([f"name={text}"])["name"]
    assert value == text or not isinstance(value, str) or text.strip()[:1] in "'\"rRuUbB("


def test_bare_words_stay_strings():
    given = ["act=gelu", "path=a/b=c", "size=(2, 3)", "empty="]
    assert parse_arguments(given) == {"act": "gelu", "path": "a/b=c", "size": (2, 3), "empty": ""}


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (["num_classes"], "write name=value"),
        (["=3"], "write name=value"),
        (["a b=3"], "write name=value"),
        (["a=3", "a=4"], "given twice, as 3 and '4'"),
    ],
)
def test_what_is_no_argument_is_told(items, reason):
    with pytest.raises(EvenkeelError, match=reason):
        parse_arguments(items)
