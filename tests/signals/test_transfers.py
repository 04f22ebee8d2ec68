"""Weights, norms and dropout against exact counts and Monte Carlo; what is not understood has the default moments."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from models import specs
from test_structural import DRAWS, MIXED, PLAIN, SHAPE, Calls, Normal, followed, off_diagonal, off_diagonal_of, within
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.signals import transfers
from evenkeel.signals.propagation import predict_mean_squares, propagate

TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture
def _all_is_understood(monkeypatch):
    """What a transfer raises is seen."""
    monkeypatch.setattr(transfers, "_NOT_UNDERSTOOD", ())


strict = pytest.mark.usefixtures("_all_is_understood")


def last(model, *inputs, training=True):
    return list(followed(model, *inputs, training=training).values())[-1]


# Weights

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (2, 4, 7, 7)),
    "padding": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same"), (2, 4, 5, 5)),
    "stride": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "dilation": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), (2, 4, 7, 7)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 5, 5)),
    "one dimension": (nn.Conv1d(4, 6, 5, padding=2), (2, 4, 9)),
    "three": (nn.Conv3d(2, 3, 3, padding=1), (2, 2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (2, 4, 4, 4)),
    "transposed, stride": (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, output_padding=1), (2, 4, 4, 4)),
    "transposed, groups": (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (2, 4, 6)),
    "linear": (nn.Linear(5, 7), (2, 5)),
    "linear on the last": (nn.Linear(5, 7), (2, 3, 5)),
}


@strict
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weights_sum_what_reaches_them(name):
    """With weights of 1, the module itself counts the inputs of each output, and autograd the outputs of each input."""
    module, shape = CONVOLUTIONS[name]
    nn.init.ones_(module.weight), nn.init.zeros_(module.bias)
    ones = torch.ones(shape, requires_grad=True)
    count = module(ones)
    back = torch.autograd.grad(count.sum(), ones)[0]
    graph = ek.trace(module, torch.zeros(shape))
    x, weight, _ = graph
    found = propagate(graph, training=True, gradients_at=[x])
    signal = found.signals[weight]
    assert torch.allclose(signal.second.expand(count.shape), count.double())
    assert found.gradient_variance(x) == pytest.approx(float(back.mean()), rel=1e-6)
    unbordered = propagate(graph, training=True, bordered=False, gradients_at=[x])
    fan_in = module.weight[0].numel() if not isinstance(module, nn.modules.conv._ConvTransposeNd) else None
    assert fan_in is None or unbordered.signals[weight].power == pytest.approx(fan_in)
    assert unbordered.gradient_variance(x) * x.shape[0] == pytest.approx(
        unbordered.signals[weight].power * math.prod(weight.shape) / math.prod(shape[1:]), rel=1e-6
    )  # sent in and out alike


@strict
def test_each_group_sums_its_own_channels():
    """The first two of four channels have been dropped, and count twice."""
    model = nn.Conv2d(4, 2, 1, groups=2, bias=False)
    nn.init.ones_(model.weight)

    wrapped = Calls(lambda x, y: model(torch.cat([x, y], 1)))
    wrapped.conv = model
    result = last(wrapped, Normal((2, 2, 3, 3), own=2.0), Normal((2, 2, 3, 3)))
    assert result.second.expand(result.shape)[0, :, 0, 0].tolist() == pytest.approx([4.0, 2.0])


class Products(nn.Module):
    """A weight layer spelled without a module."""

    def __init__(self, call, *shape):
        super().__init__()
        self.call, self.w = call, nn.Parameter(torch.ones(shape))

    def forward(self, *inputs):
        return self.call(*inputs, self.w)


PRODUCTS = {
    "F.linear": (F.linear, (7, 5), 5),
    "matmul": (torch.matmul, (5, 7), 5),
    "operator": (lambda x, w: x @ w, (5, 7), 5),
    "computed from a parameter": (lambda x, w: F.linear(x, w.tanh()), (7, 5), None),
    "einsum": (lambda x, w: torch.einsum("bi,oi->bo", x, w), (7, 5), 5),
    "mm": (torch.mm, (5, 7), 5),
}


@strict
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_parameter(name):
    call, shape, fan_in = PRODUCTS[name]
    result = last(Products(call, *shape), Normal((2, 5), own=3.0))
    assert result.known
    assert result.power == pytest.approx(0.5 if fan_in is None else 3 * fan_in)


@strict
def test_a_bilinear_layer_sums_products():
    model = nn.Bilinear(3, 4, 5, bias=False)
    nn.init.ones_(model.weight)
    result = last(model, Normal((2, 3), own=2.0), Normal((2, 4), own=3.0))
    assert result.power == pytest.approx(3 * 4 * 2 * 3)


@strict
@pytest.mark.parametrize("module", [nn.Embedding(11, 6), nn.EmbeddingBag(11, 6)], ids=["embedding", "bag"])
def test_an_embedding_returns_its_rows(module):
    nn.init.constant_(module.weight, 3.0)
    graph = ek.trace(module, torch.zeros(2, 4, dtype=torch.long))
    assert propagate(graph, training=True).signals[graph.of(ek.Kind.WEIGHT)[0]].power == pytest.approx(9.0)


@strict
def test_a_bias_is_shared_by_samples_and_positions():
    model = nn.Conv2d(3, 4, 1)
    nn.init.ones_(model.weight), nn.init.constant_(model.bias, 2.0)
    x = Normal((2, 3, 4, 4), samples=0.25, positions=0.5, own=0.25)
    result = last(model, x)
    assert [float(t.mean()) for t in (result.second, result.position, result.sample, result.mean)] == pytest.approx(
        [3 * 1.0 + 4, 3 * 0.75 + 4, 3 * 0.25 + 4, 0]
    )


@strict
def test_weighted_sums_are_normal_and_of_several_levels():
    """The mean square of n dropped normal values varies by (E x^4 / (E x^2)^2 - 1) / n = (3 / keep - 1) / n."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 10))
    result = last(model, Normal((2, 40)))
    assert result.marginal.normal
    assert result.marginal.level_variance == pytest.approx((3 / 0.5 - 1) / 40, rel=0.01)


