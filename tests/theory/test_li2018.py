"""li2018's Delta: Monte Carlo within 4 standard errors, the paper's own equations as oracles, its printed numbers."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.theory.li2018 import (
    channel_noise_variance,
    cos_squared,
    dropout_noise,
    equal_noise_beta,
    equal_noise_p,
    noise_variance,
    shift_before_norm,
    shift_ratio,
    shift_through_layer_norm,
    shift_through_weights,
    uout_noise,
    uout_shift,
)

GROUPS, SAMPLES = 100, 2000
PROBABILITIES = st.floats(0, 0.95)
MEANS = st.floats(-3, 3)
VARIANCES = st.floats(0.01, 10)

# What a ReLU makes of a normal variable.
RELU = {"mean": 1 / math.sqrt(2 * math.pi), "variance": 0.5 - 1 / (2 * math.pi)}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=5):  # not 0, from which the masks are drawn
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def dropped(x, p):
    return F.dropout(x, p, training=True)


def uout(x, beta):
    return x * (1 + beta * (2 * torch.rand_like(x) - 1))


def close_to_zero(samples):
    """Whether the mean of samples, one per group in the first dimension, is 0 within 4 standard errors."""
    return bool((samples.mean(0).abs() < 4 * samples.std(0) / math.sqrt(len(samples))).all())


def has_shift(ratio, test, train):
    """Whether Var(test) / Var(train) is the ratio, of samples in shape (GROUPS, SAMPLES, ...)."""
    return close_to_zero(ratio * train.var(1) - test.var(1))


def equicorrelated(d, rho, mean, variance):
    """Samples of d inputs, shape (GROUPS, SAMPLES, d), and their covariance."""
    covariance = variance * (rho * torch.ones(d, d, dtype=torch.float64) + (1 - rho) * torch.eye(d))
    return mean + normal(GROUPS, SAMPLES, d) @ torch.linalg.cholesky(covariance).T, covariance


def population(*shape):
    """Sixty-four correlated vectors of unequal means and variances, and GROUPS x SAMPLES draws of them."""
    vectors = torch.relu(normal(64, 6, seed=1) @ normal(6, math.prod(shape), seed=2) + 0.5).view(64, *shape)
    return vectors, vectors[torch.randint(64, (GROUPS, SAMPLES), generator=seeded(3))]


# Monte Carlo


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 1.3), (-2.0, 0.25)])
def test_case_a_equals_simulation(p, mean, variance):
    x = mean + math.sqrt(variance) * normal(GROUPS, SAMPLES)
    assert has_shift(shift_before_norm(p, mean=mean, variance=variance), x, dropped(x, p))


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 1.3), (-2.0, 0.25)])
def test_uout_equals_simulation(beta, mean, variance):
    x = mean + math.sqrt(variance) * normal(GROUPS, SAMPLES)
    assert has_shift(uout_shift(beta, mean=mean, variance=variance), x, uout(x, beta))


CASE_B = {"d": 6, "rho": 0.4, "mean": 0.7, "variance": 1.3}


@pytest.mark.parametrize("weight", [(1.0, 1, 1, 1, 1, 1), (1.0, -1, 2, 0.5, 0, 1), (1.0, -1, 1, -1, 1, -1)])
@pytest.mark.parametrize("rho", [0.4, 0.0, -0.15])
def test_case_b_and_uout_through_weights_equal_simulation(weight, rho):
    w = torch.tensor(weight, dtype=torch.float64)
    law = {**CASE_B, "rho": rho}
    x, _ = equicorrelated(**law)
    law["cos2"] = cos_squared(w)
    assert has_shift(shift_through_weights(0.3, **law), x @ w, dropped(x, 0.3) @ w)
    assert has_shift(uout_shift(1.0, **law), x @ w, uout(x, 1.0) @ w)


@pytest.mark.parametrize("noise", ["dropout", "uout", "normal"])
def test_any_noise_of_mean_1_adds_the_weighted_second_moments(noise):
    """Inputs correlate and have means and variances of their own; three units at once."""
    vectors, x = population(5)
    weight = normal(3, 5, seed=4)
    s2, noisy = {
        "dropout": (dropout_noise(0.4), dropped(x, 0.4)),
        "uout": (uout_noise(0.8), uout(x, 0.8)),
        "normal": (0.6, x * (1 + math.sqrt(0.6) * torch.randn_like(x))),
    }[noise]
    signal = (vectors @ weight.T).var(0, correction=0)
    added = noise_variance(weight, (vectors**2).mean(0), s2)
    assert close_to_zero((noisy @ weight.T).var(1) - (signal + added))
    assert has_shift(shift_ratio(signal, added), x @ weight.T, noisy @ weight.T)


def test_dropout_of_single_elements_before_a_convolution_equals_simulation():
    maps = torch.relu(normal(64, 3, 4, seed=1).cumsum(2) + 0.3)
    draws = maps[torch.randint(64, (GROUPS * SAMPLES,), generator=seeded(3))]
    weight = normal(2, 3, 4, seed=6)
    added = noise_variance(weight, (maps**2).mean(0), dropout_noise(0.3))
    signal = F.conv1d(maps, weight).squeeze(2).var(0, correction=0)
    noisy = F.conv1d(dropped(draws, 0.3), weight).view(GROUPS, SAMPLES, 2)
    assert close_to_zero(noisy.var(1) - (signal + added))


def test_dropout_of_whole_channels_before_a_convolution_equals_simulation():
    maps = torch.relu(normal(64, 3, 4, seed=1).cumsum(2) + 0.3)
    draws = maps[torch.randint(64, (GROUPS * SAMPLES,), generator=seeded(3))]
    weight = normal(2, 3, 4, seed=6)
    products = torch.einsum("nck,ncl->ckl", maps, maps) / len(maps)
    added = channel_noise_variance(weight, products, dropout_noise(0.3))
    signal = F.conv1d(maps, weight).squeeze(2).var(0, correction=0)
    noisy = F.conv1d(F.dropout1d(draws, 0.3), weight).view(GROUPS, SAMPLES, 2)
    assert close_to_zero(noisy.var(1) - (signal + added))
    alone = noise_variance(weight, products.diagonal(dim1=1, dim2=2), dropout_noise(0.3))
    assert not close_to_zero(noisy.var(1) - (signal + alone)), "the simulation cannot tell the two kinds apart"


@pytest.mark.parametrize(
    ("s2", "noisy"),
    [
        (dropout_noise(0.2), lambda x: dropped(x, 0.2)),
        (dropout_noise(0.8), lambda x: dropped(x, 0.8)),
        (uout_noise(0.5), lambda x: uout(x, 0.5)),
    ],
    ids=["dropout .2", "dropout .8", "uout .5"],
)
def test_noise_has_mean_1_and_its_variance(s2, noisy):
    noise = noisy(torch.ones(GROUPS, SAMPLES, dtype=torch.float64))
    assert close_to_zero(noise.mean(1) - 1)
    assert close_to_zero(noise.var(1) - s2)


def test_uout_is_as_noisy_as_dropout_at_the_equal_p():
    x = 0.5 + normal(GROUPS, SAMPLES)
    assert close_to_zero(dropped(x, equal_noise_p(0.9)).var(1) - uout(x, 0.9).var(1))


# The paper's equations, in its notation: p is the probability to keep


def equation_8(p, c, v):
    return v / ((c**2 + v) / p - c**2)


def equation_14(p, c, v, rho, product):
    return (v * rho + v * (1 - rho) / product) / (v * rho + ((1 / p - 1) * c**2 + v * (1 / p - rho)) / product)


def equations_9_to_11(p, c, v, rho, w):
    """Var^Test / Var^Train, pair of weights by pair of weights."""
    pairs = sum(w[i] * w[j] for i in range(len(w)) for j in range(len(w)) if i != j)
    single = sum(weight**2 for weight in w)
    rho_ax = equation_8(p, c, v) * rho
    return v * (single + rho * pairs) / (((c**2 + v) / p - c**2) * (single + rho_ax * pairs))


@given(p=PROBABILITIES, mean=MEANS, variance=VARIANCES)
def test_case_a_is_equation_8(p, mean, variance):
    assert shift_before_norm(p, mean=mean, variance=variance) == pytest.approx(equation_8(1 - p, mean, variance))


@given(p=PROBABILITIES, mean=MEANS, variance=VARIANCES, rho=st.floats(0, 1), d=st.integers(1, 5000))
def test_case_b_is_equation_14(p, mean, variance, rho, d):
    predicted = shift_through_weights(p, d=d, cos2=0.8, rho=rho, mean=mean, variance=variance)
    assert predicted == pytest.approx(equation_14(1 - p, mean, variance, rho, 0.8 * d))


WEIGHTS = st.lists(st.floats(0.1, 2) | st.floats(-2, -0.1), min_size=2, max_size=6)


@given(w=WEIGHTS, p=PROBABILITIES, mean=MEANS, variance=VARIANCES, rho=st.floats(-0.15, 0.95))
def test_case_b_is_equations_9_to_11_and_a_case_of_the_identity(w, p, mean, variance, rho):
    weight = torch.tensor(w, dtype=torch.float64)
    predicted = float(
        shift_through_weights(p, d=len(w), cos2=cos_squared(weight), rho=rho, mean=mean, variance=variance)
    )
    assert predicted == pytest.approx(equations_9_to_11(1 - p, mean, variance, rho, w))
    covariance = variance * (rho * torch.ones(len(w), len(w)) + (1 - rho) * torch.eye(len(w))).double()
    added = noise_variance(weight, torch.full_like(weight, mean**2 + variance), dropout_noise(p))
    assert predicted == pytest.approx(float(shift_ratio(weight @ covariance @ weight, added)), rel=1e-6)


@given(w=WEIGHTS)
def test_cos_squared_is_that_of_the_angle_to_ones(w):
    weight = torch.tensor(w, dtype=torch.float64)
    cosine = F.cosine_similarity(weight, torch.ones_like(weight), dim=0)
    assert float(cos_squared(weight)) == pytest.approx(float(cosine**2), abs=1e-12)


def test_cos_squared_flattens_filters():
    weight = normal(4, 3, 5, 5)
    by_hand = [float(filters.sum() ** 2 / (75 * (filters**2).sum())) for filters in weight]
    assert cos_squared(weight).tolist() == pytest.approx(by_hand)


def test_cos_squared_of_random_weights_is_one_over_d():
    d = 50
    assert close_to_zero(cos_squared(normal(4000, d)) - 1 / d)


@given(beta=st.floats(0, 1), mean=MEANS, variance=VARIANCES, d=st.integers(1, 500), rho=st.floats(0, 0.9))
def test_uout_is_dropout_of_the_equal_p(beta, mean, variance, d, rho):
    law = {"mean": mean, "variance": variance, "d": d, "cos2": 0.3, "rho": rho}
    assert uout_shift(beta, **law) == pytest.approx(shift_through_weights(equal_noise_p(beta), **law))


def test_channels_of_one_position_are_single_elements():
    weight, squares = normal(3, 4), torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    by_channel = channel_noise_variance(weight, squares.view(4, 1, 1), 0.7)
    assert torch.allclose(by_channel, noise_variance(weight, squares, 0.7))
    assert torch.allclose(by_channel, channel_noise_variance(weight[..., None, None], squares.view(4, 1, 1), 0.7))


def test_second_moments_by_channel_hold_at_every_filter_position():
    weight, squares = normal(3, 4, 2, 2), torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    spread = squares.view(4, 1, 1).expand(4, 2, 2)
    assert torch.equal(noise_variance(weight, squares.view(4, 1, 1), 0.7), noise_variance(weight, spread, 0.7))


# Limits


@given(mean=MEANS, variance=VARIANCES)
def test_without_noise_there_is_no_shift(mean, variance):
    law = {"mean": mean, "variance": variance}
    assert shift_before_norm(0, **law) == uout_shift(0, **law) == 1
    assert shift_through_weights(0.0, d=9, cos2=0.1, rho=0.2, **law) == 1
    assert shift_before_norm(1e-9, **law) == pytest.approx(1, abs=1e-5)


@given(p=PROBABILITIES, d=st.integers(1, 5000), cos2=st.floats(0, 1), mean=MEANS)
def test_width_does_nothing_for_uncorrelated_inputs(p, d, cos2, mean):
    alone = shift_before_norm(p, mean=mean)
    assert shift_through_weights(p, d=d, cos2=cos2, rho=0, mean=mean) == pytest.approx(alone)
    assert shift_through_weights(p, d=d, cos2=1 / d, rho=0.3, mean=mean) == pytest.approx(alone)


def test_width_heals_correlated_inputs():
    shifts = [shift_through_weights(0.5, d=d, cos2=0.05, rho=0.1, mean=1.0) for d in (20, 200, 2000, 2e8)]
    assert all(narrow < wide for narrow, wide in pairwise(shifts))
    assert shifts[-1] == pytest.approx(1, abs=1e-5)


def test_a_mean_makes_it_worse():
    means = torch.linspace(0, 3, 7)
    for shifts in (shift_before_norm(0.3, mean=means), uout_shift(0.5, mean=means)):
        assert (shifts.diff() < 0).all()


def test_of_opposite_inputs_and_weights_the_signal_counts_twice():
    """With x_2 = -x_1 and w = (1, -1), w.x = 2 x_1: variance 4 v against 2 s2 v."""
    assert shift_through_weights(0.5, d=2, cos2=0, rho=-1, variance=3.0) == pytest.approx(4 / (4 + 2))


# Printed numbers


def test_case_a_as_printed():
    assert shift_before_norm(0.1) == pytest.approx(0.9)
    assert shift_before_norm(0.4, mean=0.7, variance=1.3) == pytest.approx(0.5214, abs=5e-5)


@pytest.mark.parametrize(("p", "printed"), [(0.05, 0.928), (0.1, 0.860), (0.3, 0.614), (0.5, 0.405)])
def test_case_a_behind_a_relu_as_printed(p, printed):
    assert shift_before_norm(p, **RELU) == pytest.approx(printed, abs=6e-4)


@pytest.mark.parametrize(("product", "printed"), [(2.92, 0.544), (52.7, 0.861)])
def test_case_b_as_printed(product, printed):
    assert shift_through_weights(0.5, d=product, cos2=1, rho=0.1) == pytest.approx(printed, abs=5e-4)
    assert shift_through_weights(0.5, d=10 * product, cos2=0.1, rho=0.1) == pytest.approx(printed, abs=5e-4)


def test_uout_as_printed():
    assert uout_shift(0.1) == pytest.approx(300 / 301)
    assert uout_shift(0.5) == pytest.approx(0.9231, abs=5e-5)
    assert uout_shift(0.5, mean=0.7, variance=1.3) == pytest.approx(0.8971, abs=5e-5)
    assert uout_shift(0.5, mean=1.0) == pytest.approx(6 / 7)


@pytest.mark.parametrize(("beta", "percent"), [(0.1, 0.33), (0.3, 2.9), (0.5, 7.7), (1.0, 25)])
def test_equal_noise_as_printed(beta, percent):
    assert 100 * equal_noise_p(beta) == pytest.approx(percent, abs=0.05)


# Tensors


def test_tensors_are_taken_element_by_element():
    p, mean = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    shifts = shift_before_norm(p, mean=mean, variance=2.0)
    through = shift_through_weights(p, d=torch.tensor(7.0), cos2=0.5, rho=mean / 2, mean=mean, variance=2.0)
    spread = uout_shift(p, mean=mean, variance=2.0, d=7, cos2=0.5, rho=mean / 2)
    assert shifts.shape == through.shape == spread.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            law = {"mean": float(mean[i]), "variance": 2.0}
            case_b = {**law, "d": 7, "cos2": 0.5, "rho": float(mean[i]) / 2}
            assert float(shifts[i, j]) == pytest.approx(shift_before_norm(float(p[j]), **law))
            assert float(through[i, j]) == pytest.approx(shift_through_weights(float(p[j]), **case_b))
            assert float(spread[i, j]) == pytest.approx(uout_shift(float(p[j]), **case_b))
    assert isinstance(shift_before_norm(0.5), float)


# Refusals

CASE = {"d": 9, "cos2": 0.1, "rho": 0.2}
REFUSED = {
    "p of 1": (lambda: shift_before_norm(1.0), "p is 1: the probability to drop is at least 0 and below 1"),
    "p below 0": (lambda: shift_through_weights(-0.1, **CASE), "p is -0.1"),
    "p of a tensor": (lambda: dropout_noise(torch.tensor([0.5, 1.5, 2.0])), "p is 1.5"),
    "p nan": (lambda: dropout_noise(math.nan), "p is nan"),
    "beta below 0": (lambda: uout_shift(-0.5), "beta is -0.5"),
    "beta inf": (lambda: equal_noise_p(math.inf), "beta is inf"),
    "variance 0": (lambda: shift_before_norm(0.5, variance=0.0), "the variance is 0"),
    "variance inf": (lambda: shift_before_norm(0.5, variance=math.inf), "the variance is inf"),
    "variances": (lambda: uout_shift(0.5, variance=torch.tensor([1.0, -2.0])), "the variance is -2"),
    "mean inf": (lambda: shift_before_norm(0.5, mean=-math.inf), "the mean is -inf"),
    "d": (lambda: shift_through_weights(0.5, **{**CASE, "d": 0}), "d is 0: a unit has at least one input"),
    "cos2": (lambda: shift_through_weights(0.5, **{**CASE, "cos2": 1.1}), "cos2 is 1.1"),
    "rho": (lambda: shift_through_weights(0.5, **{**CASE, "rho": 1.1}), "rho is 1.1"),
    "rho below -1": (lambda: uout_shift(0.5, rho=-1.5), "rho is -1.5"),
    "impossible rho": (lambda: uout_shift(0.5, **{**CASE, "rho": -0.2}), r"1 \+ rho \(d - 1\) is -0.6: .* raise rho"),
    "no signal": (lambda: uout_shift(0.5, d=9, cos2=0, rho=1), r"\(d cos2 - 1\) is 0: these weights leave no variance"),
    "zero weights": (lambda: cos_squared(torch.tensor([[1.0, 2], [0, 0]])), "mean squared weight is 0"),
    "infinite weights": (lambda: cos_squared(torch.tensor([math.inf, 1])), "mean squared weight is inf"),
    "moments": (lambda: noise_variance(torch.ones(2, 3), -torch.ones(3), 1.0), "a second moment is -1"),
    "shapes": (
        lambda: noise_variance(torch.ones(2, 3), torch.ones(2), 1.0),
        r"shape \(2,\) do not broadcast to .*2, 3",
    ),
    "noise": (
        lambda: noise_variance(torch.ones(2, 3), torch.ones(3), -1.0),
        "the noise variance is -1: .*dropout_noise",
    ),
    "channel noise": (
        lambda: channel_noise_variance(torch.ones(2, 3), torch.ones(3, 1, 1), -1.0),
        "noise variance is -1",
    ),
    "products": (lambda: channel_noise_variance(torch.ones(2, 3, 5), torch.ones(3, 5), 1.0), r"\(3, 5\) do not fit"),
    "one unit": (lambda: channel_noise_variance(torch.ones(3), torch.ones(3, 1, 1), 1.0), r"weight of shape \(3,\)"),
    "added": (lambda: shift_ratio(1.0, -0.1), "the added variance is -0.1"),
    "nothing": (lambda: shift_ratio(0.0, 1.0), "the variance is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_give_the_number_and_the_remedy(name):
    call, message = REFUSED[name]
    with pytest.raises(ek.EvenkeelError, match=message):
        call()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.5])
def test_equal_noise_goes_both_ways(p):
    assert equal_noise_p(equal_noise_beta(p)) == pytest.approx(p)


@pytest.mark.parametrize(("p", "printed"), [(0.1, 1.10), (0.3, 1.39), (0.5, 1.88)])
def test_through_a_layer_norm_weights_that_read_the_signal_turn_the_shift_round(p, printed):
    """A signal of rank 16 among 256 features; weights that read it, and random ones."""
    basis, _ = torch.linalg.qr(normal(256, 16))
    x = normal(4000, 16, seed=1) @ basis.T * 4
    eval_mode, train_mode = (F.layer_norm(t, (256,)) for t in (x, dropped(x, p)))
    aligned, random = basis.T, normal(16, 256, seed=2)
    for weight, expected in ((aligned, shift_through_layer_norm(p, noise_gain=16 / 256)), (random, 1.0)):
        found = (eval_mode @ weight.T).var(0).mean() / (train_mode @ weight.T).var(0).mean()
        assert float(found) == pytest.approx(float(expected), rel=0.04)
    assert shift_through_layer_norm(p, noise_gain=16 / 256) == pytest.approx(printed, abs=0.005)


@pytest.mark.parametrize(
    "options", [{"p": 1.0}, {"p": -0.1}, {"p": 0.5, "noise_gain": -1.0}, {"p": 0.5, "noise_gain": math.inf}]
)
def test_shift_through_layer_norm_refuses_what_cannot_be(options):
    with pytest.raises(ek.EvenkeelError):
        shift_through_layer_norm(**options)
