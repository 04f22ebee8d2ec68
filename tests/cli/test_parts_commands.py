"""reestimate-part and merge: the bits of one machine from several, round after round, and what is refused."""

import json

import pytest
import torch
from commands import run

import evenkeel as ek

NETS = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    layers = []
    for i in range(4):
        layers += [nn.Conv2d(8 if i else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers)


def batches(first=0, last=20):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(320, 3, 1, 1, generator=draw) + torch.randn(320, 3, 4, 4, generator=draw) / 2
    return list(x.split(16))[first:last]


def left():
    return batches(0, 7)


def right():
    return batches(7, 20)


def bright():
    return [6 * batch for batch in batches()]


def dark_site():
    return [batch - 3 for batch in batches(0, 10)]


def light_site():
    return [batch + 3 for batch in batches(10, 20)]


def both_sites():
    return [batch for pair in zip(dark_site(), light_site()) for batch in pair]


def noise():
    return torch.randn(64, 3, 4, 4).split(8)


def none():
    return []
"""
WEIGHTS = ("shardnets:net", "--weights", "net.pt")


@pytest.fixture
def shards(tmp_path, monkeypatch):
    (tmp_path / "shardnets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "shardnets", raising=False)
    import shardnets

    model = shardnets.net()
    for batch in shardnets.batches() * 3:
        model(batch)
    torch.save(model.state_dict(), "net.pt")
    yield tmp_path
    __import__("sys").modules.pop("shardnets", None)


def part(capsys, name, *options, data=None):
    code, out, err = run(
        capsys, "reestimate-part", *WEIGHTS, "--data", f"shardnets:{data or name}", "--out", name, *options
    )
    assert code == 0, err
    return out


def statistics(path):
    return {name: t for name, t in torch.load(path).items() if "running" in name}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_rounds_of_two_machines_give_the_bits_of_one(shards, capsys):
    probe = ("--data", "shardnets:batches", "--max-batches", "8")
    assert "written: left: round 1, 4 norms, 112 samples in 7 batches" in part(capsys, "left")
    part(capsys, "right"), part(capsys, "all", data="batches")
    code, out, err = run(capsys, "merge", *WEIGHTS, "right", "left", "--out", "new.pt", "--next", "next", *probe)
    assert code in {0, 1}, err
    assert "round 1, from 2 parts" in " ".join(out.split()) and "written: next, for reestimate-part --start" in out
    run(capsys, "merge", *WEIGHTS, "all", "--out", "one.pt", "--next", "one", *probe)
    assert same(statistics("new.pt"), statistics("one.pt")) and not same(statistics("new.pt"), statistics("net.pt"))
    assert ek.load_start("next").fingerprint == ek.load_start("one").fingerprint
    assert "round 2" in part(capsys, "left", "--start", "next")
    part(capsys, "right", "--start", "next")
    code, out, _ = run(capsys, "merge", *WEIGHTS, "left", "right", "--out", "two.pt", *probe, "--json")
    found = json.loads(out)
    assert code == 0 and found["round"] == 2 and found["parts"] == ["left", "right"] and found["samples"] == 320
    model = __import__("shardnets").net()
    ek.load_(model, "two.pt")
    shift = ek.variance_shift(model, __import__("shardnets").batches())
    assert abs(shift.worst - 1) < 0.01
    assert ek.undo_(model) == ("1", "5", "9", "13")  # it is known as repaired
    assert same({name: t for name, t in model.state_dict().items() if "running" in name}, statistics("net.pt"))


def test_what_may_be_off_is_told_by_the_exit_code(shards, capsys):
    part(capsys, "all", data="batches")
    code, out, _ = run(capsys, "merge", *WEIGHTS, "all", "--out", "new.pt")
    assert code == 1 and "measure parts once more" in " ".join(out.split()) and (shards / "new.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("merge", *WEIGHTS, "left", "left", "--out", "new.pt"), "two parts are named 'left'"),
        (("merge", *WEIGHTS, "none", "--out", "new.pt"), "none does not exist"),
        (("merge", *WEIGHTS, "net.pt", "--out", "new.pt"), "net.pt of"),
        (("merge", *WEIGHTS, "left", "--out", "left"), "left is a file that is read"),
        (("merge", *WEIGHTS, "left", "--out", "new.pt", "--next", "net.pt"), "net.pt is a file that is read"),
        (("merge", *WEIGHTS, "left", "--out", "new.pt", "--next", "no/next"), "there is no folder"),
        (("merge", *WEIGHTS, "left", "--out", "new.pt", "--max-batches", "2"), "there is no --data"),
        (("merge", *WEIGHTS, "--out", "new.pt"), "Missing argument"),
        (("reestimate-part", *WEIGHTS, "--data", "shardnets:none", "--out", "new.pt"), "the data are empty"),
        (
            ("reestimate-part", *WEIGHTS, "--data", "shardnets:left", "--out", "new.pt", "--start", "left"),
            "it is a part",
        ),
        (("reestimate-part", *WEIGHTS, "--data", "shardnets:left", "--out", "net.pt"), "net.pt is a file that is read"),
    ],
)
def test_bad_input_costs_one_line_and_nothing_is_written(shards, capsys, arguments, said):
    part(capsys, "left")
    before = {path.name: path.read_bytes() for path in shards.iterdir() if path.is_file()}
    code, _, err = run(capsys, *arguments)
    assert code == 2 and said in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in shards.iterdir() if path.is_file()} == before


def test_a_part_as_json(shards, capsys):
    found = json.loads(part(capsys, "left", "--name", "clinic 3", "--json"))
    assert found == {
        "out": "left",
        "name": "clinic 3",
        "round": 1,
        "norms": 4,
        "batches": 7,
        "samples": 112,
        "untouched": {},
        "other_data": "",
    }
    assert ek.load_part("left").name == "clinic 3"


def test_parts_of_another_scale_are_told_of_and_not_merged_unless_asked_for(shards, capsys):
    shown = part(capsys, "bright.part", data="bright")
    assert "these are not the data of training" in shown and "meets x36." in shown
    code, _, err = run(capsys, "merge", *WEIGHTS, "bright.part", "--out", "new.pt", "--next", "next.start")
    assert code == 2 and "nothing is written: norm 1 meets x36." in err and "--other-data" in err
    assert not (shards / "new.pt").exists() and not (shards / "next.start").exists()
    code, out, _ = run(capsys, "merge", *WEIGHTS, "bright.part", "--out", "new.pt", "--other-data", "--json")
    assert code == 1 and (shards / "new.pt").exists() and list(json.loads(out)["other_data"]) == ["1"]


def test_parts_that_differ_but_are_together_those_of_training_are_merged(shards, capsys):
    """Each site is brighter or darker than the whole, which training had."""
    assert "not the data of training" in part(capsys, "dark.part", data="dark_site")
    assert "not the data of training" in part(capsys, "light.part", data="light_site")
    import shardnets

    model = shardnets.net()
    for batch in shardnets.both_sites() * 3:
        model(batch)
    torch.save(model.state_dict(), "net.pt")
    for name in ("dark", "light"):
        part(capsys, f"{name}.part", data=f"{name}_site")
    code, out, err = run(capsys, "merge", *WEIGHTS, "dark.part", "light.part", "--out", "new.pt")
    assert code == 1 and not err and "written: new.pt" in out and "not the data of training" not in out
