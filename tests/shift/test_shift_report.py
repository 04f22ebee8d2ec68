"""Rows and reports of shifts: ratios at their limits, text and plain data."""

import json
import math

import pytest
import torch
from smallnet import TwoDrops

import evenkeel as ek
from evenkeel.graph.layer_graph import Kind, Layer
from evenkeel.shift.shift_rows import ShiftRow


def test_the_report_prints_as_a_table_and_gives_plain_data():
    report = ek.variance_shift(TwoDrops(), torch.randn(3, 16, 4))
    table = str(report)
    assert "eval/train" in table and "norm" in table and "and 1 more" not in table
    data = json.loads(json.dumps(report.to_dict()))
    assert [row["path"] for row in data["rows"]] == ["norm", "after"]
    assert data["rows"][0]["dropouts"][1] == {"name": "drop", "p": 0.5, "where": report[0].dropouts[1].where}
    assert data["worst"] == report.worst == max(row.folded for row in report)
    assert data["median"] == report.median == sum(row.folded for row in report) / 2
    assert report.worst_row.folded == report.worst and len(report) == 2


def test_what_a_shift_is_made_of_is_in_the_table_and_in_plain_data():
    report = ek.variance_shift(TwoDrops(), torch.randn(3, 64, 4))
    assert "made of" in str(report) and "channels" in str(report) and "mean off" in str(report)
    first = report.to_dict()["rows"][0]
    assert set(first["parts"]) == {"inherited", "dropout", "initial", "stored"}
    assert first["spread"][0] <= first["ratio"] <= first["spread"][1] and first["moved"] <= first["moved_most"]
    assert "caused by dropouts" in str(ek.predict_shift(TwoDrops(), torch.zeros(1, 4)))


def test_what_cannot_be_is_worst_and_first():
    rows = [ek.ShiftRow("a", 1.0, math.nan), ek.ShiftRow("b", 1.0, 1.0, bad="NaN"), ek.ShiftRow("c", 1.0, 9.0)]
    report = ek.ShiftReport(rows)
    assert report.worst_row.path == "b" and report.worst == math.inf and report.rows == tuple(rows)
    assert [line.split()[0] for line in str(report).splitlines()[2:5]] == ["b", "a", "c"]


def test_who_shows_that_data_are_others_is_named_once():
    report = ek.ShiftReport([ek.ShiftRow("a", 1.0, 1.0)], other_data={"a": "meets x9", "b": "meets x2"})
    assert report.accusation.startswith("a meets x9, and 1 more norm likewise: these are not the data of training")
    assert ek.ShiftReport([ek.ShiftRow("a", 1.0, 1.0)]).accusation == ""


def test_zero_and_dead_channels():
    row = ek.ShiftRow("dead", 0.0, 0.0)
    assert (row.ratio, row.folded) == (1.0, 1.0)
    assert ek.ShiftRow("woken", 0.0, 1.0).ratio == math.inf
    assert ek.ShiftRow("died", 1.0, 0.0).folded == math.inf


@pytest.mark.parametrize(
    ("name", "cell"), [("a", "a1 p=0.2, a2 p=0.2 and 1 more"), ("block." * 10, f"{'block.' * 10}1 p=0.2 and 2 more")]
)
def test_a_cell_names_two_dropouts_or_one_of_a_long_name(name, cell):
    layers = tuple(Layer(f"{name}{i}", Kind.DROPOUT, "", p=0.2) for i in (1, 2, 3))
    assert ShiftRow("norm", 2.0, 1.0, dropouts=layers).fed_by == cell
