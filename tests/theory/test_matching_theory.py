"""What matching variances and means keeps: closed forms, Monte Carlo within 4 standard errors, torch's norms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.theory.li2018 import dropout_noise, noise_variance, shift_before_norm, shift_ratio
from evenkeel.theory.matching import dropout_stretch, mean_matched, shift_through, slope_through, stretch

GROUPS, SAMPLES = 100, 2000
MEANS, VARIANCES, NOISES = st.floats(-2, 2), st.floats(0.05, 10), st.floats(0.01, 10)
CASES = [(0.0, 1.0, 1.0), (0.7, 1.3, 0.4), (-1.0, 0.5, 2.0), (3.0, 100.0, 1e-3), (0.2, 0.01, 5.0)]
FEW = settings(max_examples=6, deadline=None)


def normal(*shape, seed=5):  # not 0, from which the masks are drawn
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dropped(x, p):
    return F.dropout(x, p, training=True)


def close_to_zero(samples):
    """Whether the mean of samples, one per group in the first dimension, is 0 within 4 standard errors."""
    return bool((samples.mean(0).abs() < 4 * samples.std(0) / math.sqrt(len(samples))).all())


def covariance(a, b):
    """By group, in the first dimension."""
    return ((a - a.mean(1, keepdim=True)) * (b - b.mean(1, keepdim=True))).sum(1) / (a.shape[1] - 1)


def has_slope(k, plain, noisy):
    """Whether Cov(plain, noisy) / Var(plain) is k, of samples in shape (GROUPS, SAMPLES, ...)."""
    return close_to_zero(covariance(plain, noisy) - k * plain.var(1))


def jumping(z):
    return z + torch.sign(z - 0.4)


# The slope against closed forms

EXACT = {  # of mean m, variance v and noise n
    "sine": (torch.sin, lambda m, v, n: math.exp(-n / 2)),
    "square": (torch.square, lambda m, v, n: 1),
    "affine": (lambda z: 1e6 - 3 * z, lambda m, v, n: 1),
    "erf, a norm's density": (
        lambda z: torch.special.erf(z / 2**0.5),
        lambda m, v, n: erf_covariance(v, n) / erf_covariance(v, 0) if m == 0 else None,
    ),
    "cube": (lambda z: z**3, lambda m, v, n: 1 + 0.6 * n / v if m == 0 else None),
    "step": (torch.sign, lambda m, v, n: 2 / math.pi * math.asin((v / (v + n)) ** 0.5) if m == 0 else None),
    "relu": (torch.relu, lambda m, v, n: arc_cosine(v, n) / arc_cosine(v, 0) if m == 0 else None),
}


def erf_covariance(v, n):
    """Of 2 Phi(s) - 1 and 2 Phi(s + n) - 1: the arc-sine kernel."""
    return 2 / math.pi * math.asin(v / math.sqrt((1 + v) * (1 + v + n)))


def arc_cosine(v, n):
    """Covariance of relu(s) and relu(s + n): the arc-cosine kernel, less the product of means."""
    angle = math.acos(min(1.0, (v / (v + n)) ** 0.5))
    return (v * (v + n)) ** 0.5 * (math.sin(angle) + (math.pi - angle) * math.cos(angle) - 1) / (2 * math.pi)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("mean", "variance", "noise"), [*CASES[:2], (0.0, 0.3, 1e-6), (0.0, 0.01, 5.0)])
def test_slopes_are_exact(name, mean, variance, noise):
    f, law = EXACT[name]
    k = law(mean, variance, noise)
    if k is not None:
        found = slope_through(f, mean=mean, variance=variance, noise=noise)
        assert found == pytest.approx(k, rel=1e-8, abs=1e-8)


def legendre(low, high):
    """The rule of 400 nodes."""
    x, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(400))
    return (low + high) / 2 + (high - low) / 2 * x, (high - low) / 2 * weights


@pytest.mark.parametrize(("mean", "variance", "noise"), [*CASES, (-7.0, 1.0, 1.0)])
def test_slope_behind_a_relu_at_any_mean(mean, variance, noise):
    """Integrated over s alone: E[relu(s + n) | s] = s Phi(s / t) + t phi(s / t), t^2 the noise."""
    ends = (-12.0, min(12.0, max(-12.0, -mean / variance**0.5)), 12.0)
    x, weights = (torch.cat(parts) for parts in zip(*(legendre(*pair) for pair in pairwise(ends)), strict=True))
    weights = weights * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    s, t = mean + variance**0.5 * x, noise**0.5
    average = s * torch.special.ndtr(s / t) + t * torch.exp(-((s / t) ** 2) / 2) / math.sqrt(2 * math.pi)
    plain = torch.relu(s) - (torch.relu(s) * weights).sum()
    k = float((plain * average * weights).sum() / (plain**2 * weights).sum())
    assert slope_through(torch.relu, mean=mean, variance=variance, noise=noise) == pytest.approx(k, abs=1e-8)
    assert (k > 1) == (mean < 0)


def test_slopes_behind_smooth_functions_equal_another_rule():
    """A plain product of two Gauss-Hermite rules, exact for smooth functions only."""
    x, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(150))
    weights = weights / weights.sum()
    s = 0.3 + 1.2**0.5 * x
    for f in (F.gelu, F.silu, torch.tanh):
        average = f(s[:, None] + 0.6**0.5 * x) @ weights
        plain = f(s) - f(s) @ weights
        k = float((plain * average) @ weights / (plain**2 @ weights))
        assert slope_through(f, mean=0.3, variance=1.2, noise=0.6) == pytest.approx(k, abs=1e-8)


EXACT_SHIFTS = {  # of mean 0, variance v and noise n
    "identity": (lambda z: 2 * z - 3, shift_ratio),
    "relu": (torch.relu, shift_ratio),
    "square": (torch.square, lambda v, n: shift_ratio(v, n) ** 2),
    "sine": (torch.sin, lambda v, n: math.expm1(-2 * v) / math.expm1(-2 * (v + n))),
    "erf": (lambda z: torch.special.erf(z / 2**0.5), lambda v, n: erf_covariance(v, 0) / erf_covariance(v + n, 0)),
    "step": (torch.sign, lambda v, n: 1),
}


@pytest.mark.parametrize("name", EXACT_SHIFTS)
@pytest.mark.parametrize(("variance", "noise"), [(1.0, 1.0), (0.01, 5.0), (40.0, 3.0)])
def test_shifts_are_exact(name, variance, noise):
    f, law = EXACT_SHIFTS[name]
    assert shift_through(f, variance=variance, noise=noise) == pytest.approx(law(variance, noise), rel=1e-8)


# Monte Carlo


@pytest.mark.parametrize("f", [torch.relu, torch.tanh, F.gelu, torch.abs, F.hardswish, jumping])
@pytest.mark.parametrize(("mean", "variance", "noise"), CASES[1:3])
def test_slope_and_shift_equal_simulation(f, mean, variance, noise):
    s = mean + variance**0.5 * normal(GROUPS, SAMPLES)
    plain, noisy = f(s), f(s + noise**0.5 * normal(GROUPS, SAMPLES, seed=6))
    law = {"mean": mean, "variance": variance, "noise": noise}
    assert has_slope(slope_through(f, **law), plain, noisy)
    assert close_to_zero(shift_through(f, **law) * noisy.var(1) - plain.var(1))


def test_a_neuron_behind_dropout_has_this_slope_and_shift():
    """Of 64 inputs, so that the noise is nearly normal; unlike it, its strength depends on the inputs."""
    weight = normal(64, seed=7) / 8
    x = normal(40, SAMPLES, 64)
    plain, noisy = torch.relu(x @ weight), torch.relu(dropped(x, 0.5) @ weight)
    variance = float(weight @ weight)
    law = {"variance": variance, "noise": float(noise_variance(weight, torch.ones(64).double(), dropout_noise(0.5)))}
    measured = covariance(plain, noisy).mean() / plain.var(1).mean()
    assert float(measured) == pytest.approx(slope_through(torch.relu, **law), abs=0.015)
    assert float(plain.var(1).mean() / noisy.var(1).mean()) == pytest.approx(
        shift_through(torch.relu, **law), abs=0.015
    )


NOISY = {
    "dropout": lambda x: dropped(x, 0.5),
    "dropout of channels": lambda x: x * dropped(torch.ones_like(x[..., :1]), 0.3),
    "uout": lambda x: ek.uout(x, 0.9, True),
    "added": lambda x: x + torch.rand_like(x) - 0.5,
    "added, by the signal's own strength": lambda x: x + x**2 * torch.randn_like(x),
}


@pytest.mark.parametrize("name", NOISY)
def test_right_behind_noise_that_keeps_the_mean_the_slope_is_1(name):
    """Of rectified inputs that correlate, and behind weights."""
    x = torch.relu(normal(GROUPS, SAMPLES, 5) @ normal(5, 4, seed=2) + 0.4)
    noisy, weight = NOISY[name](x), normal(4, 3, seed=3)
    assert has_slope(1, x, noisy)
    assert has_slope(1, x @ weight, noisy @ weight)
    assert not has_slope(0.9, x, noisy)


# Laws of the slope


@FEW
@given(mean=MEANS, variance=VARIANCES, noise=NOISES, a=st.floats(0.01, 1e3), b=st.floats(-1e3, 1e3))
def test_of_an_affine_function_the_slope_is_1(mean, variance, noise, a, b):
    law = {"mean": mean, "variance": variance, "noise": noise}
    assert slope_through(lambda z: b - a * z, **law) == pytest.approx(1, abs=1e-9)
    assert shift_through(lambda z: a * z + b, **law) == pytest.approx(shift_ratio(variance, noise))


@FEW
@given(mean=MEANS, variance=VARIANCES, noise=NOISES, a=st.floats(0.001, 1e3), b=st.floats(-10, 10))
def test_scale_and_offset_of_f_do_not_matter(mean, variance, noise, a, b):
    law = {"mean": mean, "variance": variance, "noise": noise}
    for figure in (slope_through, shift_through):
        assert figure(lambda z: b - a * F.silu(z), **law) == pytest.approx(figure(F.silu, **law), rel=1e-6)


@FEW
@given(mean=MEANS, variance=VARIANCES, noise=NOISES, scale=st.floats(0.1, 10))
def test_a_relus_slope_does_not_depend_on_the_inputs_scale(mean, variance, noise, scale):
    scaled = {"mean": scale * mean, "variance": scale**2 * variance, "noise": scale**2 * noise}
    expected = slope_through(torch.relu, mean=mean, variance=variance, noise=noise)
    assert slope_through(torch.relu, **scaled) == pytest.approx(expected, rel=1e-7)


@FEW
@given(mean=MEANS, variance=VARIANCES, noise=NOISES)
def test_of_a_monotone_function_the_slope_is_positive(mean, variance, noise):
    for f in (torch.tanh, F.elu, torch.exp if variance + noise < 4 else torch.relu):
        assert slope_through(f, mean=mean, variance=variance, noise=noise) > 0


def test_of_others_it_may_be_negative_and_of_a_cube_it_exceeds_1():
    assert slope_through(lambda z: z**2 - z**4 / 4, variance=0.2, noise=5.0) < 0
    assert slope_through(lambda z: z**3, noise=5.0) == pytest.approx(4)


@pytest.mark.parametrize("f", [torch.relu, torch.tanh, F.gelu, torch.abs, jumping, torch.exp])
def test_without_noise_there_is_nothing_to_match(f):
    for figure in (slope_through, shift_through):
        assert figure(f, mean=0.3, noise=0.0) == pytest.approx(1, abs=1e-9)
        gaps = [abs(figure(f, mean=0.3, noise=noise) - 1) for noise in (1e-1, 1e-3, 1e-7)]
        assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-3


def test_limits_of_a_relus_slope():
    assert slope_through(torch.relu, noise=1e6) == pytest.approx(0.25 / (0.5 - 0.5 / math.pi), abs=1e-3)
    assert slope_through(torch.relu, mean=30.0, noise=1.0) == pytest.approx(1)


# What a norm is to store


def noisy_relu(p=0.5):
    """A channel's input in eval and in train mode, behind dropout, weights and a ReLU."""
    x, weight = normal(4000, 20), normal(20, 3, seed=2)
    return torch.relu(x @ weight + 1), torch.relu(dropped(x, p) @ weight + 1)


