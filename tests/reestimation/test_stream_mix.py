"""StreamMix: the moments of chi-squared over orders, and how rarely a shuffled stream is taken for a sorted one."""

from itertools import pairwise

import pytest
import torch

from evenkeel.reestimation.stream_mix import StreamMix, chi_squared
from evenkeel.statistics.population import Population, batch_statistics

SCORES = torch.eye(10)


def table(rows, columns):
    counts = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1)
    return counts.index_put((rows, columns), torch.ones(len(rows)), accumulate=True)


@pytest.mark.parametrize("sizes", [((3, 8, 8, 2, 5), (10, 4, 9, 3)), ((6, 6), (7, 5))])
def test_moments_are_those_over_all_orders(sizes):
    torch.manual_seed(0)
    rows, columns = (torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in sizes)
    drawn = torch.tensor([chi_squared(table(rows, columns[torch.randperm(len(rows))]))[0] for _ in range(3000)])
    _, mean, deviation = chi_squared(table(rows, columns))
    assert abs(float(drawn.mean()) - mean) < 4 * deviation / 3000**0.5
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.08)


@pytest.mark.parametrize("size", [2, 8, 64])
@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_no_shuffled_stream_of_a_hundred_is_taken_for_sorted(size, skew):
    """Of classes as frequent as each other, and not."""
    torch.manual_seed(0)
    weights = torch.arange(1.0, 11.0) ** -skew
    alarms = 0
    for _ in range(100):
        mix = StreamMix()
        alarms += any(mix.add(SCORES[torch.multinomial(weights, size, replacement=True)], {}) for _ in range(40))
    assert alarms == 0


@pytest.mark.parametrize("size", [2, 8, 64])
def test_every_sorted_one_is(size):
    for seed in range(10):
        torch.manual_seed(seed)
        labels = torch.randint(10, (max(40 * size, 200),)).sort().values
        mix = StreamMix()
        messages = [mix.add(SCORES[part], {}) for part in labels.split(size)]
        assert sum(map(bool, messages)) == 1


@pytest.mark.parametrize("is_sorted", [True, False])
def test_of_one_sample_eight_batches_are_compared_as_one(is_sorted):
    torch.manual_seed(0)
    labels = torch.randint(10, (320,))
    mix = StreamMix()
    messages = [mix.add(SCORES[label][None], {}) for label in (labels.sort().values if is_sorted else labels)]
    assert any("of batches" in message for message in messages) is is_sorted


def fed(seed, size, shift=0.0):
    """What norms were fed by a batch whose mean is off by so many deviations."""
    population, x = Population(), shift + torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    population.add([(i, batch_statistics(row[None])) for i, row in enumerate(x)])
    population.merge()
    return {"norm": population}


@pytest.mark.slow
@pytest.mark.parametrize("is_classifier", [True, False])
def test_a_long_stream_takes_no_more_memory_and_is_still_compared(is_classifier):
    torch.manual_seed(0)
    mix, generator = StreamMix(), torch.Generator().manual_seed(0)

    def add(number, part):
        if is_classifier:
            return mix.add(SCORES[torch.randint(10, (16,), generator=generator) if part < 0 else [part] * 16], {})
        return mix.add(torch.ones(2, 1), fed(number, 16, max(part, 0)))

    assert not any(add(number, -1) for number in range(700))
    rows = mix._counts if is_classifier else mix._means["norm"]
    assert len(rows) <= 256
    assert (rows[0].first, rows[-1].last) == (1, 700)
    assert all(left.last + 1 == right.first for left, right in pairwise(rows))
    assert sum(float(row.held[-1]) for row in rows) == 700 or is_classifier
    assert any(add(number, number // 70 % 10) for number in range(700, 2100))


def test_a_batch_of_one_sample_does_not_keep_others_from_being_compared():
    mix = StreamMix()
    sizes = [1, *[16] * 20]
    assert any(mix.add(torch.ones(2, 1), fed(i, size, i % 5)) for i, size in enumerate(sizes))
    assert not any(StreamMix().add(torch.ones(2, 1), fed(i, size)) for i, size in enumerate(sizes))


def test_the_message_names_the_batch_by_its_place_in_the_stream():
    """Outputs of another number of classes are not compared, and are counted."""
    mix, messages = StreamMix(), []
    for i in range(40):
        messages.append(mix.add(torch.eye(3)[:2] if i % 2 else SCORES[[i // 2 % 10] * 16], {}))
    assert any("of batch 1, 100% are predicted as class 0" in message for message in messages)
