"""weights_of, rows, fans, gathering and fill_ against counts, per-output loops and draws."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import Calls, read
from torch import nn
from torch.nn import functional as F

from evenkeel.init.drawing import draw_
from evenkeel.signals.weights import gathering


@dataclass(frozen=True)
class Case:
    """A weight layer: how to make it, an input's shape, which output dimensions count units, where no border is."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    units: tuple[int, ...] = (-1,)
    inside_in: tuple[slice, ...] = ()
    inside_out: tuple[slice, ...] = ()
    weight: str = "weight"


def convolution(dims, inputs, outputs, kernel, stride=1, dilation=1, groups=1, transposed=False):
    """A convolution without padding, on an input just large enough to have one whole stride without a border."""
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{dims}d")
    kernel, stride, dilation = (v if isinstance(v, tuple) else (v,) * dims for v in (kernel, stride, dilation))
    few, inside = [], [...]
    for k, s, d in zip(kernel, stride, dilation, strict=True):
        reach = d * (k - 1)
        few.append(math.ceil(reach / s) + 2)
        inside.append(slice(reach, reach + s))
    many = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in zip(few, kernel, stride, dilation, strict=True)]
    return Case(
        lambda: kind(inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=False),
        (2, inputs, *(few if transposed else many)),
        (1,),
        (...,) if transposed else tuple(inside),
        tuple(inside) if transposed else (...,),
    )


def product(function, weight, units=(-1,), shape=(6, 3), **others):
    return Case(lambda: Calls(function, w=weight, **others), shape, units, (...,), (...,), "w")


