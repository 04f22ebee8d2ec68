"""Pools, joins, concatenations, gates and rearrangements against Monte Carlo, or against every element in turn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.signals import transfers
from evenkeel.signals.marginals import gaussian
from evenkeel.signals.propagation import given_weights
from evenkeel.signals.signal import Signal, constant
from evenkeel.signals.structural import STRUCTURAL, ratio
from evenkeel.signals.transfers import PropagationOptions, transfer

DRAWS = 4000
NOT_UNDERSTOOD = transfers._NOT_UNDERSTOOD


@pytest.fixture(autouse=True)
def _all_is_understood(monkeypatch):
    """What a transfer raises is seen."""
    monkeypatch.setattr(transfers, "_NOT_UNDERSTOOD", ())


class Calls(nn.Module):
    """A function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Normal:
    """Normal values of known moments: a part shared by samples, one shared by positions, and each element's own."""

    def __init__(self, shape, mean=0.0, samples=0.0, positions=0.0, own=1.0):
        self.shape, self.mean = shape, mean
        self.samples, self.positions, self.own = samples, positions, own

    def signal(self):
        shape, mean = self.shape, self.mean
        second = mean**2 + self.samples + self.positions + self.own
        law = gaussian(mean=mean / math.sqrt(second))
        flow = torch.ones((1,) * (len(shape) + 1), dtype=torch.float64, requires_grad=True)
        second, position, sample, mean = (
            constant(v, shape)
            for v in (second, mean**2 + self.samples + self.positions, mean**2 + self.samples, self.mean)
        )
        return Signal(shape, second, position, sample, mean, law, flow, 0 * law.masses, law.masses)

    def drawn(self, draws):
        """Independent copies of the signal: every draw two samples, shape (2 draws, *shape[1:])."""
        batch, channels, *space = self.shape
        assert batch == 2

        def part(variance, *sizes):
            return math.sqrt(variance) * torch.randn(*sizes).expand(draws, 2, channels, *space)

        ones = [1] * len(space)
        x = self.mean + part(self.samples, draws, 1, channels, *ones) + part(self.own, draws, 2, channels, *space)
        return (x + part(self.positions, draws, 2, channels, *ones)).flatten(0, 1)


def followed(function, *inputs, training=True, bordered=True):
    """The signals of all layers of a function, or of a model, by name, given those of its inputs."""
    model = function if isinstance(function, nn.Module) else Calls(function)
    graph = ek.trace(model, tuple(torch.zeros(x.shape) for x in inputs))
    options = PropagationOptions(training, bordered, True, given_weights)
    signals = dict(zip(graph.of(ek.Kind.INPUT), (x.signal() for x in inputs), strict=True))
    for layer in graph:
        if layer not in signals and layer.kind is not ek.Kind.OUTPUT:
            signals[layer] = transfer(layer, [signals[source] for source in layer.inputs], options)
            assert signals[layer].shape == layer.shape
    return {layer.name: signal for layer, signal in signals.items()}


def laid_out(function, *inputs, bordered=True):
    """What the function makes of the inputs' signals, and those signals."""
    signals = list(followed(function, *inputs, bordered=bordered).values())
    return signals[-1], signals[: len(inputs)]


def within(samples, expected, floor=1e-4):
    """Whether each column's mean is within 5 standard errors: columns are many."""
    mean, error = samples.mean(0), samples.std(0) / math.sqrt(len(samples))
    gap = (mean - expected).abs()
    assert bool((gap <= 5 * error + floor).all()), f"{mean} is not {expected}, at {error}"


