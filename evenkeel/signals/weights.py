"""Weights: the parameter of one weight layer as rows, one an output unit, with its fans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from evenkeel.graph.kinds import ARGUMENTS, CONVOLUTIONS, EMBEDDINGS, PRODUCTS, TRANSPOSED
from evenkeel.graph.layer_graph import Layer

Dims = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one weight layer.

    Attributes:
        parameter: the parameter.
        bias: the parameter added to every output, if there is one.
        fan_in: how many weights meet in one output: with random weights of variance v, E out^2 = v fan_in E in^2.
        fan_out: how many weights one input meets on its way out.
        groups: how many of the parameter's leading entries belong to separate groups of units.
        units: dimensions of the parameter, `groups` split off its first one, that count its output units.
        unused: the row that stays 0, of an embedding that pads.

    >>> import evenkeel as ek
    >>> conv = ek.trace(nn.Conv2d(3, 8, 5, stride=2), torch.ones(1, 3, 9, 9)).of(ek.Kind.WEIGHT)[0]
    >>> weights = weights_of(conv)
    >>> weights.fan_in, weights.fan_out, weights.rows().shape
    (75, 50.0, torch.Size([8, 75]))
    """

    parameter: nn.Parameter
    bias: nn.Parameter | None
    fan_in: float
    fan_out: float
    groups: int = 1
    units: tuple[int, ...] = (0,)
    unused: int | None = None

    def rows(self) -> Tensor:
        """The weights as a matrix, a row an output unit: a view of the parameter where that can be."""
        weight = self.units_first()
        return weight.reshape(math.prod(weight.shape[: len(self.units)]), -1)

    def units_first(self) -> Tensor:
        """The parameter with the dimensions that count output units first, a view."""
        weight = self.parameter.detach()
        weight = weight.unflatten(0, (self.groups, -1)) if self.groups > 1 else weight
        return weight.movedim(self.units, tuple(range(len(self.units))))


def weights_of(layer: Layer) -> Weights | None:
    """The weights of a weight layer; None if they are no parameter of the model but computed from others.

    Returns:
        The weights. A convolution's fans count its kernel, its groups and, on the way out, its stride; an embedding's
        fan-in is 1.
    """
    if layer.function in PRODUCTS:
        return _product(layer)
    value, bias = layer.arguments.get("weight"), _parameter(layer.arguments.get("bias"))
    weight = _stored(value)
    return None if weight is None else _of_function(layer, weight, bias, transposed=weight is not value)


def _of_function(layer: Layer, weight: nn.Parameter, bias: nn.Parameter | None, *, transposed: bool) -> Weights:
    if transposed:  # of a linear layer
        return Weights(weight, bias, weight.shape[0], weight.shape[1], units=(1,))
    if layer.function == "conv_tbc":
        taps, inputs, outputs = weight.shape
        return Weights(weight, bias, taps * inputs, taps * outputs, units=(2,))
    if layer.function in CONVOLUTIONS:
        return _convolution(layer, weight, bias)
    if layer.function in EMBEDDINGS:
        padding = layer.arguments.get("padding_idx")
        return Weights(weight, None, 1, 1, unused=padding if isinstance(padding, int) and padding >= 0 else None)
    return Weights(weight, bias, weight[0].numel(), weight.shape[0])


def _parameter(value: object) -> nn.Parameter | None:
    return value if isinstance(value, nn.Parameter) else None


def gathering(
    layer: Layer, weights: Weights, *, bordered: bool, any_position: bool = False
) -> Callable[[Tensor], Tensor]:
    """The sum that a weight layer takes of a map of its input, over the weights that meet in one output.

    Args:
        layer: a layer of kind WEIGHT.
        weights: its weights.
        bordered: whether the zeros beyond a convolution's borders count; if not, the sum is the mean times `fan_in`.
        any_position: sum what an output shares with an output at any position, on average: at borders, not all use
            the same weights.

    Returns:
        The function, from maps of the input (size 1 where they do not vary) to maps of the output.
    """
    if layer.function == "linear":
        return lambda t: t.mean(-1, keepdim=True) * weights.fan_in
    if bordered and layer.function in CONVOLUTIONS and layer.function != "conv_tbc":
        return lambda t: _convolved(layer, weights, t, any_position=any_position)
    return lambda t: t.mean().reshape((1,) * len(layer.shape)) * weights.fan_in


def _convolved(layer: Layer, weights: Weights, t: Tensor, *, any_position: bool) -> Tensor:
    arguments, weight = layer.arguments, weights.parameter
    transposed = arguments.get("transposed", layer.function in TRANSPOSED)
    spatial, groups = weight.dim() - 2, int(arguments.get("groups", 1))
    inputs = weight.shape[0] // groups if transposed else weight.shape[1]
    channels = -spatial - 1
    t = t.expand(*t.shape[:-spatial], *layer.inputs[0].shape[-spatial:])
    if groups > 1 and t.shape[channels] > 1:  # each group sums its own channels
        t = t.unflatten(channels, (groups, -1)).mean(channels)
    else:
        t = t.mean(channels, keepdim=True)
    kernel = torch.ones(t.shape[channels], 1, *weight.shape[2:], dtype=t.dtype)
    if any_position:
        kernel = kernel * _uses(layer, weight, transposed=transposed)
    convolve = getattr(torch.nn.functional, f"conv{'_transpose' * bool(transposed)}{spatial}d")
    names = ("stride", "padding", "dilation", "output_padding")
    geometry = {name: arguments[name] for name in names if name in arguments and (transposed or name != names[-1])}
    summed = convolve(t, kernel, groups=kernel.shape[0], **geometry) * inputs
    repeats = layer.shape[channels] // groups if summed.shape[channels] > 1 else 1
    return summed.repeat_interleave(repeats, channels)