@pytest.mark.parametrize("off", [0.0, 0.7])
def test_a_norm_with_these_statistics_is_the_best_affine_prediction_of_train_mode(off):
    """By torch's least squares and torch's batch norm; the stored mean may be off that of the data."""
    plain, noisy = noisy_relu()
    mean, variance, eps = noisy.mean(0) + off, noisy.var(0) * 1.1, 1e-3
    k = covariance(plain[None], noisy[None])[0] / plain.var(0)
    stored = mean_matched(k, mean=mean, variance=variance, eval_mean=plain.mean(0), train_mean=noisy.mean(0), eps=eps)
    in_eval = F.batch_norm(plain, stored.mean, stored.variance, eps=eps)
    in_train = F.batch_norm(noisy, mean, variance, eps=eps)
    for channel in range(3):
        design = torch.stack([plain[:, channel], torch.ones(len(plain)).double()], 1)
        best = design @ torch.linalg.lstsq(design, in_train[:, channel, None]).solution
        assert torch.allclose(in_eval[:, channel], best[:, 0], atol=1e-9)
    assert (k < 0.98).all()


def test_one_noisy_pass_finds_the_average_over_masks():
    """Masks are independent of the data: the slope against one pass is that against the average of 50."""
    torch.manual_seed(3)
    x, weight = normal(GROUPS * 50, 20), normal(20, 3, seed=2)
    plain = torch.relu(x @ weight).view(GROUPS, 50, 3)
    once, *others = (torch.relu(dropped(x, 0.5) @ weight).view(GROUPS, 50, 3) for _ in range(51))
    average = torch.stack(others).mean(0)
    assert close_to_zero(covariance(plain, once) - covariance(plain, average))