# Norms


def networks(x, count, batch):
    """Batches of a signal, one a network, shape (count, batch, *shape[1:])."""
    _, channels, *space = x.shape

    def part(variance, *sizes):
        return math.sqrt(variance) * torch.randn(*sizes).expand(count, batch, channels, *space)

    ones = [1] * len(space)
    y = x.mean + part(x.samples, count, 1, channels, *ones) + part(x.own, count, batch, channels, *space)
    return y + part(x.positions, count, batch, channels, *ones)


WIDE = Normal((2, 32, 6, 6), mean=0.5, samples=0.4, positions=0.6, own=1.5)
VECTOR = Normal((2, 64), mean=0.5, samples=0.4, own=1.5)
NORMS = {
    "batch": (lambda: nn.BatchNorm2d(32), WIDE),
    "batch, no affine": (lambda: nn.BatchNorm2d(32, affine=False), WIDE),
    "batch, no statistics": (lambda: nn.BatchNorm2d(32, track_running_stats=False), WIDE),
    "batch of vectors": (lambda: nn.BatchNorm1d(64), VECTOR),
    "instance": (lambda: nn.InstanceNorm2d(32, affine=True), WIDE),
    "instance, statistics": (lambda: nn.InstanceNorm2d(32, affine=True, track_running_stats=True), WIDE),
    "layer": (lambda: nn.LayerNorm([32, 6, 6], elementwise_affine=False), WIDE),
    "layer of vectors": (lambda: nn.LayerNorm(64), VECTOR),
    "group": (lambda: nn.GroupNorm(2, 32), WIDE),
    "rms": (lambda: nn.RMSNorm([32, 6, 6], elementwise_affine=False), WIDE),
    "rms of vectors": (lambda: nn.RMSNorm(64), VECTOR),
}


