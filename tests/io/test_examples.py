"""What a model is called with, as the command line describes it."""

import pytest
import torch
from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.io import examples
from evenkeel.io.examples import InputSpec, example_of, inputs_of, load_example, parse_input


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("3x224x224", InputSpec((3, 224, 224))),
        ("8", InputSpec((8,))),
        ("int64:128", InputSpec((128,), torch.int64)),
        ("int64:", InputSpec((), torch.int64)),
        ("int64:128:0-29999", InputSpec((128,), torch.int64, (0, 29999))),
        ("int32:2x3:-5--1", InputSpec((2, 3), torch.int32, (-5, -1))),
        ("bool:128", InputSpec((128,), torch.bool)),
        ("float16:3x8x8", InputSpec((3, 8, 8), torch.float16)),
        ("input_ids=int64:128:0-9", InputSpec((128,), torch.int64, (0, 9), "input_ids")),
        ("x=3x8x8", InputSpec((3, 8, 8), name="x")),
    ],
)
def test_an_input_is_read(text, spec):
    assert parse_input(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3xx8", "'3xx8' is no shape"),
        ("int46:8", "there is no dtype 'int46': did you mean int64"),
        ("tokens:8", "dtypes are float32"),
        ("int64:8:0-9:1", "has 4 parts"),
        ("int64:8:9-0", "'9-0' is no range: write the least and the largest, as 0-29999"),
        ("int64:8:9", "'9' is no range"),
        ("int64:axb", "is no shape"),
        ("float32:8:0-1", "a range is for whole numbers"),
        ("uint8:8:0-256", "holds 0 to 255"),
        ("bool:8:0-2", "holds 0 to 1"),
    ],
)
def test_what_is_no_input_is_told_in_one_line(text, message):
    with pytest.raises(EvenkeelError) as caught:
        parse_input(text)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_several_inputs_are_a_tuple_and_named_ones_a_dict():
    specs = [parse_input("int64:12:3-5"), parse_input("4")]
    tokens, other = example_of(specs, nn.Identity())
    assert tokens.shape == (16, 12) and tokens.dtype == torch.int64 and set(tokens.unique().tolist()) == {3, 4, 5}
    assert other.shape == (16, 4) and not other.any()
    named = example_of([parse_input("a=int64:12:3-5"), parse_input("b=4")], nn.Identity())
    assert list(named) == ["a", "b"] and torch.equal(named["a"], tokens)  # the same in every run


def test_one_shape_is_what_it_always_was():
    example = example_of([parse_input("3x8x8")], nn.Identity())
    assert example.shape == (1, 3, 8, 8) and example.dtype == torch.float32 and not example.any()


def test_tokens_without_a_range_fit_the_smallest_embedding():
    model = nn.ModuleList([nn.Embedding(50, 4), nn.Embedding(7, 4)])
    assert example_of([parse_input("int64:400")], model).unique().tolist() == list(range(7))
    assert not example_of([parse_input("int64:400")], nn.Identity()).any()
    assert example_of([parse_input("bool:400")], nn.Identity()).unique().tolist() == [False, True]


@pytest.mark.parametrize("texts", [("a=4", "4"), ("a=4", "a=5")])
def test_all_inputs_have_a_name_or_none(texts):
    with pytest.raises(EvenkeelError, match="give every input a name, each another, or none"):
        example_of([parse_input(text) for text in texts], nn.Identity())


@pytest.mark.parametrize("text", ["3x1000000x1000000", "99999999999999999999", "int64:99999999x99999999:0-1"])
def test_what_no_memory_holds_is_refused_with_its_size(text):
    with pytest.raises(EvenkeelError, match=r"GB, and this machine has .*: ask for smaller sizes"):
        example_of([parse_input(text)], nn.Identity())


def test_where_memory_is_not_known_a_limit_holds(monkeypatch):
    monkeypatch.setattr(examples.os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError), raising=False)
    assert examples.memory() == 1 << 36


MODULE = """
import torch
tensor = torch.ones(2, 3)
def several():
    return [tensor, tensor]
def named():
    return {"x": tensor}
def nothing():
    return {"x": 3}
def raising():
    raise ValueError("no luck")
def asking(x):
    return x
class Graph:
    def __init__(self):
        self.x = tensor
def graph():
    return Graph()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "example_functions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "example_functions"


def test_an_example_is_what_a_function_returns(module):
    assert load_example(f"{module}:tensor").shape == (2, 3)
    assert [t.shape for t in load_example(f"{module}:several")] == [(2, 3)] * 2
    assert type(load_example(f"{module}:several")) is tuple and list(load_example(f"{module}:named")) == ["x"]
    assert load_example(f"{module}:graph").x.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned a dict with x, without a tensor: return what the model is called with"),
        ("raising", r"raised ValueError: no luck \(example_functions.py:11\)"),
        ("asking", "raised TypeError"),
        ("gone", "has no 'gone'"),
    ],
)
def test_what_is_no_example_is_told(module, name, message):
    with pytest.raises(EvenkeelError, match=message):
        load_example(f"{module}:{name}")


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(4, 3, 8, 8),
        torch.zeros(4, dtype=torch.float64),
        (torch.tensor([[0, 7], [-3, 1]]), torch.ones(2, 5, dtype=torch.bool)),
        {"x": torch.zeros(3), "tokens": torch.randint(9, (3, 12), dtype=torch.int32)},
    ],
)
def test_what_a_model_is_called_with_is_described_as_it_is_read(example):
    specs = [parse_input(text) for text in inputs_of(example)]
    given = list(example.values()) if isinstance(example, dict) else [example] if torch.is_tensor(example) else example
    assert [(spec.shape, spec.dtype) for spec in specs] == [(tuple(t.shape[1:]), t.dtype) for t in given]
    assert [spec.name for spec in specs] == (list(example) if isinstance(example, dict) else [""] * len(specs))
    for spec, tensor in zip(specs, given, strict=True):
        assert not spec.limits or spec.limits == (tensor.min(), tensor.max())


@pytest.mark.parametrize(
    "example",
    [
        (torch.zeros(50, 8), torch.zeros(2, 50, dtype=torch.int64)),  # a graph: its rows are no samples
        {"x": torch.zeros(4, 3), "length": 3},
        {"a b": torch.zeros(4, 3)},
        torch.zeros(()),
        torch.zeros(4, 0),
        torch.zeros(4, 3, dtype=torch.complex128),
        [],
        None,
    ],
)
def test_what_no_input_describes_is_not_described(example):
    assert inputs_of(example) == []
