"""Propagation: the moments of every signal and of every error signal of a model whose weights are random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evenkeel.errors import ActivationError
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.signals.activations import activation_of, is_homogeneous
from evenkeel.signals.marginals import Sum
from evenkeel.signals.signal import Signal, received
from evenkeel.signals.transfers import Choice, PropagationOptions, transfer
from evenkeel.signals.weights import Weights


@dataclass(frozen=True)
class Propagation:
    """The signals of a graph, and the error signals that come back.

    Attributes:
        signals: what each layer returns.
        errors: of each layer asked for, E (dL/dx)^2 by the level of x, per element, for independent errors of
            variance 1 sent in at every output; a tensor of shape (levels,).
        strengths: likewise E (dL/d log q)^2, q being the mean square of x in one sample, over the elements' number.
    """

    signals: dict[Layer, Signal]
    errors: dict[Layer, Tensor]
    strengths: dict[Layer, Tensor]

    def error(self, layer: Layer) -> float:
        """E (dL/dx)^2 of what the layer returns, over all elements and samples."""
        return float(self.signals[layer].marginal.masses @ self.errors[layer])


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares at one weight layer.

    Attributes:
        train_variance, eval_variance: E z^2 of its output z, the neurons' input, over units, positions and samples.
        train_error, eval_error: E (dL/dz)^2 for independent errors of variance 1 at the model's outputs.
    """

    train_variance: float
    eval_variance: float
    train_error: float
    eval_error: float


def given_weights(layer: Layer, weights: Weights, x: Signal, reached: Sum) -> float:
    """The variance of weights as they stand: the mean of their squares."""
    return float(weights.parameter.detach().square().mean(dtype=torch.float64))


@torch.inference_mode(False)
@torch.enable_grad()
def propagate(
    graph: LayerGraph,
    *,
    training: bool,
    frozen: Iterable[nn.Module] = (),
    bordered: bool = True,
    choose: Choice = given_weights,
    errors_at: Sequence[Layer] = (),
) -> Propagation:
    """Follow second moments through a graph whose weights are independent, of mean 0 and known variance.

    Expected are moments over weights, inputs and masks. Exact, in the limit of wide layers, for networks that are
    trees of weight layers, norms, activations, dropout, pools and joins; at finite width, samples differ in strength,
    which is followed too (`Marginal`). Branches that meet are taken as uncorrelated but for their means.

    Args:
        graph: the graph.
        training: in train mode, or in eval mode.
        frozen: modules in eval mode even so.
        bordered: whether the zeros that padding adds count.
        choose: the variance of each weight layer's weights, asked for in execution order.
        errors_at: layers whose error signals are wanted.

    Returns:
        The signals, and error signals.
    """
    options = PropagationOptions(training, frozenset(frozen), bordered, _is_levelled(graph), choose)
    signals: dict[Layer, Signal] = {}
    for layer in graph:
        signals[layer] = transfer(layer, [signals[source] for source in layer.inputs], options)
    outputs = [signals[source] for layer in graph.of(Kind.OUTPUT) for source in layer.inputs]
    wanted = [signals[layer] for layer in errors_at]
    gradients = _gradients(outputs, [t for x in wanted for t in (x.flow, x.radial)])
    errors, strengths = (
        {
            layer: g.flatten(1).sum(1) / math.prod(x.shape) if g.dim() > 1 else g / math.prod(x.shape)
            for layer, x, g in zip(errors_at, wanted, found, strict=True)
        }
        for found in (gradients[::2], gradients[1::2])
    )
    return Propagation(signals, errors, strengths)


def _is_levelled(graph: LayerGraph) -> bool:
    """Whether any activation makes more, or less, of samples of different strength than of their mean."""

    def treats_alike(layer: Layer) -> bool:
        try:
            return is_homogeneous(activation_of(layer))
        except (
            ActivationError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ):  # such as softmax; it is not understood anyway
            return False

    return not all(treats_alike(layer) for layer in graph.of(Kind.ACTIVATION))


def _gradients(outputs: Sequence[Signal], wanted: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of all that the outputs receive; 0 where nothing reaches them."""
    goal = sum((received(x) for x in outputs), torch.zeros((), dtype=torch.float64))
    live = [t for t in wanted if t.requires_grad]
    found = iter(torch.autograd.grad(goal, live, allow_unused=True) if live and goal.requires_grad else ())
    gradients = (next(found, None) if t.requires_grad else None for t in wanted)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)]


def predict_mean_squares(
    graph: LayerGraph, *, frozen: Iterable[nn.Module] = (), choose: Choice = given_weights
) -> tuple[dict[Layer, MeanSquares], Propagation]:
    """Mean squares at every weight layer, in train and in eval mode, and the propagation in train mode.

    Args:
        graph: the graph.
        frozen: modules that are in eval mode while the model is in train mode.
        choose: the variance of each weight layer's weights.
    """
    layers = graph.of(Kind.WEIGHT)
    train, evaluation = (
        propagate(graph, training=training, frozen=frozen, choose=choose, errors_at=layers)
        for training in (True, False)
    )
    powers = {
        layer: MeanSquares(
            train.signals[layer].power, evaluation.signals[layer].power, train.error(layer), evaluation.error(layer)
        )
        for layer in layers
    }
    return powers, train
