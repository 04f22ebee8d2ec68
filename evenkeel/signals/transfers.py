"""Transfers: signals' moments behind each kind of layer when weights are random."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evenkeel.errors import ActivationError
from evenkeel.graph import kinds
from evenkeel.graph.kinds import Kind, kind_of_function
from evenkeel.graph.layer_graph import Layer
from evenkeel.signals.activations import activated, activation_of
from evenkeel.signals.marginals import MOST_LEVELS, Marginal, Sum, gaussian
from evenkeel.signals.signal import Signal, by_level, constant, ratio, standard
from evenkeel.signals.structural import STRUCTURAL, multiplied
from evenkeel.signals.weights import Weights, gathering, weights_of

# Given a weight layer, its weights, what it reads, and the law of what it returns: the variance of its weights.
Choice = Callable[[Layer, Weights, Signal, Sum], float]

_FEWEST_LEVELS, _MOST_ELEMENTS = 16, 1 << 18  # levels of a flow, and elements of all of its levels
_ALPHA = -1.7580993408473766  # what alpha dropout puts in place of a dropped value: SELU's lower bound


@dataclass(frozen=True)
class PropagationOptions:
    """How signals are propagated.

    Attributes:
        training: in train mode, with dropout on and statistics of the batch, or in eval mode.
        bordered: count the zeros that padding adds at the borders; if not, every output sums fan_in values.
        levelled: tell samples of different strength apart; needed unless all activations treat them alike.
        choose: the variance of a layer's weights.
    """

    training: bool
    bordered: bool
    levelled: bool
    choose: Choice


def transfer(layer: Layer, inputs: list[Signal], options: PropagationOptions) -> Signal:
    """The signal behind one layer.

    Returns:
        The signal; not `known` if the layer or its input is not understood, until the next weights or norm.
    """
    if not inputs:
        return standard(layer.shape)
    try:
        if layer.kind in STRUCTURAL:
            result = STRUCTURAL[layer.kind](layer, inputs, bordered=options.bordered)
        else:
            result = _TRANSFERS[layer.kind](layer, inputs, options)
    except _NOT_UNDERSTOOD:
        return inputs[0].after_unknown(layer.shape)
    settled = layer.kind in (Kind.WEIGHT, Kind.NORM) or all(x.known for x in inputs)
    return result if settled else replace(result, known=False)


def _weight(layer: Layer, inputs: list[Signal], options: PropagationOptions) -> Signal:
    weights = weights_of(layer)
    if weights is None:
        return replace(inputs[0].after_unknown(layer.shape), known=True)
    x = inputs[0] if len(inputs) == 1 else multiplied(inputs[0], inputs[1], inputs[0].shape)
    if not x.known:
        x = replace(x.after_unknown(x.shape), flow=x.flow_over(gaussian().masses))
    most = max(_FEWEST_LEVELS, min(MOST_LEVELS, _MOST_ELEMENTS // x.flow[0].numel())) if options.levelled else 1
    summed = x.marginal.summed(weights.fan_in, most)
    variance = options.choose(layer, weights, x, summed)
    if layer.function in kinds.EMBEDDINGS:
        return replace(standard(layer.shape), second=constant(variance, layer.shape))
    gather = gathering(layer, weights, bordered=options.bordered)
    bias = 0.0 if weights.bias is None else float(weights.bias.detach().double().square().mean())
    across = gathering(layer, weights, bordered=options.bordered, any_position=True)
    second, position = (gather(t) * variance + bias for t in (x.second, x.position))
    sample = across(x.sample) * variance + bias
    reached = by_level(gather, x.flow) * variance
    others = 1 - along(x)
    flow = torch.tensordot(summed.passed * others, reached, 1)
    strengthened = x.flow.flatten(1).mean(1) * strengthening(x)
    radial = summed.moved @ x.radial + summed.passed @ strengthened
    radial = radial * float(1 - bias / second.mean().clamp_min(1e-300))  # a bias does not grow with the sample
    mean, law = torch.zeros_like(second), summed.law
    return Signal(layer.shape, second, position, sample, mean, law, flow, radial, law.masses)


def _norm(layer: Layer, inputs: list[Signal], options: PropagationOptions) -> Signal:
    arguments, x = layer.arguments, inputs[0]
    if not x.known:
        x = replace(standard(x.shape), flow=x.flow_over(gaussian().masses))
    gamma, beta = _vector(arguments.get("weight"), 1.0), _vector(arguments.get("bias"), 0.0)
    eps = arguments.get("eps")
    eps = float(eps) if isinstance(eps, (int, float)) else 1e-5
    stored = [arguments.get(name) for name in ("running_mean", "running_var")]
    if isinstance(stored[0], Tensor) and (not options.training or layer.frozen):
        scale = gamma / (_vector(stored[1], 1.0) + eps).sqrt()
        return _affine(x, scale, beta - _vector(stored[0], 0.0) * scale)
    return _affine(_normalized(layer, x, eps), gamma, beta)


def _normalized(layer: Layer, x: Signal, eps: float) -> Signal:
    """The signal minus its mean over the norm's dimensions, divided by its standard deviation there."""
    dims = list(range(len(x.shape)))
    batch, centered = layer.function in kinds.BATCH_NORMS, layer.function != "rms_norm"
    if batch:  # the part common to all samples of a channel
        over, crossed = [dim for dim in dims if dim != 1], x.sample
    elif layer.function == "instance_norm":  # the part common to all positions of a channel
        over = dims[2:]
        common = x.position.clamp_min(0).sqrt()
        crossed = common * common.mean(over, keepdim=True)
    else:  # the part common to all channels
        normalized = layer.arguments.get("normalized_shape", dims[1:])
        over = dims[-len(normalized) :]
        crossed = x.mean * x.mean.mean(over, keepdim=True) * centered
    center = crossed.mean(over, keepdim=True)
    variance = (x.second - 2 * crossed + center).mean(over, keepdim=True) + eps
    second, position, sample = ((t - 2 * crossed + center) / variance for t in (x.second, x.position, x.sample))
    if batch or layer.function == "instance_norm":
        sample = torch.zeros_like(variance)  # the common part of samples is subtracted with it
    law, flow, local = x.marginal, x.flow / variance, x.marginal.masses
    if law.normal:
        law = gaussian(law.levels, law.masses, 0.0 if centered else ratio(x.mean, x.second))
    else:
        law, _ = law.mapped(law.values - law.mean * centered)
    if not batch:  # samples are normalized one by one: all are equally strong
        law = replace(law.at_mean(), normal=law.normal)
        flow, local = x.flow_over(law.masses) / variance, law.masses
    mean = torch.zeros_like(variance) if centered else x.mean / variance.sqrt()
    return Signal(x.shape, second, position, sample, mean, law, flow, x.radial if batch else 0 * law.masses, local)