def check(function, *inputs, shared=True, errors=True):
    """Maps of E y^2 and E y, shared moments, and all errors that come back, against draws."""
    result, _ = laid_out(function, *inputs)
    assert result.known
    drawn = [x.drawn(DRAWS).double().requires_grad_() for x in inputs]
    output = function(*drawn)
    back = torch.autograd.grad(output, drawn, torch.randn_like(output))
    y = output.detach().unflatten(0, (DRAWS, 2))

    def full(t):
        return t.detach().expand(result.shape)[0].mean(0)

    within((y**2).mean((1, 2)), full(result.second))
    within(y.mean((1, 2)), full(result.mean))
    if shared:
        within((y[:, 0] * y[:, 1]).mean(1), full(result.sample))
        if y[0, 0, 0].numel() > 1:
            within(off_diagonal(y), off_diagonal_of(result))
    if errors:
        returned = sum((g**2).flatten(1).sum(1).unflatten(0, (DRAWS, 2)).sum(1) for g in back)
        within(returned[:, None], torch.tensor([result.total_flow.item()], dtype=torch.float64))


def off_diagonal(y):
    """Mean of y_s y_t over all pairs of different positions, a row each draw."""
    flat = y.flatten(3)
    size = flat.shape[-1]
    pairs = (flat.sum(-1) ** 2 - (flat**2).sum(-1)) / (size * (size - 1))
    return pairs.mean((1, 2))[:, None]


def off_diagonal_of(result):
    return torch.tensor([float(result.position.mean())], dtype=torch.float64)


SHAPE = (2, 2, 6, 6)
PLAIN = Normal(SHAPE)
MIXED = Normal(SHAPE, mean=0.7, samples=0.3, positions=0.5, own=0.8)


# Pools

