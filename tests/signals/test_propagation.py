"""The prediction law: mean squares of signals and error signals against Monte Carlo over weights, masks and inputs."""

import math
from dataclasses import astuple

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from papernets import DenseNet, ResNet, deep_net, vgg
from torch import nn

import evenkeel as ek
from evenkeel.signals.propagation import given_weights, predict_mean_squares, propagate

IMAGES = (8, 8, 16, 16)


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]


def predicted(model, shape):
    """The powers of every weight layer, a row each."""
    powers, _ = predict_mean_squares(ek.trace(model, torch.zeros(shape)))
    return torch.tensor([astuple(p) for p in powers.values()], dtype=torch.float64)


def simulated(model, shape, draws):
    """The same by drawing normal weights of the mean square that they have, shape (draws, layers, 4)."""
    layers = layers_of(model)
    scales = [float(layer.weight.detach().square().mean().sqrt()) for layer in layers]
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.momentum = 0.0  # eval mode keeps the statistics that the prediction knows
    kept, found = [], []
    hooks = [layer.register_forward_hook(lambda _m, _i, z: kept.append(z) or z.clone()) for layer in layers]
    for _ in range(draws):
        columns = []
        for layer, scale in zip(layers, scales, strict=True):
            nn.init.normal_(layer.weight, 0, scale)
        for training in (True, False):
            kept.clear()
            output = model.train(training)(torch.randn(shape))
            errors = torch.autograd.grad(output, kept, torch.randn_like(output))
            columns.append([[float(t.detach().square().mean()) for t in tensors] for tensors in (kept, errors)])
        (train, train_gradients), (evaluation, eval_gradients) = columns
        found.append([train, evaluation, train_gradients, eval_gradients])
    for hook in hooks:
        hook.remove()
    return torch.tensor(found, dtype=torch.float64).transpose(1, 2)


def departures(expected, draws):
    """Where the mean of draws is more than 4 standard errors, and more than 1 %, from what is expected."""
    ratios = draws / expected
    off, error = ratios.mean(0) - 1, ratios.std(0) / math.sqrt(len(ratios))
    assert float(error.median()) < 0.06, "too few draws to see anything"
    columns = ("train variance", "eval variance", "train grad var", "eval grad var")
    return [
        f"layer {layer}, {columns[column]}: {off[layer, column]:+.3f} of it, at {error[layer, column]:.3f}"
        for layer, column in (off.abs() > (4 * error).clamp_min(0.01)).nonzero().tolist()
    ]


def tanh_convolutions():
    """Small images, most of them border, where signals are weaker and tanh is steeper."""
    layers = [layer for _ in range(3) for layer in (nn.Tanh(), nn.Conv2d(32, 32, 3, padding=1))]
    return nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), *layers, nn.Tanh(), nn.Flatten(), nn.Linear(32 * 64, 32))


def dropout_first():
    """Dropout and max-pool before the activation, as in PyTorch's own MNIST example."""
    return nn.Sequential(
        nn.Conv2d(8, 24, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3),
        nn.Dropout2d(0.5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 4, 64),
        nn.Dropout(0.5),
        nn.Tanh(),
        nn.Linear(64, 64),
    )


