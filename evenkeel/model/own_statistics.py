"""Statistics of modules' own making: what a model updates in train mode and reads in eval mode beside torch's norms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from evenkeel.model.buffers import write_
from evenkeel.model.flags import frozen_in, set_modes
from evenkeel.model.nested import is_holder, map_tensors, tensors
from evenkeel.model.norms import Norm, foreign_norms
from evenkeel.model.restoring import restored, seed_all

_OWN = "of class {}, not a norm of torch's: train mode updates its {}, which is neither measured nor repaired"
_DEPTH = 2  # of containers in containers, in which statistics may be
_EVERY = frozenset(vars(nn.Module()))  # what each module holds: its buffers, hooks and so on
_OF = ("", "_u", "_v")  # what spectral norm writes: the weight divided, and its singular vectors, which follow no data


def statistics_beside(
    model: nn.Module, run: Callable[[], object], frozen: Collection[nn.Module] = ()
) -> dict[str, str]:
    """The modules that store statistics and are no norms of torch's, by path, each with what it is.

    These are `foreign_norms`, known by the names of what they store, and, whatever the names are, modules that store
    something else after a pass in train mode, do not write it in one in eval mode, and return something else then if
    it is another value: maps, queues and losses that are only kept to be looked at are none. It may be a tensor, an
    array or a number, by itself or in a list, a dict or an object; numbers that change alike whatever the module is
    given, such as a temperature that falls, are none. The model is restored.

    Args:
        model: the model.
        run: runs a few samples through it; called only where a module could be meant.
        frozen: modules that training leaves in eval mode, beside those that are so now in a model in train mode.

    >>> class Scaled(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.register_buffer("size", torch.ones(2))
    ...     def forward(self, x):
    ...         if self.training:
    ...             self.size.lerp_(x.square().mean(0), 0.1)
    ...         return x / self.size.sqrt()
    >>> model = nn.Sequential(Scaled(), nn.BatchNorm1d(2))
    >>> statistics_beside(model, lambda: model(torch.ones(4, 2) * 3))
    {'0': "of class Scaled, not a norm of torch's: train mode updates its size, which is neither measured nor repaired"}
    """
    found, frozen = foreign_norms(model), {*frozen, *frozen_in(model)}
    suspects = {
        path: module
        for path, module in model.named_modules()
        if path not in found and module not in frozen and _can_store(module) and _held(module)
    }
    if not suspects:
        return found
    try:
        changed = _changed(model, suspects, run, frozen)
        idle = _idle(model, {path: suspects[path] for path in changed}, changed, run) if changed else {}
    except Exception:  # whatever is wrong comes up where it is measured
        return found
    for path, names in changed.items():
        if own := [name for name in names if name not in idle.get(path, ())]:
            found[path] = _OWN.format(type(suspects[path]).__name__, ", ".join(own))
    return found


def _can_store(module: nn.Module) -> bool:
    """Whether a module may have statistics of its own: a class of torch's is known, and a scripted one out of reach."""
    if isinstance(module, (Norm, torch.jit.ScriptModule)):
        return False
    return not type(module).__module__.startswith("torch.")


def _held(module: nn.Module) -> dict[str, Any]:
    """What a module itself holds that may be statistics: floating, and not learned."""
    own = {name: value for name, value in vars(module).items() if name not in _EVERY}
    normed = {
        f"{h.name}{end}" for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm) for end in _OF
    }
    held = {**own, **module._buffers, **module._parameters}
    return {name: value for name, value in held.items() if name not in normed and _values(value)}