AVERAGES = {
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "stride": lambda x: F.avg_pool2d(x, 3, stride=1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive to one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "mean kept": lambda x: x.mean((2, 3), keepdim=True),
    "mean of one side": lambda x: torch.mean(x, -1),
    "sum": lambda x: x.sum((2, 3)),
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("x", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_averages(name, x):
    overlapping = name == "stride"  # then positions share inputs, which is neglected
    check(AVERAGES[name], x, shared=not overlapping)


# zeros that the padding adds count, or do not
PADDED = {
    "counted": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "one side": lambda x: F.avg_pool2d(x, (1, 3), (1, 3), (0, 1)),
    "ceil": lambda x: F.avg_pool2d(x, 4, 4, ceil_mode=True),
    "uneven": lambda x: F.adaptive_avg_pool2d(x, 4),
}


@pytest.mark.parametrize("name", PADDED)
def test_averages_of_uneven_windows(name):
    check(PADDED[name], PLAIN, shared=False)


@pytest.mark.parametrize("p", [1, 3])
def test_one_dimension_and_three(p):
    shape = (2, 2, *(4,) * p)
    check(lambda x: getattr(F, f"avg_pool{p}d")(x, 2), Normal(shape, mean=0.5, positions=0.3))
    check(lambda x: getattr(F, f"max_pool{p}d")(x, 2), Normal(shape), shared=False)


EXTREMES = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "of nine": lambda x: F.max_pool2d(x, 3),
    "with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 2),
    "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: x.amin((2, 3)),
    "max over a side": lambda x: torch.max(x, -1)[0],
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_of_independent_values(name):
    result, _ = laid_out(EXTREMES[name], PLAIN)
    y = EXTREMES[name](PLAIN.drawn(DRAWS)).double().unflatten(0, (DRAWS, 2)).flatten(2)
    within((y**2).mean((1, 2))[:, None], result.second.mean().reshape(1))
    within(y.mean((1, 2))[:, None], result.mean.mean().reshape(1))
    within((y[:, 0] * y[:, 1]).mean(1)[:, None], result.sample.mean().reshape(1))
    assert result.total_flow.item() == pytest.approx(math.prod(result.shape), rel=1e-6)  # one input an output


def test_extremes_of_values_that_positions_share():
    check(lambda x: F.max_pool2d(x, 3), Normal(SHAPE, mean=0.4, positions=0.5, own=0.5), shared=False)


def test_extremes_at_borders_are_of_fewer_values():
    """A padded window of 3 x 3 holds 4 values at a corner and 6 along a side."""
    check(lambda x: F.max_pool2d(x, 3, 2, 1), PLAIN, shared=False)


def test_a_sum_is_a_mean_times_the_count():
    total, _ = laid_out(lambda x: x.sum((2, 3)), MIXED)
    mean, _ = laid_out(lambda x: x.mean((2, 3)), MIXED)
    for name, factor in (("second", 36**2), ("position", 36**2), ("sample", 36**2), ("mean", 36), ("flow", 36**2)):
        assert torch.allclose(getattr(total, name), getattr(mean, name) * factor)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_interpolation_keeps_the_mean_square_and_shares_it_among_more(mode):
    result, (x,) = laid_out(lambda x: F.interpolate(x, scale_factor=2, mode=mode), MIXED)
    assert result.power == x.power and float(result.local) == 4.0


# Joins and gates

OTHER = Normal(SHAPE, mean=-0.4, samples=0.2, positions=0.1, own=0.3)
JOINS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "alpha": lambda x, y: torch.add(x, y, alpha=0.5),
    "sub alpha": lambda x, y: torch.sub(x, y, alpha=2),
    "in place": lambda x, y: x.clone().add_(y),
}


@pytest.mark.parametrize("name", ["add", "sub", "alpha", "sub alpha"])
@pytest.mark.parametrize("others", [OTHER, Normal((2, 2, 1, 1), mean=0.5, samples=0.1)], ids=["same", "one position"])
def test_joins(name, others):
    check(JOINS[name], MIXED, others)


def test_reversed_subtraction():
    check(lambda x, y: torch.rsub(x, y, alpha=0.5), MIXED, OTHER)


def test_a_join_with_a_signal_of_fewer_dimensions():
    result, (x, y) = laid_out(lambda x, y: x + y, MIXED, Normal((6, 6), mean=0.5))
    assert result.power == pytest.approx(x.power + y.power + 2 * 0.7 * 0.5)


@pytest.mark.parametrize("others", [OTHER, Normal((2, 2, 1, 1), mean=0.5, samples=0.1)], ids=["same", "one position"])
def test_gates(others):
    """A product of independent signals: moments multiply, and each is passed on by the other's mean square."""
    check(lambda x, y: x * y, MIXED, others)


def test_a_signal_times_itself_is_a_square():
    result, (x,) = laid_out(lambda x: x * x, PLAIN)
    assert result.power == pytest.approx(3.0) and float(result.mean) == pytest.approx(1.0)
    assert result.total_flow.item() == pytest.approx(4 * math.prod(x.shape), rel=1e-6)


FORGOTTEN = {
    "quotient": lambda x, y: x / y,
    "reciprocal": lambda x, y: 1 / (x + y),
    "scatter": lambda x, y: torch.zeros(SHAPE).scatter_add(2, torch.zeros(SHAPE, dtype=torch.long), x + y),
}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_what_is_not_understood_is_unknown(monkeypatch, name):
    monkeypatch.setattr(transfers, "_NOT_UNDERSTOOD", NOT_UNDERSTOOD)
    result, _ = laid_out(FORGOTTEN[name], PLAIN, PLAIN)
    assert (result.known, result.power) == (False, 0.5)


CONSTANTS = {
    "number added": lambda x: x + 1.5,
    "number taken": lambda x: x - 1.5,
    "taken from a number": lambda x: 1.5 - x,
    "rsub": lambda x: torch.rsub(x, 1.5),
    "number times": lambda x: x * -3,
    "number times, reversed": lambda x: 0.5 * x,
    "over a number": lambda x: x / 4,
    "negative": lambda x: x.mul(-1),
    "added twice over": lambda x: torch.add(x, 1.5, alpha=2),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name):
    check(CONSTANTS[name], MIXED)


class WithMap(nn.Module):
    """A buffer or parameter for each channel, as an operand."""

    def __init__(self, operation, held):
        super().__init__()
        self.operation = operation
        values = torch.tensor([0.5, -2.0])[:, None, None]
        if held == "parameter":
            self.map = nn.Parameter(values)
        else:
            self.register_buffer("map", values)

    def forward(self, x):
        return self.operation(x, self.map)


@pytest.mark.parametrize("held", ["parameter", "buffer"])
@pytest.mark.parametrize("operation", [torch.add, torch.sub, torch.mul, torch.div], ids=lambda f: f.__name__)
def test_maps_that_the_model_holds(operation, held):
    check(WithMap(operation, held), MIXED)


# Concatenations

CONCATS = {
    "channels": (lambda x, y: torch.cat([x, y], 1), (2, 3, 4, 4)),
    "space": (lambda x, y: torch.cat([x, y], 3), (2, 2, 4, 2)),
    "negative dimension": (lambda x, y: torch.cat((x, y), dim=-1), (2, 2, 4, 3)),
    "hstack": (lambda x, y: torch.hstack([x, y]), (2, 3, 4, 4)),
    "three": (lambda x, y: torch.cat([x, y, x], 1), (2, 2, 4, 4)),
}


@pytest.mark.parametrize("name", CONCATS)
def test_concatenations_are_the_same_function_of_the_maps(name):
    function, shape = CONCATS[name]
    x, y = Normal((2, 2, 4, 4), mean=0.5, samples=0.2), Normal(shape, mean=-1.0, positions=0.3, own=2.0)
    result, signals = laid_out(function, x, y)
    for field in ("second", "position", "sample", "mean"):
        maps = [getattr(s, field).expand(s.shape) for s in signals]
        assert torch.equal(getattr(result, field).expand(result.shape), function(*maps)), field
    parts = [math.prod(s.shape) * (1 + (name == "three" and s is signals[0])) for s in signals]
    assert result.total_flow.item() == pytest.approx(sum(parts), rel=1e-6)


def test_a_concatenation_that_is_not_bordered_is_a_mean_by_size():
    x, y = Normal((2, 2, 4, 4)), Normal((2, 6, 4, 4), own=3.0)
    result, _ = laid_out(lambda x, y: torch.cat([x, y], 1), x, y, bordered=False)
    assert result.second.numel() == 1 and result.power == pytest.approx((2 * 1 + 6 * 3) / 8)


def test_values_written_into_zeros():
    def function(x):
        canvas = torch.zeros(2, 1, 4, 4)
        canvas[:, :, 1:3, 1:3] = x
        return canvas

    result, _ = laid_out(function, Normal((2, 1, 2, 2), own=5.0))
    row = [0.0, 5.0, 5.0, 0.0]
    assert result.second.expand(result.shape)[0, 0].tolist() == [[0.0] * 4, row, row, [0.0] * 4]


# Rearrangements

REARRANGED = {
    "reshape": lambda x: x.reshape(2, 3, 4, 6),
    "flatten": lambda x: x.flatten(1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "slice": lambda x: x[:, :, 1:, ::2],
    "index": lambda x: x[:, 0],
    "narrow": lambda x: x.narrow(2, 1, 2),
    "one chunk": lambda x: x.chunk(1, 1)[0],
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(1, 3),
    "unsqueeze": lambda x: x.unsqueeze(2),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "pad with ones": lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
}


@pytest.mark.parametrize("name", REARRANGED)
def test_rearrangements_are_the_same_function_of_the_maps(name):
    """Of a signal whose mean square is different at each element."""
    function, shape = REARRANGED[name], (2, 4, 3, 6) if name == "reshape" else (2, 4, 4, 4)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    law, flow = gaussian(), torch.rand((1, *shape), generator=generator, dtype=torch.float64)
    x = Signal(shape, *maps, law, flow, 0 * law.masses, law.masses)
    graph = ek.trace(Calls(function), torch.zeros(shape))
    for layer in graph.of(ek.Kind.PASS):
        x = STRUCTURAL[ek.Kind.PASS](layer, [x], bordered=True)
    for found, m in zip((x.second, x.position, x.sample, x.mean), maps, strict=True):
        assert torch.equal(found.expand(x.shape), function(m))
    if name != "pad with ones":  # no error comes back from what the padding adds
        assert torch.equal(x.flow[0].expand(x.shape), function(flow[0]))


def test_padding_adds_zeros_only_where_borders_count():
    for bordered, power in ((True, 16 / 36), (False, 1.0)):
        result, _ = laid_out(lambda x: F.pad(x, (1, 1, 1, 1)), Normal((2, 2, 4, 4)), bordered=bordered)
        assert result.power == pytest.approx(power)


def test_of_several_parts_the_maps_are_averaged():
    """The graph does not tell which one is read."""
    second = torch.rand(2, 4, 4, 4, dtype=torch.float64)
    law, flow = gaussian(), torch.ones((1, 1, 1, 1, 1), dtype=torch.float64)
    x = Signal((2, 4, 4, 4), second, second * 0, second * 0, second * 0, law, flow, 0 * law.masses, law.masses)
    (layer,) = ek.trace(Calls(lambda x: x.chunk(2, 1)[1]), torch.zeros(2, 4, 4, 4)).of(ek.Kind.PASS)[:1]
    found = STRUCTURAL[ek.Kind.PASS](layer, [x], bordered=True)
    assert torch.allclose(found.second, torch.stack(second.chunk(2, 1)).mean(0))


def test_one_position_spread_over_many_is_shared_by_them():
    """Of a value that is repeated over space, any two positions hold the same."""
    result, (x,) = laid_out(lambda x: x.expand(2, 2, 3, 3), Normal((2, 2, 1, 1)))
    assert float(result.position.mean()) == pytest.approx(x.power)


def test_padding_with_a_constant_adds_its_square():
    """16 values of mean square 1 and 20 of 4."""
    result, _ = laid_out(lambda x: F.pad(x, (1, 1, 1, 1), value=2.0), Normal((2, 2, 4, 4)))
    assert result.power == pytest.approx((16 + 20 * 4) / 36)


SIZES = st.integers(1, 4)


@given(kernel=SIZES, stride=st.integers(1, 3), padding=st.integers(0, 2), size=st.integers(4, 7))
@settings(max_examples=30)
def test_average_pools_of_any_geometry(kernel, stride, padding, size):
    """Exact: E y^2 of independent values is the sum of the squared shares that each has in y."""
    padding = min(padding, kernel // 2)

    def pool(x):
        return F.avg_pool2d(x, kernel, stride, padding)

    result, _ = laid_out(pool, Normal((2, 1, size, size)))
    inputs = torch.eye(size * size, dtype=torch.float64).view(-1, 1, size, size)
    shares = pool(inputs)  # of each input in each output
    assert torch.allclose(result.second.expand(result.shape)[0, 0], (shares**2).sum(0)[0])


@given(a=st.floats(-2, 2), b=st.floats(-2, 2))
@settings(max_examples=20)
def test_joins_add_means_with_their_sign(a, b):
    result, _ = laid_out(lambda x, y: x - y, Normal(SHAPE, mean=a), Normal(SHAPE, mean=b, own=0.5))
    assert float(result.mean) == pytest.approx(a - b)
    assert result.power == pytest.approx((a - b) ** 2 + 1.5)
    assert float(result.position) == float(result.sample) == pytest.approx((a - b) ** 2, abs=1e-12)


def test_ratio_is_short_of_one():
    one = torch.ones(1, dtype=torch.float64)
    assert ratio(0.5 * one, one) == 0.5
    assert (ratio(one, one), ratio(-one, one), ratio(0 * one, 0 * one)) == (0.999, -0.999, 0.0)