NETS = {
    "vgg": (lambda: vgg(width=24), IMAGES, 60),
    "vgg Dropout2d": (lambda: vgg(dropout=nn.Dropout2d, width=24), IMAGES, 60),
    "vgg gelu": (lambda: vgg(nn.GELU, width=24), IMAGES, 40),
    "resnet": (lambda: ResNet(width=24), IMAGES, 40),
    "resnet Dropout2d": (lambda: ResNet(dropout=nn.Dropout2d(0.3), width=24), IMAGES, 40),
    "densenet": (lambda: DenseNet(growth=12), IMAGES, 60),
    "densenet without dropout": (lambda: DenseNet(p=0.0, growth=12), IMAGES, 40),
    "dropout first": (dropout_first, (8, 8, 14, 14), 150),
    "tanh convolutions": (tanh_convolutions, (8, 8, 8, 8), 100),
    # batches of 256: batch norm takes from the errors what they have in common with the batch, which is neglected
    "resnet with norms": (lambda: ResNet(norm=True, width=12), (256, *IMAGES[1:]), 7),
    "resnet with norms, Dropout2d": (
        lambda: ResNet(norm=True, width=12, blocks=1, dropout=nn.Dropout2d(0.3)),
        (256, *IMAGES[1:]),
        12,
    ),
    "densenet with norms": (lambda: DenseNet(norm=True, growth=16, depth=1), (256, *IMAGES[1:]), 10),
    "deep relu": (lambda: deep_net(nn.ReLU, 0.3, (192,) * 16 + (96,) * 5), (32, 192), 60),
    "deep tanh": (lambda: deep_net(nn.Tanh, 0.3, (192,) * 16 + (96,) * 5), (32, 192), 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_papers_networks(name):
    build, shape, draws = NETS[name]
    model = build()
    ek.init_(model, torch.zeros(shape))
    assert departures(predicted(model, shape), simulated(model, shape, draws)) == []


@pytest.mark.slow
def test_torch_initialization_with_its_biases():
    """Every draw has weights and biases of another mean square, for which it has its own prediction."""
    model = nn.Sequential(
        nn.Linear(48, 64), nn.Tanh(), nn.Dropout(0.4), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.GELU()
    ).append(nn.Linear(64, 32))
    graph, shape = ek.trace(model, torch.zeros(64, 48)), (64, 48)
    ratios = []
    for _ in range(40):
        for layer in layers_of(model):
            nn.init.uniform_(layer.weight, -0.25, 0.25)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
        powers, _ = predict_mean_squares(graph)
        expected = torch.tensor([astuple(p) for p in powers.values()], dtype=torch.float64)
        biases = [layer.bias.detach().clone() for layer in layers_of(model)]
        measured = simulated(model, shape, 1)[0]
        assert all(torch.equal(layer.bias, b) for layer, b in zip(layers_of(model), biases, strict=True))
        ratios.append(measured / expected)
    assert departures(torch.ones_like(ratios[0]), torch.stack(ratios)) == []


# Small generated chains

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "leaky": lambda: nn.LeakyReLU(0.3), "selu": nn.SELU}
RATES = st.sampled_from((0.0, 0.2, 0.5))


@st.composite
def chains(draw):
    """Networks of weight layers, activations, dropout and perhaps a pool, with their inputs' shapes."""
    width, image = 32, draw(st.booleans())
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        layers.append(nn.Conv2d(width, width, 3, padding=draw(st.integers(0, 1))) if image else nn.Linear(width, width))
        layers.append(ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]())
        masks = (nn.Dropout, nn.Dropout2d) if image else (nn.Dropout,)
        layers.append(draw(st.sampled_from(masks))(draw(RATES)))
    if image:
        layers += [draw(st.sampled_from((nn.Identity(), nn.AvgPool2d(2), nn.MaxPool2d(2)))), nn.Flatten()]
    model, shape = nn.Sequential(*layers), (8, width, 8, 8) if image else (32, width)
    model.append(nn.Linear(model(torch.zeros(shape)).shape[1], width))
    return model, shape


@pytest.mark.slow
@given(chain=chains())
@settings(max_examples=15, phases=(Phase.explicit, Phase.generate))  # chains are small as they come
def test_generated_chains(chain):
    model, shape = chain
    ek.init_(model, torch.zeros(shape))
    torch.manual_seed(1)
    assert departures(predicted(model, shape), simulated(model, shape, 30)) == []


@pytest.mark.slow
@given(chain=chains(), factor=st.floats(0.3, 3))
@settings(max_examples=10)
def test_a_factor_of_the_last_weights_scales_their_signal_and_all_errors_before(chain, factor):
    model, shape = chain
    last = layers_of(model)[-1]
    last.bias.data.zero_()
    before = predicted(model, shape)
    last.weight.data.mul_(factor)
    scale = torch.ones_like(before)
    scale[-1, :2] = scale[:-1, 2:] = factor**2
    assert torch.allclose(predicted(model, shape), before * scale, rtol=1e-5)


@pytest.mark.slow
@given(chain=chains(), batch=st.integers(1, 5))
@settings(max_examples=10)
def test_the_size_of_the_batch_does_not_matter(chain, batch):
    model, shape = chain
    assert torch.allclose(predicted(model, shape), predicted(model, (batch, *shape[1:])), rtol=1e-9)


@pytest.mark.slow
@given(chain=chains())
@settings(max_examples=10)
def test_without_noise_train_mode_is_eval_mode(chain):
    model, shape = chain
    noisy = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())
    powers = predicted(model, shape)
    assert noisy != torch.equal(powers[:, ::2], powers[:, 1::2])
    assume(noisy)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    quiet = predicted(model, shape)
    assert torch.equal(quiet[:, ::2], quiet[:, 1::2]) and torch.allclose(quiet[:, 1], powers[:, 1])


def test_the_last_bias_makes_no_difference_to_errors():
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    nn.init.zeros_(model[2].bias)
    before = predicted(model, (2, 32))
    nn.init.constant_(model[2].bias, 2.0)
    after = predicted(model, (2, 32))
    assert torch.allclose(after[:, 2:], before[:, 2:], rtol=1e-6)
    assert torch.allclose(after[:, :2] - before[:, :2], torch.tensor([[0.0], [4.0]], dtype=torch.float64))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_mode_does_not_matter(mode):
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    outside = predicted(model, (2, 8))
    with mode():
        assert torch.equal(predicted(model, (2, 8)), outside)


