"""Rows and reports of shifts: ratios at their limits, text and plain data."""

import json
import math

import torch
from smallnet import TwoDrops

import evenkeel as ek


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


def test_zero_and_dead_channels():
    row = ek.ShiftRow("dead", 0.0, 0.0)
    assert (row.ratio, row.folded) == (1.0, 1.0)
    assert ek.ShiftRow("woken", 0.0, 1.0).ratio == math.inf
    assert ek.ShiftRow("died", 1.0, 0.0).folded == math.inf
