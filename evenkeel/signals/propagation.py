"""Propagation: the moments of every signal, and of every gradient, of a model whose weights are random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evenkeel.errors import ActivationError
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.model.threads import single_threaded
from evenkeel.signals.activations import activation_of, is_homogeneous
from evenkeel.signals.marginals import Sum
from evenkeel.signals.signal import Signal
from evenkeel.signals.transfers import Choice, PropagationOptions, transfer
from evenkeel.signals.weights import Weights


@dataclass(frozen=True)
class Propagation:
    """The signals of a graph, and the gradients that come back.

    Attributes:
        signals: what each layer returns.
        gradients: of each layer asked for, E (dL/dx)^2 by the level of x, per element, for independent gradients of
            variance 1 at every output; a tensor of shape (levels,).
        by_strength: likewise E (dL/d log q)^2, q being the mean square of x in one sample, over the elements' number.
    """

    signals: dict[Layer, Signal]
    gradients: dict[Layer, Tensor]
    by_strength: dict[Layer, Tensor]

    def gradient_variance(self, layer: Layer) -> float:
        """E (dL/dx)^2 of what the layer returns, over all elements and samples."""
        return float(self.signals[layer].marginal.masses @ self.gradients[layer])


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares at one weight layer.

    Attributes:
        train_variance, eval_variance: E z^2 of its output z over units, positions and samples.
        train_grad_variance, eval_grad_variance: E (dL/dz)^2 for independent gradients of variance 1 at the model's
            outputs.
    """

    train_variance: float
    eval_variance: float
    train_grad_variance: float
    eval_grad_variance: float


def given_weights(layer: Layer, weights: Weights, x: Signal, reached: Sum) -> float:
    """The variance of weights as they stand: the mean of their squares."""
    return float(weights.parameter.detach().square().mean(dtype=torch.float64))


@single_threaded()
@torch.inference_mode(False)
@torch.enable_grad()
def propagate(
    graph: LayerGraph,
    *,
    training: bool,
    bordered: bool = True,
    choose: Choice = given_weights,
    gradients_at: Sequence[Layer] = (),
) -> Propagation:
    """Follow second moments through a graph whose weights are independent, of mean 0 and known variance.

    Moments are expectations over weights, inputs and masks. In the limit of wide layers they are exact for trees of
    weight layers, norms, activations, dropout, pools and joins. At finite width, samples differ in strength: that is
    followed, too (`Marginal`). Branches that meet are taken as uncorrelated but for their means.

    Args:
        graph: the graph.
        training: in train mode (frozen layers excepted), or in eval mode.
        bordered: whether the zeros that padding adds count.
        choose: the variance of each weight layer's weights, asked for in execution order.
        gradients_at: layers whose gradients are wanted.
    """
    options = PropagationOptions(training, bordered, _is_levelled(graph), choose)
    signals: dict[Layer, Signal] = {}
    for layer in graph:
        signals[layer] = transfer(layer, [signals[source] for source in layer.inputs], options)
    outputs = [signals[source] for layer in graph.of(Kind.OUTPUT) for source in layer.inputs]
    wanted = [signals[layer] for layer in gradients_at]
    found = _differentiated(outputs, [t for x in wanted for t in (x.flow, x.radial)])
    gradients, by_strength = (
        {
            layer: g.flatten(1).sum(1) / math.prod(x.shape) if g.dim() > 1 else g / math.prod(x.shape)
            for layer, x, g in zip(gradients_at, wanted, part, strict=True)
        }
        for part in (found[::2], found[1::2])
    )
    return Propagation(signals, gradients, by_strength)


def predict_mean_squares(
    graph: LayerGraph, *, choose: Choice = given_weights
) -> tuple[dict[Layer, MeanSquares], Propagation]:
    """Mean squares at every weight layer, in train and in eval mode, and the propagation in train mode.

    Args:
        graph: the graph.
        choose: the variance of each weight layer's weights.
    """
    layers = graph.of(Kind.WEIGHT)
    train, evaluation = (
        propagate(graph, training=training, choose=choose, gradients_at=layers) for training in (True, False)
    )
    squares = {
        layer: MeanSquares(
            *(mode.signals[layer].power for mode in (train, evaluation)),
            *(mode.gradient_variance(layer) for mode in (train, evaluation)),
        )
        for layer in layers
    }
    return squares, train


def _is_levelled(graph: LayerGraph) -> bool:
    """Whether any activation makes more, or less, of samples of different strength than of their mean."""

    def treats_alike(layer: Layer) -> bool:
        try:
            return is_homogeneous(activation_of(layer))
        except (ActivationError, LookupError, RuntimeError, TypeError, ValueError):  # such as softmax: not understood
            return False

    return not all(treats_alike(layer) for layer in graph.of(Kind.ACTIVATION))


def _differentiated(outputs: Sequence[Signal], wanted: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of all that reaches the outputs; 0 where nothing does."""
    goal = sum((x.total_flow for x in outputs), torch.zeros((), dtype=torch.float64))
    live = [t for t in wanted if t.requires_grad]
    found = iter(torch.autograd.grad(goal, live, allow_unused=True) if live and goal.requires_grad else ())
    gradients = (next(found, None) if t.requires_grad else None for t in wanted)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)]
