"""activation_moments: closed forms to 1e-8, Monte Carlo within 4 standard errors, hendrycks2016's Table 1, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import evenkeel as ek


def density(z):
    return math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def below(z):
    """P(Z < z)."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def elu(a):
    """E f^2 and E f'^2 of z for z > 0, a (e^z - 1) else."""
    return (
        0.5 + a**2 * (0.5 + math.e**2 * below(-2) - 2 * math.sqrt(math.e) * below(-1)),
        0.5 + a**2 * math.e**2 * below(-2),
    )


SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
CLOSED = {
    "identity": (lambda z: z, 1.0, 1.0),
    "relu": (torch.relu, 0.5, 0.5),
    "leaky_relu": (nn.LeakyReLU(0.2), (1 + 0.04) / 2, (1 + 0.04) / 2),
    "abs": (torch.abs, 1.0, 1.0),
    "gelu": (F.gelu, 1 / 3 + 1 / (2 * math.pi * math.sqrt(3)), 1 / 3 + 2 / (3 * math.pi * math.sqrt(3))),
    "elu": (F.elu, *elu(1)),
    "celu": (nn.CELU(), *elu(1)),
    "selu": (F.selu, *(SCALE**2 * moment for moment in elu(ALPHA))),
    "exp": (torch.exp, math.e**2, math.e**2),
    "square": (torch.square, 3.0, 4.0),
    "sin": (torch.sin, (1 - math.exp(-2)) / 2, (1 + math.exp(-2)) / 2),
    "sign": (torch.sign, 1.0, 0.0),
}


def relu6():
    """int_0^6 z^2 phi + 36 P(Z > 6), and P(0 < Z < 6)."""
    inside = below(6) - 0.5
    return inside - 6 * density(6) + 36 * below(-6), inside


def hardtanh():
    inside = below(1) - below(-1)
    return inside - 2 * density(1) + 2 * below(-1), inside


CLOSED["relu6"] = (nn.ReLU6(), *relu6())
CLOSED["hardtanh"] = (nn.Hardtanh(), *hardtanh())


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    f, second, derivative = CLOSED[name]
    moments = ek.activation_moments(f)
    assert moments.second == pytest.approx(second, abs=1e-8)
    assert moments.derivative_second == pytest.approx(derivative, abs=1e-8)


@given(kink=st.floats(-4, 4), slope=st.floats(-2, 2))
def test_kinks_are_found_wherever_they_are(kink, slope):
    """f is 0 below the kink and slope (z - kink) above: E f^2 = slope^2 ((1 + k^2) P(Z > k) - k phi(k))."""
    moments = ek.activation_moments(lambda z: slope * torch.relu(z - kink))
    above = below(-kink)
    assert moments.second == pytest.approx(slope**2 * ((1 + kink**2) * above - kink * density(kink)), abs=1e-8)
    assert moments.derivative_second == pytest.approx(slope**2 * above, abs=1e-8)
    assert moments.mean == pytest.approx(slope * (density(kink) - kink * above), abs=1e-8)
    assert moments.derivative_mean == pytest.approx(slope * above, abs=1e-8)


# hendrycks2016, Table 1: E f^2 as printed, E f'^2 as printed, and whether the latter is right.
TABLE_1 = {
    "identity": (lambda z: z, 1, 1, True),
    "relu": (torch.relu, 0.5, 0.5, True),
    "gelu": (F.gelu, 0.425, 0.444, False),
    "tanh": (torch.tanh, 0.394, 0.216, False),
    "elu": (F.elu, 0.645, 0.671, False),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1_of_the_paper(name):
    f, second, derivative, right = TABLE_1[name]
    moments = ek.activation_moments(f)
    assert moments.second == pytest.approx(second, abs=5e-4)
    assert (abs(moments.derivative_second - derivative) < 5e-4) is right


def test_the_printed_tanh_is_the_square_of_the_right_value():
    assert ek.activation_moments(torch.tanh).derivative_second ** 2 == pytest.approx(0.216, abs=5e-4)


@pytest.mark.parametrize(
    "f", [F.silu, F.mish, F.hardswish, F.softplus, torch.sigmoid, F.softsign, nn.GELU("tanh"), nn.PReLU()]
)
def test_monte_carlo(f):
    """Prediction law: within 4 standard errors of a million samples."""
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = f(z)
    slope = torch.autograd.grad(value.sum(), z)[0]
    value = value.detach()
    moments = ek.activation_moments(f)
    pairs = {
        moments.second: value**2,
        moments.derivative_second: slope**2,
        moments.mean: value,
        moments.derivative_mean: slope,
    }
    for exact, samples in pairs.items():
        error = float(samples.double().std()) / math.sqrt(len(z))
        assert abs(exact - float(samples.double().mean())) < 4 * error + 1e-7
    assert moments.variance == pytest.approx(float(value.double().var()), rel=0.01)


def test_modules_are_left_as_they_are():
    module = nn.PReLU()
    before = module.weight
    ek.activation_moments(module)
    assert module.weight is before and before.dtype == torch.float32 and before.grad is None


REFUSED = {
    "softmax": (lambda z: z.softmax(-1), "not elementwise: a value depends"),
    "cumsum": (lambda z: z.cumsum(0), "not elementwise"),
    "glu": (nn.GLU(), "raised RuntimeError"),
    "sum": (torch.sum, r"not elementwise: of a tensor of shape \(31,\) it made \(\)"),
    "dropout": (nn.Dropout(), "not deterministic"),
    "rrelu": (nn.RReLU(), "not deterministic"),
    "log": (torch.log, "not finite at z = -1"),
    "reciprocal": (torch.reciprocal, "no finite second moment|not finite"),
    "root": (lambda z: z.abs().sqrt(), "no finite second moment: near"),
    "too steep": (lambda z: torch.exp(z * z / 3), "grows so fast"),
    "math": (math.tanh, "raised"),
    "not a tensor": (lambda z: z.sum().item(), "raised AttributeError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_give_the_reason(name):
    f, message = REFUSED[name]
    with pytest.raises(ek.ActivationError, match=message):
        ek.activation_moments(f)
