"""kim2023: dropout before or after a weight layer, in a residual branch, and before or after global average pooling.

Kim, Choi, Jang, Lee & Kim, "How to Use Dropout Correctly on Residual Networks with Batch Normalization", UAI 2023,
arXiv 2302.06112: Proposition 2, Propositions 3 and 4, and the head. The closed forms are derived from what the paper's
public code measures. p is always the probability to drop (that code's p is the one to keep) and dropout inverted, as
torch's: it multiplies by noise of mean 1 and variance r = p / (1 - p).
"""

from __future__ import annotations

import math

from torch import Tensor

from evenkeel.errors import EvenkeelError, require
from evenkeel.theory.li2018 import Number, dropout_noise


def pre_dropout_variance(weight: Tensor, mean: Tensor, covariance: Tensor, p: Number) -> Tensor:
    """Variance in training of a weight layer's outputs with dropout before it, w.(D x).

    `w'Sw + r sum_i w_i^2 M_ii`, of x's covariance S and second moments M = S + mean mean': Proposition 2. Assumed are
    masks independent of x and from element to element.

    Args:
        weight: shape (units, inputs), or one unit's, shape (inputs,).
        mean: E x, shape (inputs,).
        covariance: of x without dropout, shape (inputs, inputs).
        p: probability to drop, 0 <= p < 1.

    Returns:
        The variance by unit, shape (units,); of one unit, shape (). At p = 0 it is the variance in eval mode.

    Raises:
        EvenkeelError: p is out of range, or shapes do not fit.

    >>> import torch
    >>> weight, mean, covariance = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0]), torch.eye(2)
    >>> pre_dropout_variance(weight, mean, covariance, 0.5).item()
    6.0
    """
    _require_shapes(weight, mean, covariance)
    squares = covariance.diagonal() + mean**2
    return _quadratic(weight, covariance) + dropout_noise(p) * (weight**2 * squares).sum(-1)


def post_dropout_variance(weight: Tensor, mean: Tensor, covariance: Tensor, p: Number) -> Tensor:
    """Variance in training of a weight layer's outputs with dropout after it, D(w.x).

    `w'Sw + r w'Mw`, of x's covariance S and second moments M = S + mean mean': Proposition 2. It exceeds that with
    dropout before by `r sum_{i != j} w_i w_j M_ij`: 0 on average over independent weights of mean 0, and
    `r m^2 sum_{i != j} M_ij` over those of mean m, which of non-negative x is never negative.

    Args:
        weight: shape (units, inputs), or one unit's, shape (inputs,).
        mean: E x, shape (inputs,).
        covariance: of x without dropout, shape (inputs, inputs).
        p: probability to drop, 0 <= p < 1.

    Returns:
        The variance by unit, shape (units,); of one unit, shape (). At p = 0 it is the variance in eval mode.

    Raises:
        EvenkeelError: p is out of range, or shapes do not fit.

    >>> import torch
    >>> weight, mean, covariance = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.ones(2), torch.eye(2)
    >>> post_dropout_variance(weight, mean, covariance, 0.5).tolist()
    [8.0, 4.0]
    """
    _require_shapes(weight, mean, covariance)
    signal = _quadratic(weight, covariance)
    return signal + dropout_noise(p) * (signal + (weight * mean).sum(-1) ** 2)


def residual_dilution(branch_shift: Number, *, trunk: Number, branch: Number, trunk_shift: Number = 1.0) -> Number:
    """Delta = Var_eval / Var_train behind the addition of a residual block, x + f(x).

    `(V_x + V_f) / (V_x / Delta_x + V_f / Delta_f)`, Propositions 3 and 4: the mean, weighted and harmonic, of the two
    shifts. With a trunk free of shift, Delta_x = 1, it lies between Delta_f and 1, and goes to 1 as the trunk outgrows
    the branch. Assumed is that x and f(x) do not correlate in either mode. What stale
    norms inside the branch do to V_f is part of V_f.

    Args:
        branch_shift: Delta_f, of the branch's output, > 0.
        trunk: V_x, the trunk's variance in eval mode, >= 0.
        branch: V_f, the variance of the branch's output in eval mode, >= 0, in the same units.
        trunk_shift: Delta_x, of the trunk before the addition, > 0. All may be numbers or tensors that broadcast.

    Returns:
        Delta of the sum.

    Raises:
        EvenkeelError: a shift is not positive, a variance negative, both variances 0, or one of them not finite.

    >>> import torch
    >>> residual_dilution(0.5, trunk=1.0, branch=1.0) == 2 / 3
    True
    """
    for name, shift in (("the branch's shift", branch_shift), ("the trunk's shift", trunk_shift)):
        require(name, shift, (shift > 0) & (shift < math.inf), "Delta = Var_eval / Var_train is finite and above 0")
    for name, part in (("the trunk's variance", trunk), ("the branch's variance", branch)):
        require(name, part, (part >= 0) & (part < math.inf), "a variance is finite and at least 0")
    total = trunk + branch
    require("the variance of the sum", total, total > 0, "nothing is left of trunk and branch to compare with")
    return total / (trunk / trunk_shift + branch / branch_shift)


