"""Activations: the function of every layer that applies one, and what it makes of a signal, against draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_structural import DRAWS, MIXED, PLAIN, Calls, Normal, check, off_diagonal, off_diagonal_of, within
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.signals.activations import activated, activation_of, is_homogeneous
from evenkeel.signals.signal import Signal

Z = torch.linspace(-4, 4, 41, dtype=torch.float64)

MODULES = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.ELU(0.7),
    nn.SELU(),
    nn.CELU(1.5),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(inplace=True),
    nn.Mish(),
    nn.Softplus(2.0, 10.0),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Hardtanh(-0.5, 2.0),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Hardshrink(0.3),
    nn.LeakyReLU(0.2),
    nn.LogSigmoid(),
    nn.Softsign(),
    nn.Softshrink(0.4),
    nn.Tanhshrink(),
    nn.Threshold(0.1, -0.2),
]
FUNCTIONS = {
    "relu": torch.relu,
    "in place": lambda x: F.relu_(x * 1),
    "method": lambda x: x.clone().sigmoid_(),
    "hardtanh with args": lambda x: F.hardtanh(x, -2.0, 0.5),
    "hardtanh by name": lambda x: F.hardtanh(x, max_val=0.5, min_val=-2.0),
    "leaky": lambda x: F.leaky_relu(x, 0.3),
    "gelu by name": lambda x: F.gelu(x, approximate="tanh"),
    "clamp": lambda x: x.clamp(min=-0.5),
    "clamp at both": lambda x: torch.clamp(x, -0.5, 1.5),
    "square": torch.square,
    "power": lambda x: x**3,
    "pow": lambda x: torch.pow(x, 2),
    "abs": abs,
    "exp": torch.exp,
    "sin": torch.sin,
    "negative": lambda x: -x,
}


def layer_of(model):
    graph = ek.trace(model, torch.zeros(2, 2, 6, 6))
    return graph.of(ek.Kind.ACTIVATION)[0]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_the_function_of_a_module(module):
    f, z = activation_of(layer_of(module)), Z.clone()
    assert torch.equal(f(z), module(Z.clone()))
    assert torch.equal(z, Z)  # also where the layer works in place


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_of_a_call(name):
    assert torch.equal(activation_of(layer_of(Calls(FUNCTIONS[name])))(Z), FUNCTIONS[name](Z))


def test_a_prelu_has_its_mean_slope():
    module = nn.PReLU(2)
    module.weight.data = torch.tensor([0.1, 0.5])
    assert torch.allclose(activation_of(layer_of(module))(Z), F.leaky_relu(Z, 0.3))
    functional = Calls(lambda x: F.prelu(x, functional.weight))
    functional.weight = nn.Parameter(torch.tensor([0.25]))
    assert torch.allclose(activation_of(layer_of(functional))(Z), F.leaky_relu(Z, 0.25))


@pytest.mark.parametrize(
    ("model", "slope"),
    [
        (nn.RReLU(0.1, 0.5), 0.3),
        (nn.RReLU(), (1 / 8 + 1 / 3) / 2),
        (Calls(lambda x: F.rrelu(x, 0.2, 0.4, True)), 0.3),
        (Calls(lambda x: F.rrelu(x, training=True)), (1 / 8 + 1 / 3) / 2),
        (Calls(lambda x: F.rrelu(x, lower=0.1, upper=0.2)), 0.15),
    ],
    ids=["module", "default", "function", "function, default", "by name"],
)
def test_a_random_slope_counts_as_its_mean(model, slope):
    assert torch.allclose(activation_of(layer_of(model))(Z), F.leaky_relu(Z, slope))


def test_what_is_no_call_is_refused():
    with pytest.raises(ek.ActivationError, match="no call"):
        activation_of(ek.trace(nn.ReLU(), torch.zeros(2)).of(ek.Kind.INPUT)[0])


@pytest.mark.parametrize(
    ("f", "homogeneous"),
    [
        (torch.relu, True),
        (torch.abs, True),
        (lambda z: F.leaky_relu(z, 0.1), True),
        (lambda z: z, True),
        (torch.tanh, False),
        (F.gelu, False),
        (torch.square, False),
        (lambda z: z + 1, False),
    ],
)
def test_homogeneous_functions(f, homogeneous):
    assert is_homogeneous(f) is homogeneous


# Signals

SMOOTH = {"tanh": torch.tanh, "gelu": F.gelu, "softplus": F.softplus, "sin": torch.sin}
CLIPPED = {"relu": torch.relu, "leaky": lambda x: F.leaky_relu(x, 0.2), "elu": F.elu, "abs": torch.abs}
SIGNALS = {
    "plain": PLAIN,
    "strong": Normal(PLAIN.shape, own=4.0),
    "shared": Normal(PLAIN.shape, samples=0.4, positions=0.5, own=0.6),
    "mixed": MIXED,
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", [*SMOOTH, *CLIPPED])
def test_moments_of_an_activated_signal(name, signal):
    """Second moment, mean, what samples and positions share, and errors."""
    f = (SMOOTH | CLIPPED)[name]
    x = SIGNALS[signal]
    before = x.signal()
    result = activated(before, f)
    drawn = x.drawn(DRAWS).double().requires_grad_()
    output = f(drawn)
    back = torch.autograd.grad(output, drawn, torch.randn_like(output))[0]
    y = output.detach().unflatten(0, (DRAWS, 2))
    within((y**2).mean((1, 2, 3, 4))[:, None], result.second.mean().reshape(1))
    within(y.mean((1, 2, 3, 4))[:, None], result.mean.mean().reshape(1))
    floor = 2e-3 * result.power  # series of polynomials meet kinks slowly
    within((y[:, 0] * y[:, 1]).mean((1, 2, 3))[:, None], result.sample.mean().reshape(1), floor)
    within(off_diagonal(y), off_diagonal_of(result), floor)
    returned = (back**2).flatten(1).sum(1).unflatten(0, (DRAWS, 2)).sum(1)
    within(returned[:, None], result.total_flow[None].detach() * torch.ones(1, dtype=torch.float64))
    assert result.known and result.shape == x.shape


FIRST = {"relu": torch.relu, "dropout": lambda x: F.dropout(x, 0.5), "max pool": lambda x: F.max_pool2d(x, 2)}


@pytest.mark.parametrize("second", [torch.relu, torch.tanh], ids=lambda f: f.__name__)
@pytest.mark.parametrize("first", FIRST)
def test_an_activation_of_what_is_not_normal(first, second):
    """Its slope counts where errors pass what comes before it, so neither where ReLU is 0 nor what is dropped."""
    check(lambda x: second(FIRST[first](x)), MIXED, shared=False)


@pytest.mark.parametrize("f", [torch.relu, torch.tanh, F.softplus], ids=lambda f: f.__name__)
def test_each_position_has_its_own_mean_square(f):
    """Half of the positions are weak and half are strong."""
    x = PLAIN.signal()
    levels = torch.tensor([0.25, 0.25, 0.25, 4.0, 4.0, 4.0], dtype=torch.float64)
    second = levels.reshape(1, 1, 1, 6)
    maps = (second, second * 0, second * 0, second * 0)
    law, flow = x.marginal, torch.ones((1, 1, 1, 1, 1), dtype=torch.float64)
    result = activated(Signal(x.shape, *maps, law, flow, x.radial, x.local), f)
    z = torch.randn(400_000).double()
    for level, found in zip(levels, result.second.expand(1, 1, 1, 6).flatten(), strict=True):
        samples = f(z * level.sqrt()) ** 2
        assert abs(float(samples.mean()) - float(found)) < 5 * float(samples.std()) / math.sqrt(len(z)) + 0.01 * found


@pytest.mark.parametrize("f", [torch.tanh, F.gelu], ids=lambda f: f.__name__)
def test_each_position_passes_errors_by_its_own_slope(f):
    """Where the signal is weak, tanh is steep."""
    x = PLAIN.signal()
    levels = torch.tensor([0.25, 0.25, 0.25, 4.0, 4.0, 4.0], dtype=torch.float64)
    second = levels.reshape(1, 1, 1, 6)
    law, flow = x.marginal, torch.ones((1, 1, 1, 1, 1), dtype=torch.float64)
    result = activated(Signal(x.shape, second, second * 0, second * 0, second * 0, law, flow, x.radial, x.local), f)
    z = torch.randn(400_000).double()
    for level, found in zip(levels, result.flow.expand(1, 1, 1, 1, 6).flatten(), strict=True):
        at = (z * level.sqrt()).requires_grad_()
        slopes = torch.autograd.grad(f(at).sum(), at)[0] ** 2
        assert abs(float(slopes.mean()) - float(found)) < 5 * float(slopes.std()) / math.sqrt(len(z)) + 0.02 * found


@given(power=st.floats(0.01, 100), slope=st.floats(0, 0.9))
@settings(max_examples=25)
def test_homogeneous_activations_scale(power, slope):
    def f(z):
        return F.leaky_relu(z, slope)

    result = activated(Normal((2, 8), own=power).signal(), f)
    assert result.power == pytest.approx(power * (1 + slope**2) / 2)
    assert result.total_flow.item() == pytest.approx(16 * (1 + slope**2) / 2)
    assert float(result.mean) == pytest.approx(math.sqrt(power) * (1 - slope) / math.sqrt(2 * math.pi))


def test_nothing_stays_nothing():
    x = PLAIN.signal()
    nothing = x.mapped(lambda t: t * 0, x.shape)
    assert activated(nothing, torch.tanh) is nothing
    with pytest.raises(ArithmeticError):
        activated(x, lambda z: z * 0)


REFUSED = {
    "log": torch.log,
    "reciprocal": lambda z: torch.where(z.abs() < 0.2, z * 0, z).reciprocal(),
    "sum": lambda z: z.sum(),
    "shape": lambda z: z[..., :3],
    "slope": lambda z: torch.where(z.abs() < 0.2, z * 0, z).abs().sqrt(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    with pytest.raises(ek.ActivationError, match="no elementwise function that is finite everywhere"):
        activated(PLAIN.signal(), REFUSED[name])
