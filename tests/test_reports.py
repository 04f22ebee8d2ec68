"""Every report has rows, reasons by path, notes, text, HTML and plain data; what changes the model can be undone."""

import json

import pytest
import torch
from torch import nn

import evenkeel as ek

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    for _ in range(50):
        model(X)
    return model


REPORTS = {
    "variance_shift": (lambda model: ek.variance_shift(model, [X]), ek.ShiftReport, ek.ShiftRow),
    "predict_shift": (lambda model: ek.predict_shift(model, X), ek.ShiftReport, ek.ShiftRow),
    "reestimate_": (lambda model: ek.reestimate_(model, [X, X + 1]), ek.Reestimation, ek.NormChange),
    "merge_parts_": (
        lambda model: ek.merge_parts_(model, [ek.measure_part(model, [X])]),
        ek.MergedParts,
        ek.NormChange,
    ),
    "correct_": (lambda model: ek.correct_(model, X), ek.Correction, ek.NormChange),
    "init_": (lambda model: ek.init_(model, X, seed=0), ek.InitReport, ek.InitRow),
    "check_signals": (lambda model: ek.check_signals(model, X, draws=1), ek.SignalReport, ek.SignalRow),
    "fix": (lambda model: ek.fix(model, X, guideline="li2018").evenkeel_fix, ek.FixReport, ek.FixRow),
}


@pytest.mark.parametrize("verb", REPORTS)
def test_a_report_can_be_read_in_every_form(verb):
    make, kind, row = REPORTS[verb]
    report = make(net())
    assert type(report) is kind and isinstance(report, ek.Report) and len(report) >= 1
    assert list(report) == list(report.rows) and all(type(found) is row for found in report)
    assert isinstance(report.untouched, dict) and isinstance(report.unsure, dict) and isinstance(report.notes, tuple)
    plain = report.to_dict()
    assert {"rows", "untouched", "unsure", "notes"} <= set(plain) and len(plain["rows"]) == len(report)
    json.dumps(plain, allow_nan=False)
    assert str(report).count("\n") >= len(report) and kind.__name__ in repr(report)
    assert report._repr_html_().count("<tr>") == 1 + len(report)


@pytest.mark.parametrize("verb", ["reestimate_", "merge_parts_", "correct_", "init_"])
def test_what_changes_the_model_has_undo(verb):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = REPORTS[verb][0](model)
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    report.undo()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_reasons_are_by_path():
    model = net()
    model.append(nn.BatchNorm1d(2))  # stores nothing yet
    assert "untrained" in ek.correct_(model, X).untouched["5"]
    assert "untrained" in ek.predict_shift(model, X).unsure["5"]
    model.train()[2].eval()
    assert "frozen" in ek.reestimate_(model, [X]).untouched["2"]
    model[0].weight.requires_grad_(False)
    assert "frozen" in ek.init_(model, X).untouched["0"]
