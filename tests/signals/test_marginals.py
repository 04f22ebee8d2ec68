"""Marginal: quadrature, dropout, the largest of several, correlations and sums, against closed forms and draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.signals.marginals import MOST_LEVELS, gaussian, latent_correlation, nodes, shared

LEVELS, MASSES = (
    torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64),
    torch.tensor([0.4, 0.44, 0.2], dtype=torch.float64),
)
MASSES = MASSES / MASSES.sum()
LEVELS = LEVELS / (LEVELS @ MASSES)


def moment(law, power):
    """E x^power over the levels."""
    return float((law.values**power @ law.weights) @ law.masses)


def consistent(law):
    """What every law must be: masses and weights of 1, mean level and second moment 1, and its own moments right."""
    squares = law.values**2 @ law.weights
    assert float(law.masses.sum()) == pytest.approx(1)
    assert float(law.weights.sum()) == pytest.approx(1)
    assert float(law.masses @ law.levels) == pytest.approx(1)
    assert moment(law, 2) == pytest.approx(1, rel=1e-6)
    assert torch.allclose(squares, law.levels, rtol=1e-6)
    assert law.mean == pytest.approx(moment(law, 1), abs=1e-9)
    assert torch.allclose(law.fourth, law.values**4 @ law.weights / squares**2, rtol=1e-6)
    passing = squares * (law.slopes @ law.weights)
    assert torch.allclose(law.paired, (law.values**2 * law.slopes) @ law.weights / passing, rtol=1e-6)


def relu(law):
    values = law.values
    return law.mapped(values.clamp_min(0), (values > 0).double())


def correlated(rho, count, draws=200_000):
    return math.sqrt(rho) * torch.randn(draws, 1).double() + math.sqrt(1 - rho) * torch.randn(draws, count).double()


# Quadrature


@pytest.mark.parametrize("power", range(11))
def test_the_rule_has_the_moments_of_the_normal(power):
    z, weights = nodes()
    exact = 0 if power % 2 else math.prod(range(1, power, 2))
    assert float(weights @ z**power) == pytest.approx(exact, rel=1e-8, abs=1e-8)


@given(kink=st.integers(-16, 16))
def test_kinks_at_quarters_are_met_exactly(kink):
    """E relu(z - k) = phi(k) - k P(z > k), and its square."""
    k = kink / 4
    z, weights = nodes()
    density, above = math.exp(-(k**2) / 2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(k / math.sqrt(2))
    ramp = (z - k).clamp_min(0)
    assert float(weights @ ramp) == pytest.approx(density - k * above, abs=1e-8)
    assert float(weights @ ramp**2) == pytest.approx((1 + k**2) * above - k * density, abs=1e-8)
    assert float(weights @ (z > k).double()) == pytest.approx(above, abs=1e-8)


# Laws


@pytest.mark.parametrize("mean", [0.0, 0.3, -0.6])
def test_a_normal_law_with_levels(mean):
    law = gaussian(LEVELS, MASSES, mean)
    consistent(law)
    assert law.normal and law.mean == mean
    assert law.level_variance == pytest.approx(float(MASSES @ (LEVELS - 1) ** 2))
    assert torch.allclose(
        law.fourth * law.levels**2, 3 * (law.levels - mean**2) ** 2 + 6 * (law.levels - mean**2) * mean**2 + mean**4
    )


def test_without_levels_all_samples_are_alike():
    law = gaussian()
    consistent(law)
    assert (law.level_variance, law.levels.tolist(), law.fourth.tolist()) == (0.0, [1.0], [3.0])
    assert gaussian(mean=0.5) is gaussian(mean=0.5)


def test_mapped_is_the_law_of_the_function():
    law, second = relu(gaussian(LEVELS, MASSES))
    consistent(law)
    assert second == pytest.approx(0.5) and torch.allclose(law.levels, LEVELS)
    assert law.mean == pytest.approx(float(LEVELS.sqrt() @ MASSES) / math.sqrt(2 * math.pi) / math.sqrt(0.5))
    assert law.fourth.tolist() == pytest.approx([1.5 / 0.25] * 3)
    assert law.paired.tolist() == pytest.approx([2.0] * 3)  # all errors pass where x is: E x^2 g^2 = E x^2
    assert not law.normal


def test_functions_follow_one_another():
    first, half = relu(gaussian(LEVELS, MASSES))
    law, second = first.mapped(2 * first.values - 1, 4.0)
    consistent(law)
    assert second == pytest.approx(4 - 4 * first.mean + 1)
    again, grown = first.mapped(first.values**2 * half, (2 * first.values * math.sqrt(half)) ** 2)
    consistent(again)
    assert grown == pytest.approx(float(1.5 * LEVELS**2 @ MASSES))  # E relu(z)^4


def test_a_function_that_leaves_nothing_is_refused():
    with pytest.raises(ArithmeticError, match="nothing is left"):
        gaussian().mapped(gaussian().values * 0)


def test_at_mean_all_levels_are_one():
    law = relu(gaussian(LEVELS, MASSES))[0].at_mean()
    assert law.levels.tolist() == law.masses.tolist() == [1.0] and law.values.shape[0] == 1
    assert gaussian(LEVELS, MASSES, 0.4).at_mean().values.equal(gaussian(mean=0.4).values)


# Dropout


@pytest.mark.parametrize("keeps", [(0.5,), (0.8, 0.6)], ids=str)
@pytest.mark.parametrize("clipped", [False, True], ids=["normal", "relu"])
def test_dropout_against_draws(clipped, keeps):
    """Also twice: what was dropped stays so."""
    law, keep = gaussian(LEVELS, MASSES, 0.3), math.prod(keeps)
    law, second = relu(law) if clipped else (law, 1.0)
    for one in keeps:
        law = law.dropped(one, channelwise=False)
    consistent(law)
    assert not law.normal
    count = 400_000
    level = torch.multinomial(MASSES, count, replacement=True)
    x = 0.3 + (LEVELS[level] - 0.09).sqrt() * torch.randn(count).double()
    x = (x.clamp_min(0) if clipped else x) * torch.empty(count).bernoulli_(keep) / math.sqrt(keep * second)
    for power in (1, 2, 4):
        samples = x**power
        assert abs(moment(law, power) - float(samples.mean())) < 5 * float(samples.std()) / math.sqrt(count)


@given(keep=st.floats(0.1, 1.0), channelwise=st.booleans())
def test_dropout_keeps_units_that_grow_with_it(keep, channelwise):
    before = relu(gaussian(LEVELS, MASSES))[0]
    law = before.dropped(keep, channelwise=channelwise)
    consistent(law)
    assert law.channelwise is channelwise and torch.equal(law.levels, before.levels)
    assert torch.allclose(law.fourth, before.fourth / keep) and torch.allclose(law.paired, before.paired / keep)
    assert float(law.weights[-1]) == pytest.approx(1 - keep, abs=1e-12)
    slopes = [float((m.slopes @ m.weights) @ m.masses) for m in (before, law)]
    assert slopes[1] == pytest.approx(slopes[0])


# The largest of several

LARGEST = {
    "two": (2, 0.0),
    "nine": (9, 0.0),
    "correlated": (4, 0.5),
    "nine, correlated": (9, 0.8),
    "one": (1, 0.3),
}


def close(law, second, samples, power=1.0):
    """Second moment, mean and fourth moment of a law in units of `power`, against draws."""
    unit = power * second
    for degree in (1, 2, 4):
        found = moment(law, degree) * unit ** (degree / 2)
        drawn = samples**degree
        error = float(drawn.std()) / math.sqrt(len(drawn))
        assert abs(found - float(drawn.mean())) < 5 * error + 5e-3 * abs(found), degree


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_of_normals(name):
    count, rho = LARGEST[name]
    law, second, steeper = gaussian().largest(count, rho)
    consistent(law)
    close(law, second, correlated(rho, count).amax(1))
    assert steeper.tolist() == pytest.approx([1.0])  # a pool passes on errors to one of them, as they are


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_of_activations(name):
    """Of ReLUs, which are steep where they are large."""
    count, rho = LARGEST[name]
    before, half = relu(gaussian())
    law, second, steeper = before.largest(count, rho)
    samples = correlated(rho, count).amax(1)
    close(law, second * half, samples.clamp_min(0))
    assert float(steeper) == pytest.approx(float((samples > 0).double().mean()) / 0.5, rel=0.03)


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_after_dropout(name):
    count, rho = LARGEST[name]
    law, second, _ = gaussian().dropped(0.6, channelwise=False).largest(count, rho)
    x = correlated(rho, count)
    close(law, second, (x * torch.empty_like(x).bernoulli_(0.6) / math.sqrt(0.6)).amax(1))


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_of_values_that_are_dropped_together(name):
    count, rho = LARGEST[name]
    law, second, _ = gaussian().dropped(0.6, channelwise=True).largest(count, rho)
    x = correlated(rho, count)
    mask = torch.empty(len(x), 1).double().bernoulli_(0.6) / math.sqrt(0.6)
    assert law.channelwise
    close(law, second, (x * mask).amax(1))


def test_the_largest_at_each_level():
    """Samples of different strength each have their own largest, which is as much stronger or weaker."""
    law, second, _ = gaussian(LEVELS, MASSES).largest(4, 0.0)
    assert second == pytest.approx(gaussian().largest(4, 0.0)[1], rel=1e-6)
    assert torch.allclose(law.levels, LEVELS, rtol=1e-6)


# Correlations


def arc_cosine(rho):
    """E relu(u) relu(v) (Cho & Saul 2009)."""
    angle = math.acos(rho)
    return (math.sin(angle) + (math.pi - angle) * rho) / (2 * math.pi)


@given(rho=st.floats(-0.95, 0.95))
def test_the_arc_cosine_kernel(rho):
    law, half = relu(gaussian())
    found = half * float(shared(law, torch.tensor([rho]).double()))
    assert found == pytest.approx(arc_cosine(rho), abs=2e-4)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_correlations_of_a_saturating_function_against_draws(rho):
    z = gaussian().values
    law, second = gaussian().mapped(torch.tanh(2 * z) + 0.3)
    found = second * float(shared(law, torch.tensor([rho]).double()))
    x = torch.tanh(2 * correlated(rho, 2)) + 0.3
    samples = x[:, 0] * x[:, 1]
    assert abs(found - float(samples.mean())) < 5 * float(samples.std()) / math.sqrt(len(samples))


def test_what_the_cube_shares_is_a_polynomial():
    """z^3 = sqrt(6) h_3 + 3 h_1, so E z^3 z'^3 = 6 rho^3 + 9 rho."""
    law, second = gaussian().mapped(gaussian().values ** 3)
    rho = torch.linspace(-1, 1, 9).double()
    assert torch.allclose(second * shared(law, rho), 6 * rho**3 + 9 * rho, atol=1e-6)


