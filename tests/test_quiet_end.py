"""benchmarks/quiet_end.py: arms do at which step what they are named after, and the page shows what was measured."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from paths import ROOT
from torch import nn

from benchmarks import quiet_end
from benchmarks.pages import text_in
from evenkeel.papers.lab.images import load_images
from evenkeel.papers.lab.specs import Net

RESULTS, PAGE = ROOT / "results" / "quiet_end.json", ROOT / "docs" / "within-training.md"


@pytest.mark.parametrize(
    ("name", "rows", "chosen", "rates"),
    [
        ("digits", "digits", quiet_end.ARMS, len(quiet_end.RATES)),
        ("cifar", "small", quiet_end.ARMS, len(quiet_end.RATES)),
        ("desk", "desk", quiet_end.DESK_ARMS, 1),
    ],
)
def test_the_page_shows_what_was_measured(name, rows, chosen, rates):
    found = json.loads(RESULTS.read_text())[name]
    assert text_in(PAGE, name) == quiet_end.table(found, rows)
    arms = {key.split(", ", 2)[2] for key in found}
    repaired = {f"{arm}, {how}" for arm in quiet_end.REPAIRED for how in quiet_end.REPAIRS.values() if arm in chosen}
    assert arms == {quiet_end.NO_DROPOUT, *chosen, *repaired}
    assert len(found) == 1 + rates * (len(arms) - 1)


@pytest.mark.slow
def test_arms_of_the_desk_part_fork_from_one_net_and_differ(monkeypatch, tmp_path):
    images, training = load_images("synthetic"), quiet_end.desk_training("a", 0.5)
    small = Net("preresnet", {**training.net.arguments, "depth": 8, "width": 4})
    plain = replace(small, arguments={**small.arguments, "places": "none"})
    monkeypatch.setattr(quiet_end, "desk_images", lambda data_dir: images)
    monkeypatch.setattr(quiet_end, "FORK", 2)
    monkeypatch.setattr(
        quiet_end,
        "desk_training",
        lambda place, p: replace(training, net=small if p else plain, recipe=replace(training.recipe, epochs=3)),
    )
    rows = dict(quiet_end.run_desk(Namespace(data_dir=None, nets=tmp_path)))
    repaired = [f"dropout all along, {how}" for how in quiet_end.REPAIRS.values()]
    assert {key.split(", ", 2)[2] for key in rows} == {quiet_end.NO_DROPOUT, *quiet_end.DESK_ARMS, *repaired}
    assert len({figures["log_loss"] for (figures,) in rows.values()}) == len(rows)
    assert (
        rows[f"desk, p=0.5, {repaired[0]}"][0]["worst_shift"]
        < 1.01
        < rows["desk, p=0.5, dropout all along"][0]["worst_shift"]
    )
    again = dict(quiet_end.run_desk(Namespace(data_dir=None, nets=tmp_path)))
    assert again == rows


@pytest.mark.parametrize(
    ("arm", "off", "frozen"),
    [
        ("dropout all along", [], []),
        ("quiet end: rates 0", [18, 19], []),
        ("quiet end: norms frozen", [], [18, 19]),
        ("quiet end: both", [18, 19], [18, 19]),
        ("early dropout", range(10, 20), []),
        ("late dropout", range(10), []),
    ],
)
def test_an_arm_is_what_it_is_called(arm, off, frozen):
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    at, seen = quiet_end.ARMS[arm](model, 20, [torch.randn(32, 4)]), []
    for step in range(20):
        at(step)
        model.train()
        seen.append((model[0].p, model[1].training))
    assert [step for step, (p, _) in enumerate(seen) if not p] == list(off)
    assert [step for step, (_, training) in enumerate(seen) if not training] == list(frozen)


def test_a_table_has_repairs_behind_what_they_repair_and_one_row_a_key():
    one = [{"error": 0.5, "log_loss": 1.0, "median_shift": 1.0, "worst_shift": 2.0}]
    keys = ("late dropout, repaired by mean", "dropout all along", "late dropout", "quiet end: both")
    rows = quiet_end.table({f"here, p=0.5, {key}": one for key in keys} | {"there, p=0.5, early": one}, "here")
    assert [line.split(" | ")[1] for line in rows.splitlines()[2:]] == [keys[1], keys[3], keys[2], keys[0]]
    assert "| 1 | 50.00 | 1.000 | x2.00 |" in rows
