"""Layouts: what pools, joins, concatenations, gates and rearrangements make of signals' moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evenkeel.activations import activated
from evenkeel.graph import Layer
from evenkeel.kinds import Kind, kind_of_function
from evenkeel.marginals import gaussian
from evenkeel.signals import Signal, by_level, lean

Function = Callable[[Tensor], Tensor]

_MOST_ELEMENTS, _MOST_AT_LEVELS = 1 << 17, 1 << 24  # of maps that are rearranged element by element
_MOST_JOINED = 1 << 16  # of one concatenated map, beyond which it does not vary in space


def _pooled(layer: Layer, inputs: list[Signal], *, bordered: bool) -> Signal:
    x, name = inputs[0], layer.function.removesuffix("_with_indices")
    if name.startswith(("scatter", "index", "lp")):
        return x.forgotten(layer.shape)
    window = _window_mean(layer, name, x.shape)
    share = math.prod(layer.shape) / math.prod(x.shape)
    if name.startswith(("interpolate", "upsample")):
        return replace(x.mapped(window, layer.shape), local=x.local * share)
    size = layer.arguments.get("kernel_size")
    count = _product_of(size, int(name[-2])) if size is not None else max(1 / share, 1.0)
    if "max" in name or "min" in name:
        return _extreme(layer, x, window, count, -1.0 if "min" in name else 1.0)
    factor = count if name == "sum" else 1.0
    position, sample = (lean(window(t.clamp_min(0).sqrt()) ** 2 * factor**2) for t in (x.position, x.sample))
    second = lean(window(x.second - x.position) * (factor**2 / count) + position)
    mean = lean(window(x.mean) * factor)
    law = gaussian(x.marginal.levels, x.marginal.masses, ratio(mean, second))
    flow = by_level(window, x.flow) * (factor**2 / count)
    local = x.local * (factor**2 / count * share)
    return Signal(layer.shape, second, position, sample, mean, law, flow, x.radial, local)


def _extreme(layer: Layer, x: Signal, window: Function, count: float, sign: float) -> Signal:
    """The largest of a window's values, or, sign being -1, the smallest."""
    law = replace(x.marginal, values=sign * x.marginal.values)
    law, grown, steeper = law.largest(count, x.correlation)
    law = replace(law, values=sign * law.values, mean=sign * law.mean)
    second, local = lean(window(x.second)) * grown, x.local * (math.prod(layer.shape) / math.prod(x.shape))
    mean = law.mean * second.sqrt()
    noise = float((x.second - x.mean**2).mean())
    position, sample = (
        mean**2 + float((t - x.mean**2).mean()) / max(noise, 1e-300) * (second - mean**2)
        for t in (x.position, x.sample)
    )
    flow = by_level(window, x.flow)
    flow = flow * steeper.view(-1, *(1,) * (flow.dim() - 1))
    return Signal(layer.shape, second, position, sample, mean, law, flow, x.radial, local * steeper)


def _window_mean(layer: Layer, name: str, shape: tuple[int, ...]) -> Function:
    """The mean of a map over the window of each output."""
    arguments = layer.arguments

    def mean(t: Tensor) -> Tensor:
        if t.numel() == 1 or name.startswith(("interpolate", "upsample", "fractional")):
            return t.mean().reshape((1,) * len(layer.shape))
        if "pool" not in name:
            rest = [a for a in layer.args[1:] if not isinstance(a, (torch.dtype, torch.Size))]
            return torch.mean(t.expand(shape), *rest, **{k: v for k, v in layer.kwargs.items() if k != "dtype"})
        spatial = int(name[-2])
        t = t.expand(*t.shape[:-spatial], *shape[-spatial:])
        if "adaptive" in name:
            return getattr(F, f"adaptive_avg_pool{spatial}d")(t, layer.shape[-spatial:])
        names = ("kernel_size", "stride", "padding", "ceil_mode")
        options = {key: arguments[key] for key in names if arguments.get(key) is not None}
        padded = name.startswith("avg") and arguments.get("count_include_pad", True)
        return getattr(F, f"avg_pool{spatial}d")(t, count_include_pad=padded, **options)

    return mean


def _joined(layer: Layer, inputs: list[Signal], *, bordered: bool) -> Signal:
    sign = -1.0 if "sub" in layer.function else 1.0
    scale = sign * float(layer.kwargs.get("alpha", 1))
    x, y = (signal.aligned(len(layer.shape)) for signal in inputs)
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
    if spatial > 1 and math.prod(layer.shape[1:]) > _MOST_JOINED:
        inputs = [x.averaged(keep=1) for x in inputs]
    strongest = max(inputs, key=lambda signal: signal.power)
    masses, flows = _on_common_levels(inputs)
    sizes = torch.tensor([float(math.prod(x.shape)) for x in inputs], dtype=torch.float64)
    law = strongest.marginal if all(not x.marginal.normal for x in inputs) else None
    law = law or gaussian(strongest.marginal.levels, strongest.marginal.masses)
    join = _joining(layer, inputs, sizes / sizes.sum(), bordered=bordered)
    second, position, sample, mean = (
        lean(join(torch.square if name != "mean" else torch.clone, *(getattr(x, name) for x in inputs)))
        for name in ("second", "position", "sample", "mean")
    )
    flow = by_level(partial(join, torch.zeros_like), *flows)
    locals_ = torch.stack([x.local.sum() for x in inputs]) @ sizes / sizes.sum()
    radial = _joint_radial(inputs, [x.power * math.prod(x.shape) for x in inputs], masses)
    return Signal(layer.shape, second, position, sample, mean, law, flow, radial, masses * locals_)


