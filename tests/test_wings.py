"""The architecture: imports between wings go one way, none goes in a circle, and the root only re-exports."""

import ast
import re

import pytest
from paths import ROOT
from wings import FLOOR, PACKAGE, WINGS, arrows_of, circle_in, imported, modules_in, wing_arrows, wing_of

MODULES = modules_in(PACKAGE)
ARROWS = arrows_of(PACKAGE)


def test_every_wing_is_in_the_table_once():
    assert sorted(WINGS.split()) == sorted({wing_of(module) for module in MODULES})


def test_the_picture_for_contributors_is_the_table():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = [re.sub(r" {16,}.*", "", line).split() for line in page.split("```")[3].strip().splitlines()]
    assert lines == [line.split() for line in WINGS.replace("__main__", "").split("\n") if line.strip()]


def test_wings_import_from_lower_ones_only():
    assert [f"{a} imports from {b}" for a, b in sorted(wing_arrows(ARROWS)) if FLOOR.get(b, -1) <= FLOOR[a]] == []


def test_no_module_imports_itself_by_a_detour():
    assert circle_in(ARROWS) == []


def test_every_folder_says_in_one_sentence_what_it_is():
    for path in PACKAGE.rglob("__init__.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring and docstring.splitlines()[0].endswith("."), path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch, evenkeel.errors", ["errors"]),
        ("from evenkeel.errors import EvenkeelError", ["errors"]),
        ("from evenkeel.graph import kinds", ["graph.kinds"]),
        ("from evenkeel.graph.kinds import Kind", ["graph.kinds"]),
        ("from . import errors", [""]),
        ("def f():\n    from evenkeel.errors import EvenkeelError", ["errors"]),
        ("if TYPE_CHECKING:\n    import evenkeel.errors as e", ["errors"]),
        ("import evenkeel", [""]),
        ("from evenkeel import __version__", [""]),
        ("import evenkeeled, torch.nn", []),
    ],
)
def test_no_way_to_import_escapes(source, found):
    assert list(imported(source, MODULES)) == found


def test_a_circle_is_found():
    assert set(circle_in({("a", "b"), ("b", "c"), ("c", "a")})) == {"a", "b", "c"}
