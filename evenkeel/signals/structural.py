"""Structural layers: signals' moments behind pools, joins, concatenations, gates and rearrangements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evenkeel.graph import kinds
from evenkeel.graph.kinds import Kind, kind_of_function
from evenkeel.graph.layer_graph import Layer
from evenkeel.signals.activations import activated
from evenkeel.signals.marginals import Marginal, gaussian
from evenkeel.signals.signal import Signal, by_level, ratio, squeeze_constant
from evenkeel.signals.weights import extent

Function = Callable[[Tensor], Tensor]

_MOST_ELEMENTS, _MOST_AT_LEVELS = 1 << 17, 1 << 24  # of maps that are rearranged element by element
_MOST_COUNTS = 9  # different numbers of values in the windows of one pool
_MOST_CONCATENATED = 1 << 16  # elements of one concatenated map, beyond which it is averaged over positions


def _pooled(layer: Layer, inputs: list[Signal], *, bordered: bool) -> Signal:
    x, name = inputs[0], layer.function.removesuffix("_with_indices")
    if name in kinds.UNPREDICTED_POOLS or len(inputs) > 1:
        return x.after_unknown(layer.shape)
    windows = _windows(layer, name, x.shape, bordered=bordered)
    share = math.prod(layer.shape) / math.prod(x.shape)
    if name in kinds.RESIZES:
        return replace(x.mapped(windows.mean, layer.shape), local=x.local * share)
    if name in kinds.MAXIMA | kinds.MINIMA:
        return _extreme(layer, x, windows, -1.0 if name in kinds.MINIMA else 1.0)
    factor = windows.count if name == "sum" else 1.0
    position, sample = (
        squeeze_constant(windows.mean(t.clamp_min(0).sqrt()) ** 2 * factor**2) for t in (x.position, x.sample)
    )
    second = squeeze_constant(windows.squares(x.second - x.position) * factor**2 + position)
    mean = squeeze_constant(windows.mean(x.mean) * factor)
    law = gaussian(x.marginal.levels, x.marginal.masses, ratio(mean, second))
    flow = by_level(windows.squares, x.flow) * factor**2
    local = x.local * (factor**2 / windows.count * share)
    return Signal(layer.shape, second, position, sample, mean, law, flow, x.radial, local)


def _extreme(layer: Layer, x: Signal, windows: _Windows, sign: float) -> Signal:
    """The largest of a window's values, or the smallest if sign is -1; at borders, of fewer values."""
    signed, correlation = replace(x.marginal, values=sign * x.marginal.values), x.correlation
    law, grown, steeper = signed.largest(windows.count, correlation)
    growth, center, steepness = (torch.full_like(windows.counts, value) for value in (grown, law.mean, 1.0))
    different = windows.counts.unique().tolist()
    for count in different if 1 < len(different) <= _MOST_COUNTS else ():
        other, more, steep = signed.largest(count, correlation)
        values = more, other.mean, float(steep @ law.masses) / float(steeper @ law.masses)
        for t, value in zip((growth, center, steepness), values, strict=True):
            t[windows.counts == count] = value
    law = replace(law, values=sign * law.values, mean=sign * law.mean)
    second = squeeze_constant(windows.mean(x.second) * growth)
    mean = squeeze_constant(sign * center * second.sqrt())
    noise = float((x.second - x.mean**2).mean())
    position, sample = (
        mean**2 + float((t - x.mean**2).mean()) / max(noise, 1e-300) * (second - mean**2)
        for t in (x.position, x.sample)
    )
    flow = by_level(windows.mean, x.flow) * steepness
    flow = flow * steeper.view(-1, *(1,) * (flow.dim() - 1))
    local = x.local * steeper * (math.prod(layer.shape) / math.prod(x.shape))
    return Signal(layer.shape, second, position, sample, mean, law, flow, x.radial, local)


@dataclass(frozen=True)
class _Windows:
    """The windows over which a pool takes means or extremes.

    Attributes:
        mean: the mean of a map over each window, where padding counts as 0 if the pool counts it.
        squares: the same with squared weights: the mean square of the mean of independent values.
        count: how many values most windows hold.
        counts: how many each window holds, as a map.
    """

    mean: Function
    squares: Function
    count: float
    counts: Tensor


