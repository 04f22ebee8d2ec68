"""Pairs: slopes, their standard errors, and what a norm is to store for them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evenkeel.statistics.pairs import Pairs, paired_statistics

MEAN, VARIANCE = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([2.0, 0.5, 3.0])


def signals(count: int = 512, noise: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    off = torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 0.2, 4.0]) + torch.tensor([0.0, 3.0, -2.0])
    on = torch.tensor([0.5, 1.0, 1.4]) * off + 0.2 + noise * off.std(0) * torch.randn(count, 3, generator=generator)
    return off, on


def pairs_of(off: Tensor, on: Tensor, ends: list[int] | None = None, **options: object) -> Pairs:
    """Of pieces that end there."""
    pairs = Pairs(MEAN, VARIANCE, eps=1e-3, **options)  # type: ignore[arg-type]
    ends = [*(range(64, len(off), 64) if ends is None else ends), len(off)]
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > start:
            pairs.add([(number, paired_statistics(off[start:end], on[start:end]))])
    pairs.merge()
    return pairs


@given(sizes=st.lists(st.integers(20, 60), min_size=8, max_size=8), seed=st.integers(0, 50))
def test_slopes_are_those_of_least_squares_however_the_data_come(sizes, seed):
    off, on = signals(sum(sizes), seed=seed)
    pairs = pairs_of(off, on, list(itertools.accumulate(sizes[:-1])))
    x, y = off.double() - off.double().mean(0), on.double() - on.double().mean(0)
    slope = (x * y).sum(0) / x.square().sum(0)
    assert torch.allclose(pairs.slope.value, slope, rtol=1e-4) and pairs.slope.is_known.all()
    assert torch.allclose(pairs.off.variance, off.double().var(0), rtol=1e-4)
    assert torch.allclose(pairs.on.mean, on.double().mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("match", ["mean", "variance"])
def test_what_is_stored_follows(match):
    off, on = signals()
    pairs = pairs_of(off, on, match=match)
    k = pairs.slope.value
    if match == "variance":
        assert torch.allclose(k**2, on.double().var(0) / off.double().var(0), rtol=1e-5)
    matched, mean, variance = pairs.matched(), MEAN.double(), VARIANCE.double()
    assert torch.allclose(matched.variance, (variance + 1e-3) / k**2 - 1e-3, rtol=1e-9)
    assert torch.allclose(matched.mean, off.double().mean(0) - (on.double().mean(0) - mean) / k, atol=1e-5)
    # eval mode then gives the best affine prediction of train mode
    student = (off - matched.mean) / (matched.variance + 1e-3).sqrt()
    teacher = (on - mean) / (variance + 1e-3).sqrt()
    assert torch.allclose(student.mean(0), teacher.mean(0), atol=1e-5)
    if match == "mean":
        residual = teacher - student
        assert float(((residual - residual.mean(0)) * (off - off.mean(0))).mean(0).abs().max()) < 1e-5


@pytest.mark.parametrize("match", ["mean", "variance"])
def test_without_noise_nothing_changes_to_the_last_bit(match):
    off, _ = signals()
    matched = pairs_of(off, off.clone(), match=match).matched()
    assert matched.slope.value.eq(1).all() and matched.slope.error.eq(0).all()
    assert torch.equal(matched.mean, MEAN.double())
    assert torch.allclose(matched.variance, VARIANCE.double(), rtol=1e-14)
    assert torch.equal(matched.variance.float(), VARIANCE)


@pytest.mark.parametrize("match", ["mean", "variance"])
def test_standard_errors_are_those_of_repetition(match):
    found = [pairs_of(*signals(seed=seed), match=match).slope for seed in range(200)]
    values, errors = (torch.stack([getattr(slope, name) for slope in found]) for name in ("value", "error"))
    ratio = values.std(0) / errors.square().mean(0).sqrt()
    assert ratio.min() > 0.75 and ratio.max() < 1.35
    together = torch.tensor([pairs_of(*signals(seed=seed), match=match).standard_error for seed in range(5)])
    assert together.isfinite().all() and together.max() < 0.1


def test_batches_that_are_alike_inside_have_larger_errors():
    """Masks of whole batches: it is these that count."""
    generator = torch.Generator().manual_seed(0)
    off = torch.randn(32, 64, 3, generator=generator)
    scale = 1 + 0.5 * torch.randn(32, 1, 3, generator=generator)
    together = pairs_of(off.flatten(0, 1), (scale * off).flatten(0, 1)).slope.error
    apart = 1 + 0.5 * torch.randn(32, 64, 3, generator=generator)
    alone = pairs_of(off.flatten(0, 1), (apart * off).flatten(0, 1)).slope.error
    assert (together > 3 * alone).all() and together.mean() == pytest.approx(0.5 / math.sqrt(32), rel=0.3)


def test_unknown_slopes_stay_one():
    off, on = signals(noise=0.3)
    on[:, 1] = off[:, 1] + 30 * torch.randn(512) * off[:, 1].std()
    on[:, 2] = -off[:, 2]
    slope = pairs_of(off, on).slope
    assert slope.is_known.tolist() == [True, False, False] and slope.value[1:].tolist() == [1, 1]
    assert "2 of 3 channels" in slope.doubt and "standard errors up to" in slope.doubt
    matched = pairs_of(off, on).matched()
    assert torch.equal(matched.variance[1:].float(), VARIANCE[1:])


def test_channels_that_do_not_vary_are_dead():
    off, on = signals()
    off[:, 0] = 2
    slope = pairs_of(off, on).slope
    assert slope.is_dead.tolist() == [True, False, False] and slope.value[0] == 1 and not slope.doubt
    matched = pairs_of(off, on).matched()
    assert float(matched.variance[0]) == pytest.approx(float(VARIANCE[0])) and matched.mean.isfinite().all()
    assert matched.mean[0] == pytest.approx(float(MEAN[0] + 2 - on[:, 0].mean()), abs=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_few_parts_tell_no_slope(parts):
    off, on = signals()
    pairs = pairs_of(off, on, list(range(16, 16 * parts, 16)))
    assert pairs.slope.error.isnan().all() and math.isnan(pairs.standard_error) and pairs.slope.value.eq(1).all()
    assert "too few samples" in pairs.slope.doubt


def test_of_instances_variances_are_averaged():
    torch.manual_seed(0)
    off = torch.randn(64, 3, 50)
    on = 0.5 * off + 0.1 * torch.randn(64, 3, 50) + 10 * torch.randn(64, 3, 1)
    pairs = Pairs(MEAN, VARIANCE, eps=1e-3, pooled=False)
    for number, (one, other) in enumerate(zip(off.split(8), on.split(8), strict=True)):
        pairs.add([(number, paired_statistics(one, other, pooled=False))])
    pairs.merge()
    assert torch.allclose(pairs.slope.value, torch.full((3,), 0.5, dtype=torch.float64), atol=0.02)
    assert torch.allclose(pairs.on.variance, on.double().var(2).mean(0), rtol=1e-4)


def test_means_far_from_zero_do_no_harm():
    off, on = (x.double() for x in signals())
    expected = pairs_of(off, on).slope.value
    far = pairs_of((off + 1e4).float(), (on + 1e4).float()).slope.value
    assert torch.allclose(far, expected, atol=0.01)


def test_what_waits_counts():
    off, on = signals()
    whole, pairs = pairs_of(off, on), Pairs(MEAN, VARIANCE, eps=1e-3)
    for number, (one, other) in enumerate(zip(off.split(64), on.split(64), strict=True)):
        pairs.add([(number, paired_statistics(one, other))])
    pairs.pool()
    assert torch.allclose(pairs.matched().variance, whole.matched().variance)
    assert torch.allclose(pairs.slope.error, whole.slope.error) and pairs.standard_error == whole.standard_error