@strict
@TRAINING
@pytest.mark.parametrize("name", NORMS)
def test_norms(name, training):
    """Within what a batch of 64, or the elements of one group, leave open."""
    build, x = NORMS[name]
    module = build()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.7, 0.4)
    if getattr(module, "running_var", None) is not None:
        module.momentum = 0.0
        nn.init.constant_(module.running_var, 3.0), nn.init.constant_(module.running_mean, 0.3)
    module.train(training)
    result = last(module, x, training=training)
    given_ = networks(x, 40, 64).requires_grad_()
    y = torch.stack([module(batch) for batch in given_])
    back = torch.autograd.grad(y, given_, torch.randn_like(y))[0]
    y = y.detach().double()
    flat = y.flatten(3) if y.dim() > 3 else y[..., None]
    size = flat.shape[-1]
    measured = {
        "second": (y**2).mean(),
        "mean": y.mean(),
        "sample": ((flat.sum(1) ** 2 - (flat**2).sum(1)) / (64 * 63)).mean(),
        "errors": (back.double() ** 2).mean() * math.prod(x.shape),
    }
    if size > 1:
        measured["position"] = ((flat.sum(-1) ** 2 - (flat**2).sum(-1)) / (size * (size - 1))).mean()
    expected = {
        "second": result.power,
        "mean": result.mean.mean().item(),
        "sample": result.sample.mean().item(),
        "errors": result.total_flow.item(),
        "position": result.position.mean().item(),
    }
    for key, value in measured.items():
        scale = expected[key] if key == "errors" else expected["second"]
        assert abs(float(value) - expected[key]) < 0.04 * scale, (key, float(value), expected[key])


@strict
@pytest.mark.parametrize("name", ["batch", "instance", "layer", "group", "rms"])
def test_a_norm_forgets_the_scale_of_its_input(name):
    module = NORMS[name][0]()
    outputs = [last(module, Normal(WIDE.shape, own=own)) for own in (1.0, 1e4)]
    assert [y.power for y in outputs] == pytest.approx([1.0, 1.0], rel=1e-4)
    errors = [y.total_flow.item() for y in outputs]
    assert errors[0] / errors[1] == pytest.approx(1e4, rel=1e-4)


@strict
def test_a_norm_of_a_map_that_varies_in_space():
    """Half of the positions have mean square 1 and half 9: the batch's variance is 5, that of each position stays."""
    norm = nn.BatchNorm2d(2)
    wrapped = Calls(lambda x, y: norm(torch.cat([x, y], 3)))
    wrapped.norm = norm
    result = last(wrapped, Normal((2, 2, 4, 4)), Normal((2, 2, 4, 4), own=9.0))
    row = result.second.expand(result.shape)[0, 0, 0].tolist()
    assert row == pytest.approx([0.2] * 4 + [1.8] * 4, rel=1e-4)


@strict
def test_the_batch_variance_behind_a_bordered_convolution():
    """What samples share is not the same at borders, where other weights meet it: so its channels' variance counts.

    Of input with mean m, a channel has the mean map m * sum of the weights inside; batch norm takes out the map's mean
    over positions only. Exact, by the covariance of two positions: the weights that both have inside.
    """
    m, size, width = 0.8, 4, 3
    model = nn.Sequential(nn.Conv2d(width, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    nn.init.ones_(model[0].weight)
    signals = followed(model, Normal((2, width, size, size), mean=m, own=1.0))
    taps = F.unfold(torch.ones(1, 1, size, size), 3, padding=1)[0]  # (9, positions): which are inside
    counts, both = taps.sum(0), taps.T @ taps
    variance = width * float((1 + m**2) * counts.mean() - m**2 * both.mean())
    before, after = list(signals.values())[1:]
    assert before.power == pytest.approx(width * (1 + m**2) * float(counts.mean()))
    divided_by = float((before.flow / after.flow).detach().mean())
    assert divided_by == pytest.approx(variance, rel=1e-3)


# Dropout

DROPOUTS = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout2d": lambda x: F.dropout2d(x, 0.3),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.3, True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, True),
    "mask": lambda x: x * torch.empty_like(x).bernoulli_(0.7).div_(0.7),
    "mask of samples": lambda x: x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.7).div_(0.7),
    "mask, then scaled": lambda x: x * torch.empty_like(x).bernoulli_(0.7) / 0.7,
    "mask, not scaled": lambda x: x * torch.empty_like(x).bernoulli_(0.7),
}


