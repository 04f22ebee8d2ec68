"""What `init_` reports: a sequence of rows, a table, plain data."""

import json
from collections.abc import Sequence

import pytest
import torch
from initnets import Odd, mlp, residual_net
from torch import nn

import evenkeel as ek


def test_the_report_is_a_sequence():
    report = ek.init_(mlp(), torch.ones(2, 40), mode="mean", weights="normal", seed=0)
    assert isinstance(report, Sequence) and len(report) == 3 == len(list(report))
    assert [row.name for row in report] == ["0", "3", "6"]
    assert report[0] is next(iter(report)) and report[-1] is report.rows[2] and report[1:] == report.rows[1:]
    assert report[1] in report and report.index(report[1]) == 1
    with pytest.raises(IndexError):
        report[3]
    assert (report.mode, report.weights) == ("mean", "normal")
    assert repr(report) == "InitReport(3 weight layers, mode='mean', weights='normal')"


def test_the_report_prints_as_a_table():
    net = Odd()
    report = ek.init_(net, torch.ones(2, 5, 4), seed=0)
    lines = str(report).splitlines()
    assert lines[0].split() == "layer before after gain train var eval var train grad var eval grad var".split()
    for row in report:
        (line,) = [line for line in lines[2 : 2 + len(report)] if line.split()[0] == row.name]
        assert f"{row.gain:.4f}" in line and f"{row.predicted.train_variance:.3g}" in line
    shown = " ".join(str(report).split())
    assert report.untouched and report.unsure
    assert all(reason in shown for reason in (*report.untouched.values(), *report.unsure.values()))


def test_rows_say_what_stands_around_a_layer():
    report = ek.init_(mlp(nn.GELU), torch.ones(2, 40), seed=0)
    assert [(row.before, row.after) for row in report] == [
        ("input", "gelu, dropout p=0.4, linear"),
        ("dropout p=0.4, gelu, linear", "gelu, dropout p=0.4, linear"),
        ("dropout p=0.4, gelu, linear", "output"),
    ]
    assert [(row.fan_in, row.fan_out) for row in report] == [(40, 60), (60, 80), (80, 20)]
    assert not report.untouched and not report.unsure


@pytest.mark.parametrize("make", [mlp, lambda: residual_net(2, norm=True)])
def test_the_report_gives_plain_data(make):
    net = make()
    report = ek.init_(net, torch.ones(4, net[0].in_features), mode="hendrycks2016", seed=0)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data.keys() == {"mode", "weights", "rows", "untouched", "unsure", "notes"}
    assert (data["mode"], data["weights"], data["notes"]) == ("hendrycks2016", "sphere", list(report.notes))
    for row, plain in zip(report, data["rows"], strict=True):
        assert plain["name"] == row.name and plain["gain"] == row.gain
        assert plain["predicted"]["eval_grad_variance"] == row.predicted.eval_grad_variance


def test_the_report_of_computed_weights_is_json_too():
    """JSON knows no nan, and readers of other languages refuse it."""
    data = ek.init_(Odd(), torch.ones(2, 5, 4), seed=0).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
