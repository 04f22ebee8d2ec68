"""Gains: the variance of each weight layer's weights, from what comes before and after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from evenkeel.errors import ActivationError
from evenkeel.graph.kinds import EMBEDDINGS, Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.signals.activations import activation_of
from evenkeel.signals.marginals import Sum
from evenkeel.signals.moments import Moments, activation_moments
from evenkeel.signals.propagation import Propagation, given_weights, propagate
from evenkeel.signals.signal import Signal
from evenkeel.signals.transfers import along, strengthening
from evenkeel.signals.weights import Weights

Mode = Literal["forward", "backward", "mean", "hendrycks2016"]
MODES: tuple[Mode, ...] = get_args(Mode)

_ROUNDS = 25  # of settling variances that depend on each other
_STEP = 0.5  # of the way, in logarithm, that a variance goes in one round
_SETTLED = 1e-3  # relative change of a variance that ends them
_LEAST = 0.2  # of the gradients: the share that counts as passed by weights, even if strength passes more
_SOURCES = (Kind.WEIGHT, Kind.NORM, Kind.JOIN, Kind.CONCAT, Kind.GATE, Kind.OPAQUE, Kind.INPUT)
_SINKS = (Kind.WEIGHT, Kind.JOIN, Kind.CONCAT, Kind.GATE, Kind.OPAQUE, Kind.OUTPUT)
_HALF = Moments(0.5, 0.5, 0.0, 0.0)  # the paper's factor where nothing is known
_ONE = Moments(1.0, 1.0, 0.0, 1.0)  # no activation

# The variance of a layer's weights, from the layer, its weights, its input, and E (dx/dz)^2 on the way there.
Rule = Callable[[Layer, Weights, Signal, float], float]


@dataclass(frozen=True)
class _Tilt:
    """Mean squares of gradients by the level of a layer's output, and those by strength, both over the former's mean.

    A level is a sample's mean square relative to the mean over samples.
    """

    levels: Tensor
    gradients: Tensor
    by_strength: Tensor

    def at(self, values: Tensor, reached: Sum) -> Tensor:
        """Values at the levels of a sum, after a change of gains has moved them a little."""
        order = self.levels.argsort()
        known = self.levels[order].log().numpy(), values[order].numpy()
        return torch.from_numpy(np.interp(reached.law.levels.log().numpy(), *known))


def choose_variances(
    graph: LayerGraph,
    owners: Mapping[nn.Parameter, Layer],
    mode: Mode,
    *,
    xavier: bool = False,
    scales: Mapping[Layer, float],
) -> tuple[dict[nn.Parameter, float], Propagation]:
    """Choose the variance of each parameter's entries, by one of the modes of `init_`.

    Args:
        graph: the graph.
        owners: the parameters to choose for, each with the weight layer that decides.
        mode: one of MODES.
        xavier: for hendrycks2016: its form for uniform weights, with fan_out at the second term.
        scales: extra factors of single layers' weights.

    Returns:
        The variances, and the signals that they were chosen for.
    """
    rules: dict[Mode, Rule] = {
        "forward": _forward,
        "backward": _backward,
        "mean": _mean,
        "hendrycks2016": partial(_printed, graph, xavier, {}),
    }
    rule = rules[mode]
    variances: dict[nn.Parameter, float] = {}
    tilts: dict[Layer, _Tilt] = {}
    guessed: set[nn.Parameter] = set()

    def choose(layer: Layer, weights: Weights, x: Signal, reached: Sum) -> float:
        parameter = weights.parameter
        if parameter not in owners:
            return given_weights(layer, weights, x, reached)
        if owners[parameter] is layer:
            slope = _slope(tilts.get(layer), weights, x, reached, variances.get(parameter))
            chosen = rule(layer, weights, x, slope) * scales.get(layer, 1.0) ** 2
            last = variances.get(parameter, chosen)
            variances[parameter] = last * (chosen / last) ** _STEP
        elif parameter not in variances:  # tied to a layer that comes later
            guessed.add(parameter)
        return variances.get(parameter, 1 / weights.fan_in)

    at = tuple(owners.values()) if mode in ("backward", "mean") else ()
    rounds = _ROUNDS
    while True:
        before, rounds = dict(variances), rounds - 1
        propagation = propagate(graph, training=True, bordered=False, choose=choose, gradients_at=at)
        tilts = {layer: _tilt(propagation, layer) for layer in at}
        change = max((abs(variances[p] / before.get(p, math.inf) - 1) for p in variances), default=0.0)
        if change < _SETTLED or not (at or guessed) or not rounds:
            return variances, propagation


def words(graph: LayerGraph, layer: Layer) -> tuple[str, str]:
    """The layers before and after a weight layer, in words, nearest first.

    >>> import evenkeel as ek
    >>> graph = ek.trace(nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(2, 2), nn.Tanh()), torch.ones(1, 2))
    >>> words(graph, graph["2"])
    ('dropout p=0.3, relu, input', 'tanh, output')
    """
    before, after = graph.upstream(layer, _SOURCES), graph.downstream(layer, _SINKS)
    return ", ".join(filter(None, map(_word, before))), ", ".join(filter(None, map(_word, after)))


def _word(layer: Layer) -> str:
    if layer.kind is Kind.PASS:
        return ""
    if layer.kind is Kind.DROPOUT:
        return f"{layer.function} p={'?' if layer.p is None else f'{layer.p:g}'}"
    return layer.function or layer.kind.name.lower()


def _forward(layer: Layer, weights: Weights, x: Signal, slope: float) -> float:
    return 1 / (weights.fan_in * (x.power or 1.0))


def _backward(layer: Layer, weights: Weights, x: Signal, slope: float) -> float:
    return 1 / (weights.fan_out * (slope or 1.0))


def _mean(layer: Layer, weights: Weights, x: Signal, slope: float) -> float:
    return 2 / (weights.fan_in * x.power + weights.fan_out * slope or 2.0)


def _printed(
    graph: LayerGraph,
    xavier: bool,
    known: dict[str, Moments],
    layer: Layer,
    weights: Weights,
    x: Signal,
    slope: float,
) -> float:
    """W / sqrt(E f^2 / keep + keep E f'^2), f' of the activation behind the weights (Hendrycks & Gimpel 2016, 2.2)."""
    if layer.function in EMBEDDINGS:
        return 1.0
    before, keep_before = _neighbours(graph.upstream(layer, _SOURCES), known)
    after, keep_after = _neighbours(graph.downstream(layer, _SINKS), known)
    fan = weights.fan_out if xavier else weights.fan_in
    forward = weights.fan_in * before.second / keep_before if keep_before else 0.0
    return 1 / (forward + fan * keep_after * after.derivative_second or 1.0)


def _neighbours(layers: tuple[Layer, ...], known: dict[str, Moments]) -> tuple[Moments, float]:
    """The moments of the activation among a weight layer's neighbours (means, if there are several), and its keep."""
    found = [_moments_of(layer, known) for layer in layers if layer.kind is Kind.ACTIVATION]
    opaque = any(layer.kind is Kind.OPAQUE for layer in layers)
    moments = found or [_HALF if opaque else _ONE]
    second, derivative = fmean(m.second for m in moments), fmean(m.derivative_second for m in moments)
    keep = math.prod(1 - layer.p for layer in layers if layer.kind is Kind.DROPOUT and layer.p is not None)
    return Moments(second, derivative, 0.0, 0.0), keep


def _moments_of(layer: Layer, known: dict[str, Moments]) -> Moments:
    key = f"{layer.function} {layer.args[1:]} {layer.kwargs}"
    if key not in known:
        try:
            known[key] = activation_moments(activation_of(layer))
        except ActivationError:
            known[key] = _HALF
    return known[key]


def _tilt(propagation: Propagation, layer: Layer) -> _Tilt:
    levels, gradients = propagation.signals[layer].marginal.levels, propagation.gradients[layer]
    mean = propagation.gradient_variance(layer)
    if mean <= 0:
        return _Tilt(levels, torch.ones_like(gradients), torch.zeros_like(gradients))
    return _Tilt(levels, gradients / mean, propagation.by_strength[layer] / mean)


def _slope(tilt: _Tilt | None, weights: Weights, x: Signal, reached: Sum, variance: float | None) -> float:
    """What comes back of the gradients behind a weight layer to the layers before, per weight: E (dx/dz)^2.

    A part comes back by changes of the sample's strength; counted in full, it could make weights almost 0.
    """
    passing = reached.passed @ x.local
    if tilt is None or not variance:
        return float(passing.sum())
    gradients = tilt.at(tilt.gradients, reached)
    straight = float(gradients @ (reached.passed @ (x.local * (1 - along(x)))))
    strengthened = float(tilt.at(tilt.by_strength, reached) @ (reached.passed @ (x.local * strengthening(x))))
    return min(straight + strengthened / (weights.fan_in * variance), float(gradients @ passing) / _LEAST)
