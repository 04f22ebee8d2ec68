"""What is measured is what is normalised, and what is not finite is blamed on who made it so."""

import copy

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.statistics.measurement import NO_CALL


def rows(count=12, size=10):
    torch.manual_seed(1)
    return [(1 + 0.2 * i) * torch.randn(size, 4) + 0.1 * i for i in range(count)]


class ByHand(nn.BatchNorm1d):
    def forward(self, x):
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt()


def test_a_norm_that_calls_no_batch_norm_is_left_alone_and_named():
    model = nn.Sequential(ByHand(4), nn.BatchNorm1d(4))
    done = ek.reestimate_(model, rows())
    assert done.untouched == {"0": NO_CALL} and [row.path for row in done] == ["1"]
    assert torch.equal(model[0].running_var, torch.ones(4))
    assert f"0: {NO_CALL}" in ek.variance_shift(model, rows()).notes
    with pytest.raises(ek.BatchError, match=f"'0': {NO_CALL}"):
        ek.reestimate_(nn.Sequential(ByHand(4)), rows())


@pytest.mark.parametrize("what", ["weight", "running_var"])
def test_what_is_not_finite_in_the_model_is_blamed_not_the_batch(what):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    if what == "weight":
        model[2].weight.data[0, 0] = torch.nan
    else:
        model.train()[1].eval().running_var[0] = torch.nan  # frozen, so that it stays
    with pytest.raises(
        ek.BatchError, match=rf"^'{'2.weight' if what == 'weight' else '1.running_var'}' .* at norm '3'"
    ):
        ek.reestimate_(model, rows())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.0])
def test_statistics_that_cannot_be_are_repaired(value):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    right = copy.deepcopy(model)
    ek.reestimate_(right, rows())
    model[1].running_var[:2] = value
    model[1].running_mean[0] = value
    ek.reestimate_(model, rows())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), right.buffers(), strict=True))
