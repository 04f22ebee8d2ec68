"""Findings as text and as plain data."""

import json

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.linting.edits import Remove
from evenkeel.linting.findings import summary


def finding(**changes):
    given = {
        "path": "block.drop",
        "message": "it offends.",
        "advice": "Move it.",
        "code": "EK201",
        "guideline": "li2018",
    }
    return ek.Finding(**given | changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "EK201 block.drop: it offends. Move it."),
        ({"file": "/a/b/net.py", "line": 7}, "EK201 block.drop (net.py:7): it offends. Move it."),
        ({"shift": 0.5}, "EK201 block.drop: it offends. Move it. [predicted eval/train 0.50]"),
        ({"shift": 0.004, "norm": "bn"}, "EK201 block.drop: it offends. Move it. [predicted eval/train 0.00 at bn]"),
        ({"norm": "bn"}, "EK201 block.drop: it offends. Move it."),
    ],
)
def test_a_finding_in_a_line(changes, text):
    assert str(finding(**changes)) == text


def test_a_finding_goes_into_json_and_back():
    graph = ek.trace(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), torch.ones(1, 2))
    found = finding(edits=(Remove(graph["1"]),), file="net.py", line=3, norm="bn", shift=0.5)
    data = found.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["edits"] == ["remove 1"]
    fields = dict(vars(found))
    assert {key: value for key, value in data.items() if key != "edits"} == {
        k: v for k, v in fields.items() if k != "edits"
    }


def test_at_takes_place_and_line_from_the_layer():
    class Net(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, self.training)

    (layer,) = ek.trace(Net(), torch.ones(1, 2)).of(ek.Kind.DROPOUT)
    edit = Remove(layer)
    found = ek.Finding.at(layer, "it offends.", "Move it.", edit, norm="bn")
    assert (found.path, found.file, found.line, found.edits, found.norm) == (
        "dropout", __file__, Net.forward.__code__.co_firstlineno + 1, (edit,), "bn",
    )  # fmt: skip
    assert found.where == layer.where and found.code == "" and found.shift is None


@pytest.mark.parametrize(
    ("guidelines", "last"),
    [
        ([], "no findings"),
        (["li2018"], "1 finding: 1 of li2018"),
        (["li2018", "kim2023", "li2018"], "3 findings: 2 of li2018, 1 of kim2023"),
    ],
)
def test_a_summary_has_a_line_each_and_counts(guidelines, last):
    findings = [finding(guideline=name, path=str(i)) for i, name in enumerate(guidelines)]
    assert summary(findings).split("\n") == [*map(str, findings), last]