def noise_before_pooling(maps: Tensor, p: Number) -> Tensor:
    """Variance, over masks, of global average pooling with dropout before it.

    `r sum_s x_s^2 / S^2` of a map of S positions, each of which has its own mask. If a channel's positions share one,
    as in torch's Dropout2d, it is `noise_after_pooling`.

    Args:
        maps: what dropout acts on, shape (batch, channels, ...), the positions behind.
        p: probability to drop, 0 <= p < 1.

    Returns:
        The variance of each pooled value, shape (batch, channels).

    Raises:
        EvenkeelError: p is out of range, or the maps have no positions.

    >>> import torch
    >>> noise_before_pooling(torch.tensor([[[1.0, 1.0]]]), 0.5).item()
    0.5
    """
    return dropout_noise(p) * (_positions(maps) ** 2).sum(2) / _positions(maps).shape[2] ** 2


def noise_after_pooling(maps: Tensor, p: Number) -> Tensor:
    """Variance, over masks, of global average pooling with dropout after it.

    `r (sum_s x_s)^2 / S^2` of a map of S positions.

    Args:
        maps: what is pooled, shape (batch, channels, ...), the positions behind.
        p: probability to drop, 0 <= p < 1.

    Returns:
        The variance of each pooled value, shape (batch, channels).

    Raises:
        EvenkeelError: p is out of range, or the maps have no positions.

    >>> import torch
    >>> noise_after_pooling(torch.tensor([[[1.0, 1.0]]]), 0.5).item()
    1.0
    """
    return dropout_noise(p) * _positions(maps).mean(2) ** 2


def head_variance_ratio(maps: Tensor) -> Tensor:
    """How much less noise dropout makes before global average pooling than, at the same p, after it.

    `sum_s x_s^2 / (sum_s x_s)^2`. Of S values none of which is negative it lies between 1 / S, if all are equal, and 1,
    if a single one is not 0: so before is never worse. Values of both signs may exceed 1.

    Args:
        maps: shape (batch, channels, ...), the positions behind.

    Returns:
        The ratio of the variances over masks by map, shape (batch, channels).

    Raises:
        EvenkeelError: the maps have no positions, or one sums to 0.

    >>> import torch
    >>> head_variance_ratio(torch.tensor([[[1.0, 1.0, 1.0, 1.0], [0.0, 3.0, 0.0, 0.0]]])).tolist()
    [[0.25, 1.0]]
    """
    sums = _positions(maps).sum(2)
    if (count := int((sums == 0).sum())) > 0:
        raise EvenkeelError(
            f"{count} of {sums.numel()} maps sum to 0, so dropout after pooling makes no noise to compare with: leave "
            "them out, or compare noise_before_pooling with noise_after_pooling"
        )
    return (_positions(maps) ** 2).sum(2) / sums**2


def expected_head_variance_ratio(positions: Number, *, mean: Number, variance: Number, rho: Number = 0.0) -> Number:
    """How much less noise dropout makes before pooling than after it, averaged over the maps of a distribution.

    `(m^2 + v) / (v + (S - 1) rho v + S m^2)`, the ratio of E sum_s x_s^2 to E (sum_s x_s)^2. Of independent rectified
    normal values it is about pi / S.

    Args:
        positions: S, >= 1.
        mean: m, of the values.
        variance: v, of the values, >= 0.
        rho: correlation of two positions, averaged over all pairs, between -1 / (S - 1) and 1. All may be numbers or
            tensors that broadcast.

    Returns:
        The ratio of the expected variances over masks.

    Raises:
        EvenkeelError: an argument is out of range, or the sum of the values is always 0.

    >>> import torch
    >>> round(expected_head_variance_ratio(49, mean=0.398942, variance=0.340845), 4)
    0.0614
    """
    require("positions", positions, (positions >= 1) & (positions < math.inf), "a map has at least one position")
    require("the mean", mean, abs(mean) < math.inf, "give the finite mean of the values")
    require("the variance", variance, (variance >= 0) & (variance < math.inf), "it is finite and at least 0")
    require("rho", rho, (rho >= -1) & (rho <= 1), "a correlation lies between -1 and 1")
    least = 1 + (positions - 1) * rho
    require("1 + rho (S - 1)", least, least > -1e-6, "no S values correlate by less than -1 / (S - 1); raise rho")
    after = variance * least + positions * mean**2
    require("the sum's mean square over S", after, after > 0, "dropout after pooling needs a sum other than 0")
    return (mean**2 + variance) / after


def _quadratic(weight: Tensor, matrix: Tensor) -> Tensor:
    """The form w'Aw by unit."""
    return ((weight @ matrix) * weight).sum(-1)


def _positions(maps: Tensor) -> Tensor:
    if maps.ndim < 3 or maps.numel() == 0:
        raise EvenkeelError(f"maps of shape {tuple(maps.shape)} have no positions: give (batch, channels, ...)")
    return maps.flatten(2)


def _require_shapes(weight: Tensor, mean: Tensor, covariance: Tensor) -> None:
    inputs = tuple(weight.shape[-1:])
    if not inputs or tuple(mean.shape) != inputs or tuple(covariance.shape) != inputs * 2:
        raise EvenkeelError(
            f"a weight of shape {tuple(weight.shape)}, a mean of {tuple(mean.shape)} and a covariance of "
            f"{tuple(covariance.shape)} do not fit: of (units, inputs) they have shape (inputs,) and (inputs, inputs)"
        )
