"""Prior: what norms stored before counts as so many samples, as a number, one a norm, or as the errors say."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import evenkeel as ek


def trained(seed=0, count=4000):
    """A net that stores the exact statistics of many samples."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    ek.reestimate_(model, torch.randn(count, 6).split(100))
    return model


def means(model):
    return [model[i].running_mean.clone() for i in (1, 4)]


def test_one_number_for_all_norms_or_one_a_norm_by_path_or_in_order():
    data = list((1 + torch.randn(300, 6)).split(50))
    models = [trained() for _ in range(3)]
    for model, prior in zip(models, (700, {"1": 700, "4": 700}, [700, 700]), strict=True):
        ek.reestimate_(model, data, prior=prior)
    assert all(torch.equal(a, b) for m in models[1:] for a, b in zip(means(m), means(models[0]), strict=True))


@pytest.mark.parametrize("number", [np.float32(3), np.float64(3), np.int64(3)])
def test_a_number_of_numpy_is_a_number(number):
    results = []
    for prior in (3, number, {"": number}, [number]):
        norm = nn.BatchNorm1d(2)
        ek.reestimate_(norm, [torch.arange(8.0).reshape(4, 2)], prior=prior, unsure="write")
        results.append(norm.running_var)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_norm_that_is_not_named_is_replaced():
    data = list((1 + torch.randn(300, 6)).split(50))
    some, none = trained(), trained()
    ek.reestimate_(some, data, prior={"4": 1e9})
    ek.reestimate_(none, data)
    assert torch.allclose(some[1].running_mean, none[1].running_mean)
    assert torch.allclose(some[4].running_mean, trained()[4].running_mean, atol=1e-5)


def distance(model, right):
    return sum(float(((a - b) ** 2).sum()) for a, b in zip(means(model), means(right), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_by_the_errors_few_samples_of_the_same_data_hardly_move_a_norm(seed):
    right = trained(seed)
    plain, weighed = copy.deepcopy(right), copy.deepcopy(right)
    few = list(torch.randn(48, 6).split(4))
    done = ek.reestimate_(plain, few)
    ek.reestimate_(weighed, few, prior="auto")
    assert distance(weighed, right) < 0.5 * distance(plain, right)
    assert any("too few samples to tell" in note for note in done.notes)
    assert "prior='auto'" in str(done)


@pytest.mark.parametrize("seed", range(5))
def test_by_the_errors_other_data_replace_what_was_stored(seed):
    plain = trained(seed)
    weighed = copy.deepcopy(plain)
    other = list((2 + 3 * torch.randn(400, 6)).split(20))
    done = ek.reestimate_(plain, other)
    ek.reestimate_(weighed, other, prior="auto")
    before, new, blend = (model[1].running_mean for model in (trained(seed), plain, weighed))
    assert (blend - new).norm() < 0.05 * (before - new).norm()
    assert done[0].chance < 0.01


def test_samples_are_counted_as_told():
    one, other = trained(), trained()
    clouds = list((1 + torch.randn(400, 6)).split(100))  # four samples of a hundred points each
    ek.reestimate_(one, clouds, prior=4, samples=1)
    done = ek.reestimate_(other, clouds, prior=4, samples=lambda batch: 1)
    assert done.samples == 4 and all(map(torch.equal, means(one), means(other)))
    right, half = trained(), trained()
    ek.reestimate_(half, clouds)
    middle = (right[1].running_mean + half[1].running_mean) / 2
    assert torch.allclose(one[1].running_mean, middle, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": -1}, "not -1"),
        ({"prior": "much"}, "not 'much'"),
        ({"prior": {"9": 1}}, "'9', which is no norm"),
        ({"prior": [1, 2, 3]}, "3 numbers for 2 norms: 1, 4"),
        ({"samples": 0}, "samples must be a number of at least 1"),
    ],
)
def test_bad_arguments_change_nothing(options, message):
    model = trained()
    before = means(model)
    with pytest.raises(ek.EvenkeelError, match=message):
        ek.reestimate_(model, [torch.randn(8, 6)], **options)
    assert all(map(torch.equal, means(model), before))


def test_a_count_that_raises_names_the_batch():
    with pytest.raises(ek.BatchError, match=r"samples= raised KeyError.*on batch 1"):
        ek.reestimate_(trained(), [torch.randn(8, 6)], samples=lambda batch: {}["n"])
