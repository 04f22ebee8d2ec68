"""A patch of the model's source does what fix does in a copy, or says in words why it cannot."""

import importlib
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.linting.linter import wanted
from evenkeel.rewriting.patches import patch_of

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.norm1, self.linear1 = nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.drop = nn.Dropout(p)
        self.norm2, self.linear2 = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.drop(self.linear1(self.norm1(x).relu()))  # in the wrong place
        return x + self.linear2(self.norm2(h).relu())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.linear1 = nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.norm2, self.linear2 = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x):
        h = F.dropout(self.linear1(self.norm1(x).relu()), 0.25, self.training)
        return x + self.linear2(self.norm2(h).relu())


class Bare(Functional):
    def forward(self, x):
        h = F.dropout(self.linear1(self.norm1(x).relu()), 0.25, self.training)
        return x + self.linear2(self.norm2(h).relu())


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.norm(self.drop(self.linear(x))))


def blocks():
    return nn.Sequential(nn.Linear(8, 8), Block(), Block(0.3), nn.Linear(8, 2))


def functional():
    return nn.Sequential(nn.Linear(8, 8), Functional(), Functional(), nn.Linear(8, 2))


def bare():
    return nn.Sequential(nn.Linear(8, 8), Bare(), nn.Linear(8, 2))


def several():
    return nn.Sequential(nn.Linear(8, 8), Block(0.5), Block(0.0), nn.Linear(8, 2))


def in_sequence():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
"""
X = torch.zeros(4, 8)
_NUMBERS = itertools.count()


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the user's, in a folder of its own."""
    name = f"patched_nets_{next(_NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(MODULE.lstrip())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a patch may leave the size, and comes within a second
    yield importlib.import_module(name)
    sys.modules.pop(name)


def applied(nets, text):
    """The module with a patch applied by the program `patch` or git, imported anew."""
    subprocess.run(["git", "apply", "--unsafe-paths", "-p1", "-"], input=text, text=True, check=True, cwd=".")
    return importlib.reload(nets)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guideline"),
    [("blocks", "kim2023"), ("functional", "kim2023"), ("Plain", "li2018")],
)
def test_the_patched_source_is_what_fix_makes(nets, name, guideline):
    torch.manual_seed(0)
    model = getattr(nets, name)()
    fixed = ek.fix(model, X, guideline=guideline)
    patch = patch_of(model, X, wanted(guideline))
    assert patch.left == () and len(patch.rows) >= 1 and all(row.done for row in patch.rows)
    state = model.state_dict()
    made = getattr(applied(nets, patch.text), name)()
    made.load_state_dict(state, strict=True)
    assert ek.lint(made, X, guideline=guideline) == []
    assert str(ek.trace(made, X)) == str(ek.trace(fixed, X))
    x = torch.randn(5, 8)
    assert torch.equal(made.eval()(x), model.eval()(x))
    assert sorted(d.p for d in ek.trace(made, X) if d.drops) == sorted(d.p for d in ek.trace(fixed, X) if d.drops)
    assert patch_of(made, X, wanted(guideline)).text == ""


def test_a_child_moves_by_its_name_and_the_rest_stays(nets):
    patch = patch_of(nets.blocks(), X, wanted("kim2023"))
    changed = [line for line in patch.text.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == [
        "-        h = self.drop(self.linear1(self.norm1(x).relu()))  # in the wrong place",
        "-        return x + self.linear2(self.norm2(h).relu())",
        "+        h = self.linear1(self.norm1(x).relu())  # in the wrong place",
        "+        return x + self.linear2(self.drop(self.norm2(h).relu()))",
    ]
    assert patch.text.startswith(f"--- a/{nets.__name__}.py\n+++ b/{nets.__name__}.py\n")


def test_a_functional_dropout_becomes_a_child_made_in_init(nets):
    text = patch_of(nets.functional(), X, wanted("kim2023")).text
    assert "+        self.linear2_dropout = nn.Dropout(0.25)\n" in text
    assert "+        return x + self.linear2(self.linear2_dropout(self.norm2(h).relu()))\n" in text


@pytest.mark.parametrize(
    ("name", "guideline", "reason"),
    [
        ("bare", "kim2023", "Bare has no __init__ in its file where linear2_dropout could be made"),
        ("in_sequence", "li2018", "Sequential (the model)"),
    ],
)
def test_what_no_patch_can_do_is_said_in_words(nets, name, guideline, reason):
    patch = patch_of(getattr(nets, name)(), X, wanted(guideline))
    assert patch.text == "" and len(patch.left) == len(patch.rows) >= 1 and reason in str(patch.left[0])


def test_installed_code_is_not_the_users_to_patch(nets, monkeypatch):
    from pathlib import Path

    from evenkeel.rewriting import patches

    monkeypatch.setattr(patches, "_INSTALLED", [Path.cwd()])
    patch = patch_of(nets.blocks(), X, wanted("kim2023"))
    (reason,) = {row.reason for row in patch.left}  # the same of every block, so that it is said once
    assert patch.text == "" and "Block is an installed package's" in reason and "ek.fix may do it" in reason


def test_a_class_of_which_some_instances_stay_as_they_are_is_left(nets):
    model = nn.Sequential(nn.Linear(8, 8), nets.Block(), nn.Linear(8, 8), nets.Block(), nn.Linear(8, 2))
    found = ek.lint(model, X, guideline="kim2023")
    assert len(found) == 2
    model[3].drop = nn.Identity()
    model[3].register_forward_hook(lambda module, args, output: output)
    patch = patch_of(model, X, wanted("kim2023"))
    assert patch.left == () or "which is to stay as it is" in patch.left[0].reason


def test_unsafe_edits_are_asked_for_and_findings_without_edits_are_told(nets):
    patch = patch_of(nets.blocks(), X, wanted("chen2019"))
    assert any("--unsafe" in row.reason for row in patch.left)
    assert patch_of(nets.Plain(), X, wanted("kim2023")).rows == ()


def test_the_model_stays_as_it_is(nets):
    model = nets.blocks()
    before, kinds = {k: v.clone() for k, v in model.state_dict().items()}, [type(m) for m in model.modules()]
    patch_of(model, X, wanted("kim2023"))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [type(m) for m in model.modules()] == kinds


def test_a_file_without_a_last_newline_is_patched(nets, tmp_path):
    path = tmp_path / "unended.py"
    path.write_text(MODULE.lstrip().partition("class Functional")[0].rstrip())
    module = importlib.import_module("unended")
    text = patch_of(nn.Sequential(nn.Linear(8, 8), module.Block()), X, wanted("kim2023")).text
    assert text.count("\\ No newline at end of file\n") == 2
    subprocess.run(["git", "apply", "-"], input=text, text=True, check=True, cwd=tmp_path)
    assert path.read_text().endswith("self.drop(self.norm2(h).relu()))")
    sys.modules.pop("unended")


def test_line_ends_stay_as_they_are(nets, tmp_path):
    path = tmp_path / "windows.py"
    path.write_bytes(MODULE.lstrip().replace("\n", "\r\n").encode())
    module = importlib.import_module("windows")
    text = patch_of(module.functional(), X, wanted("kim2023")).text
    subprocess.run(["git", "apply", "-"], input=text.encode(), check=True, cwd=tmp_path)
    content = path.read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n") and b"linear2_dropout = nn.Dropout(0.25)\r\n" in content
    sys.modules.pop("windows")