def _affine(x: Signal, scale: Tensor, offset: Tensor) -> Signal:
    """A norm's last step, channel by channel: x scale + offset."""
    squared, crossed, shift = (float(t.mean()) for t in (scale**2, scale * offset, offset**2))
    second, position, sample = (squared * t + 2 * crossed * x.mean + shift for t in (x.second, x.position, x.sample))
    mean = float(scale.mean()) * x.mean + float(offset.mean())
    law = x.marginal
    if law.normal or not float(second.mean()):
        law = gaussian(law.levels, law.masses, ratio(mean, second))
    else:
        law, _ = law.mapped(law.values * math.sqrt(squared * x.power) + float(offset.mean()))
    return Signal(x.shape, second, position, sample, mean, law, x.flow * squared, x.radial, law.masses)


def _activation(layer: Layer, inputs: list[Signal], options: PropagationOptions) -> Signal:
    x = inputs[0]
    if layer.function in kinds.SOFTMAXES:
        return x.after_unknown(layer.shape)
    if layer.function == "glu":
        half = replace(x, shape=layer.shape)
        return multiplied(half, activated(half, torch.sigmoid), layer.shape)
    return replace(activated(x, activation_of(layer)), shape=layer.shape)


def _dropout(layer: Layer, inputs: list[Signal], options: PropagationOptions) -> Signal:
    x, p = replace(inputs[0], shape=layer.shape), layer.p
    if not options.training or p == 0:
        return x
    if p is None or p >= 1:
        return x.after_unknown(layer.shape)
    keep = 1 - p
    channelwise = _mask_is_shared(layer)
    law = x.marginal.dropped(keep, channelwise=channelwise)
    if layer.function in kinds.ALPHA_DROPOUT:
        return _alpha_dropped(x, keep, law)
    position = x.position / keep if channelwise else x.position
    y = replace(x, second=x.second / keep, position=position, flow=x.flow / keep, local=x.local / keep, marginal=law)
    return y if layer.scaled else y.scaled(keep)


