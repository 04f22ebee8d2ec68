"""Uout: the noise's moments and equal dropout within 4 standard errors, zeros, gradients, seeds, types, transforms."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.layers.uout import Uout, uout

BETAS = (0.1, 0.5, 1.0)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
COUNT = 1_000_000


def seeded(seed=100, device="cpu"):
    """A generator of the tests' own: drawn from one seed with the noise, data would depend on it."""
    return torch.Generator(device).manual_seed(seed)


def factors(beta, count=COUNT, **kwargs):
    """Samples of 1 + r."""
    return uout(torch.ones(count, dtype=torch.float64), beta, **kwargs)


def agrees(samples, exact):
    """Whether a mean is right within 4 standard errors."""
    samples = samples.double()
    return abs(float(samples.mean()) - exact) < 4 * float(samples.std()) / math.sqrt(samples.numel())


# The noise


@pytest.mark.parametrize("beta", BETAS)
def test_moments_are_those_of_a_uniform_law(beta):
    r = factors(beta) - 1
    assert agrees(r, 0)
    assert agrees(r**2, beta**2 / 3)
    assert agrees(r**4, beta**4 / 5)
    assert agrees((1 + r) ** 2, 1 + beta**2 / 3)
    assert -beta <= r.min() < -0.9999 * beta and 0.9999 * beta < r.max() <= beta
    assert len(r.unique()) == COUNT, "drawn in less than double precision"
    assert all(agrees((r < (2 * share - 1) * beta).double(), share) for share in (0.1, 0.3, 0.5, 0.7, 0.9))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("beta", BETAS)
def test_moments_in_every_precision(beta, dtype, device):
    """What is stored is rounded, which adds at most eps^2 / 12 to the variance and nothing to the mean."""
    x = torch.rand(COUNT, generator=seeded()).add(1).to(device, dtype)
    y = uout(x, beta)
    assert (y.dtype, y.device) == (x.dtype, x.device)
    r = (y.double() / x.double() - 1).cpu()
    assert agrees(r, 0)
    error = beta**2 / 3 * math.sqrt(0.8 / COUNT)
    assert abs(float(r.var()) - beta**2 / 3) < 4 * error + torch.finfo(dtype).eps ** 2 / 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_full_precision_rounded_once(dtype):
    """Drawn in 16 bits, r would have a mean below 0, and few values."""
    x = torch.randn(10_000, generator=seeded()).to(dtype)
    assert torch.equal(uout(x, 0.1, generator=seeded(1)), uout(x.float(), 0.1, generator=seeded(1)).to(dtype))


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "expanded"])
def test_every_element_has_an_r_of_its_own(layout):
    x = torch.ones(40, 30, 20, 10)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "expanded":
        x = torch.ones(()).expand(x.shape)
    r = uout(x, 1.0) - 1
    for dim in range(4):  # no two neighbours share any of it, along no dimension
        assert agrees(r * r.roll(1, dim), 0)
        assert agrees(r.mean(dim) ** 2, 1 / 3 / x.shape[dim])
    if layout == "channels last":
        assert r.is_contiguous(memory_format=torch.channels_last)


def test_the_noise_is_multiplied():
    """Zeros stay zeros, and so do signs and scales: what is added to x would not grow with it."""
    x = torch.randn(1000, generator=seeded(), dtype=torch.float64)
    x[::3] = 0
    y = uout(x, 1.0, generator=seeded(1))
    assert torch.equal(y == 0, x == 0)
    assert torch.equal(y.sign(), x.sign())
    assert torch.equal(uout(-8 * x, 1.0, generator=seeded(1)), -8 * y)
    assert torch.equal(y, x * factors(1.0, 1000, generator=seeded(1)))


WRONG = {
    "added": lambda x, beta: x + torch.empty_like(x).uniform_(-beta, beta),
    "added, by hand": lambda x, beta: x + 2 * beta * torch.rand_like(x) - beta,
    "added, a constant": lambda x, beta: x + torch.empty_like(x).uniform_(-beta, -beta),
    "multiplied, a constant": lambda x, beta: x * (1 + torch.empty_like(x).uniform_(-beta, -beta)),
}


def passes(layer, beta):
    """The check of `Uout`'s docstring."""
    y = layer(torch.ones(1000), beta)
    zero = bool((layer(torch.zeros(1000), beta) == 0).all())
    return zero and float(y.std()) > 0 and 1 - beta <= float(y.min()) and float(y.max()) <= 1 + beta


@pytest.mark.parametrize("name", WRONG)
def test_the_check_that_is_documented_tells_wrong_copies(name):
    assert passes(uout, 0.5)
    assert not passes(WRONG[name], 0.5)


