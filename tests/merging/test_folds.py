"""Fold: what it makes of outputs has the mean and deviation asked for; units that do not vary keep their scale."""

import pytest
import torch
from mergednets import population

from evenkeel.merging.folds import Fold, Target, is_live


def outputs(seed=0):
    torch.manual_seed(seed)
    return torch.randn(50, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 5.0]) + torch.tensor([3.0, 0.0, -1.0])


TARGET = Target(torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([2.0, 0.3, 1.0]).double())


def test_outputs_get_mean_and_deviation():
    x = outputs()
    fold = Fold.to(TARGET, population(x), has_bias=True)
    y = fold.scale * x + fold.shift
    torch.testing.assert_close(y.mean(0), TARGET.mean)
    torch.testing.assert_close(y.std(0), TARGET.deviation)


def test_without_a_bias_they_get_the_deviation():
    x = outputs()
    fold = Fold.to(TARGET, population(x), has_bias=False)
    assert not fold.shift.any()
    torch.testing.assert_close((fold.scale * x).std(0), TARGET.deviation)


def test_one_after_the_other_is_both_in_one():
    x, first = outputs(), Fold(torch.tensor([2.0, 3.0, 4.0]).double(), torch.tensor([1.0, 0.0, -1.0]).double())
    second = Fold(torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([0.1, 0.2, 0.3]).double())
    both = second.after(first)
    torch.testing.assert_close(
        both.scale * x + both.shift, second.scale * (first.scale * x + first.shift) + second.shift
    )


def test_units_that_rounding_alone_varies_keep_their_scale():
    x = outputs()
    x[:, 0] = 1000 + 1e-5 * x[:, 1]
    assert is_live(population(x), TARGET).tolist() == [False, True, True]
    fold = Fold.to(TARGET, population(x), has_bias=True)
    assert fold.scale[0] == 1 and (x[:, 0].mean() + fold.shift[0]).item() == pytest.approx(1.0)


def test_targets_lie_between_the_end_points():
    one, other = outputs(0), outputs(1)
    target = Target.between([population(one), population(other)], [0.25, 0.75])
    torch.testing.assert_close(target.mean, 0.25 * one.mean(0) + 0.75 * other.mean(0))
    torch.testing.assert_close(target.deviation, 0.25 * one.std(0) + 0.75 * other.std(0))