def _alpha_dropped(x: Signal, keep: float, law: Marginal) -> Signal:
    """Pass x as a (m x + (1 - m) alpha) + b, which keeps mean 0 and variance 1 (Klambauer et al. 2017)."""
    p = 1 - keep
    a = 1 / math.sqrt(keep + _ALPHA**2 * keep * p)
    b = -a * p * _ALPHA
    dropped = a * _ALPHA + b

    def kept(common: Tensor) -> Tensor:
        return keep * (a**2 * common + 2 * a * b * x.mean + b**2) + p * dropped**2

    slope, offset = a * keep, keep * b + p * dropped
    position, sample = (slope**2 * t + 2 * slope * offset * x.mean + offset**2 for t in (x.position, x.sample))
    values = a * math.sqrt(x.power) * x.marginal.values + b
    values[:, -1] = dropped
    marginal, _ = law.mapped(values)
    return replace(
        x,
        second=kept(x.second),
        position=kept(x.position) if law.channelwise else position,
        sample=sample,
        mean=slope * x.mean + offset,
        marginal=marginal,
        flow=x.flow * a**2 * keep,
        local=x.local * a**2 * keep,
    )


def along(x: Signal) -> Tensor:
    """The share of a change of one element, where gradients pass, that only makes the sample's signal stronger."""
    if not x.power:  # no signal to make stronger
        return torch.zeros_like(x.marginal.levels)
    return (x.marginal.paired / x.size).clamp_max(1)


def strengthening(x: Signal) -> Tensor:
    """The squared change in the logarithm of a sample's mean square that a change of one element makes, by level."""
    return 4 * along(x) / (max(x.power, 1e-300) * x.marginal.levels.clamp_min(1e-300))


def _mask_is_shared(layer: Layer) -> bool:
    """Whether one decision drops all positions of a channel, or a whole sample."""
    if kind_of_function(layer.function) is Kind.GATE:
        masks = [value for value in layer.constants if isinstance(value, torch.Size)]
        return any(1 in mask[2:] or len(mask) < 3 for mask in masks) and len(layer.shape) > 2
    return layer.function in kinds.CHANNEL_DROPOUT


def _opaque(layer: Layer, inputs: list[Signal], options: PropagationOptions) -> Signal:
    strongest = max(inputs, key=lambda signal: signal.power)
    return strongest.after_unknown(layer.shape)


def _output(layer: Layer, inputs: list[Signal], options: PropagationOptions) -> Signal:
    return inputs[0]


def _vector(value: Any, default: float) -> Tensor:
    return value.detach().double().cpu() if isinstance(value, Tensor) else torch.tensor([default]).double()


_TRANSFERS: dict[Kind, Callable[[Layer, list[Signal], PropagationOptions], Signal]] = {
    Kind.WEIGHT: _weight,
    Kind.NORM: _norm,
    Kind.ACTIVATION: _activation,
    Kind.DROPOUT: _dropout,
    Kind.NOISE: _opaque,
    Kind.OPAQUE: _opaque,
    Kind.OUTPUT: _output,
}
# Raised where arguments are not known, or a function cannot take maps: the layer counts as not understood.
_NOT_UNDERSTOOD = (ActivationError, ArithmeticError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)
