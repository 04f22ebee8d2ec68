"""repair prints one table, writes where it may, and what it writes is known as repaired."""

import copy
import importlib
import json
import os
import re
import stat
import sys

import pytest
import torch
from commands import run
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from evenkeel.io.checkpoints import Checkpoint
from evenkeel.io.datasets import load_data

TEXT = ("anynets:Text", "--weights", "text.pt")
EXAMPLE = ("--example", "anynets:text_example")
DATA = ("--data", "anynets:text_batches", "--forward", "anynets:run_text", "--match", "variance")


@pytest.mark.parametrize("how", [EXAMPLE, DATA])
def test_one_table_says_what_changed_because_of_what(nets, capsys, how):
    code, out, _ = run(capsys, "repair", *TEXT, *how, "--out", "new.pt")
    lines = out.splitlines()
    (rule,) = (place for place, line in enumerate(lines) if set(line.strip()) == {"─"})
    head, rows = " ".join(" ".join(lines[:rule]).split()), lines[rule + 1 :]
    assert code == 0 and "eval/train" in head and "var after" in head and "because of" in head
    assert "drop p=0.3" in "".join(rows[:2]) and "1.000" in rows[0] and rows[0].startswith("norm ")
    assert any(line.startswith("worst norm: x") and "x1.00 after" in line for line in lines)


def test_what_changed_is_attributed_to_dropouts(nets, capsys):
    out = run(capsys, "repair", *TEXT, *EXAMPLE, "--out", "new.pt")[1]
    assert "changed because of drop (anynets.py:" in out and "p=0.3: 100 %" in out
    assert "1 norm corrected without data; ratios are predicted" in out


@pytest.mark.parametrize("out", ["new.pt", "new.safetensors"])
def test_a_file_just_repaired_is_known_as_repaired(nets, capsys, out):
    assert run(capsys, "repair", *TEXT, *DATA, "--out", out)[0] == 0
    new = ("anynets:Text", "--weights", out)
    code, printed, _ = run(capsys, "shift", *new, *EXAMPLE, "--fail-above", "1.01")
    assert code == 0 and "worst x1.00" in printed and "as a repair wrote it" in printed
    code, printed, _ = run(capsys, "lint", *new, *EXAMPLE, "--guideline", "li2018")
    assert code == 0 and "no findings" in printed and "the norm norm is repaired" in " ".join(printed.split())
    assert run(capsys, "lint", *new, *EXAMPLE, "--guideline", "hendrycks2016")[0] == 0
    code, printed, err = run(capsys, "repair", *new, *EXAMPLE, "--out", "again.pt")
    assert code == 2 and "a repair has taken the noise of dropout out of all 1 norms" in err
    assert "undo" not in err and not (nets / "again.pt").exists()
    assert "repaired before" not in run(capsys, "repair", *TEXT, *DATA, "--out", "other.pt")[1]
    code, printed, _ = run(capsys, "repair", *new, *DATA, "--out", "again.pt")
    assert code == 0 and "norm: repaired before; what training had left stays beside it" in printed
    old, marks = torch.load(nets / "text.pt"), Checkpoint.read(nets / "again.pt").marks
    assert torch.equal(marks.trained["norm"]["running_var"], old["norm.running_var"])


def test_writing_over_the_input_says_so(nets, capsys):
    code, out, _ = run(capsys, "repair", *TEXT, *EXAMPLE, "--out", "text.pt")
    assert code == 0 and "written: text.pt, over the checkpoint that was read" in out
    (nets / "link.pt").symlink_to("graph.pt")
    graph = ("anynets:Graph", "--weights", "graph.pt", "--example", "anynets:graph_example")
    code, out, err = run(capsys, "repair", *graph, "--out", "link.pt", "--json")
    assert code == 0 and json.loads(out)["out"] == "link.pt" and "over the checkpoint that was read" in err
    assert (nets / "link.pt").is_symlink()


def test_another_file_is_not_called_the_input(nets, capsys):
    out = run(capsys, "repair", *TEXT, *EXAMPLE, "--out", "new.pt")[1]
    assert out.rstrip().endswith("written: new.pt")


@pytest.mark.parametrize("option", ["--out", "--html"])
def test_a_device_is_written_into(nets, capsys, option):
    before = os.stat("/dev/null")
    options = {"--out": "new.pt", option: "/dev/null"}
    code, _, err = run(capsys, "repair", *TEXT, *EXAMPLE, *(part for pair in options.items() for part in pair))
    assert code == 0 and err == ""
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and os.stat("/dev/null").st_ino == before.st_ino


