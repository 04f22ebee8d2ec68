"""Weights: the parameter of one weight layer as rows, one an output unit, with its fans; and how they are filled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evenkeel.graph import Layer


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

    def rows(self) -> Tensor:
        """The weights as a matrix, a row an output unit: a view of the parameter where that can be."""
        return self._units_first().flatten(len(self.units)).flatten(0, -2)

    def fill_(self, variance: float, kind: str, generator: torch.Generator) -> None:
        """Draw the parameter anew, in place: see `fill_`."""
        rows = self.rows()
        in_place = rows.data_ptr() == self.parameter.data_ptr() and rows.is_contiguous()
        if in_place and rows.dtype in (torch.float32, torch.float64):
            fill_(rows, variance, kind, generator)
            return
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        drawn = fill_(torch.empty(rows.shape, dtype=dtype, device=rows.device), variance, kind, generator)
        target = self._units_first()
        target.copy_(drawn.view(target.shape))

    def _units_first(self) -> Tensor:
        weight = self.parameter.detach()
        weight = weight.unflatten(0, (self.groups, -1)) if self.groups > 1 else weight
        return weight.movedim(self.units, tuple(range(len(self.units))))


def weights_of(layer: Layer) -> Weights | None:
    """The weights of a weight layer; None if they are no parameter of the model but computed from others.

    Args:
        layer: a layer of kind WEIGHT.

    Returns:
        The weights. A convolution's fans count its kernel, its groups and, on the way out, its stride; an embedding's
        fan-in is 1.
    """
    arguments = layer.arguments
    bias = arguments.get("bias")
    bias = bias if isinstance(bias, nn.Parameter) else None
    weight = next((value for value in layer.constants if isinstance(value, nn.Parameter)), None)
    weight = arguments.get("weight", weight)
    if not isinstance(weight, nn.Parameter):
        return None
    if "conv" in layer.function and layer.function != "conv_tbc":
        return _convolution(layer, weight, bias)
    if layer.function.startswith("embedding"):
        return Weights(weight, None, 1, 1)
    if layer.function in ("linear", "bilinear"):
        return Weights(weight, bias, weight[0].numel(), weight.shape[0])
    return _product(layer, weight, bias)


def gathering(layer: Layer, weights: Weights, *, bordered: bool) -> Callable[[Tensor], Tensor]:
    """What a weight layer sums: of a map of its input, the sum over the weights that meet in one output.

    Args:
        layer: a layer of kind WEIGHT.
        weights: its weights.
        bordered: whether the zeros beyond a convolution's borders count; if not, the sum is the mean times `fan_in`.

    Returns:
        The function, from maps of the input (size 1 where they do not vary) to maps of the output.
    """
    if layer.function == "linear":
        return lambda t: t.mean(-1, keepdim=True) * weights.fan_in
    if bordered and layer.function.startswith("conv") and layer.function != "conv_tbc":
        return lambda t: _convolved(layer, weights, t)
    return lambda t: t.mean().reshape((1,) * len(layer.shape)) * weights.fan_in


def _convolved(layer: Layer, weights: Weights, t: Tensor) -> Tensor:
    arguments, weight = layer.arguments, weights.parameter
    transposed = arguments.get("transposed", "transpose" in layer.function)
    spatial, groups = weight.dim() - 2, int(arguments.get("groups", 1))
    inputs = weight.shape[0] // groups if transposed else weight.shape[1]
    channels = -spatial - 1
    t = t.expand(*t.shape[:-spatial], *layer.inputs[0].shape[-spatial:])
    if groups > 1 and t.shape[channels] > 1:  # each group sums its own channels
        t = t.unflatten(channels, (groups, -1)).mean(channels)
    else:
        t = t.mean(channels, keepdim=True)
    kernel = torch.ones(t.shape[channels], 1, *weight.shape[2:], dtype=t.dtype)
    convolve = getattr(torch.nn.functional, f"conv{'_transpose' * bool(transposed)}{spatial}d")
    names = ("stride", "padding", "dilation", "output_padding")
    geometry = {name: arguments[name] for name in names if name in arguments and (transposed or name != names[-1])}
    summed = convolve(t, kernel, groups=kernel.shape[0], **geometry) * inputs
    repeats = layer.shape[channels] // groups if summed.shape[channels] > 1 else 1
    return summed.repeat_interleave(repeats, channels)


def fill_(matrix: Tensor, variance: float, kind: str, generator: torch.Generator) -> Tensor:
    """Fill a matrix, a row an output unit, with random weights of the given mean square.

    Args:
        matrix: shape (output units, weights of each).
        variance: mean square of its entries.
        kind: "sphere" (every row uniform on the sphere of squared norm columns * variance), "orthogonal" (rows, or
            columns if there are more rows, orthogonal; the rows' mean square as given), "normal" or "uniform".
        generator: of the matrix's device.

    Returns:
        The matrix.

    >>> fill_(torch.empty(4, 9), 2.0, "sphere", torch.Generator().manual_seed(0)).square().sum(1)
    tensor([18.0000, 18.0000, 18.0000, 18.0000])
    """
    return FILLS[kind](matrix, math.sqrt(variance), generator)


def _sphere(matrix: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    matrix.normal_(generator=generator)
    norms = torch.linalg.vector_norm(matrix, dim=1, keepdim=True).clamp_min_(torch.finfo(matrix.dtype).tiny)
    return matrix.mul_(scale * math.sqrt(matrix.shape[1]) / norms)


def _orthogonal(matrix: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    nn.init.orthogonal_(matrix, gain=scale * math.sqrt(max(matrix.shape)), generator=generator)
    return matrix


def _normal(matrix: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return matrix.normal_(0, scale, generator=generator)


def _uniform(matrix: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return matrix.uniform_(-math.sqrt(3) * scale, math.sqrt(3) * scale, generator=generator)


FILLS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "sphere": _sphere,
    "orthogonal": _orthogonal,
    "normal": _normal,
    "uniform": _uniform,
}


def _convolution(layer: Layer, weight: nn.Parameter, bias: nn.Parameter | None) -> Weights:
    arguments = layer.arguments
    taps, groups = weight[0, 0].numel(), int(arguments.get("groups", 1))
    stride = arguments.get("stride", 1)
    strides = math.prod(stride) if isinstance(stride, (tuple, list)) else int(stride) ** (weight.dim() - 2)
    if arguments.get("transposed", "transpose" in layer.function):
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        units = (0, 2) if groups > 1 else (1,)
        return Weights(weight, bias, inputs * taps / strides, outputs * taps, groups, units)
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    return Weights(weight, bias, inputs * taps, outputs * taps / strides)


def _product(layer: Layer, weight: nn.Parameter, bias: nn.Parameter | None) -> Weights | None:
    """The weights of a matrix product in any spelling: which of their dimensions are summed over."""
    if layer.function == "einsum":
        summed = _summed_in_einsum(layer, weight)
    else:
        first = layer.arguments.get("self") is weight or (bool(layer.args) and layer.args[0] is weight)
        left = first != (layer.function == "rmatmul")
        summed = None if weight.dim() < 2 else (weight.dim() - 1,) if left else (weight.dim() - 2,)
    if not summed:
        return None
    units = tuple(dim for dim in range(weight.dim()) if dim not in summed)
    batch = math.prod(weight.shape[dim] for dim in units[:-1])
    fan_in = math.prod(weight.shape[dim] for dim in summed)
    return Weights(weight, bias, fan_in, weight.numel() / fan_in / batch, units=units)


def _summed_in_einsum(layer: Layer, weight: nn.Parameter) -> tuple[int, ...] | None:
    equation, *operands = layer.args
    operands = operands[0] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation or "." in equation:
        return None
    inputs, output = equation.replace(" ", "").split("->")
    subscripts = inputs.split(",")[0 if operands[0] is weight else 1]
    return tuple(dim for dim, letter in enumerate(subscripts) if letter not in output)