def test_complex_elements_keep_their_direction():
    x = torch.randn(COUNT // 10, generator=seeded(), dtype=torch.complex128)
    y = uout(x, 1.0)
    assert y.dtype == torch.complex128
    ratio = y / x
    assert float(ratio.imag.abs().max()) < 1e-12
    assert agrees(ratio.real, 1) and agrees(ratio.abs() ** 2, 4 / 3)
    assert uout(x.to(torch.complex64)).dtype == torch.complex64


# Li's Delta, and dropout of equal noise


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mean", [0.0, 1.5])
def test_delta_of_the_paper(beta, mean):
    """Equation 15, 3 / (3 + beta^2), for mean 0; v / (v + beta^2 / 3 (c^2 + v)) for mean c."""
    v = 0.7
    x = mean + math.sqrt(v) * torch.randn(COUNT, generator=seeded(), dtype=torch.float64)
    delta = v / (v + beta**2 / 3 * (mean**2 + v))
    assert mean or delta == pytest.approx(3 / (3 + beta**2))
    assert agrees((uout(x, beta) - mean) ** 2, v / delta)


TABLE = {0.1: 0.0033, 0.3: 0.029, 0.5: 0.077, 1.0: 0.25}


@pytest.mark.parametrize("beta", TABLE)
def test_p_is_the_drop_rate_of_equal_noise(beta):
    p = Uout(beta).p
    assert p == pytest.approx(TABLE[beta], rel=0.02)
    assert p / (1 - p) == pytest.approx(beta**2 / 3, rel=1e-12)
    assert math.sqrt(3 * p / (1 - p)) == pytest.approx(beta)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_equal_noise_through_a_weight_layer(beta):
    """Var_train(w.x) = s2 sum_i w_i^2 x_i^2 of a fixed x, s2 = beta^2 / 3 = p / (1 - p): for Uout as for dropout."""
    x, w = torch.randn(2, 16, generator=seeded(), dtype=torch.float64)
    exact = beta**2 / 3 * float((w * x).square().sum())
    batch = x.expand(100_000, -1)
    for noisy in (uout(batch, beta), F.dropout(batch, Uout(beta).p)):
        assert agrees(noisy @ w, float(w @ x))
        assert agrees((noisy @ w - w @ x) ** 2, exact)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_variance_shift_measures_delta(beta):
    """The expected ratio's standard error: that of the two variances, over 8 channels and all samples."""
    data = [torch.randn(20_000, 8, generator=seeded(100 + seed)) for seed in range(5)]
    model = nn.Sequential(Uout(beta), nn.BatchNorm1d(8, momentum=None))
    for batch in data:
        model(batch)
    row = ek.variance_shift(model, data)[0]
    assert row.ratio == pytest.approx(3 / (3 + beta**2), abs=4 * 2 / math.sqrt(8 * 100_000))
    assert [layer.p for layer in row.dropouts] == [Uout(beta).p]


# What it is to evenkeel


def deep_net(drop, activation):
    layers = [layer for _ in range(3) for layer in (nn.Linear(16, 16), activation(), drop())]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def test_it_is_recorded_as_one_dropout():
    model = nn.Sequential(nn.Linear(4, 4), Uout(0.5), nn.BatchNorm1d(4))
    for training in (True, False):
        graph = ek.trace(model.train(training), torch.ones(2, 4))
        assert str(graph) == "i W D N o"
        assert graph["1"].module is model[1]
        assert graph["1"].p == pytest.approx(0.25 / 3.25)
        assert graph["1"].scaled


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_initialization_corrects_for_it_as_for_dropout_of_equal_noise(activation):
    nets = [deep_net(lambda: Uout(1.0), activation), deep_net(lambda: nn.Dropout(0.25), activation)]
    reports = [ek.init_(net, torch.zeros(1, 16), seed=100) for net in nets]
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)
    assert [row.gain for row in reports[0]] == [row.gain for row in reports[1]]
    assert reports[0][1].gain < ek.init_(deep_net(nn.Identity, activation), torch.zeros(1, 16))[1].gain


def test_it_is_off_where_statistics_are_estimated_again():
    model = nn.Sequential(Uout(1.0), nn.BatchNorm1d(8))
    data = [torch.randn(100, 8, generator=seeded(100 + seed)) for seed in range(3)]
    ek.reestimate_(model, data)
    torch.testing.assert_close(model[1].running_var, torch.cat(data).var(0))
    assert ek.variance_shift(model, data).worst == pytest.approx(1, abs=1e-5)


# Modes, seeds, gradients


def test_eval_mode_and_beta_0_return_the_very_tensor():
    x = torch.randn(8)
    assert uout(x, 0.5, False) is x
    assert uout(x, 0.0) is x and Uout(0.0)(x) is x
    layer = nn.Sequential(Uout(0.5))
    assert layer.eval()(x) is x
    assert not torch.equal(layer.train()(x), x)