@given(mean=MEANS, variance=VARIANCES, eval_mean=MEANS, train_mean=MEANS)
def test_a_slope_of_1_leaves_the_variance_and_moves_the_mean(mean, variance, eval_mean, train_mean):
    stored = mean_matched(1.0, mean=mean, variance=variance, eval_mean=eval_mean, train_mean=train_mean)
    assert stored.variance == pytest.approx(variance)
    assert stored.mean == pytest.approx(mean + eval_mean - train_mean)
    assert mean_matched(1.0, mean=mean, variance=variance, eval_mean=eval_mean).mean == pytest.approx(eval_mean)


# What variance matching stretches


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 1.3), (-2.0, 0.25)])
def test_variance_matching_stretches_a_linear_head_by_this(p, mean, variance):
    """Batch norms of torch, one with the statistics of train mode and one with those of eval mode."""
    x = mean + variance**0.5 * normal(GROUPS, SAMPLES)
    noisy = dropped(x, p)
    factor = dropout_stretch(p, mean=mean, variance=variance)
    assert close_to_zero(factor**2 * x.var(1) - noisy.var(1))
    one, eps = x.reshape(-1, 1), 1e-5
    trained = F.batch_norm(one, noisy.mean()[None], noisy.var()[None], eps=eps)
    matched = F.batch_norm(one, x.mean()[None], x.var()[None], eps=eps)
    grown = float(matched.std() / trained.std())
    assert grown == pytest.approx(float(stretch(noisy.var(), x.var(), eps=eps)))
    assert grown == pytest.approx(factor, rel=0.02)


