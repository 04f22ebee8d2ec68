"""setters_of: the methods of a model that set drop rates, of whatever dropout, and no others."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.linting.rate_setters import setters_of


class Functional(nn.Module):
    """A rate of its own, which its method sets."""

    def __init__(self, drop_prob=0.1):
        super().__init__()
        self.drop_prob = drop_prob

    def update(self, step):
        self.drop_prob *= 0.9**step

    def forward(self, x):
        return F.dropout(x, self.drop_prob, self.training)


class Scheduler(nn.Module):
    """Around a dropout, as of DropBlock."""

    def __init__(self):
        super().__init__()
        self.drop, self.other = nn.Dropout(0.0), nn.Linear(4, 4)

    def step(self, value):
        setattr(self.drop, "p", value)  # noqa: B010

    def forward(self, x):
        return self.drop(x)


class All(nn.Module):
    """One that sets the rates of all that it holds."""

    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def set_dropout(self, p):
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = p

    def forward(self, x):
        return self.inner(x)


class Fixed(nn.Module):
    """A rate that only the constructor sets, and another attribute that a method sets."""

    def __init__(self, p=0.3):
        super().__init__()
        self.p, self.calls = p, 0

    def forward(self, x):
        self.calls += 1
        return F.dropout(x, self.p, self.training)


class Swaps(nn.Module):
    """A module where others hold a number: no rate is set."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.2)

    def disable(self):
        self.dropout = nn.Identity()

    def forward(self, x):
        return self.dropout(x)


def found(model):
    setters = setters_of(ek.trace(model, torch.zeros(2, 4)))
    return {layer.name: (setter.method, setter.attribute) for layer, setter in setters.items()}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Functional(), {"dropout": ("update", "drop_prob")}),
        (nn.Sequential(nn.Linear(4, 4), Functional(0.0)), {"1.dropout": ("update", "drop_prob")}),
        (Scheduler(), {"drop": ("step", "p")}),
        (
            All(nn.Dropout(0.1), nn.Linear(4, 4), nn.Dropout(0.2)),
            dict.fromkeys(("inner.0", "inner.2"), ("set_dropout", "p")),
        ),
        (nn.Sequential(All(nn.Linear(4, 4)), nn.Dropout(0.1)), {}),
        (nn.Sequential(nn.Dropout(0.1), Fixed()), {}),
        (Swaps(), {}),
    ],
    ids=["its own", "inside", "setattr", "all", "beside", "constructor", "replaced"],
)
def test_who_sets_a_rate(model, expected):
    assert found(model) == expected


def test_where_it_is_set():
    (setter,) = setters_of(ek.trace(Scheduler(), torch.zeros(2, 4))).values()
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert "setattr" in lines[setter.line - 1] and setter.label == f"step (test_rate_setters.py:{setter.line})"


def test_a_rate_that_reaches_no_norm_needs_no_finding():
    def codes(*behind):
        model = nn.Sequential(Scheduler(), nn.Linear(4, 4), *behind)
        return [
            finding.code for finding in ek.lint(model, torch.zeros(2, 4), guideline="hendrycks2016", select=["EK109"])
        ]

    assert codes(nn.BatchNorm1d(4)) == ["EK109"]
    assert codes(nn.LayerNorm(4)) == codes() == []