@pytest.mark.parametrize("device", DEVICES)
def test_seeds(device):
    x = torch.ones(1000, device=device)
    torch.manual_seed(5)
    first, second = uout(x), uout(x)
    torch.manual_seed(5)
    assert torch.equal(first, uout(x)) and not torch.equal(first, second)
    before = torch.get_rng_state()
    drawn = uout(x, generator=seeded(5, device))
    assert torch.equal(drawn, uout(x, generator=seeded(5, device)))
    assert not torch.equal(drawn, uout(x, generator=seeded(6, device)))
    assert torch.equal(torch.get_rng_state(), before), "a generator was given, and torch's own was used"
    if device == "cpu":
        assert torch.equal(drawn, first)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_gradient_is_the_factor(dtype):
    x = torch.randn(100).to(dtype).requires_grad_()
    y = uout(x, 0.5, generator=seeded(1))
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 2.0))
    assert torch.equal(gradient, uout(torch.full_like(x, 2.0), 0.5, generator=seeded(1)))
    assert gradient.min() < 1.2 and gradient.max() > 2.8


# Types, shapes and devices


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4, 5, 6)])
def test_shapes(shape):
    assert uout(torch.ones(shape)).shape == shape
    assert uout(torch.ones(shape), generator=seeded()).shape == shape


def test_tensors_without_data():
    meta = uout(torch.ones(2, 3, device="meta", dtype=torch.bfloat16))
    assert (meta.device.type, meta.shape, meta.dtype) == ("meta", (2, 3), torch.bfloat16)
    assert uout(meta, generator=seeded()).device.type == "meta"
    with FakeTensorMode():
        fake = Uout(0.5)(torch.ones(2, 3, dtype=torch.float16))
    assert (fake.device.type, fake.shape, fake.dtype) == ("cpu", (2, 3), torch.float16)


def test_autocast_changes_nothing():
    x = torch.randn(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = uout(x, generator=seeded())
        half = uout(F.linear(x, torch.eye(100)))
    assert torch.equal(y, uout(x, generator=seeded()))
    assert half.dtype == torch.bfloat16


NOT_FLOATING = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", NOT_FLOATING)
def test_what_cannot_hold_the_product_is_refused_in_both_modes(dtype):
    x = torch.ones(4).to(dtype)
    for training in (True, False):
        with pytest.raises(
            ek.EvenkeelError, match=rf"a tensor of {dtype}, .*: convert it first, such as by x.float\(\)"
        ):
            uout(x, training=training)


@pytest.mark.parametrize("beta", [-0.1, 1.001, 30, math.nan, math.inf])
def test_betas_out_of_range_are_refused(beta):
    message = rf"beta is {beta}, .*0 <= beta <= 1: give a number in that range, such as 0.1"
    layer = Uout()
    layer.beta = beta
    calls = (lambda: Uout(beta), lambda: uout(torch.ones(2), beta), lambda: uout(torch.ones(2), beta, False))
    for call in (*calls, lambda: layer(torch.ones(2))):
        with pytest.raises(ek.EvenkeelError, match=message):
            call()


# Transforms and copies


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_without_a_break(backend):
    model = nn.Sequential(Uout(0.5))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.randn(50, 3, requires_grad=True)
    results = []
    for call in (model, compiled):
        torch.manual_seed(1)
        y = call(x)
        results.append([y, *torch.autograd.grad(y.sum(), x)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(compiled(x), compiled(x))
    model.eval()
    assert torch.equal(compiled(x), x)


@pytest.mark.slow
def test_it_compiles_for_several_betas_and_sizes():
    torch._dynamo.reset()
    compiled = torch.compile(uout, fullgraph=True, backend="eager")
    for beta in (0.1, 0.4, 0.8):
        for size in (2000, 3000, 5000):
            y = compiled(torch.ones(size), beta)
            assert 0.9 * beta < float((y - 1).abs().max()) <= beta + 1e-6
            assert y.shape == (size,)


def test_vmap():
    x = torch.ones(3, 2000)
    different = torch.vmap(uout, randomness="different")(x, beta=0.5)
    assert different.shape == x.shape and len(different.flatten().unique()) > 5900
    assert agrees((different - 1) ** 2, 0.25 / 3)
    same = torch.vmap(uout, randomness="same")(x)
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], x[0])
    together = torch.vmap(lambda w: uout(x[0]) * w, randomness="different")(torch.ones(3))  # x itself is no batch
    assert len(together.flatten().unique()) > 5900
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(uout)(x)


def test_transformed_gradients():
    gradients = torch.vmap(torch.func.grad(lambda x: uout(x, 1.0).sum()), randomness="different")(torch.ones(4, 500))
    assert agrees(gradients, 1) and agrees(gradients**2, 4 / 3)


def test_the_module():
    layer = Uout(0.25)
    assert repr(layer) == "Uout(beta=0.25)"
    assert layer.state_dict() == {} and list(layer.parameters()) == []
    assert isinstance(Uout().beta, float) and Uout().beta == 0.1
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (type(twin), twin.beta, twin.p, twin.training) == (Uout, 0.25, layer.p, True)
    layer.beta = 1.0
    assert layer.p == 0.25
    y = layer(torch.ones(1000))
    assert 0 <= y.min() < 0.1 and 1.9 < y.max() <= 2
