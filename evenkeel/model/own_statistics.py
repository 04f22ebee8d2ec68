"""Statistics of modules' own making: what a model updates in train mode and reads in eval mode beside torch's norms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from evenkeel.model.flags import frozen_in, set_modes
from evenkeel.model.norms import Norm, foreign_norms
from evenkeel.model.restoring import restored

_OWN = "of class {}, not a norm of torch's: train mode updates its {}, which is neither measured nor repaired"


def statistics_beside(
    model: nn.Module, run: Callable[[], object], frozen: Collection[nn.Module] = ()
) -> dict[str, str]:
    """The modules that store statistics and are no norms of torch's, by path, each with what it is.

    These are `foreign_norms`, known by the names of what they store, and, whatever the names are, modules that store
    something else after a pass in train mode, and the same as before after one in eval mode. The model is restored.

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
        changed = _changed(model, suspects, run, frozen, training=True)
        steady = _changed(model, suspects, run, frozen, training=False) if changed else {}
    except Exception:  # whatever is wrong comes up where it is measured
        return found
    for path, names in changed.items():
        if own := [name for name in names if name not in steady.get(path, ())]:
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
    return {
        name: value
        for name, value in held.items()
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point() and not value.requires_grad
    }


def _changed(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    run: Callable[[], object],
    frozen: Collection[nn.Module],
    *,
    training: bool,
) -> dict[str, list[str]]:
    """Names of what a pass changes in the modules, by path."""
    with restored(model), torch.no_grad():
        before = {path: {n: t.clone() for n, t in _tensors_of(module).items()} for path, module in modules.items()}
        set_modes(model, training=training)
        for module in frozen:
            module.training = False
        run()
        after = {path: _tensors_of(module) for path, module in modules.items()}
        return {path: names for path in modules if (names := _unlike(before[path], after[path]))}


def _unlike(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors of the same shape that hold something else."""
    return [
        name
        for name, value in before.items()
        if name in after and after[name].shape == value.shape and not torch.equal(after[name], value)
    ]
