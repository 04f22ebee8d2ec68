"""kim2023: Proposition 2, residual dilution and the head, against masks drawn by torch and the reference's tables."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.theory.kim2023 import (
    expected_head_variance_ratio,
    head_variance_ratio,
    noise_after_pooling,
    noise_before_pooling,
    post_dropout_variance,
    pre_dropout_variance,
    residual_dilution,
)

GROUPS, SAMPLES = 100, 2000
SHIFTS, VARIANCES = st.floats(0.05, 1), st.floats(0.01, 100)

# What a ReLU makes of a normal variable.
RELU_MEAN, RELU_VARIANCE = 1 / math.sqrt(2 * math.pi), 0.5 - 1 / (2 * math.pi)


def normal(*shape, seed=5):  # not 0, from which the masks are drawn
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dropped(x, p):
    return F.dropout(x, p, training=True)


def close_to_zero(samples):
    """Whether the mean of samples, one per group in the first dimension, is 0 within 4 standard errors."""
    return bool((samples.mean(0).abs() < 4 * samples.std(0) / math.sqrt(len(samples))).all())


def moments(vectors):
    return vectors.mean(0), vectors.T.cov(correction=0)


def signed():
    """Correlated vectors of unequal means and of both signs."""
    return normal(64, 6, seed=1) @ normal(6, 5, seed=2) + normal(5, seed=3)


def drawn(vectors):
    """GROUPS x SAMPLES draws of the vectors."""
    return vectors[torch.randint(len(vectors), (GROUPS, SAMPLES), generator=torch.Generator().manual_seed(4))]


# Proposition 2


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("vectors", [signed(), torch.relu(signed())], ids=["signed", "rectified"])
def test_dropout_before_and_after_a_weight_layer_equal_simulation(vectors, p):
    x, weight = drawn(vectors), normal(3, 5, seed=6) + 0.2
    before, after = dropped(x, p) @ weight.T, dropped(x @ weight.T, p)
    assert close_to_zero(before.var(1) - pre_dropout_variance(weight, *moments(vectors), p))
    assert close_to_zero(after.var(1) - post_dropout_variance(weight, *moments(vectors), p))
    assert not close_to_zero(after.var(1) - pre_dropout_variance(weight, *moments(vectors), p))


def test_after_exceeds_before_by_the_products_of_different_inputs():
    vectors, weight = signed(), normal(3, 5, seed=6)
    second = vectors.T @ vectors / len(vectors)
    by_hand = [3 * sum(float(w[i] * w[j] * second[i, j]) for i in range(5) for j in range(5) if i != j) for w in weight]
    law = (weight, *moments(vectors), 0.75)
    assert (post_dropout_variance(*law) - pre_dropout_variance(*law)).tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_over_random_weights_after_exceeds_before_by_their_squared_mean(mean):
    vectors = torch.relu(signed())
    law = (mean + normal(20_000, 5, seed=6), *moments(vectors), 0.5)
    second = vectors.T @ vectors / len(vectors)
    expected = mean**2 * (second.sum() - second.trace())
    assert close_to_zero(post_dropout_variance(*law) - pre_dropout_variance(*law) - expected)


@given(p=st.floats(0, 0.95), weight=st.lists(st.floats(0, 3), min_size=5, max_size=5))
def test_before_is_never_worse_for_weights_and_inputs_of_one_sign(p, weight):
    law = (torch.tensor(weight, dtype=torch.float64), *moments(torch.relu(signed())), p)
    assert pre_dropout_variance(*law) <= post_dropout_variance(*law) * (1 + 1e-12)


def test_at_p_0_both_are_the_variance_in_eval_mode():
    vectors, weight = signed(), normal(3, 5, seed=6)
    expected = (vectors @ weight.T).var(0, correction=0)
    for variance in (pre_dropout_variance, post_dropout_variance):
        assert torch.allclose(variance(weight, *moments(vectors), 0.0), expected)
        assert torch.allclose(variance(weight, *moments(vectors), 1e-9), expected)
        assert torch.allclose(variance(weight[0], *moments(vectors), 0), expected[0])


def test_of_one_input_before_and_after_are_the_same():
    law = (torch.tensor([[2.0], [-1.0]]), torch.tensor([0.5]), torch.tensor([[3.0]]), 0.2)
    assert torch.equal(pre_dropout_variance(*law), post_dropout_variance(*law))


@pytest.mark.parametrize(("p", "printed"), [(0.1, 0.860), (0.3, 0.614), (0.5, 0.405)])
def test_the_shift_behind_a_relu_as_printed(p, printed):
    """Of weights of mean 0 both places have that of a single input."""
    law = (torch.ones(1), torch.tensor([RELU_MEAN]), torch.tensor([[RELU_VARIANCE]]))
    assert float(pre_dropout_variance(*law, 0.0) / pre_dropout_variance(*law, p)) == pytest.approx(printed, abs=6e-4)


def standardized(x):
    return (x - x.mean(0)) / x.std(0, correction=0)


@cache
def nets(weight_mean, width=128):
    """Eight nets norm-ReLU-weight-norm-ReLU-weight as the paper's scripts have them.

    By net: the variance of the output, averaged over units, in eval mode, with dropout .5 after and before the weight.
    """

    def weights(seed):
        return weight_mean + math.sqrt(2 / width) * normal(width, width, seed=seed)

    rows = []
    for seed in range(100, 900, 100):
        x = torch.relu(standardized(normal(1024, width, seed=seed)))
        law = (weights(seed + 1), *moments(torch.relu(standardized(x @ weights(seed + 2).T))))
        eval_mode, after, before = (
            pre_dropout_variance(*law, 0.0),
            post_dropout_variance(*law, 0.5),
            pre_dropout_variance(*law, 0.5),
        )
        rows.append(torch.stack([eval_mode.mean(), after.mean(), before.mean()]))
    return torch.stack(rows)


def drawn_alike(printed, ours, rounding=5e-4):
    """Whether numbers of one net of the reference lie within 4 standard deviations of those of our nets."""
    gap = (ours.mean(0) - torch.as_tensor(printed)).abs()
    return bool((gap < 4 * ours.std(0) + rounding).all())


SWEEP = {-0.02: (0.259, 0.408), -0.01: (0.354, 0.405), 0.0: (0.406, 0.406), 0.01: (0.339, 0.409), 0.02: (0.285, 0.425)}


@pytest.mark.parametrize("weight_mean", SWEEP)
def test_the_sweep_of_weight_means_as_printed(weight_mean):
    """Dropout after, dropout before: a mean of the weights hurts the former only."""
    ours = nets(weight_mean)[:, :1] / nets(weight_mean)[:, 1:]
    assert drawn_alike(SWEEP[weight_mean], ours)
    assert (ours[:, 0] < ours[:, 1]).all() or weight_mean == 0


# Propositions 3 and 4


@pytest.mark.parametrize("deviation", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("weight", [(1.0, 0.5), (1.0, -0.7)])
def test_dilution_equals_simulation(deviation, weight):
    """A branch w1 |z| + w2 z^2 of a trunk s z: they depend on each other and do not correlate."""
    z, w = normal(GROUPS, SAMPLES), torch.tensor(weight, dtype=torch.float64)
    features = torch.stack([z.abs(), z**2], -1)
    root = math.sqrt(2 / math.pi)
    mean = torch.tensor([root, 1.0], dtype=torch.float64)
    covariance = torch.tensor([[1 - root**2, root], [root, 2.0]], dtype=torch.float64)
    branch = pre_dropout_variance(w, mean, covariance, 0.0)
    branch_shift = branch / pre_dropout_variance(w, mean, covariance, 0.4)
    dilution = residual_dilution(branch_shift, trunk=deviation**2, branch=branch)
    plain, noisy = deviation * z + features @ w, deviation * z + dropped(features, 0.4) @ w
    assert close_to_zero(dilution * noisy.var(1) - plain.var(1))


def test_dilution_of_a_dropped_trunk_equals_simulation():
    """Both parts have noise of their own."""
    x, f = 0.8 * normal(GROUPS, SAMPLES), 1.5 * normal(GROUPS, SAMPLES, seed=6)
    dilution = residual_dilution(0.5, trunk=0.8**2, branch=1.5**2, trunk_shift=0.9)
    assert close_to_zero(dilution * (dropped(x, 0.1) + dropped(f, 0.5)).var(1) - (x + f).var(1))


@given(shift=SHIFTS, trunk_shift=SHIFTS, trunk=VARIANCES, branch=VARIANCES)
def test_dilution_lies_between_the_shifts_of_branch_and_trunk(shift, trunk_shift, trunk, branch):
    dilution = residual_dilution(shift, trunk=trunk, branch=branch, trunk_shift=trunk_shift)
    assert min(shift, trunk_shift) * (1 - 1e-12) <= dilution <= max(shift, trunk_shift) * (1 + 1e-12)
    assert 1 / dilution == pytest.approx((trunk / trunk_shift + branch / shift) / (trunk + branch))


@given(shift=SHIFTS, variance=VARIANCES)
def test_limits_of_dilution(shift, variance):
    assert residual_dilution(shift, trunk=0, branch=variance) == pytest.approx(shift)
    assert residual_dilution(shift, trunk=variance, branch=0) == 1
    assert residual_dilution(1, trunk=variance, branch=3.0) == pytest.approx(1)
    assert residual_dilution(shift, trunk=1e9 * variance, branch=variance) == pytest.approx(1, abs=1e-7)


DILUTED = {0.1: (0.869, 0.895, 0.939, 0.977, 0.996), 0.3: (0.629, 0.687, 0.799, 0.917, 0.984)}
DILUTED[0.5] = (0.420, 0.481, 0.624, 0.822, 0.962)


@pytest.mark.parametrize(("p", "shift"), [(0.1, 0.862), (0.3, 0.615), (0.5, 0.406)])
def test_dilution_by_the_trunks_deviation_as_printed(p, shift):
    trunk = torch.tensor([0.2, 0.5, 1, 2, 5], dtype=torch.float64) ** 2
    ours = residual_dilution(shift, trunk=trunk, branch=nets(0.0)[:, :1])
    assert drawn_alike(DILUTED[p], ours, rounding=1e-3)


# Shift of the trunk, of the branch and of their sum at drop .1 and .3. Before the last norm, V_f itself is shifted.
POSITIONS = {
    "P0": ((0.900, 0.859, 0.884), (0.700, 0.614, 0.672), True),
    "P1": ((1.0, 0.860, 0.943), (1.0, 0.613, 0.842), True),
    "P2": ((1.0, 0.858, 0.942), (1.0, 0.613, 0.843), True),
    "P4": ((1.0, 0.853, 0.939), (1.0, 0.626, 0.848), True),
    "P6": ((1.0, 0.860, 0.938), (1.0, 0.612, 0.795), False),
    "P7": ((1.0, 0.856, 0.936), (1.0, 0.612, 0.795), False),
}


@pytest.mark.parametrize("position", POSITIONS)
def test_dilution_by_position_as_printed(position):
    *rows, norms_shifted = POSITIONS[position]
    for trunk_shift, shift, printed in rows:
        branch = nets(0.0)[:, 0] * (shift if norms_shifted else 1)
        ours = residual_dilution(shift, trunk=1.0, branch=branch, trunk_shift=trunk_shift)
        assert drawn_alike(printed, ours, rounding=1e-3)


# The head

MAPS = normal(2, 3, 4, 5).relu()


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_noise_before_and_after_pooling_equals_simulation(p):
    x = MAPS.expand(GROUPS, 400, *MAPS.shape)
    assert close_to_zero(dropped(x, p).mean((-1, -2)).var(1) - noise_before_pooling(MAPS, p))
    assert close_to_zero(dropped(x.mean((-1, -2)), p).var(1) - noise_after_pooling(MAPS, p))


def test_dropout_of_whole_channels_before_pooling_is_dropout_after_it():
    x = MAPS.expand(GROUPS * 400, *MAPS.shape).flatten(0, 1)
    pooled = F.dropout2d(x, 0.3).mean((-1, -2)).view(GROUPS, 400, 2, 3)
    assert close_to_zero(pooled.var(1) - noise_after_pooling(MAPS, 0.3))
    assert not close_to_zero(pooled.var(1) - noise_before_pooling(MAPS, 0.3))


def test_the_ratio_is_that_of_the_noise_and_does_not_depend_on_p():
    for p in (0.1, 0.9):
        ratio = noise_before_pooling(MAPS, p) / noise_after_pooling(MAPS, p)
        assert torch.allclose(head_variance_ratio(MAPS), ratio)
    assert noise_before_pooling(MAPS, 0.0).sum() == noise_after_pooling(MAPS, 0.0).sum() == 0


@given(values=st.lists(st.floats(0.01, 100) | st.just(0.0), min_size=1, max_size=12).filter(any))
def test_of_non_negative_maps_the_ratio_lies_between_one_over_s_and_1(values):
    ratio = float(head_variance_ratio(torch.tensor(values, dtype=torch.float64).view(1, 1, -1)))
    assert 1 / len(values) - 1e-12 <= ratio <= 1 + 1e-12
    assert (ratio > 1 - 1e-12) == (sum(value > 0 for value in values) == 1)


def test_of_equal_values_it_is_one_over_s_and_of_both_signs_it_may_exceed_1():
    assert head_variance_ratio(torch.full((1, 1, 4, 4), 3.0)).item() == 1 / 16
    assert head_variance_ratio(torch.tensor([[[2.0, -1.0]]])).item() == 5


@pytest.mark.parametrize("correlated", [False, True])
def test_the_expected_ratio_equals_simulation(correlated):
    """Of a sum of own and of shared rectified values: E sum x^2 and E (sum x)^2 by maps."""
    maps = torch.relu(normal(GROUPS * SAMPLES, 1, 9))
    law = {"mean": RELU_MEAN, "variance": RELU_VARIANCE}
    if correlated:
        maps = maps + torch.relu(normal(GROUPS * SAMPLES, 1, 1, seed=6))
        law = {"mean": 2 * RELU_MEAN, "variance": 2 * RELU_VARIANCE, "rho": 0.5}
    ratio = expected_head_variance_ratio(9, **law)
    assert close_to_zero((ratio * noise_after_pooling(maps, 0.5) - noise_before_pooling(maps, 0.5))[:, 0])


@pytest.mark.parametrize(("side", "printed"), [(8, 0.0475), (7, 0.0614)])
def test_the_ratio_of_rectified_normal_maps_as_printed(side, printed):
    ours = expected_head_variance_ratio(side**2, mean=RELU_MEAN, variance=RELU_VARIANCE)
    assert ours == pytest.approx(printed, abs=1e-4)


def test_limits_of_the_expected_ratio():
    law = {"mean": RELU_MEAN, "variance": RELU_VARIANCE}
    assert expected_head_variance_ratio(1, **law) == pytest.approx(1)
    assert 1e6 * expected_head_variance_ratio(1e6, **law) == pytest.approx(math.pi, rel=1e-4)
    assert expected_head_variance_ratio(16, mean=2.0, variance=0.0) == 1 / 16
    assert expected_head_variance_ratio(16, **law, rho=1) == pytest.approx(1 / 16)
    assert expected_head_variance_ratio(16, mean=0.0, variance=2.0) == 1
    assert expected_head_variance_ratio(2, mean=1.0, variance=2.0, rho=-1) == 1.5, "of x and 2 - x"


# Tensors and refusals


def test_tensors_are_taken_element_by_element():
    shift, trunk = torch.tensor([0.5, 0.9]), torch.tensor([[1.0], [4.0]])
    ours = residual_dilution(shift, trunk=trunk, branch=0.5)
    by_hand = [[residual_dilution(float(s), trunk=float(t), branch=0.5) for s in shift] for t in trunk]
    assert torch.allclose(ours, torch.tensor(by_hand))
    assert isinstance(by_hand[0][0], float)
    means = torch.tensor([0.5, 1.0])
    ratios = expected_head_variance_ratio(9, mean=means, variance=1.0)
    assert ratios.tolist() == pytest.approx(
        [expected_head_variance_ratio(9, mean=m, variance=1.0) for m in means.tolist()]
    )


def test_a_p_for_every_unit():
    weight, law = normal(2, 5, seed=6), moments(signed())
    for variance in (pre_dropout_variance, post_dropout_variance):
        both = variance(weight, *law, torch.tensor([0.1, 0.5], dtype=torch.float64))
        assert torch.allclose(both, torch.stack([variance(weight[0], *law, 0.1), variance(weight[1], *law, 0.5)]))


TWO = (torch.ones(2), torch.ones(2), torch.eye(2))
REFUSED = {
    "p of 1": (lambda: pre_dropout_variance(*TWO, 1.0), "p is 1: the probability to drop is at least 0 and below 1"),
    "p below 0": (lambda: post_dropout_variance(*TWO, -0.1), "p is -0.1"),
    "p before pooling": (lambda: noise_before_pooling(MAPS, 2.0), "p is 2"),
    "p after pooling": (lambda: noise_after_pooling(MAPS, math.nan), "p is nan"),
    "mean": (lambda: pre_dropout_variance(torch.ones(4, 2), torch.ones(3), torch.eye(2), 0.5), r"a mean of \(3,\)"),
    "covariance": (lambda: post_dropout_variance(torch.ones(4, 2), torch.ones(2), torch.ones(2), 0.5), "do not fit"),
    "no weight": (lambda: pre_dropout_variance(torch.tensor(1.0), torch.ones(1), torch.eye(1), 0.5), r"shape \(\)"),
    "shift": (lambda: residual_dilution(0.0, trunk=1, branch=1), "the branch's shift is 0: Delta"),
    "trunk shift": (lambda: residual_dilution(0.5, trunk=1, branch=1, trunk_shift=-1), "the trunk's shift is -1"),
    "shift inf": (lambda: residual_dilution(math.inf, trunk=1, branch=1), "the branch's shift is inf"),
    "trunk": (lambda: residual_dilution(0.5, trunk=-1.0, branch=1), "the trunk's variance is -1"),
    "branch": (lambda: residual_dilution(0.5, trunk=1.0, branch=math.inf), "the branch's variance is inf"),
    "nothing": (lambda: residual_dilution(0.5, trunk=0.0, branch=0.0), "the variance of the sum is 0"),
    "no positions": (lambda: head_variance_ratio(torch.ones(2, 3)), r"shape \(2, 3\) have no positions: give \(batch"),
    "empty maps": (lambda: noise_before_pooling(torch.ones(2, 3, 0), 0.5), "no positions"),
    "dead maps": (lambda: head_variance_ratio(MAPS * torch.tensor([0.0, 1, 1]).view(3, 1, 1)), "2 of 6 maps sum to 0"),
    "positions": (lambda: expected_head_variance_ratio(0, mean=1, variance=1), "positions is 0"),
    "positions inf": (lambda: expected_head_variance_ratio(math.inf, mean=1, variance=1), "positions is inf"),
    "expected mean": (lambda: expected_head_variance_ratio(4, mean=math.inf, variance=1), "the mean is inf"),
    "expected variance": (lambda: expected_head_variance_ratio(4, mean=1, variance=-1), "the variance is -1"),
    "expected variance inf": (lambda: expected_head_variance_ratio(4, mean=1, variance=math.inf), "variance is inf"),
    "rho": (lambda: expected_head_variance_ratio(4, mean=1, variance=1, rho=2), "rho is 2"),
    "rho below -1": (lambda: expected_head_variance_ratio(1, mean=1, variance=1, rho=-1.5), "rho is -1.5"),
    "impossible rho": (lambda: expected_head_variance_ratio(4, mean=1, variance=1, rho=-0.5), "is -0.5: .* raise rho"),
    "sum": (lambda: expected_head_variance_ratio(4, mean=0, variance=0), "mean square over S is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_give_the_number_and_the_remedy(name):
    call, message = REFUSED[name]
    with pytest.raises(ek.EvenkeelError, match=message):
        call()
