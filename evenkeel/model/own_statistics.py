"""Statistics of modules' own making: what a model updates in train mode and reads in eval mode beside torch's norms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from evenkeel.model.buffers import write_
from evenkeel.model.flags import frozen_in, set_modes
from evenkeel.model.nested import tensors
from evenkeel.model.norms import Norm, foreign_norms
from evenkeel.model.restoring import restored, seed_all

_OWN = "of class {}, not a norm of torch's: train mode updates its {}, which is neither measured nor repaired"
_OF = ("", "_u", "_v")  # what spectral norm writes: the weight divided, and its singular vectors, which follow no data


def statistics_beside(
    model: nn.Module, run: Callable[[], object], frozen: Collection[nn.Module] = ()
) -> dict[str, str]:
    """The modules that store statistics and are no norms of torch's, by path, each with what it is.

    These are `foreign_norms`, known by the names of what they store, and, whatever the names are, modules that store
    something else after a pass in train mode, do not write it in one in eval mode, and return something else then if
    it is another value: maps, queues and losses that are only kept to be looked at are none. The model is restored.

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
        if path not in found and module not in frozen and _can_store(module) and _tensors_of(module)
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


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """What a module itself holds that may be statistics: floating, not a single number, and not learned."""
    held = {**vars(module), **module._buffers, **module._parameters}
    normed = {
        f"{h.name}{end}" for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm) for end in _OF
    }
    return {
        name: value
        for name, value in held.items()
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point() and not value.requires_grad
        if name not in normed
    }


def _changed(
    model: nn.Module, modules: Mapping[str, nn.Module], run: Callable[[], object], frozen: Collection[nn.Module]
) -> dict[str, list[str]]:
    """Names of what a pass in train mode changes in the modules, by path."""
    with restored(model), torch.no_grad():
        before = {path: {n: t.clone() for n, t in _tensors_of(module).items()} for path, module in modules.items()}
        set_modes(model, training=True)
        for module in frozen:
            module.training = False
        run()
        after = {path: _tensors_of(module) for path, module in modules.items()}
        return {path: names for path in modules if (names := _unlike(before[path], after[path]))}


def _idle(
    model: nn.Module, modules: Mapping[str, nn.Module], names: Mapping[str, list[str]], run: Callable[[], object]
) -> dict[str, set[str]]:
    """Of what train mode changes, what a pass in eval mode writes itself, or does not read."""
    with restored(model), torch.no_grad():
        set_modes(model, training=False)
        returned, written = _outputs(modules, names, run)
        try:
            for path, module in modules.items():
                held = _tensors_of(module)
                for name in set(names[path]) - written[path]:
                    write_(held[name], 2 * held[name] + 1)  # something else, whatever it is
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
    before = {path: {n: (t, _version(t), t.clone()) for n, t in _tensors_of(m).items()} for path, m in modules.items()}

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
        now = _tensors_of(module)
        found = {name: before[path][name] for name in names[path] if name in before[path]}
        written[path] = {
            name
            for name, (tensor, version, value) in found.items()
            if now.get(name) is not tensor or _version(tensor) != version or not torch.equal(tensor, value)
        }
    return returned, written


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # such tensors count no writes


def _are_same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def _unlike(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors of the same shape that hold something else."""
    return [
        name
        for name, value in before.items()
        if name in after and after[name].shape == value.shape and not torch.equal(after[name], value)
    ]
