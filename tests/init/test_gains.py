"""choose_variances: every mode's formula on chains that can be worked out by hand, and what settles; words."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.init import gains
from evenkeel.init.gains import MODES, choose_variances, words
from evenkeel.signals.moments import activation_moments
from evenkeel.signals.propagation import predict_mean_squares
from evenkeel.signals.weights import weights_of


def chosen(model, shape, mode, *, owned=lambda layer: True, scales=None, xavier=False):
    """The graph, and the variance of each weight layer's weights."""
    graph = ek.trace(model, torch.zeros(shape))
    layers = [layer for layer in graph.of(ek.Kind.WEIGHT) if owned(layer)]
    owners = {}
    for layer in layers:
        owners.setdefault(weights_of(layer).parameter, layer)
    scales = {graph[name]: scale for name, scale in (scales or {}).items()}
    variances, _ = choose_variances(graph, owners, mode, xavier=xavier, scales=scales)
    return graph, {owners[parameter].name: v for parameter, v in variances.items()}


def powers(graph, variances):
    """What the whole chain then predicts."""

    def choose(layer, *_):
        return variances[layer.name]

    return {layer.name: p for layer, p in predict_mean_squares(graph, choose=choose)[0].items()}


def chain(activation, widths, p):
    layers = [nn.Linear(widths[0], widths[1], bias=False)]
    for n_in, n_out in pairwise(widths[1:]):
        layers += [activation(), nn.Dropout(p), nn.Linear(n_in, n_out, bias=False)]
    return nn.Sequential(*layers)


WIDTHS = (40, 60, 30, 50)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_relu_chains_are_exact(p):
    """E relu^2 = E relu'^2 = 1/2, over keep; every sample is treated alike, so levels make no difference."""
    keep, fans_in, fans_out = 1 - p, WIDTHS[:-1], WIDTHS[1:]
    model = chain(nn.ReLU, WIDTHS, p)
    q = [1.0, 0.5 / keep, 0.5 / keep]
    expected = {
        "forward": [1 / (n * m) for n, m in zip(fans_in, q, strict=True)],
        "backward": [1 / (n * m) for n, m in zip(fans_out, q, strict=True)],
        "mean": [],
    }
    power = 1.0  # of the signal, which mode mean does not keep
    for n, o, m in zip(fans_in, fans_out, q, strict=True):
        expected["mean"].append(2 / (n * m * power + o * m))
        power *= expected["mean"][-1] * n * m
    for mode, values in expected.items():
        _, found = chosen(model, (2, WIDTHS[0]), mode)
        assert list(found.values()) == pytest.approx(values, rel=2e-3), mode


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.SELU])
def test_forward_keeps_the_signal(activation):
    graph, variances = chosen(chain(activation, WIDTHS, 0.3), (2, WIDTHS[0]), "forward")
    assert [p.train_variance for p in powers(graph, variances).values()] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
def test_backward_settles_where_errors_are_kept(activation):
    """Each variance depends on all others: on what is fed forward, and on what the errors behind are like by level."""
    model = chain(activation, (300,) * 6, 0.2)
    graph, variances = chosen(model, (2, 300), "backward")
    errors = [p.train_grad_variance for p in powers(graph, variances).values()]
    assert errors == pytest.approx([1.0] * 5, rel=0.02)


def test_backward_stops_when_settled(monkeypatch):
    rounds = []
    propagate = gains.propagate

    def counted(*args, **kwargs):
        rounds.append(1)
        return propagate(*args, **kwargs)

    monkeypatch.setattr(gains, "propagate", counted)
    model = chain(nn.Tanh, WIDTHS, 0.3)
    chosen(model, (2, WIDTHS[0]), "forward")
    assert len(rounds) == 1
    rounds.clear()
    _, settled = chosen(model, (2, WIDTHS[0]), "backward")
    assert 2 < len(rounds) < gains._ROUNDS
    monkeypatch.setattr(gains, "_SETTLED", 1e-9)
    monkeypatch.setattr(gains, "_ROUNDS", 60)
    _, further = chosen(model, (2, WIDTHS[0]), "backward")
    assert list(settled.values()) == pytest.approx(list(further.values()), rel=5e-3)


def test_mean_lies_between_forward_and_backward():
    """The harmonic mean of the two, for layers that feed on the input."""
    model = nn.Linear(40, 10, bias=False)
    forward, backward, mean = (next(iter(chosen(model, (2, 40), mode)[1].values())) for mode in MODES[:3])
    assert (forward, backward) == (pytest.approx(1 / 40), pytest.approx(1 / 10))
    assert mean == pytest.approx(2 / (1 / forward + 1 / backward), rel=1e-3)


ACTIVATIONS = {"relu": (nn.ReLU, torch.relu), "gelu": (nn.GELU, F.gelu), "tanh": (nn.Tanh, torch.tanh)}