CASES = {
    "linear": Case(lambda: nn.Linear(3, 4, bias=False), (6, 3), (-1,), (...,), (...,)),
    "linear on sequences": Case(lambda: nn.Linear(3, 4, bias=False), (2, 5, 3), (-1,), (...,), (...,)),
    "conv1d": convolution(1, 3, 4, 3),
    "conv1d, stride": convolution(1, 3, 4, 5, stride=2),
    "conv1d, stride beyond the kernel": convolution(1, 3, 4, 2, stride=3),
    "conv2d": convolution(2, 3, 4, (3, 2)),
    "conv2d, stride": convolution(2, 2, 3, 3, stride=(1, 2)),
    "conv2d, dilation": convolution(2, 2, 3, 3, dilation=2),
    "conv2d, groups": convolution(2, 4, 6, 3, groups=2),
    "conv2d, depthwise": convolution(2, 4, 8, 3, groups=4),
    "conv2d, all": convolution(2, 4, 6, 3, stride=2, dilation=3, groups=2),
    "conv3d": convolution(3, 2, 3, 2, stride=(1, 2, 1), groups=1),
    "conv_transpose1d": convolution(1, 3, 4, 3, transposed=True),
    "conv_transpose2d, stride": convolution(2, 3, 4, 4, stride=2, transposed=True),
    "conv_transpose2d, groups": convolution(2, 4, 6, 3, groups=2, transposed=True),
    "conv_transpose2d, all": convolution(2, 4, 6, 3, stride=(2, 1), dilation=2, groups=2, transposed=True),
    "conv_transpose3d": convolution(3, 2, 3, 3, stride=2, transposed=True),
    "F.linear": product(lambda m, x: F.linear(x, m.w), (4, 3)),
    "F.linear by name": product(lambda m, x: F.linear(input=x, weight=m.w), (4, 3)),
    "F.conv2d": product(lambda m, x: F.conv2d(x, m.w), (4, 3, 1, 1), (1,), (2, 3, 2, 2)),
    "x @ W": product(lambda m, x: x @ m.w, (3, 4)),
    "W @ x": product(lambda m, x: m.w @ x, (4, 3), (0,), (3, 6)),
    "x @ W.T": product(lambda m, x: x @ m.w.T, (4, 3)),
    "W.T @ x": product(lambda m, x: m.w.t() @ x, (3, 4), (0,), (3, 6)),
    "F.linear with W.T": product(lambda m, x: F.linear(x, m.w.T), (3, 4)),
    "einsum with W.T": product(lambda m, x: torch.einsum("bi,oi->bo", x, m.w.T), (3, 4)),
    "matmul": product(lambda m, x: torch.matmul(x, m.w), (3, 4)),
    "matmul by name": product(lambda m, x: torch.matmul(input=m.w, other=x), (4, 3), (0,), (3, 6)),
    "mm": product(lambda m, x: torch.mm(x, m.w), (3, 4)),
    "mv": product(lambda m, x: torch.mv(m.w, x), (4, 3), (0,), (3,)),
    "x @ w of one unit": product(lambda m, x: (x @ m.w)[:, None], (3,)),
    "bmm": product(lambda m, x: torch.bmm(x, m.w), (2, 3, 4), (0, 2), (2, 6, 3)),
    "bmm, parameter first": product(lambda m, x: torch.bmm(m.w, x), (2, 4, 3), (0, 1), (2, 3, 6)),
    "x @ W in groups": product(lambda m, x: x @ m.w, (2, 3, 4), (0, 2), (2, 6, 3)),
    "addmm": product(lambda m, x: torch.addmm(m.b, x, m.w), (3, 4), b=(4,)),
    "addmm, bias as a matrix": product(lambda m, x: torch.addmm(m.b, x, m.w), (3, 4), b=(1, 4)),
    "addmv": product(lambda m, x: torch.addmv(m.b, m.w, x), (4, 3), (0,), (3,), b=(4,)),
    "baddbmm": product(lambda m, x: torch.baddbmm(m.b, x, m.w), (2, 3, 4), (0, 2), (2, 6, 3), b=(2, 1, 4)),
    "einsum": product(lambda m, x: torch.einsum("bi,oi->bo", x, m.w), (4, 3)),
    "einsum, parameter first": product(lambda m, x: torch.einsum("io, bi -> bo", m.w, x), (3, 4)),
    "einsum, operands in a list": product(lambda m, x: torch.einsum("bi,oi->bo", [x, m.w]), (4, 3)),
    "einsum, two sums": product(lambda m, x: torch.einsum("bij,ijo->bo", x, m.w), (3, 2, 4), shape=(6, 3, 2)),
    "einsum, heads": product(lambda m, x: torch.einsum("bi,ihk->bhk", x, m.w), (3, 2, 4), (1, 2)),
    "einsum, groups": product(lambda m, x: torch.einsum("bgi,goi->bgo", x, m.w), (2, 4, 3), (1, 2), (6, 2, 3)),
    "einsum, groups last": product(lambda m, x: torch.einsum("bgi,oig->bgo", x, m.w), (4, 3, 2), (1, 2), (6, 2, 3)),
    "einsum, dots": product(lambda m, x: torch.einsum("...i,oi->...o", x, m.w), (4, 3)),
    "tensordot": product(lambda m, x: torch.tensordot(x, m.w, dims=1), (3, 4)),
    "tensordot by dimensions": product(lambda m, x: torch.tensordot(x, m.w, dims=([1], [1])), (4, 3)),
    "conv_tbc": Case(
        lambda: Calls(lambda m, x: torch.conv_tbc(x, m.w, torch.zeros(4)), w=(2, 3, 4)),
        (5, 2, 3),
        (-1,),
        (slice(1, 4),),
        (...,),
        "w",
    ),
}


def zero_biases(module, weights):
    for parameter in module.parameters():
        if parameter is not weights.parameter:
            nn.init.zeros_(parameter)