# Chains that can be followed by hand


def powers_of(model, shape):
    return [astuple(p) for p in predict_mean_squares(ek.trace(model, torch.zeros(shape)))[0].values()]


def test_linear_layers_multiply_what_their_fans_make():
    """Of variance v: forward, fan_in v; backward, fan_out v; dropout divides by keep, on both ways, in train mode."""
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Dropout(0.2), nn.Linear(7, 3, bias=False))
    nn.init.constant_(model[0].weight, 0.5), nn.init.constant_(model[2].weight, 2.0)
    first, second = 5 * 0.25, 3 * 4.0
    expected = [
        (first, first, second / 0.8, second),
        (first * 7 * 4 / 0.8, first * 7 * 4, 1, 1),
    ]
    for found, wanted in zip(powers_of(model, (2, 5)), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)


def test_weights_of_chosen_variance():
    asked = []

    def choose(layer, weights, x, reached):
        asked.append((layer.name, weights.fan_in, x.power, reached.law.level_variance))
        return 1 / (weights.fan_in * x.power)

    model = nn.Sequential(nn.Linear(100, 50, bias=False), nn.ReLU(), nn.Linear(50, 20, bias=False))
    graph = ek.trace(model, torch.zeros(1, 100))
    signals = propagate(graph, training=True, choose=choose).signals
    assert [(name, fan) for name, fan, *_ in asked] == [("0", 100), ("2", 50)]
    assert [power for *_, power, _ in asked] == pytest.approx([1.0, 0.5])
    assert [signals[layer].power for layer in graph.of(ek.Kind.WEIGHT)] == pytest.approx([1.0, 1.0])


def test_weights_as_they_stand():
    layer = nn.Linear(3, 2)
    graph = ek.trace(layer, torch.zeros(1, 3))
    found = given_weights(graph.of(ek.Kind.WEIGHT)[0], type("W", (), {"parameter": layer.weight})(), None, None)
    assert found == pytest.approx(float((layer.weight.detach().double() ** 2).mean()), rel=1e-6)


def test_borders_count_or_do_not():
    """Of 4 x 4 positions under a 3 x 3 kernel, 4 see 9 values, 8 see 6 and 4 see 4."""
    model = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    graph = ek.trace(model, torch.zeros(1, 2, 4, 4))
    conv = graph.of(ek.Kind.WEIGHT)[0]
    powers = [propagate(graph, training=True, bordered=b).signals[conv].power for b in (True, False)]
    assert powers == pytest.approx([2 * (4 * 9 + 8 * 6 + 4 * 4) / 16, 2 * 9])


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = (nn.Linear(4, n, bias=False) for n in (4, 6, 10))
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = self.body(x)
        self.unused(x)
        return self.first(x), {"deep": [self.second(x)]}


def test_errors_come_from_every_output_and_only_from_outputs():
    model = TwoHeads()
    for layer in layers_of(model):
        nn.init.constant_(layer.weight, 1.0)
    graph = ek.trace(model, torch.zeros(3, 4))
    powers = predict_mean_squares(graph)[0]
    errors = {layer.name: p.train_grad_variance for layer, p in powers.items()}
    assert errors == pytest.approx({"body": 6 + 10, "first": 1, "second": 1, "unused": 0})


def test_norms_of_modules_in_eval_mode_use_their_statistics_in_train_mode_too():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 8, bias=False))
    nn.init.constant_(model[0].weight, 1.0), nn.init.constant_(model[2].weight, 1.0)
    model[1].running_var.fill_(4.0)
    assert powers_of(model, (4, 8))[1] == pytest.approx((8, 8 * 8 / 4, 1, 1), rel=1e-4)
    model[1].eval()
    assert powers_of(model, (4, 8))[1] == pytest.approx((16, 16, 1, 1), rel=1e-4)
    assert powers_of(model.eval(), (4, 8))[1] == pytest.approx((8, 16, 1, 1), rel=1e-4)


def test_errors_by_level_add_up_to_the_error():
    """What the levels of a signal are sent, weighted by how likely they are, is what the layer is sent."""
    model = nn.Sequential(nn.Linear(30, 30), nn.Tanh(), nn.Dropout(0.5), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 5))
    graph = ek.trace(model, torch.zeros(2, 30))
    weights = graph.of(ek.Kind.WEIGHT)
    powers, train = predict_mean_squares(graph)
    for layer in weights:
        law = train.signals[layer].marginal
        assert float(law.masses @ train.gradients[layer]) == pytest.approx(powers[layer].train_grad_variance)
        assert train.gradients[layer].shape == train.by_strength[layer].shape == law.levels.shape
    middle = train.signals[weights[1]].marginal
    order = middle.levels.argsort()
    assert float(train.gradients[weights[1]][order][0]) > float(
        train.gradients[weights[1]][order][-1]
    )  # tanh: strong, flat