def _values(value: Any, depth: int = _DEPTH) -> list[Tensor]:
    """The floating tensors, arrays and numbers in a value; of what is learned, none."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and not value.requires_grad else []
    if isinstance(value, (float, np.floating)):
        return [torch.tensor(float(value), dtype=torch.float64)]
    if isinstance(value, np.memmap):
        return []  # data in a file
    if isinstance(value, np.ndarray):  # torch takes none of other byte orders, more bits or negative strides
        return [torch.from_numpy(np.array(value, np.float64, order="C"))] if value.dtype.kind == "f" else []
    return [part for item in _items(value) for part in _values(item, depth - 1)] if depth else []


def _items(value: Any) -> list[Any]:
    """What a container holds, or an object that holds tensors or arrays."""
    if type(value) in (list, tuple, deque):
        return list(value)
    return list(value.values()) if isinstance(value, dict) else list(vars(value).values()) if is_holder(value) else []


def _another(value: Any, depth: int = _DEPTH) -> Any:
    """Something else in its place, whatever it is: the same object, if that can be written to."""
    if isinstance(value, Tensor):
        if _values(value):
            write_(value, 2 * value + 1)
    elif isinstance(value, (float, np.floating)):
        return 2 * value + 1
    elif isinstance(value, np.ndarray):
        if _values(value) and not value.flags.writeable:
            return 2 * value + 1
        if _values(value):
            value[...] = 2 * value + 1
    elif depth and type(value) is tuple:
        return tuple(_another(item, depth - 1) for item in cast("tuple[Any, ...]", value))
    elif depth and type(value) in (list, deque):
        for place, item in enumerate(cast("list[Any]", value)):
            value[place] = _another(item, depth - 1)
    elif depth and (isinstance(value, dict) or is_holder(value)):
        inside = cast("dict[Any, Any]", value if isinstance(value, dict) else vars(value))
        inside.update({key: _another(item, depth - 1) for key, item in inside.items()})
    return value


def _copied(module: nn.Module) -> dict[str, list[Tensor]]:
    return {name: [t.detach().clone() for t in _values(value)] for name, value in _held(module).items()}


def _changed(
    model: nn.Module, modules: Mapping[str, nn.Module], run: Callable[[], object], frozen: Collection[nn.Module]
) -> dict[str, list[str]]:
    """Names of what a pass in train mode changes in the modules, by path; of numbers, those that follow what is fed."""
    before = {path: _copied(module) for path, module in modules.items()}
    after = _after_training(model, modules, run, frozen)
    found = {path: names for path in modules if (names := _unlike(before[path], after[path]))}
    numbers = {p: [n for n in names if not any(t.ndim for t in after[p][n])] for p, names in found.items()}
    if not any(numbers.values()):
        return found
    handles = [modules[path].register_forward_pre_hook(_fed_another, with_kwargs=True) for path in numbers]
    try:
        other = _after_training(model, modules, run, frozen)
    finally:
        for handle in handles:
            handle.remove()
    alike = {path: set(numbers[path]) - set(_unlike(after[path], other[path])) for path in found}
    return {path: left for path, names in found.items() if (left := [n for n in names if n not in alike[path]])}


def _after_training(
    model: nn.Module, modules: Mapping[str, nn.Module], run: Callable[[], object], frozen: Collection[nn.Module]
) -> dict[str, dict[str, list[Tensor]]]:
    """What modules hold after a pass in train mode, by path and name; the model is restored."""
    with restored(model), torch.no_grad():
        set_modes(model, training=True)
        for module in frozen:
            module.training = False
        run()
        return {path: _copied(module) for path, module in modules.items()}


def _fed_another(_module: nn.Module, args: Any, kwargs: Any) -> Any:
    return map_tensors(lambda t: 2 * t + 1 if t.is_floating_point() else t, (args, kwargs))


def _idle(
    model: nn.Module, modules: Mapping[str, nn.Module], names: Mapping[str, list[str]], run: Callable[[], object]
) -> dict[str, set[str]]:
    """Of what train mode changes, what a pass in eval mode writes itself, or does not read."""
    with restored(model), torch.no_grad():
        set_modes(model, training=False)
        returned, written = _outputs(modules, names, run)
        try:
            for path, module in modules.items():
                held = _held(module)
                for name in set(names[path]) - written[path]:
                    value = _another(held[name])
                    if value is not held[name]:
                        vars(module)[name] = value
            other, _ = _outputs(modules, names, run)
        except Exception:  # as of a covariance that is none any more: it is read
            return written
    unread = {path for path, outputs in returned.items() if outputs and _are_same(outputs, other[path])}
    return {path: set(names[path]) if path in unread else written[path] for path in modules}


def _outputs(
    modules: Mapping[str, nn.Module], names: Mapping[str, list[str]], run: Callable[[], object]
) -> tuple[dict[str, list[Tensor]], dict[str, set[str]]]:
    """What modules return in a pass, tensor after tensor, and names of what they hold that is written meanwhile."""
    returned: dict[str, list[Tensor]] = {path: [] for path in modules}
    before = {path: (_marks(module), _copied(module)) for path, module in modules.items()}

    def keep(path: str, _module: nn.Module, _inputs: object, output: object) -> None:
        returned[path] += [tensor.detach().clone() for tensor in tensors(output) if tensor.numel()]

    handles = [module.register_forward_hook(partial(keep, path)) for path, module in modules.items()]
    try:
        seed_all(0)  # what draws at random in eval mode, too, draws the same each time
        run()
    finally:
        for handle in handles:
            handle.remove()
    written: dict[str, set[str]] = {}
    for path, module in modules.items():
        (marks, values), now = before[path], _marks(module)
        written[path] = set(_unlike(values, _copied(module))) & set(names[path])
        written[path] |= {n for n in names[path] if n in marks and not _are_one(marks[n], now.get(n))}
    return returned, written


def _marks(module: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Each tensor that a module itself holds, and how often it was written."""
    return {name: (t, _version(t)) for name, t in _held(module).items() if isinstance(t, Tensor)}


def _are_one(left: tuple[Tensor, int], right: tuple[Tensor, int] | None) -> bool:
    return right is not None and left[0] is right[0] and left[1] == right[1]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # such tensors count no writes


def _are_same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def _unlike(before: Mapping[str, list[Tensor]], after: Mapping[str, list[Tensor]]) -> list[str]:
    """Names of values of the same shapes that are something else."""
    return [
        name
        for name, values in before.items()
        if [t.shape for t in values] == [t.shape for t in after.get(name, [])] and not _are_same(values, after[name])
    ]