@given(p=st.floats(0, 0.95), mean=MEANS, variance=VARIANCES)
def test_the_stretch_of_dropout_in_closed_form(p, mean, variance):
    found = dropout_stretch(p, mean=mean, variance=variance, eps=0.0)
    assert found == pytest.approx(((1 + p * mean**2 / variance) / (1 - p)) ** 0.5)
    assert found >= 1
    assert found == pytest.approx(shift_before_norm(p, mean=mean, variance=variance) ** -0.5)


def test_a_large_eps_stretches_less():
    factors = [dropout_stretch(0.5, variance=0.01, eps=eps) for eps in (0.0, 1e-3, 1e-1, 10.0)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == pytest.approx(2**0.5) and factors[-1] == pytest.approx(1, abs=1e-3)


# Tensors, modules and refusals


def test_tensors_are_taken_element_by_element():
    mean, noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([0.1, 4.0])
    for figure in (slope_through, shift_through):
        found = figure(torch.relu, mean=mean, noise=noise)
        expected = [[figure(torch.relu, mean=float(m), noise=float(n)) for n in noise] for m in mean]
        assert found.dtype == torch.float64 and found.tolist() == expected
        assert isinstance(figure(torch.relu, noise=1), float)
        assert figure(torch.relu, noise=torch.tensor(1)).item() == figure(torch.relu, noise=1.0)
    stored = mean_matched(torch.tensor([0.5, 1.0]), mean=1.0, variance=2.0, eval_mean=0.0, eps=0.0)
    assert stored.variance.tolist() == [8.0, 2.0]
    assert stretch(torch.tensor([4.0, 9.0]), 1.0, eps=0.0).tolist() == [2.0, 3.0]


def test_modules_stay_as_they_are():
    module = nn.PReLU()
    k = slope_through(module, noise=1.0)
    assert module.weight.dtype == torch.float32
    assert k == pytest.approx(slope_through(lambda z: F.leaky_relu(z, 0.25), noise=1.0), abs=1e-7)
    assert slope_through(nn.ReLU(inplace=True), noise=1.0) == slope_through(torch.relu, noise=1.0)


MATCH = {"mean": 0.0, "variance": 1.0, "eval_mean": 0.0}
REFUSED = {
    "mean": (lambda: slope_through(torch.relu, mean=math.nan, noise=1.0), "the mean is nan"),
    "variance": (lambda: shift_through(torch.relu, variance=0.0, noise=1.0), "the variance is 0: a slope needs it"),
    "noise": (lambda: slope_through(torch.relu, noise=torch.tensor([1.0, -2.0])), "the noise is -2"),
    "constant": (lambda: slope_through(torch.ones_like, noise=1.0), "the deviation of f is 0: f must not be constant"),
    "dead": (lambda: slope_through(torch.relu, mean=-40.0, noise=1.0), "f must not be constant"),
    "dead without noise": (
        lambda: slope_through(torch.relu, mean=-5.0, variance=0.1, noise=9.0),
        "not be constant",
    ),
    "shape": (lambda: slope_through(torch.sum, noise=1.0), r"one of \(\), .*: give an elementwise function"),
    "others": (lambda: slope_through(lambda z: z.softmax(-1), noise=1.0), "f is not elementwise"),
    "chance": (lambda: slope_through(lambda z: dropped(z, 0.5), noise=1.0), "f is not elementwise: .*, or on chance"),
    "raises": (lambda: slope_through(nn.Linear(3, 3), noise=1.0), "f raised RuntimeError: .*: give a callable"),
    "nan": (lambda: slope_through(torch.sqrt, noise=1.0), r"values that are not finite: .* from -16.9\d to 16.9"),
    "pole": (lambda: slope_through(lambda z: 1 / z, noise=1.0), "no finite variance: .* near 0 deviations"),
    "wild": (lambda: slope_through(lambda z: torch.sin(1e5 * z), noise=1.0), "f has too many kinks"),
    "k": (lambda: mean_matched(0.0, **MATCH), "k is 0: without a positive slope"),
    "k of a tensor": (lambda: mean_matched(torch.tensor([0.5, -0.5]), **MATCH), "k is -0.5"),
    "stored": (lambda: mean_matched(1.0, **{**MATCH, "mean": math.inf}), "the mean is inf"),
    "eval": (lambda: mean_matched(1.0, **{**MATCH, "eval_mean": math.nan}), "the mean in eval mode is nan"),
    "train": (lambda: mean_matched(1.0, **MATCH, train_mean=math.inf), "the mean in train mode is inf"),
    "below 0": (lambda: mean_matched(1.0, **{**MATCH, "variance": -1.0}), "a variance is -1"),
    "k too large": (lambda: mean_matched(2.0, **{**MATCH, "variance": 0.0}), "the variance to store is -7.5e-06"),
    "eps": (lambda: stretch(1.0, 1.0, eps=-1.0), "eps is -1"),
    "no variance": (lambda: stretch(1.0, 0.0, eps=0.0), "v_eval . eps is 0"),
    "variances": (lambda: stretch(torch.tensor([1.0, math.inf]), 1.0), "a variance is inf"),
    "p": (lambda: dropout_stretch(1.0), "p is 1: the probability to drop"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_give_the_number_and_the_remedy(name):
    call, message = REFUSED[name]
    with pytest.raises(ek.EvenkeelError, match=message):
        call()