@pytest.mark.parametrize("xavier", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_printed_formula(name, xavier):
    """hendrycks2016, 2.2: W / sqrt(E f^2 / keep + keep E f'^2), f before the weights and f' behind them."""
    module, f = ACTIVATIONS[name]
    keep, moments = 0.7, activation_moments(f)
    _, found = chosen(chain(module, WIDTHS, 1 - keep), (2, WIDTHS[0]), "hendrycks2016", xavier=xavier)
    second, derivative = moments.second / keep, keep * moments.derivative_second
    befores, afters = (1.0, second, second), (derivative, derivative, 1.0)
    expected = [
        1 / (n_in * before + (n_out if xavier else n_in) * after)
        for n_in, n_out, before, after in zip(WIDTHS, WIDTHS[1:], befores, afters, strict=False)
    ]
    assert list(found.values()) == pytest.approx(expected, rel=1e-6)


def test_the_printed_factor_where_nothing_is_known_is_a_half():
    model = nn.Sequential(nn.Linear(20, 20), nn.Softmax(-1), nn.Linear(20, 20))
    _, found = chosen(model, (2, 20), "hendrycks2016")
    assert list(found.values()) == pytest.approx([1 / (20 * (1 + 0.5)), 1 / (20 * (0.5 + 1))])


@pytest.mark.parametrize("mode", ["forward", "mean", "backward"])
def test_scales_are_factors_of_the_weights(mode):
    """Of the last layer, whose own variance nothing else depends on in forward mode."""
    model = chain(nn.ReLU, WIDTHS, 0.2)
    plain, scaled = (chosen(model, (2, WIDTHS[0]), mode, scales=s)[1] for s in ({}, {"6": 0.5}))
    assert scaled["6"] == pytest.approx(plain["6"] / 4, rel=2e-3)
    assert scaled["0"] == pytest.approx(plain["0"], rel=2e-3)


@pytest.mark.parametrize("mode", MODES[:3])
def test_weights_of_others_are_taken_as_they_stand(mode):
    model = chain(nn.ReLU, WIDTHS, 0.0)
    nn.init.constant_(model[0].weight, 0.5)
    _, found = chosen(model, (2, WIDTHS[0]), mode, owned=lambda layer: layer.name != "0")
    assert set(found) == {"3", "6"}
    q = WIDTHS[0] * 0.25 / 2  # after the first layer and ReLU
    expected = {
        "forward": 1 / (WIDTHS[1] * q),
        "backward": 1 / (WIDTHS[2] * 0.5),
        "mean": 2 / (WIDTHS[1] * q + WIDTHS[2] * 0.5),
    }
    assert found["3"] == pytest.approx(expected[mode], rel=2e-3)


class Tied(nn.Module):
    """One parameter, used twice."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 30), nn.Linear(30, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def test_a_tied_parameter_settles_by_the_layer_that_owns_it():
    """The embedding comes first and returns rows of variance v; the head wants fan_in v v = 1."""
    model = Tied()
    graph = ek.trace(model, torch.zeros(2, 4, dtype=torch.long))
    head = graph["head"]
    found, _ = choose_variances(graph, {model.head.weight: head}, "forward", scales={})
    assert found[model.head.weight] == pytest.approx(1 / math.sqrt(30), rel=0.01)


@pytest.mark.parametrize("mode", MODES[:3])
def test_frozen_norms_count_by_their_statistics(mode):
    norm = nn.BatchNorm1d(30)
    norm.running_var.fill_(4.0)
    model = nn.Sequential(nn.Linear(30, 30, bias=False), norm, nn.Linear(30, 30, bias=False))
    _, live = chosen(model, (4, 30), mode)
    norm.eval()
    _, frozen = chosen(model, (4, 30), mode)
    assert live["2"] == pytest.approx(1 / 30, rel=2e-3)
    expected = {"forward": 4 / 30, "backward": 1 / 30, "mean": 2 / (30 / 4 + 30)}  # errors count back to the norm
    assert frozen["2"] == pytest.approx(expected[mode], rel=5e-3)


@pytest.mark.slow
@given(widths=st.lists(st.integers(10, 60), min_size=3, max_size=5), p=st.floats(0, 0.7))
@settings(max_examples=15)
def test_chains_of_any_widths_keep_their_signal_or_their_errors(widths, p):
    model = chain(nn.ReLU, tuple(widths), p)
    graph, forward = chosen(model, (2, widths[0]), "forward")
    assert [x.train_variance for x in powers(graph, forward).values()] == pytest.approx([1.0] * (len(widths) - 1))
    graph, backward = chosen(model, (2, widths[0]), "backward")
    assert [x.train_grad_variance for x in powers(graph, backward).values()] == pytest.approx(
        [1.0] * (len(widths) - 1), rel=5e-3
    )


def test_every_mode_is_one_of_the_modes():
    with pytest.raises(KeyError):
        chosen(nn.Linear(2, 2), (1, 2), "sideways")


# Words


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.25)

    def forward(self, x):
        y = torch.tanh(self.first(x)).view(-1, 2, 2).flatten(1)
        return self.head(self.drop(torch.relu(x + self.second(y))))


def test_words_are_nearest_first_up_to_what_makes_or_mixes_signals():
    graph = ek.trace(Branches(), torch.zeros(2, 4))
    assert words(graph, graph["first"]) == ("input", "tanh, linear")
    assert words(graph, graph["second"]) == ("tanh, linear", "add")
    assert words(graph, graph["head"]) == ("dropout p=0.25, relu, add", "output")


def test_words_of_a_dropout_whose_rate_is_not_known():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.level = nn.Linear(4, 4), nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return self.head(x * (torch.rand_like(x) > self.level))

    graph = ek.trace(Masked(), torch.zeros(2, 4))
    assert words(graph, graph["head"]) == ("mul p=?, input", "output")