def _joining(layer: Layer, inputs: list[Signal], shares: Tensor, *, bordered: bool) -> Callable[..., Tensor]:
    """What a concatenation makes of maps, given what it makes of constants; the maps' weighted mean if not bordered."""
    shapes = {source: x.shape for source, x in zip(layer.inputs, inputs, strict=True)}
    dims = [len(x.shape) for x in inputs]

    def join(of_constant: Function, *maps: Tensor) -> Tensor:
        if not bordered or layer.call is None:
            return (torch.stack([t.mean() for t in maps]) @ shares).reshape((1,) * len(layer.shape))
        if layer.function in ("cat", "concat", "concatenate") and len(layer.args[0]) == len(maps):
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
    if "div" in layer.function:
        return inputs[0].forgotten(layer.shape)
    if len(inputs) == 2 and inputs[0] is inputs[1]:
        return replace(activated(inputs[0], torch.square), shape=layer.shape)
    return multiplied(inputs[0], inputs[1], layer.shape)


def multiplied(x: Signal, y: Signal, shape: tuple[int, ...]) -> Signal:
    """The product of two signals taken as independent."""
    x, y = (signal.aligned(len(shape)) for signal in (x, y))
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
    if kind is Kind.JOIN:
        return _shifted(layer, x)
    if kind is Kind.GATE:
        return _scaled(layer, x)
    if kind is not Kind.PASS:
        return replace(x.mapped(lambda t: t.mean().reshape((1,) * len(layer.shape)), layer.shape), known=False)
    pads = "pad" in name
    if layer.call is None or (pads and not bordered) or (not pads and not x.varies):
        return x.mapped(lambda t: t.mean().reshape((1,) * len(layer.shape)), layer.shape)
    elements = math.prod(x.shape)
    if elements > _MOST_ELEMENTS or elements * len(x.flow) > _MOST_AT_LEVELS:
        return x.averaged().mapped(lambda t: t.reshape((1,) * len(layer.shape)), layer.shape)
    source = layer.inputs[0]
    return x.mapped(lambda t: _replayed(layer, {source: t.expand(x.shape)}, torch.clone), layer.shape)


def _shifted(layer: Layer, x: Signal) -> Signal:
    """A constant added, or taken from it."""
    value = _constant(layer)
    value = -value if "sub" in layer.function else value
    x = x.aligned(len(layer.shape))
    second, position, sample = (t + 2 * x.mean * value + value**2 for t in (x.second, x.position, x.sample))
    mean, law = x.mean + value, x.marginal
    center = ratio(mean, second)
    if law.normal:
        law = gaussian(law.levels, law.masses, center)
    else:
        law, _ = law.mapped(law.values * math.sqrt(x.power) + float(value.mean()))
    return Signal(layer.shape, second, position, sample, mean, law, x.flow, x.radial, x.local)


def _scaled(layer: Layer, x: Signal) -> Signal:
    """A constant multiplied to it, or dividing it."""
    value = _constant(layer)
    if "div" in layer.function:
        if layer.function.startswith("r"):
            raise ValueError("a constant divided by a signal")
        value = 1 / value
    x = x.aligned(len(layer.shape))
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
    return lean(tensor.reshape((1,) * (len(layer.shape) - tensor.dim()) + tuple(tensor.shape)))


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
    call = Tensor.reshape if layer.function == "view" else layer.call  # of maps that do not vary no view need exist
    assert call is not None
    result = call(*args, **kwargs)
    result = args[0] if writes else result
    return result[0] if isinstance(result, (tuple, list)) else result


def _on_common_levels(inputs: list[Signal]) -> tuple[Tensor, list[Tensor]]:
    """The levels' masses of the strongest signal, and all signals' flows by these levels."""
    strongest = max(inputs, key=lambda signal: signal.power)
    masses = strongest.marginal.masses
    return masses, [x.flow if x is strongest else x.mixed(masses) for x in inputs]


def _joint_radial(inputs: list[Signal], shares: list[float], masses: Tensor) -> Tensor:
    """Changes in the strength of a signal of parts that have these shares of its mean square."""
    changes = torch.stack([x.radial.sum() for x in inputs])
    return masses * (changes @ torch.tensor([(s / sum(shares)) ** 2 for s in shares], dtype=torch.float64))


def ratio(mean: Tensor, second: Tensor) -> float:
    """The mean of a signal over the root of its second moment, short of 1."""
    found = float(mean.mean()) / math.sqrt(max(float(second.mean()), 1e-300))
    return max(-0.999, min(found, 0.999))


def _product_of(size: int | tuple[int, ...], spatial: int) -> float:
    return float(math.prod(size)) if isinstance(size, (tuple, list)) else float(size**spatial)


# What each kind makes of its inputs: called with the layer, the inputs' signals, and whether borders count.
LAYOUTS: dict[Kind, Callable[..., Signal]] = {
    Kind.POOL: _pooled,
    Kind.JOIN: _joined,
    Kind.CONCAT: _concatenated,
    Kind.GATE: _gated,
    Kind.PASS: _passed,
}
