"""Population against pooling everything in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.population import Population, batch_moments

batches_of_batches = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=4)


@given(groups=batches_of_batches, offset=st.sampled_from([0.0, 1e3, -1e5]), seed=st.integers(0, 999))
def test_merging_in_any_grouping_equals_pooling(groups, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    population, seen, number = Population(), [], 0
    for group in groups:
        for size in group:
            number += 1
            x = (offset + torch.randn(size, 3, generator=generator)).double()
            seen.append(x)
            population.add(number, *batch_moments(x))
        assert population.merge() is None
    pooled = torch.cat(seen)
    assert population.count == len(pooled)
    assert torch.allclose(population.mean, pooled.mean(0), rtol=1e-12)
    if len(pooled) > 1:
        assert torch.allclose(population.variance, pooled.var(0), rtol=1e-6)
    assert (population.variance >= 0).all()


def test_merge_names_the_first_batch_that_is_not_finite_and_merges_nothing():
    population = Population()
    population.add(1, 8, torch.zeros(2), torch.ones(2))
    assert population.merge() is None
    population.add(2, 8, torch.zeros(2), torch.ones(2))
    population.add(3, 8, torch.tensor([0.0, math.inf]), torch.ones(2))
    population.add(4, 8, torch.zeros(2), torch.tensor([math.nan, 1.0]))
    assert population.merge() == 3
    assert population.count == 8
    population.drop(3)
    assert population.merge() == 4
    population.drop(4)
    assert population.merge() is None
    assert population.count == 16


def test_standard_error_counts_the_calls_of_one_batch_as_one():
    """Two uses with means far apart are the same in every batch: no sampling error comes of that."""
    population = Population()
    for number in range(6):
        for mean in (0.0, 100.0):
            population.add(number, 8, torch.full((2,), mean), torch.ones(2))
    assert population.merge() is None
    assert population.standard_error == pytest.approx(0, abs=1e-6)


def test_standard_error_of_one_batch_is_not_known():
    population = Population()
    population.add(1, 8, torch.zeros(2), torch.ones(2))
    population.merge()
    assert math.isnan(population.standard_error)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 4), (2, 3, 4, 4, 4)])
def test_batch_moments_are_those_of_every_channel(shape):
    x = torch.randn(shape)
    count, mean, variance = batch_moments(x)
    values = x.double().transpose(0, 1).flatten(1)
    assert count == values.shape[1]
    assert torch.allclose(mean.double(), values.mean(1), atol=1e-6)
    assert torch.allclose(variance.double(), values.var(1), rtol=1e-5)


def test_moments_of_a_single_value_are_finite():
    count, mean, variance = batch_moments(torch.tensor([[3.0, 4.0]]))
    assert (count, mean.tolist(), variance.tolist()) == (1, [3.0, 4.0], [0.0, 0.0])
