"""Fake-quantizers and observers, kept as they are while a model is measured."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.model.buffers import write_

_SLOW = "_enable_slow_path_for_better_numerical_stability"  # of torch.ao.nn.intrinsic.qat: reads statistics unseen
_FLAGS = ("observer_enabled", "static_enabled", "fake_quant_enabled")  # tensors of a fake-quantizer
_OUTGROWN_NOTE = (
    "{!r}: its weights, scaled by the new statistics, reach x{:.2f} of the range that its fake-quantizer holds, and "
    "are cut off there: repair with fake-quantizers off, reset the observers, run some batches, and repair with them on"
)
_OUTGROWN = 1.05  # times its range: what is cut off then is more than rounding


@dataclass(frozen=True)
class Quantizers:
    """What in a model rounds values, or watches their ranges; all by path.

    Attributes:
        rounding: fake-quantizers that round by the range that they hold, or are switched off.
        unobserved: fake-quantizers that have not seen a range yet.
        watching: observers that round nothing.
    """

    rounding: tuple[str, ...] = ()
    unobserved: tuple[str, ...] = ()
    watching: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What the reader of a report must know of them."""
        held = (*self.rounding, *self.watching)
        notes = [f"{_named(held)}: their ranges stayed as they are: observers were off while measuring"] if held else []
        if self.unobserved:
            notes.append(
                f"{_named(self.unobserved)}: fake-quantizers that have observed nothing yet, so that nothing was "
                "rounded there: run some batches first"
            )
        return notes


def hold_quantizers_(model: nn.Module) -> Quantizers:
    """Keep the ranges of a model's fake-quantizers and observers as they are; the caller restores the model.

    An observer takes in whatever passes it, in eval mode too: what is measured would depend on what was measured
    before, and measuring would change the model. So observers are off, as `torch.ao.quantization.disable_observer`
    has it, and fake-quantizers that never saw a range, which would round everything to whole numbers, round nothing.
    Observers that take each batch's own range (`is_dynamic`) hold none, and stay on. Layers that torch fused with their
    norm, and that read its statistics in their own formula for eval mode, take the equal one that calls the norm.

    >>> import torch.ao.quantization as tq
    >>> net = nn.Sequential(nn.Linear(2, 2), tq.FakeQuantize())
    >>> hold_quantizers_(net).unobserved, net[1].observer_enabled
    (('1',), tensor([0], dtype=torch.uint8))
    """
    found = quantizers_of(model)
    for module in model.modules():
        if getattr(module, _SLOW, False) and not _zeros(module):
            setattr(module, _SLOW, False)
    for path in (*found.rounding, *found.unobserved, *found.watching):
        module = model.get_submodule(path)
        if path in found.watching:
            module.__dict__["forward"] = _as_given
            continue
        names = _FLAGS if path in found.unobserved else _FLAGS[:2]
        for flag in (getattr(module, name, None) for name in names):
            if isinstance(flag, Tensor):
                write_(flag, torch.zeros_like(flag))
    return found


@contextmanager
def held_quantizers(model: nn.Module) -> Generator[Quantizers]:
    """The same while entered; flags are put back on leaving, also after an exception.

    >>> import torch.ao.quantization as tq
    >>> net = nn.Sequential(nn.Linear(2, 2), tq.FakeQuantize())
    >>> with held_quantizers(net):
    ...     print(net[1].observer_enabled)
    tensor([0], dtype=torch.uint8)
    >>> net[1].observer_enabled
    tensor([1], dtype=torch.uint8)
    """
    attributes = {m: {n: vars(m)[n] for n in ("forward", _SLOW) if n in vars(m)} for m in model.modules()}
    flags = [flag for m in model.modules() for name in _FLAGS if isinstance(flag := getattr(m, name, None), Tensor)]
    values = [flag.clone() for flag in flags]
    try:
        yield hold_quantizers_(model)
    finally:
        for module, found in attributes.items():
            module.__dict__.pop("forward", None)
            module.__dict__.update(found)
        for flag, value in zip(flags, values, strict=True):
            write_(flag, value)


