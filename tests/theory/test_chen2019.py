"""chen2019's theorem: exact enumeration of discrete neurons, Monte Carlo within 4 standard errors, printed numbers."""

import math
from collections import defaultdict
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.theory.chen2019 import correlation_factor, dropped_entropy, information_factor

PROBABILITIES = st.floats(0, 0.95)
VALUES = (-1.0, 0.5, 2.0)
JOINT = dict(zip(product(VALUES, VALUES), (0.30, 0.05, 0.05, 0.02, 0.20, 0.08, 0.03, 0.07, 0.20), strict=True))
GROUPS, SAMPLES = 100, 4000


def joints(values=VALUES):
    """Joint laws of two neurons with these values."""
    masses = st.lists(st.floats(0.01, 1), min_size=len(values) ** 2, max_size=len(values) ** 2)
    return masses.map(lambda m: {pair: mass / sum(m) for pair, mass in zip(product(values, values), m, strict=True)})


def dropped(joint, p, scale=1.0):
    """The joint law behind dropout, gate by gate."""
    law = defaultdict(float)
    for (x, y), mass in joint.items():
        for g, h in product((0, 1), (0, 1)):
            law[g * x * scale, h * y * scale] += mass * math.prod((p, 1 - p)[gate] for gate in (g, h))
    return law


def marginal(joint, which):
    law = defaultdict(float)
    for pair, mass in joint.items():
        law[pair[which]] += mass
    return law


def entropy(law):
    return -sum(mass * math.log(mass) for mass in law.values() if mass > 0)


def information(joint):
    return entropy(marginal(joint, 0)) + entropy(marginal(joint, 1)) - entropy(joint)


# Enumeration


@given(joint=joints(), p=PROBABILITIES)
def test_information_falls_with_the_square_of_keep(joint, p):
    assert information(dropped(joint, p)) == pytest.approx(information_factor(p) * information(joint), abs=1e-12)


@given(joint=joints(), p=PROBABILITIES)
def test_entropy_is_keep_times_it_and_that_of_the_mask(joint, p):
    before, after = entropy(marginal(joint, 0)), entropy(marginal(dropped(joint, p), 0))
    assert after == pytest.approx(dropped_entropy(before, p))


@given(joint=joints(), p=st.floats(0.1, 0.9))
def test_the_scale_of_inverted_dropout_changes_neither(joint, p):
    law = dropped(joint, p, scale=1 / (1 - p))
    assert information(law) == pytest.approx(information(joint) * information_factor(p), abs=1e-12)
    assert entropy(marginal(law, 0)) == pytest.approx(dropped_entropy(entropy(marginal(joint, 0)), p))


@given(joint=joints((0.0, 1.0, 2.0)), p=PROBABILITIES)
def test_with_mass_at_0_the_information_factor_is_a_bound(joint, p):
    assert information(dropped(joint, p)) <= information_factor(p) * information(joint) + 1e-12


def test_a_norm_that_moves_the_zeros_restores_equality():
    rectified = {(max(x, 0.0), max(y, 0.0)): mass for (x, y), mass in JOINT.items()}
    moved = {(x - 0.7, y - 0.7): mass for (x, y), mass in rectified.items()}
    before = information(rectified)
    assert information(moved) == pytest.approx(before)
    assert information(dropped(rectified, 0.5)) < 0.9 * information_factor(0.5) * before
    assert information(dropped(moved, 0.5)) == pytest.approx(information_factor(0.5) * before)


# Monte Carlo


def sampled(joint, count):
    """Draws of the two neurons, shape (count, 2)."""
    masses = torch.tensor(list(joint.values()), dtype=torch.float64)
    picks = torch.multinomial(masses, count, replacement=True, generator=torch.Generator().manual_seed(7))
    return torch.tensor(list(joint), dtype=torch.float64)[picks]


def surprise(x):
    """-log of how often each value of x occurs."""
    _, which, counts = x.unique(return_inverse=True, return_counts=True)
    return -torch.log(counts / len(x))[which].double()


def within_errors(samples, expected):
    error = float(samples.std()) / math.sqrt(len(samples))
    return abs(float(samples.mean()) - expected) < 4 * error


@pytest.mark.parametrize("p", [0.05, 0.3, 0.7])
def test_information_and_entropy_equal_simulation(p):
    x = F.dropout(sampled(JOINT, GROUPS * SAMPLES), p, training=True)
    first, second, both = surprise(x[:, 0]), surprise(x[:, 1]), surprise(x[:, 0] + 100 * x[:, 1])
    assert within_errors(first + second - both, information_factor(p) * information(JOINT))
    assert within_errors(first, dropped_entropy(entropy(marginal(JOINT, 0)), p))


