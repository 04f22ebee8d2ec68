"""Sums of a norm: its population and standard errors as of all batches at once, wherever they are cut."""

import pytest
import torch

from evenkeel.parts.norm_sums import NormSums
from evenkeel.statistics.population import Population, Statistics


def batches(count=9, level=0.0):
    torch.manual_seed(0)
    found = []
    for number in range(count):
        x = level + torch.randn(4 + number, 3) * torch.tensor([1.0, 2.0, 0.1]) + torch.randn(3)
        found.append([(number, Statistics(len(x), x.mean(0), x.var(0)))])
    return found


def of(parts, center=0.0, pooled=True):
    sums = NormSums(torch.full((3,), center), pooled=pooled)
    for part in parts:
        sums.add(part)
    return sums


def same(one, other):
    return all(map(torch.equal, one.values, other.values))


def test_the_bits_do_not_depend_on_order_or_cuts():
    parts = batches()
    whole = of(parts)
    assert same(whole, of(parts[::-1]))
    for cut in range(1, len(parts)):
        left, right = of(parts[:cut]), of(parts[cut:])
        right.add_all(left)
        assert same(whole, right)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("level", [0.0, 300.0])
def test_the_population_is_that_of_the_batches_merged_one_by_one(pooled, level):
    parts, slow = batches(level=level), Population(pooled=pooled)
    for part in parts:
        slow.add(part)
    slow.merge()
    fast = of(parts, level, pooled).population()
    assert fast.count == slow.count and fast.parts == slow.parts
    assert torch.allclose(fast.mean, slow.mean, rtol=1e-12) and torch.allclose(fast.variance, slow.variance, rtol=1e-9)


def test_standard_errors_are_those_of_a_population_about_the_center():
    parts = batches(40)
    slow = Population()
    for part in parts:
        slow.add(part)
    slow.merge()
    fast = of(parts, center=float(slow.mean.mean())).population()
    assert fast.standard_error == pytest.approx(slow.standard_error, rel=0.2)
    assert fast.errors == pytest.approx(slow.errors, rel=0.2)
    assert fast.moved(fast, fast).errors == pytest.approx(fast.errors)


def test_far_centers_cost_no_more_than_their_digits():
    parts = batches()
    near, far = of(parts).population(), of(parts, center=1e4).population()
    assert torch.allclose(near.variance, far.variance, rtol=1e-6)
    assert (of([[(0, Statistics(2, torch.ones(3), torch.zeros(3)))]], 1e4).population().variance >= 0).all()


def test_what_a_norm_is_called_on_twice_in_a_batch_counts_as_one_batch():
    one, two = (Statistics(4, torch.randn(3), torch.rand(3)) for _ in range(2))
    assert of([[(1, one), (1, two)]]).population().parts == 1
    assert of([[(1, one)], [(2, two)]]).population().parts == 2


def test_tensors_that_cannot_be_sums_are_refused():
    good = of(batches()).tensors()
    assert same(NormSums.of_tensors(good, pooled=True), of(batches()))
    for name, bad in {
        "channels": good["channels"][:, :5],
        "all": good["all"] * torch.nan,
        "center": good["center"][:2],
    }.items():
        with pytest.raises(ValueError, match="sums"):
            NormSums.of_tensors(good | {name: bad}, pooled=True)
    with pytest.raises(ValueError, match="no values"):
        NormSums.of_tensors(good | {"all": good["all"] * 0}, pooled=True)
