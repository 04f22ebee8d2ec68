"""StreamMix: the moments of chi-squared over orders, and how rarely a shuffled stream is taken for a sorted one."""

import pytest
import torch

from evenkeel.reestimation.stream_mix import StreamMix, chi_squared

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


def test_batches_of_one_sample_cannot_tell():
    mix = StreamMix()
    assert not any(mix.add(SCORES[[i // 10]], {}) for i in range(100))