def counted(module, weights, case):
    """How many weights meet in an output, and how many one input meets: all weights and signals being 1."""
    nn.init.ones_(weights.parameter)
    x = torch.ones(case.shape, requires_grad=True)
    out = module(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    return float(out.detach()[case.inside_out].mean()), float(grad[case.inside_in].mean())


# --- fans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_fans_count_weights(name):
    case = CASES[name]
    module = case.make()
    _, weights = read(module, torch.ones(case.shape))
    assert weights is not None
    assert weights.parameter is getattr(module, case.weight)
    zero_biases(module, weights)
    assert (weights.fan_in, weights.fan_out) == pytest.approx(counted(module, weights, case))


@given(
    dims=st.integers(1, 2),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_fans_of_any_convolution_count_weights(dims, groups, inputs, outputs, kernel, stride, dilation, transposed):
    case = convolution(dims, inputs * groups, outputs * groups, kernel, stride, dilation, groups, transposed)
    module = case.make()
    _, weights = read(module, torch.ones(case.shape))
    assert (weights.fan_in, weights.fan_out) == pytest.approx(counted(module, weights, case))


def within_four_errors(samples, expected):
    samples = torch.tensor(samples, dtype=torch.float64)
    return abs(float(samples.mean()) - expected) < 4 * float(samples.std()) / math.sqrt(len(samples))


@pytest.mark.parametrize("name", CASES)
def test_random_weights_scale_signals_and_errors_by_their_fans(name):
    """E out^2 = v fan_in E in^2 and E (dL/din)^2 = v fan_out E (dL/dout)^2, over draws."""
    case, variance, generator = CASES[name], 0.3, torch.Generator().manual_seed(0)
    module = case.make()
    _, weights = read(module, torch.ones(case.shape))
    assert weights is not None
    zero_biases(module, weights)
    signals, errors = [], []
    for _ in range(150):
        draw_(weights, variance, "normal", generator)
        x = (0.5 + torch.randn(case.shape, generator=generator)).requires_grad_()
        out = module(x)
        (grad,) = torch.autograd.grad(out, x, torch.randn(out.shape, generator=generator))
        signals.append(float(out.detach()[case.inside_out].square().mean()))
        errors.append(float(grad[case.inside_in].square().mean()))
    assert within_four_errors(signals, variance * weights.fan_in * 1.25)
    assert within_four_errors(errors, variance * weights.fan_out)


def test_bilinear_weights_scale_products_of_two_signals():
    module, variance, generator = nn.Bilinear(3, 5, 4), 0.3, torch.Generator().manual_seed(0)
    _, weights = read(module, (torch.ones(6, 3), torch.ones(6, 5)))
    assert (weights.fan_in, weights.fan_out, weights.bias) == (15, 4, module.bias)
    nn.init.zeros_(module.bias)
    signals, errors = [], []
    for _ in range(300):
        draw_(weights, variance, "normal", generator)
        x, y = torch.randn(6, 3, generator=generator), 2 * torch.randn(6, 5, generator=generator)
        out = module(x.requires_grad_(), y)
        (grad,) = torch.autograd.grad(out, x, torch.randn(out.shape, generator=generator))
        signals.append(float(out.detach().square().mean()))
        errors.append(float(grad.square().mean()))
    assert within_four_errors(signals, variance * weights.fan_in * 4)
    assert within_four_errors(errors, variance * weights.fan_out * 5 * 4)  # each of 5 products is of power 4


@pytest.mark.parametrize("module", [nn.Embedding(50, 8), nn.EmbeddingBag(50, 8, mode="mean")])
def test_an_embedding_hands_out_its_weights(module):
    _, weights = read(module, torch.zeros(4, 1, dtype=torch.long))
    assert (weights.parameter, weights.bias, weights.fan_in, weights.fan_out) == (module.weight, None, 1, 1)
    draw_(weights, 0.3, "sphere", torch.Generator().manual_seed(0))
    out = module(torch.arange(50)[:, None])
    assert torch.allclose(out.square().mean(), torch.tensor(0.3))


# --- whose weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (2, 3)),
        (nn.utils.parametrizations.spectral_norm(nn.Conv1d(3, 4, 2)), (2, 3, 5)),
        (Calls(lambda m, x: F.linear(x, m.w * 2), w=(4, 3)), (2, 3)),
        (Calls(lambda m, x: x @ m.w.tanh(), w=(3, 4)), (2, 3)),
        (Calls(lambda m, x: torch.einsum("bi,oi->bo", x, m.w - m.w.mean()), w=(4, 3)), (2, 3)),
        (Calls(lambda m, x: F.linear(x, torch.ones(4, 3))), (2, 3)),
    ],
)
def test_computed_weights_are_none(module, shape):
    assert read(module, torch.ones(shape))[1] is None


