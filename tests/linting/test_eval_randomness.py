"""What differs by chance in eval mode, and what only looks so."""

import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek


class Net(nn.Module):
    """Forward is what a test makes of it."""

    def __init__(self, forward):
        super().__init__()
        self.run, self.linear, self.norm = forward, nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.scale, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.run(self, x)))


def stays_on(forward):
    found = ek.lint(Net(forward), torch.zeros(2, 4), guideline="hendrycks2016")
    return [finding.path for finding in found if finding.code == "EK101"]


def test_dropout_that_eval_mode_switches_off_is_no_offence():
    for drop in (F.dropout, lambda x, p, on: x * F.dropout(torch.ones_like(x), p, on)):
        assert stays_on(lambda m, x, drop=drop: m.linear(x) * drop(m.scale.sigmoid(), 0.5, m.training)) == []
        assert stays_on(lambda m, x, drop=drop: F.linear(x, drop(m.linear.weight, 0.5, m.training))) == []


def test_dropout_that_stays_on_is_one_on_parameters_too():
    assert stays_on(lambda m, x: F.linear(x, F.dropout(m.linear.weight, 0.5))) == ["dropout"]
    assert stays_on(lambda m, x: m.linear(x) * (torch.rand_like(x) < 0.5)) == ["mul"]


def test_only_what_reaches_the_output_is_one():
    def beside(m, x):
        m.seen = F.dropout(m.linear(x), 0.5).sum()
        return x

    assert stays_on(beside) == []


def test_a_rate_of_one_is_no_chance():
    assert stays_on(lambda m, x: F.dropout(m.linear(x), 1.0)) == []


def test_noise_that_is_no_dropout_is_never_called_so():
    noises = (
        lambda m, x: m.linear(x) + torch.randn_like(x),
        lambda m, x: torch.distributions.Normal(m.linear(x), m.linear(x).exp()).rsample(),
        lambda m, x: torch.bernoulli(m.linear(x).sigmoid()),
        lambda m, x: F.linear(x, m.linear.weight + 0.1 * torch.randn_like(m.linear.weight)),
    )
    for noise in noises:
        found = ek.lint(Net(noise), torch.zeros(2, 4), ignore=["EK3"])
        assert not [finding for finding in found if "dropout" in finding.message]