def _windows(layer: Layer, name: str, shape: tuple[int, ...], *, bordered: bool) -> _Windows:
    count = max(math.prod(shape) / math.prod(layer.shape), 1.0)
    if name in kinds.WINDOWED_POOLS:
        weights = [_along(layer, name, shape, dim) for dim in range(-kinds.WINDOWED_POOLS[name], 0)]
        inside = _applied([(w > 0).double() for w in weights], torch.ones((1,) * len(shape), dtype=torch.float64))
        count = float(inside.flatten().mode().values)
        if bordered:
            squared = [w**2 for w in weights]
            return _Windows(partial(_applied, weights), partial(_applied, squared), count, inside)

    def mean(t: Tensor) -> Tensor:
        if t.numel() == 1 or not bordered or name not in kinds.REDUCTIONS:
            return t.mean().reshape((1,) * len(layer.shape))
        rest = [a for a in layer.args[1:] if not isinstance(a, (torch.dtype, torch.Size))]
        return torch.mean(t.expand(shape), *rest, **{k: v for k, v in layer.kwargs.items() if k != "dtype"})

    return _Windows(
        mean, lambda t: mean(t) / count, count, torch.full((1,) * len(layer.shape), count, dtype=torch.float64)
    )


def _along(layer: Layer, name: str, shape: tuple[int, ...], dim: int) -> Tensor:
    """The weight of every place in every window along one dimension, shape (windows, places)."""
    arguments, n_in, n_out = layer.arguments, shape[dim], layer.shape[dim]
    places, windows = torch.arange(n_in), torch.arange(n_out)[:, None]
    if name in kinds.ADAPTIVE_POOLS:
        inside = (places >= windows * n_in // n_out) & (places < -(-(windows + 1) * n_in // n_out))
        return inside.double() / inside.sum(1, keepdim=True)
    size = extent(arguments["kernel_size"], dim)
    stride, padding, dilation = (
        extent(arguments[key] if arguments.get(key) is not None else default, dim)
        for key, default in (("stride", size), ("padding", 0), ("dilation", 1))
    )
    steps = places - (windows * stride - padding)
    inside = (steps >= 0) & (steps <= dilation * (size - 1)) & (steps % dilation == 0)
    divisor = inside.sum(1, keepdim=True)
    if name not in kinds.MAXIMA and arguments.get("count_include_pad", True):
        divisor = (windows * stride - padding + size).clamp_max(n_in + padding) - (windows * stride - padding)
    return inside.double() / divisor.clamp_min(1)


def _applied(weights: Sequence[Tensor], t: Tensor) -> Tensor:
    """A map multiplied by one matrix along each of its last dimensions."""
    for dim, weight in enumerate(weights, -len(weights)):
        matrix = weight.sum(1, keepdim=True) if t.shape[dim] == 1 else weight
        t = (matrix @ t.transpose(dim, -2)).transpose(dim, -2) if dim != -1 else t @ matrix.T
    return t


def _summed(layer: Layer, inputs: list[Signal], *, bordered: bool) -> Signal:
    scale = float(layer.kwargs.get("alpha", 1)) * (-1.0 if layer.function in kinds.SUBTRACTIONS else 1.0)
    ordered = inputs[::-1] if layer.function in kinds.REVERSED else inputs
    x, y = (signal.broadcast_to(layer.shape) for signal in ordered)
    second, position, sample = (
        s + scale**2 * t + 2 * scale * x.mean * y.mean
        for s, t in ((x.second, y.second), (x.position, y.position), (x.sample, y.sample))
    )
    mean = x.mean + scale * y.mean
    masses, flows = _on_common_levels([x, y])
    law = max((x, y), key=lambda signal: signal.power).marginal
    law = gaussian(law.levels, law.masses, ratio(mean, second))
    flow = flows[0] + scale**2 * flows[1]
    radial = _joint_radial([x, y], [x.power, scale**2 * y.power], masses)
    return Signal(layer.shape, second, position, sample, mean, law, flow, radial, masses)


def _concatenated(layer: Layer, inputs: list[Signal], *, bordered: bool) -> Signal:
    spatial = math.prod(max(t.second.shape[d] for t in inputs) for d in range(2, len(layer.shape)))
    if spatial > 1 and math.prod(layer.shape[1:]) > _MOST_CONCATENATED:
        inputs = [x.averaged(keep=1) for x in inputs]
    strongest = max(inputs, key=lambda signal: signal.power)
    masses, flows = _on_common_levels(inputs)
    sizes = torch.tensor([float(math.prod(x.shape)) for x in inputs], dtype=torch.float64)
    law = _mixture([x.marginal for x in inputs], strongest.marginal, sizes / sizes.sum())
    join = _joining(layer, inputs, sizes / sizes.sum(), bordered=bordered)
    second, position, sample, mean = (
        squeeze_constant(join(torch.square if name != "mean" else torch.clone, *(getattr(x, name) for x in inputs)))
        for name in ("second", "position", "sample", "mean")
    )
    flow = by_level(partial(join, torch.zeros_like), *flows)
    locals_ = torch.stack([x.local.sum() for x in inputs]) @ sizes / sizes.sum()
    radial = _joint_radial(inputs, [x.power * math.prod(x.shape) for x in inputs], masses)
    return Signal(layer.shape, second, position, sample, mean, law, flow, radial, masses * locals_)


def _mixture(laws: Sequence[Marginal], strongest: Marginal, shares: Tensor) -> Marginal:
    """The law of an element of one of several signals, with these shares of all elements."""
    if any(law.kept is None for law in laws):  # some are no normal values, some of them dropped
        every = all(law.kept is None for law in laws)
        return strongest if every else gaussian(strongest.levels, strongest.masses)
    kept = torch.tensor([law.kept for law in laws], dtype=torch.float64)
    law, keep = gaussian(strongest.levels, strongest.masses), float(kept @ shares)
    return law.dropped(keep, channelwise=any(law.channelwise for law in laws)) if keep < 1 else law


def _joining(layer: Layer, inputs: list[Signal], shares: Tensor, *, bordered: bool) -> Callable[..., Tensor]:
    """How maps are concatenated, given a function for constants among them; if not bordered, their weighted mean."""
    shapes = {source: x.shape for source, x in zip(layer.inputs, inputs, strict=True)}
    dims = [len(x.shape) for x in inputs]

    def join(of_constant: Function, *maps: Tensor) -> Tensor:
        if not bordered or layer.call is None:
            return (torch.stack([t.mean() for t in maps]) @ shares).reshape((1,) * len(layer.shape))
        if layer.function in kinds.CONCATENATIONS and len(layer.args[0]) == len(maps):
            dim = layer.kwargs.get("dim", layer.args[1] if len(layer.args) > 1 else 0) % dims[0]
            widest = [max(t.shape[d] for t in maps) for d in range(dims[0])]
            return torch.cat(
                [t.expand(*widest[:dim], x.shape[dim], *widest[dim + 1 :]) for t, x in zip(maps, inputs, strict=True)],
                dim,
            )
        held = {source: t.expand(shapes[source]) for source, t in zip(layer.inputs, maps, strict=True)}
        return _replayed(layer, held, of_constant)

    return join


def _gated(layer: Layer, inputs: list[Signal], *, bordered: bool) -> Signal:
    if layer.function in kinds.DIVISIONS | kinds.PRODUCTS:
        return max(inputs, key=lambda signal: signal.power).after_unknown(layer.shape)
    if len(inputs) == 2 and inputs[0] is inputs[1]:
        return replace(activated(inputs[0], torch.square), shape=layer.shape)
    return multiplied(inputs[0], inputs[1], layer.shape)


def multiplied(x: Signal, y: Signal, shape: tuple[int, ...]) -> Signal:
    """The product of two signals taken as independent."""
    x, y = (signal.broadcast_to(shape) for signal in (x, y))
    masses, flows = _on_common_levels([x, y])
    strongest = max((x, y), key=lambda signal: math.prod(signal.shape)).marginal
    law = replace(strongest, normal=False)
    second, position, sample = x.second * y.second, x.position * y.position, x.sample * y.sample
    flow = flows[0] * y.power + flows[1] * x.power
    radial = _joint_radial([x, y], [1.0, 1.0], masses) * 4
    return Signal(
        shape, second, position, sample, x.mean * y.mean, law, flow, radial, masses * float(x.local.sum()) * y.power
    )


def _passed(layer: Layer, inputs: list[Signal], *, bordered: bool) -> Signal:
    x, name = inputs[0], layer.function
    kind = kind_of_function(name)
    if kind in _BY_CONSTANT:
        return _BY_CONSTANT[kind](layer, x)
    x = x.broadcast_to(layer.shape) if len(x.shape) == len(layer.shape) else x
    if kind is not Kind.PASS:
        return replace(x.mapped(lambda t: t.mean().reshape((1,) * len(layer.shape)), layer.shape), known=False)
    pads = name in kinds.PADDINGS
    if layer.call is None or (pads and not bordered) or (not pads and not x.varies):
        return x.mapped(lambda t: t.mean().reshape((1,) * len(layer.shape)), layer.shape)
    elements = math.prod(x.shape)
    if elements > _MOST_ELEMENTS or elements * len(x.flow) > _MOST_AT_LEVELS:
        return x.averaged().mapped(lambda t: t.reshape((1,) * len(layer.shape)), layer.shape)
    source = layer.inputs[0]

    def moved(t: Tensor) -> Tensor:
        return _replayed(layer, {source: t.expand(x.shape)}, torch.clone)

    if not pads:
        return x.mapped(moved, layer.shape)
    filling = moved(torch.zeros((1,) * len(x.shape), dtype=torch.float64))
    y = x.mapped(lambda t: moved(t) - filling, layer.shape)  # zeros around it
    return y if not filling.any() else y.added(filling)


def _shifted(layer: Layer, x: Signal) -> Signal:
    """A constant added to the signal, or subtracted from it, or the signal subtracted from a constant."""
    value = _constant(layer) * float(layer.kwargs.get("alpha", 1))
    taken = layer.function in kinds.SUBTRACTIONS
    if taken and _comes_second(layer):
        x = x.scaled(-1.0)
    elif taken:
        value = -value
    return replace(x.aligned(len(layer.shape)).added(value), shape=layer.shape)


def _comes_second(layer: Layer) -> bool:
    """Whether the signal is subtracted from the constant, not the constant from the signal."""
    first = isinstance((*layer.args, layer.kwargs.get("input"))[0], Layer)
    return first == (layer.function in kinds.REVERSED)


def _scaled(layer: Layer, x: Signal) -> Signal:
    """The signal multiplied, or divided, by a constant."""
    value = _constant(layer)
    if layer.function in kinds.DIVISIONS:
        if layer.function in kinds.REVERSED:
            raise ValueError("a constant divided by a signal")
        value = 1 / value
    x = x.aligned(len(layer.shape))
    if value.numel() == 1:
        return replace(x.scaled(float(value)), shape=layer.shape)
    squared = value**2
    second, position, sample = (t * squared for t in (x.second, x.position, x.sample))
    share = float(squared.mean())
    return Signal(
        layer.shape, second, position, sample, x.mean * value, x.marginal, x.flow * squared, x.radial, x.local * share
    )


def _constant(layer: Layer) -> Tensor:
    """The other operand: a number, or a parameter or buffer as a map of its own."""
    value = next(v for v in layer.constants if isinstance(v, (int, float, Tensor)) and not isinstance(v, bool))
    tensor = torch.as_tensor(value).detach().double().cpu()
    return squeeze_constant(tensor.reshape((1,) * (len(layer.shape) - tensor.dim()) + tuple(tensor.shape)))


def _replayed(layer: Layer, maps: dict[Layer, Tensor], of_constant: Function) -> Tensor:
    """The layer's own function, called on maps in place of its signals."""
    writes = layer.function == "setitem"

    def substitute(value: Any) -> Any:
        if isinstance(value, Layer):
            known = maps.get(value)
            return (
                torch.zeros(value.shape, dtype=torch.float64) if known is None else known.clone() if writes else known
            )
        if isinstance(value, torch.Size):
            return torch.zeros(value, dtype=torch.float64)
        if isinstance(value, Tensor):
            return of_constant(value.detach().double().cpu())
        if isinstance(value, (tuple, list)):
            return type(value)(substitute(item) for item in value)
        return value

    args, kwargs = substitute(layer.args), {key: substitute(value) for key, value in layer.kwargs.items()}
    call = Tensor.reshape if layer.function == "view" else layer.call  # maps of size 1 may have no such view
    assert call is not None
    result = call(*args, **kwargs)
    result = args[0] if writes else result
    if not isinstance(result, (tuple, list)):
        return result
    parts = [part for part in result if part.shape == result[0].shape]
    return torch.stack(parts).mean(0)  # the graph does not record which part is read


def _on_common_levels(inputs: list[Signal]) -> tuple[Tensor, list[Tensor]]:
    """The levels' masses of the strongest signal, and all signals' flows by these levels."""
    strongest = max(inputs, key=lambda signal: signal.power)
    masses = strongest.marginal.masses
    return masses, [x.flow if x is strongest else x.flow_over(masses) for x in inputs]


def _joint_radial(inputs: list[Signal], shares: list[float], masses: Tensor) -> Tensor:
    """Changes of strength of a signal whose parts have these shares of its mean square."""
    changes = torch.stack([x.radial.sum() for x in inputs])
    return masses * (changes @ torch.tensor([(s / sum(shares)) ** 2 for s in shares], dtype=torch.float64))


_BY_CONSTANT: dict[Kind, Callable[[Layer, Signal], Signal]] = {Kind.JOIN: _shifted, Kind.GATE: _scaled}
# By kind, the signal behind a layer: called with the layer, the signals of its inputs, and whether borders count.
STRUCTURAL: dict[Kind, Callable[..., Signal]] = {
    Kind.POOL: _pooled,
    Kind.JOIN: _summed,
    Kind.CONCAT: _concatenated,
    Kind.GATE: _gated,
    Kind.PASS: _passed,
}
