"""Population against pooling everything in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.statistics.population import Population, Statistics, batch_statistics

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
            population.add([(number, batch_statistics(x))])
        population.merge()
    pooled = torch.cat(seen)
    assert population.count == len(pooled)
    assert torch.allclose(population.mean, pooled.mean(0), rtol=1e-12)
    if len(pooled) > 1:
        assert torch.allclose(population.variance, pooled.var(0), rtol=1e-6)
    assert (population.variance >= 0).all()


@given(seed=st.integers(0, 99), keep=st.integers(1, 5))
def test_a_copy_stays_as_it_was(seed, keep):
    generator = torch.Generator().manual_seed(seed)
    parts = [(i, batch_statistics(torch.randn(8, 3, generator=generator))) for i in range(6)]
    population = Population()
    population.add(parts[:keep])
    population.pool()
    copy = population.copy()
    before = copy.statistics
    population.add(parts[keep:])
    population.merge()
    assert copy.statistics.size == before.size == 8 * keep < population.count
    assert torch.equal(copy.mean, before.mean) and torch.equal(copy.variance, before.variance)


def test_moved_is_exact_for_a_change_of_scale_and_offset():
    """What the part's samples tell of a change holds for all: here it is the same for all."""
    torch.manual_seed(0)
    whole, part = torch.randn(1000, 3), torch.randn(50, 3)
    populations = []
    for x in (whole, part, 3 * part + 2):
        populations.append(Population())
        populations[-1].add([(0, batch_statistics(x.double()))])
        populations[-1].merge()
    moved = populations[0].moved(*populations[1:])
    assert torch.allclose(moved.variance, 9 * whole.double().var(0), rtol=0.02)
    assert torch.allclose(moved.mean - populations[0].mean, 2 + 2 * part.double().mean(0), rtol=1e-6)


def test_a_channel_that_did_not_vary_in_the_part_is_left_alone():
    whole, part = Population(), Population()
    whole.add([(0, Statistics(100, torch.zeros(2), torch.ones(2)))])
    part.add([(0, Statistics(10, torch.zeros(2), torch.tensor([0.0, 1.0])))])
    whole.merge(), part.merge()
    moved = whole.moved(part, part)
    assert torch.allclose(moved.variance, torch.ones(2).double())


def test_standard_error_counts_the_calls_of_one_batch_as_one():
    """Two uses with means far apart are the same in every batch: no sampling error comes of that."""
    population = Population()
    for number in range(6):
        for mean in (0.0, 100.0):
            population.add([(number, Statistics(8, torch.full((2,), mean), torch.ones(2)))])
            population.pool()
    population.close()
    assert population.standard_error == pytest.approx(0, abs=1e-6)


def test_standard_error_of_one_batch_is_not_known():
    population = Population()
    population.add([(1, Statistics(8, torch.zeros(2), torch.ones(2)))])
    population.merge()
    assert math.isnan(population.standard_error)


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("parts", [2, 3, 4, 8])
def test_errors_are_how_far_statistics_are_from_the_truth(parts, spread):
    """Of images whose means differ by this variance, within them 1: not below, and above only of very few."""
    generator = torch.Generator().manual_seed(0)
    told, true = torch.zeros(2), torch.zeros(2)
    for _ in range(300):
        means = spread**0.5 * torch.randn(parts, 1, 8, 1, generator=generator, dtype=torch.float64)
        population = Population()
        x = means + torch.randn(parts, 1, 8, 16, generator=generator, dtype=torch.float64)
        population.add([(number, batch_statistics(image)) for number, image in enumerate(x)])
        population.merge()
        logs = (population.variance / (1 + spread)).log()
        told += torch.tensor(population.errors) ** 2
        true += torch.stack([population.mean.square().mean() / population.variance.mean(), logs.square().mean()])
    most = {2: 5, 3: 2, 4: 1.6, 8: 1.3}[parts]
    assert (told > 0.8 * true).all() and (told < most * true).all()


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 4), (2, 3, 4, 4, 4)])
def test_batch_statistics_are_those_of_every_channel(shape):
    x = torch.randn(shape)
    count, mean, variance = batch_statistics(x)
    values = x.double().transpose(0, 1).flatten(1)
    assert count == values.shape[1]
    assert torch.allclose(mean.double(), values.mean(1), atol=1e-6)
    assert torch.allclose(variance.double(), values.var(1), rtol=1e-5)


def test_moments_of_a_single_value_are_finite():
    count, mean, variance = batch_statistics(torch.tensor([[3.0, 4.0]]))
    assert (count, mean.tolist(), variance.tolist()) == (1, [3.0, 4.0], [0.0, 0.0])


def test_what_did_not_vary_is_not_kept_from_varying():
    dead, alive = Population(), Population()
    dead.add([(0, batch_statistics(torch.zeros(8, 2)))])
    alive.add([(0, batch_statistics(torch.randn(8, 2)))])
    for population in (dead, alive):
        population.pool()
    assert torch.allclose(dead.toward(alive, 0.5).variance, alive.variance / 2)
    assert torch.allclose(dead.moved(dead, alive).variance, alive.variance)
    assert (alive.moved(alive, dead).variance < 0.02 * alive.variance).all()
