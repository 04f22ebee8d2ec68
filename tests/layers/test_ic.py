"""IC: batch norm and then dropout bit for bit, the paper's theorem and its variance shift within 4 standard errors."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.layers.ic import IC, ic

NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = (6, 5, 4)
BLOCKS = 100


def signal(ndim=2, channels=3, samples=16):
    return 2 + 3 * torch.randn(samples, channels, *SIZES[:ndim], generator=torch.Generator().manual_seed(7))


def agrees(samples, exact):
    """Whether a mean is right within 4 standard errors."""
    samples = samples.detach().double()
    return abs(float(samples.mean()) - exact) < 4 * float(samples.std()) / math.sqrt(samples.numel())


def randomized(norm):
    """Give a norm a scale, an offset and statistics of its own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(1 + torch.rand(tensor.shape, generator=generator))


# What it is


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ndim", NORMS)
def test_it_is_batch_norm_and_then_dropout_bit_for_bit(ndim, training):
    layer = IC(3, p=0.3, ndim=ndim)
    randomized(layer.norm)
    pair = nn.Sequential(copy.deepcopy(layer.norm), nn.Dropout(0.3))
    assert type(layer.norm) is NORMS[ndim]
    results = []
    for model in (layer, pair):
        torch.manual_seed(1)
        x = signal(ndim).requires_grad_()
        y = model.train(training)(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()]), *model.buffers()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert bool((results[0][0] == 0).any()) is training
    assert int(layer.norm.num_batches_tracked) == int(training)


@pytest.mark.parametrize("training", [True, False])
def test_the_functional_form_is_the_module(training):
    layer = IC(3, p=0.3, eps=1e-3, momentum=0.2).train(training)
    randomized(layer.norm)
    mean, var = layer.norm.running_mean.clone(), layer.norm.running_var.clone()
    x, norm = signal(), layer.norm
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    y = ic(x, mean, var, norm.weight, norm.bias, 0.3, training, 0.2, 1e-3)
    assert torch.equal(y, expected)
    assert torch.equal(mean, norm.running_mean) and torch.equal(var, norm.running_var)


def test_the_functional_form_by_default_is_in_eval_mode_and_drops_a_twentieth():
    x, mean, var = signal(), torch.ones(3), torch.full((3,), 4.0)
    assert torch.equal(ic(x, mean, var), F.batch_norm(x, mean, var))
    dropped = ic(torch.randn(1000, 100), None, None, training=True) == 0
    assert agrees(dropped, 0.05)


def test_p_is_the_rate_to_drop_and_single_elements_are_dropped():
    x = torch.randn(20, 10, 30, 30)
    dropped = IC(10, p=0.1)(x) == 0
    assert agrees(dropped, 0.1)
    for dim in range(4):  # no mask is shared along any dimension
        assert agrees((dropped & dropped.roll(1, dim)), 0.01)
    assert agrees(IC(10)(x) == 0, 0.05)


def test_arguments_go_to_the_norm():
    layer = IC(5, 0.2, 3, eps=1e-3, momentum=0.2, affine=False, device="meta", dtype=torch.float64)
    norm = layer.norm
    assert (type(norm), norm.num_features, norm.eps, norm.momentum) == (nn.BatchNorm3d, 5, 1e-3, 0.2)
    assert norm.weight is None and norm.bias is None
    assert (norm.running_var.dtype, norm.running_var.device.type) == (torch.float64, "meta")
    assert layer(torch.ones(2, 5, 1, 2, 2, device="meta", dtype=torch.float64)).device.type == "meta"
    assert type(IC(5).norm) is nn.BatchNorm2d and IC(5).norm.affine and IC(5).dropout.p == 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_are_kept(dtype):
    layer = IC(3, dtype=dtype)
    for training in (True, False):
        assert layer.train(training)(signal().to(dtype)).dtype == dtype


# The paper's theorem, and the shift


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_correlations_are_multiplied_by_keep(p):
    """Of inputs that have a mean, too, since the norm comes first; dropout before it would leave less."""
    shared, *own = torch.randn(3, BLOCKS, 10_000, dtype=torch.float64)
    x = torch.stack([math.sqrt(0.6) * shared + math.sqrt(0.4) * one for one in own], 2)
    layer = IC(2, p, ndim=0, affine=False, dtype=torch.float64)
    correlations = [float(torch.corrcoef(layer(batch + 2).T)[0, 1]) for batch in x]
    assert agrees(torch.tensor(correlations), (1 - p) * 0.6)


