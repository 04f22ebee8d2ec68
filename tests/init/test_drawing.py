"""Weights are drawn in place, with the variance asked for, whatever their layout and dtype."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import Calls, read
from torch import nn
from torch.nn import functional as F

from evenkeel.init.drawing import FILLS, draw_, fill_

MATRICES = [(4, 9), (9, 4), (16, 16), (1, 7), (7, 1)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("kind", FILLS)
def test_fills_are_in_place_and_of_the_variance_asked_for(kind, shape):
    matrix = torch.empty(shape)
    assert fill_(matrix, 2.0, kind, seeded()) is matrix
    if kind in ("sphere", "orthogonal"):
        assert float(matrix.square().mean()) == pytest.approx(2.0, rel=1e-5)
    many = [float(fill_(matrix, 2.0, kind, generator).square().mean()) for generator in map(seeded, range(300))]
    assert torch.tensor(many).mean() == pytest.approx(2.0, abs=1e-4 + 4 * float(torch.tensor(many).std()) / 300**0.5)


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), variance=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_rows_of_the_sphere_are_of_one_length(rows, columns, variance, seed):
    matrix = fill_(torch.empty(rows, columns, dtype=torch.float64), variance, "sphere", seeded(seed))
    expected = torch.full((rows,), columns * variance, dtype=torch.float64)
    assert torch.allclose(matrix.square().sum(1), expected, rtol=1e-12)


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), variance=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_orthogonal_rows_or_columns(rows, columns, variance, seed):
    """W W^T = columns variance I; with more rows than columns W^T W = rows variance I."""
    matrix = fill_(torch.empty(rows, columns, dtype=torch.float64), variance, "orthogonal", seeded(seed))
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    identity = torch.eye(min(rows, columns), dtype=torch.float64)
    assert torch.allclose(gram, max(rows, columns) * variance * identity, rtol=1e-9, atol=1e-9 * variance)


def test_the_sphere_and_the_orthogonal_group_have_no_preferred_direction():
    for kind in ("sphere", "orthogonal"):
        draws = torch.stack([fill_(torch.empty(3, 4), 1.0, kind, seeded(seed)) for seed in range(2000)]).double()
        errors = draws.std(0) / 2000**0.5
        assert (draws.mean(0).abs() < 4.5 * errors).all()
        squares = draws.square()
        assert ((squares.mean(0) - 1).abs() < 4.5 * squares.std(0) / 2000**0.5).all()


def test_uniform_weights_fill_their_interval():
    matrix = fill_(torch.empty(100, 100), 2.0, "uniform", seeded())
    bound = math.sqrt(3 * 2.0)
    assert matrix.abs().max() <= bound and matrix.max() > 0.99 * bound and matrix.min() < -0.99 * bound
    quarters = torch.histc(matrix, 4, -bound, bound)
    assert ((quarters - 2500).abs() < 4 * math.sqrt(10000 * 0.25 * 0.75)).all()


def test_normal_weights_are_normal():
    matrix = fill_(torch.empty(100, 100), 2.0, "normal", seeded()).double().flatten() / math.sqrt(2)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs(float((matrix**power).mean()) - moment) < 4 * math.sqrt(spread / 10000)


@pytest.mark.parametrize("kind", FILLS)
def test_the_same_seed_gives_the_same_bits(kind):
    first, again, other = (fill_(torch.empty(20, 30), 1.0, kind, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", FILLS)
def test_every_dtype_is_filled_as_precisely_as_it_can_be(kind, dtype):
    module = nn.Linear(20, 30, bias=False, dtype=dtype)
    weights = read(module, torch.ones(1, 20))[1]
    parameter, pointer = module.weight, module.weight.data_ptr()
    draw_(weights, 0.25, kind, seeded())
    assert module.weight is parameter and parameter.data_ptr() == pointer and parameter.dtype == dtype
    working = torch.float64 if dtype == torch.float64 else torch.float32
    exact = fill_(torch.empty(30, 20, dtype=working), 0.25, kind, seeded())
    assert torch.equal(parameter.detach(), exact.to(dtype))


def transposed_linear():
    module = nn.Linear(6, 8, bias=False)
    module.weight = nn.Parameter(torch.empty(6, 8).T)
    return module


LAYOUTS = {
    "channels last": (lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (1, 3, 4, 4), 27),
    "transposed": (transposed_linear, (2, 6), 6),
    "x @ W": (lambda: Calls(lambda m, x: x @ m.weight, weight=(3, 4)), (2, 3), 3),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 4, 4), 18),
    "slice": (lambda: Calls(lambda m, x: F.linear(x, m.weight)), (2, 3), 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_are_no_plain_matrix_are_written_in_place(layout, dtype):
    make, shape, fan_in = LAYOUTS[layout]
    module, around = make(), torch.zeros(5, 7, dtype=dtype)
    if layout == "slice":
        module.weight = nn.Parameter(around[:4, 2:5])
    module = module.to(dtype)
    parameter = module.weight
    pointer, strides = parameter.data_ptr(), parameter.stride()
    weights = read(module, torch.ones(shape))[1]
    draw_(weights, 2.0, "sphere", seeded())
    assert module.weight is parameter
    assert (parameter.data_ptr(), parameter.stride()) == (pointer, strides)
    norms = weights.rows().double().square().sum(1)
    assert torch.allclose(norms, torch.full_like(norms, 2.0 * fan_in), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
    if layout == "slice":
        assert around[4:].eq(0).all() and around[:, :2].eq(0).all() and around[:, 5:].eq(0).all()


@pytest.mark.parametrize("kind", FILLS)
def test_the_memory_layout_does_not_change_what_is_drawn(kind):
    plain, last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    for module in (plain, last):
        draw_(read(module, torch.ones(1, 3, 4, 4))[1], 1.0, kind, seeded())
    assert torch.equal(plain.weight, last.weight) and not last.weight.is_contiguous()


def test_filling_leaves_no_trace_in_autograd():
    module = nn.Linear(3, 4)
    module.weight.grad = torch.ones(4, 3)
    draw_(read(module, torch.ones(2, 3))[1], 1.0, "normal", seeded())
    assert module.weight.is_leaf and module.weight.requires_grad and module.weight.grad.eq(1).all()


@pytest.mark.parametrize("columns", [1, 7, 16, 147, 1 << 10, 5000, 1 << 16])
def test_blocks_of_a_sphere_get_the_numbers_that_all_at_once_would_get(columns):
    matrix, whole = (torch.empty(3 * (1 << 17) // columns // 16 * 16 + 16, columns) for _ in range(2))
    fill_(matrix, 2.0, "sphere", torch.Generator().manual_seed(0))
    whole.normal_(generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix, whole * (2 * columns / whole.square().sum(1, keepdim=True)).sqrt())