def test_findings_go_into_a_device_too(nets, capsys):
    lint = ("lint", *TEXT, *EXAMPLE, "--guideline", "li2018", "--output")
    assert run(capsys, *lint, "/dev/null") == (1, "", "") and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    code, _, err = run(capsys, *lint, "text.pt")
    assert code == 2 and "--output text.pt is the checkpoint's own file" in err


def test_a_pipe_that_nobody_reads_costs_one_line(nets, capsys):
    os.mkfifo("pipe")
    for arguments in (("repair", *TEXT, *EXAMPLE, "--out", "pipe"), ("lint", *TEXT, *EXAMPLE, "--output", "pipe")):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and err.count("\n") == 1 and "pipe cannot be written" in err and "nothing was written" in err
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_a_symlink_is_followed(nets, capsys):
    (nets / "there").mkdir()
    (nets / "link.pt").symlink_to("there/new.pt")
    assert run(capsys, "repair", *TEXT, *EXAMPLE, "--out", "link.pt")[0] == 0
    assert (nets / "link.pt").is_symlink() and torch.load(nets / "there" / "new.pt")
    assert [path.name for path in (nets / "there").iterdir()] == ["new.pt"]


def test_advice_in_the_notes_is_the_command_lines(nets, capsys):
    out = run(capsys, "repair", *TEXT, *EXAMPLE, "--out", "new.pt", "--match", "variance", "--json")[1]
    notes = " ".join(json.loads(out)["notes"])
    assert "let --held-out decide" in notes and "undo()" not in notes and "held_out=" not in notes


def test_an_interruption_leaves_nothing_and_exits_with_130(nets, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    before = sorted(path.name for path in nets.iterdir())
    monkeypatch.setattr(torch, "save", interrupted)
    for out in ("new.pt", "text.pt", "/dev/null"):
        content = (nets / "text.pt").read_bytes()
        assert run(capsys, "repair", *TEXT, *EXAMPLE, "--out", out)[0] == 130
        assert (nets / "text.pt").read_bytes() == content
    assert sorted(path.name for path in nets.iterdir() if path.name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]


AVERAGES = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
"""


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Files of a net whose weights were changed since its statistics: averaged, and pruned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "averages.py").write_text(AVERAGES)
    monkeypatch.delitem(sys.modules, "averages", raising=False)
    importlib.invalidate_caches()
    net = importlib.import_module("averages").net()
    forgotten, averaged = copy.deepcopy(net), AveragedModel(net)
    data = list(load_data("digits", batch_size=50).train)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x, y in data * 3:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        averaged.update_parameters(net)
    for own, theirs in zip(forgotten.parameters(), averaged.module.parameters(), strict=True):
        own.data.copy_(theirs.data)
    torch.save(averaged.state_dict(), "averaged.pt")
    torch.save({"model": net.state_dict(), "ema": forgotten.state_dict()}, "both.pt")
    prune.ln_structured(net[1], "weight", 0.5, 1, 0)
    torch.save(net.state_dict(), "pruned.pt")
    yield tmp_path
    sys.modules.pop("averages", None)


REPAIR = ("repair", "averages:net", "--data", "digits", "--input", "1x8x8", "--out", "new.pt", "--weights")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "options"), [("averaged.pt", ()), ("pruned.pt", ()), ("both.pt", ("--key", "ema", "--unsure", "write"))]
)
def test_weights_that_changed_since_are_repaired_in_the_file_as_it_is(changed, capsys, file, options):
    code, out, err = run(capsys, *REPAIR, file, *options, "--other-data")
    assert code == 0, err
    before, after = (float(found) for found in re.search(r"log loss ([\d.]+) to ([\d.]+)", out).groups())
    assert after < before
    old, new = torch.load(file), torch.load("new.pt")
    old, new = (old, new) if "ema" not in old else (old["ema"], new["ema"])
    assert old.keys() == new.keys()
    assert {key.rpartition(".")[2] for key in old if not torch.equal(old[key], new[key])} == {
        "running_mean",
        "running_var",
    }


@pytest.mark.slow
def test_without_a_word_on_data_changed_weights_are_offered_as_the_reason(changed, capsys):
    code, _, err = run(capsys, *REPAIR, "pruned.pt")
    assert code == 2 and "nothing is written" in err and "weights have changed since, as by pruning or averaging" in err
    assert not (changed / "new.pt").exists()


@pytest.mark.slow
def test_of_two_nets_in_a_file_one_must_be_named(changed, capsys):
    code, _, err = run(capsys, *REPAIR, "both.pt")
    assert code == 2 and "holds 2 state dicts: model (8 entries), ema (8 entries): name the one that counts" in err
