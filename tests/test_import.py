"""`import evenkeel` loads nothing until a name is used; the root has what is public, and only re-exports."""

import ast
import importlib
import pickle
import subprocess
import sys

import pytest
from wings import PACKAGE

import evenkeel as ek
from evenkeel.cli import app

STUB = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
HOMES = {a.name: node.module for node in STUB.body if isinstance(node, ast.ImportFrom) for a in node.names}
LOADED = "import sys; before = set(sys.modules); import evenkeel; print(*set(sys.modules) - before)"
HEAVY = {"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "torch.testing"}
COMMANDS = sorted((c.name or c.callback.__name__).replace("_", "-") for c in app.registered_commands)


def modules_after(code):
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.slow
def test_import_loads_nothing_of_weight():
    loaded = modules_after(LOADED)
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names <= {"evenkeel", "lazy_loader"}


@pytest.mark.slow
def test_a_verb_loads_torch_but_not_its_compiler():
    loaded = modules_after("import torch; " + LOADED.replace("print", "evenkeel.variance_shift; print"))
    assert "evenkeel.shift.shift" in loaded and loaded & HEAVY == set()
    assert {name.partition(".")[0] for name in loaded} & {"rich", "typer", "matplotlib", "sklearn"} == set()


@pytest.mark.slow
def test_small_models_are_linted_without_torch_s_compiler():
    run = "net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(4)); evenkeel.lint(net, torch.ones(2, 4))"
    loaded = modules_after("import torch; " + LOADED.replace("print", f"{run}; print"))
    assert "evenkeel.linting.linter" in loaded and loaded & HEAVY == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["explain"], ["explain", "EK201"], *([name, "--help"] for name in COMMANDS)],
    ids=" ".join,
)
def test_the_program_helps_without_torch(arguments):
    code = f"import sys\nfrom evenkeel.cli import app\napp({arguments}, standalone_mode=False)\nprint(*sys.modules)"
    loaded = modules_after(code)
    assert "evenkeel" in loaded and "torch" not in loaded


def test_dir_shows_what_is_public_and_nothing_else():
    assert dir(ek) == sorted(ek.__all__) == sorted(HOMES)
    assert not any(name.startswith("_") for name in dir(ek))


@pytest.mark.parametrize("name", sorted(HOMES))
def test_every_public_name_is_that_of_its_home(name):
    assert getattr(ek, name) is getattr(importlib.import_module(f"evenkeel.{HOMES[name]}"), name)


def test_the_root_only_re_exports():
    docstring, *body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert {type(node) for node in body} <= {ast.Import, ast.ImportFrom, ast.Assign, ast.Try}
    (known,) = (node for node in body if isinstance(node, ast.Try))
    assert {target.id for node in ast.walk(known) if isinstance(node, ast.Assign) for target in node.targets} == {
        "__version__"
    }


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="trance"):
        ek.trance  # noqa: B018


def test_public_classes_pickle_by_their_home():
    row = ek.ShiftRow("bn", 2.0, 1.0)
    assert pickle.loads(pickle.dumps(row)) == row


@pytest.mark.slow
@pytest.mark.parametrize("door", ["compat:update_bn", "hf:ReestimationCallback", "lightning:ReestimationCallback"])
def test_what_users_import_in_training_scripts_is_there(door):
    module, name = door.split(":")
    pytest.importorskip({"hf": "transformers", "lightning": "lightning"}.get(module, "torch"))
    found = getattr(importlib.import_module(f"evenkeel.{module}"), name)
    assert found is getattr(importlib.import_module(f"evenkeel.integrations.{module}"), name)