@pytest.mark.parametrize("same_mask", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.6])
@pytest.mark.parametrize("clipped", [False, True], ids=["normal", "relu"])
def test_what_dropped_values_share_against_draws_and_back(clipped, keep, same_mask):
    law = relu(gaussian(mean=0.2))[0] if clipped else gaussian(mean=0.2)
    law = law.dropped(keep, channelwise=same_mask)
    x = 0.2 + math.sqrt(0.96) * correlated(0.4, 2)
    x = x.clamp_min(0) if clipped else x
    masks = torch.empty(len(x), 1 if same_mask else 2).bernoulli_(keep)
    x = x * masks
    samples = x[:, 0] * x[:, 1] / (x**2).mean()
    rho = torch.tensor([0.4]).double()
    found = shared(law, rho, same_mask)
    assert abs(float(found) - float(samples.mean())) < 5 * float(samples.std()) / math.sqrt(len(samples))
    assert torch.allclose(latent_correlation(law, found, same_mask), rho, atol=1e-4)


# Sums


@pytest.mark.parametrize("fan_in", [10, 100, 1000])
@pytest.mark.parametrize(
    "make", [gaussian, lambda: relu(gaussian())[0], lambda: gaussian().dropped(0.5, channelwise=False)]
)
def test_levels_spread_as_the_fourth_moment_says(make, fan_in):
    """Of the mean of fan_in squares, the relative variance is (E x^4 / (E x^2)^2 - 1) / fan_in."""
    law = make()
    total = law.summed(fan_in)
    consistent(total.law)
    assert total.law.normal
    within_a_bin = 0.1**2 / 12  # of log variance: what gathering in bins of width 0.1 takes out at most
    assert total.law.level_variance == pytest.approx((float(law.fourth) - 1) / fan_in, rel=0.02, abs=within_a_bin)