@pytest.mark.parametrize(
    ("module", "shape", "bias"),
    [
        (nn.Linear(3, 4), (2, 3), "bias"),
        (nn.Linear(3, 4, bias=False), (2, 3), None),
        (nn.Conv2d(3, 4, 2), (2, 3, 4, 4), "bias"),
        (nn.ConvTranspose2d(3, 4, 2), (2, 3, 4, 4), "bias"),
        (Calls(lambda m, x: F.linear(x, m.w, m.b), w=(4, 3), b=(4,)), (2, 3), "b"),
        (Calls(lambda m, x: F.linear(x, bias=m.b, weight=m.w), w=(4, 3), b=(4,)), (2, 3), "b"),
        (Calls(lambda m, x: F.linear(x, m.w, 2 * m.b), w=(4, 3), b=(4,)), (2, 3), None),
        (Calls(lambda m, x: torch.addmm(m.b, x, m.w), w=(3, 4), b=(4,)), (2, 3), "b"),
        (Calls(lambda m, x: torch.baddbmm(m.b, x, m.w), w=(2, 3, 4), b=(2, 1, 4)), (2, 5, 3), "b"),
    ],
)
def test_the_bias_is_the_parameter_added(module, shape, bias):
    weights = read(module, torch.ones(shape))[1]
    assert weights is not None
    assert weights.bias is (None if bias is None else getattr(module, bias))


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_what_an_output_unit_sums(name):
    """Oracle: unit by unit, the entries of the parameter by which the unit's output changes."""
    case = CASES[name]
    module = case.make()
    _, weights = read(module, torch.ones(case.shape))
    assert weights is not None
    out = module(1 + torch.rand(case.shape))
    out = out.movedim(case.units, tuple(range(len(case.units))))
    expected = Counter()
    for unit in itertools.product(*map(range, out.shape[: len(case.units)])):
        (grad,) = torch.autograd.grad(out[unit].sum(), weights.parameter, retain_graph=True)
        expected[tuple(sorted(weights.parameter[grad != 0].tolist()))] += 1
    assert Counter(tuple(sorted(row.tolist())) for row in weights.rows()) == expected


def test_rows_of_bilinear_and_embedding():
    bilinear, embedding = nn.Bilinear(3, 5, 4), nn.Embedding(7, 4)
    rows = read(bilinear, (torch.ones(6, 3), torch.ones(6, 5)))[1].rows()
    assert torch.equal(rows, torch.stack([bilinear.weight[unit].flatten() for unit in range(4)]))
    rows = read(embedding, torch.zeros(2, dtype=torch.long))[1].rows()
    assert torch.equal(rows, embedding.weight)


# --- gathering --------------------------------------------------------------------------------------------------------


def gathered(t, layer, module, geometry):
    """Sums of a map over the weights that meet in each output, tap by tap; t has the shape of the layer's input."""
    transposed, stride, dilation, left = geometry
    result = torch.zeros((t.shape[0], *layer.shape[1:]), dtype=t.dtype)
    dims = t.dim() - 2
    group_in, group_out = t.shape[1] // module.groups, result.shape[1] // module.groups
    for place in itertools.product(*map(range, t.shape[2:])):
        for tap in itertools.product(*map(range, module.kernel_size)):
            if transposed:
                target = [place[i] * stride[i] + tap[i] * dilation[i] - left[i] for i in range(dims)]
            else:
                steps = [place[i] - tap[i] * dilation[i] + left[i] for i in range(dims)]
                if any(steps[i] % stride[i] for i in range(dims)):
                    continue
                target = [steps[i] // stride[i] for i in range(dims)]
            if any(not 0 <= target[i] < result.shape[2 + i] for i in range(dims)):
                continue
            for group in range(module.groups):
                summed = t[(slice(None), slice(group * group_in, (group + 1) * group_in), *place)].sum(1, keepdim=True)
                result[(slice(None), slice(group * group_out, (group + 1) * group_out), *target)] += summed
    return result


GATHERED = {
    "plain": (nn.Conv2d(3, 4, 3), (5, 6)),
    "padding": (nn.Conv2d(3, 4, 3, padding=1), (5, 6)),
    "one dimension": (nn.Conv1d(3, 4, 5, stride=2, padding=2), (9,)),
    "three dimensions": (nn.Conv3d(2, 2, (1, 2, 3), padding=(0, 1, 1)), (3, 4, 4)),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (5, 5)),
    "stride and dilation": (nn.Conv2d(2, 3, 3, stride=(2, 1), padding=2, dilation=2), (7, 6)),
    "same": (nn.Conv2d(2, 3, (3, 5), padding="same", dilation=(2, 1)), (6, 7)),
    "same, even kernel": (nn.Conv1d(2, 3, 4, padding="same", dilation=2), (7,)),
    "valid": (nn.Conv2d(2, 3, 3, padding="valid"), (6, 7)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), (4, 5)),
    "transposed, stride": (nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), (4, 5)),
    "transposed, output padding": (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (4, 4)),
    "transposed, groups": (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, dilation=2), (5,)),
}


