"""Stochastic depth is no offence, but its shift is said."""

import re

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.linting.findings import summary


class Block(nn.Module):
    def __init__(self, p=0.3):
        super().__init__()
        self.p, self.branch, self.norm, self.head = p, nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        branch = self.branch(x)
        if self.training:
            branch = branch * branch.new_empty(len(x), 1).bernoulli_(1 - self.p).div_(1 - self.p)
        return self.head(self.norm(x + branch))


def test_the_shift_of_stochastic_depth_is_a_note():
    torch.manual_seed(0)
    found = ek.lint(Block(), torch.zeros(2, 8), guideline="li2018")
    assert found == []
    (note,) = found.notes
    assert "p=0.3" in note and "exempt" in note and "test_sample_dropout.py" in note
    shift = ek.predict_shift(Block(), torch.zeros(2, 8))[0].ratio
    assert float(re.search(r"eval/train ([\d.]+) at norm", note)[1]) == pytest.approx(shift, abs=0.1)
    assert summary(found).splitlines() == ["no findings", f"note: {note}"]


@pytest.mark.parametrize(("model", "guideline"), [(Block(0.0), "li2018"), (Block(), "kim2023")])
def test_there_is_no_note_without_it_or_by_other_guidelines(model, guideline):
    assert ek.lint(model, torch.zeros(2, 8), guideline=guideline).notes == ()


class OfUnknownRate(Block):
    def __init__(self):
        super().__init__()
        del self.p  # which tells
        self.register_buffer("rate", torch.tensor(0.3))

    def forward(self, x):
        branch = self.branch(x)
        return self.head(self.norm(x + branch * (torch.rand(len(x), 1) > self.rate) if self.training else branch))


def test_a_rate_that_is_not_known_is_said_to_be_so():
    (note,) = ek.lint(OfUnknownRate(), torch.zeros(2, 8), guideline="li2018").notes
    assert "p=? (mul" in note