def test_levels_are_those_of_drawn_sums():
    """Two layers of sums of 20, over draws of the mean square that the second one reaches."""
    first = gaussian().summed(20)
    second, half = relu(first.law)
    total = second.summed(20).law
    level = (torch.randn(200_000, 20).double() ** 2).mean(1, keepdim=True)
    inner = (level.sqrt() * torch.randn(200_000, 20).double()).clamp_min(0)
    drawn = (inner**2).mean(1) / half
    assert total.level_variance == pytest.approx(float(drawn.var()), rel=0.05)
    tail = float((drawn > 2).double().mean())
    assert float(total.masses[total.levels > 2].sum()) == pytest.approx(tail, abs=0.02)


@given(
    fan_in=st.floats(2, 1e4),
    most=st.integers(1, MOST_LEVELS),
    raw=st.lists(st.tuples(st.floats(0.05, 20), st.floats(0.01, 1)), min_size=1, max_size=6),
    keep=st.floats(0.2, 1),
)
@settings(max_examples=60)
def test_sums_keep_mass_and_mean_level(fan_in, most, raw, keep):
    masses = torch.tensor([m for _, m in raw], dtype=torch.float64)
    levels = torch.tensor([v for v, _ in raw], dtype=torch.float64)
    masses = masses / masses.sum()
    levels = levels / (levels @ masses)
    law = gaussian(levels, masses).dropped(keep, channelwise=False)
    total = law.summed(fan_in, most)
    consistent(total.law)
    assert len(total.law.levels) <= most
    assert total.moved.shape == total.passed.shape == (len(total.law.levels), len(levels))
    for moves in (total.moved, total.passed):
        assert torch.allclose(moves.sum(0), torch.ones_like(levels)) and bool((moves >= 0).all())
    assert torch.allclose(total.moved @ masses, total.law.masses, atol=1e-9)


def test_errors_pass_where_signals_are_stronger():
    """A ReLU passes errors only where its output is not 0: there the sample's level is the higher, by what one adds."""
    law = relu(gaussian())[0]
    total = law.summed(30)
    mean, passed = (float(total.law.levels @ moves[:, 0]) for moves in (total.moved, total.passed))
    assert mean == pytest.approx(1, rel=0.01)
    assert passed - 1 == pytest.approx((float(law.paired) - 1) / 30, rel=0.1)


def test_a_law_is_immutable():
    with pytest.raises(AttributeError):
        gaussian().mean = 1.0