@pytest.mark.parametrize("name", GATHERED)
@pytest.mark.parametrize("varies", ["everywhere", "by channel", "by position", "nowhere"])
def test_gathering_with_borders_is_a_convolution_with_ones(name, varies):
    module, size = GATHERED[name]
    dims, channels = len(size), module.in_channels
    layer, weights = read(module, torch.ones(2, channels, *size))
    shape = {
        "everywhere": (1, channels, *size),
        "by channel": (1, channels, *(1,) * dims),
        "by position": (1, 1, *size),
        "nowhere": (1,) * (dims + 2),
    }[varies]
    t = torch.rand(shape, dtype=torch.float64)
    if isinstance(module.padding, str):
        same = module.padding == "same"
        left = [same * d * (k - 1) // 2 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    else:
        left = module.padding
    geometry = isinstance(module, nn.modules.conv._ConvTransposeNd), module.stride, module.dilation, left
    expected = gathered(t.expand(1, channels, *size), layer, module, geometry)
    result = gathering(layer, weights, bordered=True)(t)
    assert torch.allclose(result.expand_as(expected), expected)
    inside = gathering(layer, weights, bordered=False)(t)
    assert torch.allclose(inside, t.mean() * weights.fan_in) and inside.numel() == 1


@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 3),
    groups=st.integers(1, 2),
    transposed=st.booleans(),
    extra=st.integers(0, 4),
)
@settings(max_examples=25)
def test_gathering_of_any_convolution(kernel, stride, dilation, padding, groups, transposed, extra):
    kind, size = (nn.ConvTranspose1d if transposed else nn.Conv1d), dilation * (kernel - 1) + 1 + extra + 2 * padding
    module = kind(2 * groups, 3 * groups, kernel, stride, padding, dilation=dilation, groups=groups)
    layer, weights = read(module, torch.ones(1, 2 * groups, size))
    t = torch.rand(1, 2 * groups, size, dtype=torch.float64)
    expected = gathered(t, layer, module, (transposed, (stride,), (dilation,), (padding,)))
    assert torch.allclose(gathering(layer, weights, bordered=True)(t).expand_as(expected), expected)


@pytest.mark.parametrize("name", ["linear on sequences", "x @ W", "bmm"])
def test_gathering_of_a_product_is_a_sum_over_its_inputs(name):
    case = CASES[name]
    module = case.make()
    layer, weights = read(module, torch.ones(case.shape))
    nn.init.ones_(weights.parameter)
    level = torch.full(case.shape, 0.7)
    expected = module(level)
    result = gathering(layer, weights, bordered=True)(level)
    assert torch.allclose(result.expand_as(expected), expected)


def test_gathering_of_linear_keeps_what_varies_along_other_dimensions():
    module, t = nn.Linear(3, 4, bias=False), torch.rand(1, 5, 3)
    layer, weights = read(module, torch.ones(2, 5, 3))
    nn.init.ones_(module.weight)
    result = gathering(layer, weights, bordered=True)(t)
    assert torch.allclose(result.expand(1, 5, 4), module(t))