def pairs(correlation, mean, variance):
    """Normal pairs, shape (GROUPS, SAMPLES, 2); mean and variance are of either or of both."""
    z = torch.randn(GROUPS, SAMPLES, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    own = math.sqrt(1 - correlation**2)
    x = torch.stack([z[..., 0], correlation * z[..., 0] + own * z[..., 1]], -1)
    return torch.as_tensor(mean) + torch.as_tensor(variance).sqrt() * x


def correlations(x):
    """By group."""
    centred = x - x.mean(1, keepdim=True)
    return (centred[..., 0] * centred[..., 1]).mean(1) / (centred**2).mean(1).prod(-1).sqrt()


@pytest.mark.parametrize("p", [0.05, 0.5])
@pytest.mark.parametrize("correlation", [0.6, -0.3])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.0, 0.5), (-0.4, 2.0)])
def test_correlation_equals_simulation(p, correlation, mean, variance):
    noisy = F.dropout(pairs(correlation, mean, variance), p, training=True)
    factor = correlation_factor(p, mean=mean, variance=variance)
    assert within_errors(correlations(noisy), factor * correlation)


def test_correlation_of_unequal_neurons_takes_the_root_of_each_factor():
    mean, variance = torch.tensor([1.0, -0.2]), torch.tensor([0.5, 2.0])
    noisy = F.dropout(pairs(0.6, mean, variance), 0.4, training=True)
    factor = float(correlation_factor(0.4, mean=mean, variance=variance).sqrt().prod())
    assert within_errors(correlations(noisy), factor * 0.6)


def test_entropy_of_a_continuous_neuron_equals_simulation():
    """Of a normal x: an atom at 0, of surprise -log p, and the density keep phi(x), or of scaled x keep^2 phi."""
    z = torch.randn(GROUPS * SAMPLES, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    p, keep = 0.3, 0.7
    kept = torch.rand_like(z) < keep
    log_density = -(z**2) / 2 - math.log(2 * math.pi) / 2
    predicted = dropped_entropy(0.5 * math.log(2 * math.pi * math.e), p)
    plain = torch.where(kept, -math.log(keep) - log_density, torch.tensor(-math.log(p)))
    inverted = torch.where(kept, -2 * math.log(keep) - log_density, torch.tensor(-math.log(p)))
    assert within_errors(plain, predicted)
    assert within_errors(inverted, predicted - keep * math.log(keep))


# Limits and printed numbers


def test_without_dropout_nothing_changes():
    assert information_factor(0) == correlation_factor(0.0, mean=2.0, variance=0.1) == 1
    assert dropped_entropy(1.3, 0.0) == 1.3
    assert correlation_factor(0.5, mean=1.0) == 1 / 3
    assert dropped_entropy(1.3, 1e-9) == pytest.approx(1.3, abs=1e-7)


@pytest.mark.parametrize(("keep", "printed"), [(0.95, 0.9025), (0.8, 0.64), (0.5, 0.25)])
def test_information_as_printed(keep, printed):
    assert information_factor(1 - keep) == pytest.approx(printed)


@pytest.mark.parametrize(("keep", "printed"), [(0.95, 0.570), (0.5, 0.300)])
def test_correlation_as_printed(keep, printed):
    assert 0.6 * correlation_factor(1 - keep) == pytest.approx(printed)


def test_information_falls_faster_than_entropy_and_correlation():
    p = torch.linspace(0.05, 0.9, 18)
    assert (information_factor(p) < correlation_factor(p)).all()
    assert (information_factor(p) < dropped_entropy(1.0, p)).all()


# Tensors and refusals


def test_tensors_are_taken_element_by_element():
    p, mean = torch.tensor([0.0, 0.5], dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    expected = [[correlation_factor(float(q), mean=float(m), variance=2.0) for q in p] for m in mean]
    assert correlation_factor(p, mean=mean, variance=2.0).tolist() == expected
    assert information_factor(p).tolist() == [information_factor(0.0), information_factor(0.5)]
    assert dropped_entropy(1.2, p).tolist() == [dropped_entropy(1.2, 0.0), dropped_entropy(1.2, 0.5)]
    assert dropped_entropy(mean, 0.5).tolist() == [[dropped_entropy(float(m), 0.5)] for m in mean]
    assert all(isinstance(number, float) for number in (dropped_entropy(1.2, 0.5), correlation_factor(0.5)))


REFUSED = {
    "p of 1": (lambda: information_factor(1.0), "p is 1: the probability to drop is at least 0 and below 1"),
    "p below 0": (lambda: correlation_factor(-0.1), "p is -0.1"),
    "p of a tensor": (lambda: dropped_entropy(1.0, torch.tensor([0.5, 1.5])), "p is 1.5"),
    "entropy": (lambda: dropped_entropy(math.inf, 0.5), "the entropy is inf: give it in nats"),
    "mean": (lambda: correlation_factor(0.5, mean=math.nan), "the mean is nan"),
    "mean inf": (lambda: correlation_factor(0.5, mean=math.inf), "the mean is inf: give the finite mean"),
    "variance inf": (lambda: correlation_factor(0.5, variance=math.inf), "the variance is inf"),
    "variance": (lambda: correlation_factor(0.5, variance=0.0), "the variance is 0: a correlation needs one above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_give_the_number_and_the_remedy(name):
    call, message = REFUSED[name]
    with pytest.raises(ek.EvenkeelError, match=message):
        call()