def quantizers_of(model: nn.Module) -> Quantizers:
    """The fake-quantizers and observers of a model; those that are part of another are not listed.

    >>> quantizers_of(nn.Linear(2, 2))
    Quantizers(rounding=(), unobserved=(), watching=())
    """
    rounding: list[str] = []
    unobserved: list[str] = []
    watching: list[str] = []
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in inside or getattr(module, "is_dynamic", False):
            continue
        if _is_fake_quantizer(module):
            inside.update(module.modules())
            is_new = bool(module.observer_enabled.any()) and _saw_nothing(module)  # type: ignore[operator]
            is_new = is_new and bool(module.fake_quant_enabled.any())  # type: ignore[operator]
            (unobserved if is_new else rounding).append(path)
        elif _is_observer(module):
            watching.append(path)
    return Quantizers(tuple(rounding), tuple(unobserved), tuple(watching))


def outgrown_notes(model: nn.Module) -> list[str]:
    """That layers' weights exceed the ranges held for them, as `outgrown` finds, and the way out, in words."""
    return [_OUTGROWN_NOTE.format(path, factor) for path, factor in outgrown(model).items()]


def outgrown(model: nn.Module) -> dict[str, float]:
    """Layers fused with a norm whose weights, scaled by its statistics, exceed the range held for them, by path.

    Returns:
        By how much, as a factor, in the channel where it is most.
    """
    found: dict[str, float] = {}
    for path, layer in _fused_layers(model):
        quantizer, norm, weight = layer.weight_fake_quant, layer.bn, layer.weight
        low, high = _range_of(quantizer)
        is_on = bool(getattr(quantizer, "fake_quant_enabled", torch.zeros(1)).any())
        if not is_on or low is None or high is None or _saw_nothing(quantizer):
            continue
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        most = weight.detach().flatten(1).abs().amax(1) * scale.detach().abs()
        limit = low.abs().maximum(high.abs())
        factor = float((most / limit.clamp_min(1e-30)).max())
        if factor > _OUTGROWN:
            found[path] = factor
    return found


def unscalable(model: nn.Module) -> str:
    """The first layer fused with a norm that divides by a weight of 0 of that norm, in words; nothing if none does."""
    for path, layer in _fused_layers(model):
        if count := _zeros(layer):
            return (
                f"{path!r} divides by its norm's weight, which is 0 in {count} of {layer.bn.num_features} channels: "
                "give these a small weight before fusing, or remove the channels"
            )
    return ""


def _fused_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that torch.ao fused with a norm for training with rounded weights."""
    for path, module in model.named_modules():
        if _is_fused(module):
            yield path, module


def _is_fused(module: nn.Module) -> bool:
    return hasattr(module, "weight_fake_quant") and isinstance(getattr(module, "bn", None), nn.Module)


def _zeros(layer: Any) -> int:
    return int((layer.bn.weight == 0).sum()) if _is_fused(layer) and layer.bn.weight is not None else 0


def _is_fake_quantizer(module: nn.Module) -> bool:
    names = ("fake_quant_enabled", "observer_enabled")
    return all(isinstance(getattr(module, name, None), Tensor) for name in names)


def _is_observer(module: nn.Module) -> bool:
    """Whether a module watches ranges: torch.ao's and torchao's observers give the scale that they found."""
    return callable(getattr(module, "calculate_qparams", None)) and not hasattr(module, "fake_quant_enabled")


def _saw_nothing(quantizer: Any) -> bool:
    low, high = _range_of(quantizer)
    return low is not None and high is not None and (not low.numel() or bool((low > high).any()))


def _range_of(quantizer: Any) -> tuple[Tensor | None, Tensor | None]:
    """The smallest and the largest value that a fake-quantizer's observer holds, if it holds them."""
    observer = getattr(quantizer, "activation_post_process", None)
    return getattr(observer, "min_val", None), getattr(observer, "max_val", None)


def _as_given(x: Any, *_: Any, **__: Any) -> Any:
    return x


def _named(paths: tuple[str, ...]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