def _uses(layer: Layer, weight: Tensor, *, transposed: bool) -> Tensor:
    """For each tap of a kernel, the share of all outputs for which it meets an input; shape as the kernel's."""
    arguments, spatial = layer.arguments, weight.dim() - 2
    shares = torch.ones((), dtype=torch.float64)
    for dim in range(spatial):
        size, n_in, n_out = weight.shape[2 + dim], layer.inputs[0].shape[dim - spatial], layer.shape[dim - spatial]
        stride, dilation = (extent(arguments.get(name, 1), dim) for name in ("stride", "dilation"))
        padding = arguments.get("padding", 0)
        before = dilation * (size - 1) // 2 if padding == "same" else 0 if padding == "valid" else extent(padding, dim)
        places, taps = torch.arange(n_out)[:, None], torch.arange(size) * dilation
        if transposed:
            source, rest = (
                (places + before - taps).div(stride, rounding_mode="floor"),
                (places + before - taps) % stride,
            )
            inside = (rest == 0) & (source >= 0) & (source < n_in)
        else:
            source = places * stride - before + taps
            inside = (source >= 0) & (source < n_in)
        shares = shares[..., None] * inside.double().mean(0)
    return shares


def extent(size: int | Sequence[int], dim: int) -> int:
    """A kernel's size, stride or padding along one dimension, given for all of them at once or for each.

    >>> extent(3, 1), extent((3, 5), 1), extent((3,), 1)
    (3, 5, 3)
    """
    return size if isinstance(size, int) else size[dim if len(size) > 1 else 0]


def _convolution(layer: Layer, weight: nn.Parameter, bias: nn.Parameter | None) -> Weights:
    arguments = layer.arguments
    taps, groups = weight[0, 0].numel(), int(arguments.get("groups", 1))
    stride = arguments.get("stride", 1)
    strides = math.prod(stride) if isinstance(stride, (tuple, list)) else int(stride) ** (weight.dim() - 2)
    if arguments.get("transposed", layer.function in TRANSPOSED):
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        units = (0, 2) if groups > 1 else (1,)
        return Weights(weight, bias, inputs * taps / strides, outputs * taps, groups, units)
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    return Weights(weight, bias, inputs * taps, outputs * taps / strides)


def _product(layer: Layer) -> Weights | None:
    """The weights of a matrix product in any spelling: which of their dimensions are summed over."""
    if layer.function == "einsum":
        operands = layer.args[1] if isinstance(layer.args[1], (tuple, list)) else layer.args[1:]
    else:
        operands = [layer.arguments.get(name) for name in ARGUMENTS[layer.function] if name != "dims"]
    for place, value in enumerate(cast("Sequence[Tensor]", operands[-2:])):
        parameter = _stored(value)
        if parameter is not None and (dims := _dims(layer, operands, place, value.dim())) is not None:
            summed, shared = dims
            fan_in, batch = (math.prod(value.shape[dim] for dim in some) for some in (summed, shared))
            units = [dim for dim in range(value.dim()) if dim not in summed]
            units = tuple(dim if parameter is value else 1 - dim for dim in units)  # or it is the transpose
            bias = _parameter(operands[0]) if len(operands) > 2 else None
            return Weights(parameter, bias, fan_in, value.numel() / fan_in / batch, units=units)
    return None


def _dims(layer: Layer, operands: Sequence[Any], place: int, rank: int) -> Dims | None:
    """Which of the left (0) or right (1) operand's dimensions are summed over, and which other and result share."""
    if layer.function == "einsum":
        return _dims_in_einsum(layer.args[0], place) if len(operands) == 2 else None
    if layer.function == "tensordot":
        dims = layer.arguments.get("dims", 2)
        if isinstance(dims, int):
            return tuple(range(rank - dims, rank) if place == 0 else range(dims)), ()
        return tuple(dim % rank for dim in dims[place]), ()
    is_left = (place == 0) != (layer.function == "rmatmul")
    return ((0,), ()) if rank == 1 else ((rank - 1 if is_left else rank - 2,), tuple(range(rank - 2)))


def _stored(value: object) -> nn.Parameter | None:
    """The parameter that an operand is, or is the transpose of."""
    return _parameter(value._base if isinstance(value, Tensor) and value._base is not None else value)


def _dims_in_einsum(equation: str, place: int) -> Dims | None:
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    subscripts = inputs.split(",")
    own, other = subscripts[place], subscripts[1 - place]
    if "." in own or len(set(own)) < len(own):
        return None
    output = output if arrow else "".join(letter for letter in inputs if inputs.count(letter) == 1)
    summed = tuple(dim for dim, letter in enumerate(own) if letter not in output)
    shared = tuple(dim for dim, letter in enumerate(own) if letter in output and letter in other)
    return (summed, shared) if summed else None