@strict
@pytest.mark.parametrize("x", [PLAIN, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("name", DROPOUTS)
def test_dropouts(name, x):
    function = DROPOUTS[name]
    result = last(function, x)
    assert result.known
    drawn = x.drawn(DRAWS).double().requires_grad_()
    output = function(drawn)
    back = torch.autograd.grad(output, drawn, torch.randn_like(output))[0]
    y = output.detach().unflatten(0, (DRAWS, 2))
    within((y**2).mean((1, 2, 3, 4))[:, None], result.second.mean().reshape(1))
    within(y.mean((1, 2, 3, 4))[:, None], result.mean.mean().reshape(1))
    within((y[:, 0] * y[:, 1]).mean((1, 2, 3))[:, None], result.sample.mean().reshape(1))
    within(off_diagonal(y), off_diagonal_of(result))
    returned = (back**2).flatten(1).sum(1).unflatten(0, (DRAWS, 2)).sum(1)
    within(returned[:, None], result.total_flow.detach().reshape(1))


MODULES = [
    (nn.Dropout, (2, 4)),
    (nn.Dropout1d, (2, 4, 5)),
    (nn.Dropout2d, (2, 4, 5, 5)),
    (nn.Dropout3d, (2, 4, 3, 3, 3)),
    (nn.AlphaDropout, (2, 4)),
    (nn.FeatureAlphaDropout, (2, 4, 5, 5)),
]


@strict
@pytest.mark.parametrize(("module", "shape"), MODULES, ids=lambda v: getattr(v, "__name__", ""))
def test_every_dropout_acts_in_train_mode_only(module, shape):
    x = Normal(shape, mean=0.6)
    assert last(module(0.4), x, training=False).power == x.signal().power
    assert last(module(0.0), x).power == x.signal().power
    dropped = last(module(0.4), x)
    alpha = "Alpha" in module.__name__
    assert alpha or dropped.power == pytest.approx(x.signal().power / 0.6)
    assert dropped.power != x.signal().power and not dropped.marginal.normal


@strict
def test_alpha_dropout_keeps_mean_zero_and_variance_one():
    result = last(nn.AlphaDropout(0.35), PLAIN)
    assert result.power == pytest.approx(1.0) and float(result.mean) == pytest.approx(0.0, abs=1e-12)


@strict
def test_a_dropout_that_leaves_nothing_is_not_understood():
    result = last(nn.Dropout(1.0), PLAIN)
    assert (result.known, result.power) == (False, 0.5)
    assert last(nn.Dropout(1.0), PLAIN, training=False).known


@strict
@pytest.mark.parametrize("drop", [F.dropout, F.dropout2d], ids=["dropout", "dropout2d"])
def test_an_activation_of_dropped_values_shares_what_dropout_leaves(drop):
    def function(x):
        return torch.relu(drop(x, 0.5))

    result = last(function, MIXED)
    y = function(MIXED.drawn(DRAWS).double()).unflatten(0, (DRAWS, 2))
    within(off_diagonal(y), off_diagonal_of(result), floor=0.02 * result.power)


@strict
def test_an_activation_of_dropped_and_other_channels():
    """As in dense connections: of the channels concatenated, one part has been dropped, the other not."""

    def function(x, y):
        return torch.relu(torch.cat([F.dropout(x, 0.5), y], 1))

    inputs = [Normal(SHAPE, positions=0.5, own=0.5), Normal(SHAPE, positions=0.5, own=0.5)]
    result = last(function, *inputs)
    y = function(*(x.drawn(DRAWS).double() for x in inputs)).unflatten(0, (DRAWS, 2))
    within((y**2).mean((1, 2, 3, 4))[:, None], result.second.mean().reshape(1))
    within(off_diagonal(y), off_diagonal_of(result), floor=0.01 * result.power)


# What is not understood


class Through(nn.Module):
    """Two weight layers with some function between them."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        nn.init.ones_(self.second.weight)

    def forward(self, x):
        return self.second(torch.relu(self.function(self.first(x))))


UNKNOWN = {
    "softmax": lambda z: z.softmax(-1),
    "log_softmax": lambda z: z.log_softmax(-1),
    "opaque": lambda z: torch.fft.fft(z).real,
    "sort": lambda z: z.sort(-1)[0],
    "cumulative": lambda z: z.cumsum(-1),
    "product of signals": lambda z: z @ z.T @ z,
    "not finite": lambda z: z.log(),
}


@TRAINING
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_is_unknown_until_the_next_weights(name, training):
    graph = ek.trace(Through(UNKNOWN[name]), torch.zeros(8, 8))
    signals = propagate(graph, training=training).signals
    first, second = graph.of(ek.Kind.WEIGHT)
    between = [layer for layer in graph.downstream(first, ek.Kind.WEIGHT) if layer is not second]
    assert not signals[second.inputs[0]].known
    assert [signals[layer].known for layer in between][-1] is False and signals[first].known and signals[second].known
    assert signals[second].power == pytest.approx(8 * 0.5)  # whatever the activation makes of it, a factor 1/2
    assert all(p > 0 for p in vars(predict_mean_squares(graph)[0][first]).values())


def test_a_norm_makes_a_signal_known_again():
    model = nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8, bias=False))
    nn.init.ones_(model[4].weight)
    graph = ek.trace(model, torch.zeros(8, 8))
    signals = propagate(graph, training=True).signals
    assert [signals[layer].known for layer in graph][:-1] == [True, True, False, True, True, True]
    assert signals[graph["4"]].power == pytest.approx(8 * 0.5, rel=1e-4)  # that of ReLU, after variance 1


def test_one_unknown_branch_makes_the_join_unknown():
    graph = ek.trace(Calls(lambda x: x + x.softmax(-1)), torch.zeros(2, 8))
    join = graph.of(ek.Kind.JOIN)[0]
    assert not propagate(graph, training=True).signals[join].known


def test_layers_that_raise_are_unknown_and_nothing_else(monkeypatch):
    def raising(*_, **__):
        raise ZeroDivisionError

    def stopping(*_, **__):
        raise KeyboardInterrupt

    graph = ek.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.zeros(2, 4))
    relu = graph.of(ek.Kind.ACTIVATION)[0]
    monkeypatch.setitem(transfers._TRANSFERS, ek.Kind.ACTIVATION, raising)
    assert not propagate(graph, training=True).signals[relu].known
    monkeypatch.setitem(transfers._TRANSFERS, ek.Kind.ACTIVATION, stopping)
    with pytest.raises(KeyboardInterrupt):
        propagate(graph, training=True)


@pytest.mark.slow
@strict
@given(spec=specs(fails=False))
@settings(max_examples=40)
def test_no_generated_network_needs_the_net(spec):
    """With errors let through, all that is not known comes from layers that say so: here, declared noise."""
    assume(all(block.habit != "average" for block in spec.blocks))  # it adds a tensor that the graph does not hold
    graph = ek.trace(spec.build(), spec.batches()[0])
    powers, train = predict_mean_squares(graph)
    for layer, signal in train.signals.items():
        declared = any(x.kind is ek.Kind.DROPOUT and not x.function for x in graph.upstream(layer))
        assert signal.known or declared or layer.kind is ek.Kind.DROPOUT
    assert all(math.isfinite(v) and v > 0 for p in powers.values() for v in vars(p).values())
