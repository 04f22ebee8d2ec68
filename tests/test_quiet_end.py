"""benchmarks/quiet_end.py: arms do at which step what they are named after, and the page shows what was measured."""

import json

import pytest
import torch
from paths import ROOT
from torch import nn

from benchmarks import quiet_end
from benchmarks.pages import text_in

RESULTS, PAGE = ROOT / "results" / "quiet_end.json", ROOT / "docs" / "within-training.md"


@pytest.mark.parametrize(("name", "rows"), [("digits", "digits"), ("cifar", "small")])
def test_the_page_shows_what_was_measured(name, rows):
    found = json.loads(RESULTS.read_text())[name]
    assert text_in(PAGE, name) == quiet_end.table(found, rows)
    arms = {key.split(", ", 2)[2] for key in found}
    repaired = {f"{arm}, {how}" for arm in quiet_end.REPAIRED for how in quiet_end.REPAIRS.values()}
    assert arms == {quiet_end.NO_DROPOUT, *quiet_end.ARMS, *repaired}
    assert len(found) == 1 + len(quiet_end.RATES) * (len(arms) - 1)


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
    assert "| 1 | 50.00 ± 0.00 | 1.000 ± 0.000 | x2.00 |" in rows