def test_moments():
    """Standardized, then of mean 0 and variance 1 / keep."""
    y = IC(8, p=0.2, ndim=0, eps=1e-12, dtype=torch.float64)(4 + 3 * torch.randn(100_000, 8, dtype=torch.float64))
    assert agrees(y, 0)
    assert agrees(y**2, 1 / 0.8)


def test_the_weight_layer_behind_reads_keep():
    """Delta = keep, of unit variance and mean 0 without correlations; `reestimate_` takes the shift away."""
    p, data = 0.2, [torch.randn(20_000, 16, generator=torch.Generator().manual_seed(100 + seed)) for seed in range(5)]
    model = nn.Sequential(
        IC(16, p, ndim=0, momentum=None), nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8, momentum=None)
    )
    for batch in data:
        model(batch)
    first, second = ek.variance_shift(model, data)
    assert first.ratio == pytest.approx(1, abs=1e-3)
    assert second.ratio == pytest.approx(1 - p, abs=4 * 2 / math.sqrt(8 * 100_000))
    assert [layer.module for layer in second.dropouts] == [model[0].dropout]
    ek.reestimate_(model, data)
    assert ek.variance_shift(model, data).worst == pytest.approx(1, abs=1e-4)


# What it is to evenkeel, and to torch


def test_it_is_recorded_as_a_norm_and_a_dropout():
    model = nn.Sequential(nn.ReLU(), IC(3, p=0.1), nn.Conv2d(3, 4, 3))
    for training in (True, False):
        graph = ek.trace(model.train(training), signal())
        assert str(graph) == "i A N D W o"
        assert graph["1.norm"].module is model[1].norm
        assert graph["1.dropout"].module is model[1].dropout
        assert graph["1.dropout"].p == 0.1


def test_initialization_corrects_for_it():
    """What the weights read has mean square 1 / keep, whatever was before."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), IC(16, p=0.2, ndim=0), nn.Linear(16, 16))
    report = ek.init_(model, torch.zeros(4, 16))
    assert report[1].gain == pytest.approx(math.sqrt(0.8), rel=1e-4)


def test_copies_and_state():
    layer = IC(3, p=0.2)
    randomized(layer.norm)
    keys = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(layer.state_dict()) == [f"norm.{key}" for key in keys]
    fresh = IC(3, p=0.2)
    fresh.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert type(twin) is IC and twin.norm is not layer.norm
        assert torch.equal(twin.eval()(signal()), layer.eval()(signal()))
        assert twin.dropout.p == 0.2
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(layer).norm) is nn.SyncBatchNorm


@pytest.mark.slow
def test_it_compiles_without_a_break():
    layer = IC(3, p=0.3)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        layer.train(training)
        torch.manual_seed(1)
        y = compiled(signal())
        torch.manual_seed(1)
        torch.testing.assert_close(y, twin.train(training)(signal()))
        torch.testing.assert_close(layer.norm.running_var, twin.norm.running_var)
    assert not torch.equal(y, signal())


# Refusals


@pytest.mark.parametrize("p", [-0.05, 1, 5, math.nan])
def test_rates_out_of_range_are_refused(p):
    message = rf"p is {p}, .*0 <= p < 1: give the rate to drop, such as 0.05"
    with pytest.raises(ek.EvenkeelError, match=message):
        IC(4, p)
    with pytest.raises(ek.EvenkeelError, match=message):
        ic(torch.ones(2, 3), torch.zeros(3), torch.ones(3), p=p)


@pytest.mark.parametrize("ndim", [-1, 4, 1.5])
def test_other_numbers_of_dimensions_are_refused(ndim):
    with pytest.raises(ek.EvenkeelError, match=rf"ndim is {ndim}: give the number of spatial dimensions"):
        IC(4, ndim=ndim)


@pytest.mark.parametrize("features", [0, -3, 2.5, math.nan])
def test_other_numbers_of_channels_are_refused(features):
    with pytest.raises(ek.EvenkeelError, match=rf"num_features is {features}: give the number of channels, 1 or more"):
        IC(features)


def test_input_of_other_dimensions_is_refused_by_the_norm():
    with pytest.raises(ValueError, match="expected 4D input"):
        IC(3)(torch.ones(2, 3))
