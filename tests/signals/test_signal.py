"""Signal: maps that hold no more than they need, levels, and what is left of a signal that is not understood."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.signals.marginals import gaussian
from evenkeel.signals.signal import Signal, by_level, constant, squeeze_constant, standard

SHAPE = (2, 3, 4, 5)


def varied(levels=3, shape=SHAPE):
    """A signal whose every map varies along every dimension."""
    maps = [torch.rand(shape, dtype=torch.float64) + 1 for _ in range(4)]
    masses = torch.arange(1, levels + 1, dtype=torch.float64)
    strengths = torch.linspace(0.5, 1.5, levels, dtype=torch.float64)
    masses = masses / masses.sum()
    law = gaussian(strengths / (strengths @ masses), masses)
    flow = torch.rand((levels, *shape), dtype=torch.float64)
    return Signal(
        shape, *maps, law, flow, torch.rand(levels, dtype=torch.float64), torch.rand(levels, dtype=torch.float64)
    )


def test_constant_is_one_value_of_as_many_dimensions():
    assert constant(2.0, SHAPE).shape == (1, 1, 1, 1) and constant(2.0, ()).shape == ()
    assert constant(2.0, SHAPE).dtype == torch.float64 and float(constant(2.0, (3,))) == 2.0


def test_a_standard_signal():
    x = standard(SHAPE)
    assert [float(t) for t in (x.second, x.position, x.sample, x.mean)] == [1, 0, 0, 0]
    assert (x.power, x.size, x.correlation, x.known, x.varies) == (1.0, 60, 0.0, True, False)
    assert x.flow.shape == (1, 1, 1, 1, 1) and x.flow.requires_grad
    assert x.total_flow.item() == math.prod(SHAPE)


@pytest.mark.parametrize(("shape", "size"), [((2, 3, 4), 12), ((7,), 7), ((2, 1), 1)])
def test_the_size_of_a_sample(shape, size):
    assert standard(shape).size == size


@given(dims=st.lists(st.booleans(), min_size=1, max_size=4), first=st.integers(0, 2))
def test_lean_keeps_values_and_drops_what_does_not_vary(dims, first):
    generator = torch.Generator().manual_seed(0)
    small = torch.rand([3 if varies else 1 for varies in dims], generator=generator)
    for full in (small.expand([3] * len(dims)), small.expand([3] * len(dims)).clone()):
        found = squeeze_constant(full, first)
        kept = [3 if varies or dim < first else 1 for dim, varies in enumerate(dims)]
        assert list(found.shape) == kept
        assert torch.allclose(found.expand(full.shape), full, rtol=1e-6)


def test_lean_lets_the_gradient_reach_every_element():
    full = torch.ones(3, 4, requires_grad=True)
    squeeze_constant(full * 1).sum().backward()
    assert torch.allclose(full.grad, torch.full((3, 4), 1 / 12))


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize(
    "change",
    [lambda t: t.flip(-1) * 2, lambda t: t.mean(1, keepdim=True), lambda t: t * float(t.detach().flatten()[0] * 0 + 3)],
    ids=["flip", "mean", "needs values"],
)
def test_by_level_changes_every_level(change, levels):
    flow = torch.rand(levels, 3, 4, dtype=torch.float64)
    found = by_level(change, flow)
    expected = torch.stack([change(level) for level in flow])
    assert torch.allclose(found.expand(expected.shape), expected)


def test_by_level_of_several_flows_takes_them_together():
    a, b = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    assert torch.allclose(by_level(lambda x, y: torch.cat([x, y]), a, b), torch.cat([a, b], 1))


def test_mapped_changes_every_map_and_keeps_the_rest():
    x = varied()
    y = x.mapped(lambda t: t.transpose(1, 2), (2, 4, 3, 5), known=False)
    for name in ("second", "position", "sample", "mean"):
        assert torch.equal(getattr(y, name), getattr(x, name).transpose(1, 2))
    assert torch.equal(y.flow, x.flow.transpose(2, 3)) and y.shape == (2, 4, 3, 5) and not y.known
    assert y.marginal is x.marginal and y.radial is x.radial and y.local is x.local


def test_averaged_keeps_means_and_what_is_received():
    x = varied()
    y, by_channel = x.averaged(), x.averaged(keep=1)
    assert (x.varies, y.varies, by_channel.varies) == (True, False, True)
    assert y.power == pytest.approx(x.power) and by_channel.power == pytest.approx(x.power)
    assert by_channel.second.shape == (1, 3, 1, 1)
    assert torch.allclose(by_channel.second.flatten(), x.second.mean((0, 2, 3)))
    assert y.total_flow.item() == pytest.approx(x.total_flow.item())


def test_a_flow_is_divided_by_mass():
    x = varied(levels=3)
    masses = torch.tensor([0.25, 0.75], dtype=torch.float64)
    mixed = x.flow_over(masses)
    assert mixed.shape == (2, *SHAPE)
    assert torch.allclose(mixed.sum(0), x.flow.sum(0)) and torch.allclose(mixed[1], 3 * mixed[0])


def test_aligned_adds_leading_dimensions():
    x = varied(shape=(4, 5))
    y = x.aligned(4)
    assert y.shape == (1, 1, 4, 5) and y.second.shape == (1, 1, 4, 5) and y.flow.shape == (3, 1, 1, 4, 5)
    assert x.aligned(2) is x and x.aligned(1) is x


def test_received_counts_every_element_of_every_level_once():
    """And changes of strength: they come to a quarter of (d log q)^2 times the mean square, in every element."""
    x = varied()
    radial = float(x.radial @ x.marginal.levels)
    assert x.total_flow.item() == pytest.approx(float(x.flow.sum()) + math.prod(SHAPE) * x.power * radial / 4)


def test_the_correlation_of_positions():
    x = standard(SHAPE)
    second, position, mean = (constant(v, SHAPE) for v in (2.0, 1.1, 0.5))
    y = Signal(SHAPE, second, position, x.sample, mean, x.marginal, x.flow, x.radial, x.local)
    assert y.correlation == pytest.approx((1.1 - 0.25) / (2.0 - 0.25))
    law = x.marginal.dropped(0.5, channelwise=False)  # half of what the normal variables share, masks leave
    zero, less = constant(0.0, SHAPE), constant(0.6, SHAPE)
    y = Signal(SHAPE, second, less, x.sample, zero, law, x.flow, x.radial, x.local)
    assert y.correlation == pytest.approx(0.6, abs=1e-3)


def test_an_unknown_signal_has_the_papers_factor_and_passes_on_half_the_errors():
    x = varied()
    y = x.after_unknown((2, 7))
    assert (y.shape, y.power, y.known, y.varies) == ((2, 7), 0.5, False, False)
    assert y.marginal.normal and y.marginal.level_variance == 0 and float(y.mean) == 0 and float(y.radial) == 0
    assert float(y.flow.sum()) == pytest.approx(0.5 * float(x.flow.flatten(1).mean(1).sum()))
