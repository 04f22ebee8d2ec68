"""Norm layers with running statistics: what is measured, re-estimated and corrected."""

from __future__ import annotations

import torch
from torch import nn

from evenkeel.errors import ModelError

Norm = nn.modules.batchnorm._NormBase
_STATISTICS = {"running_mean", "running_var"}


def has_running_statistics(module: nn.Module) -> bool:
    """Whether the module is a norm layer that stores a running mean and variance for eval mode.

    >>> has_running_statistics(nn.BatchNorm1d(4)), has_running_statistics(nn.LayerNorm(4))
    (True, False)
    """
    return isinstance(module, Norm) and module.running_mean is not None and module.running_var is not None


def norms_of(model: nn.Module) -> dict[str, Norm]:
    """The model's norm layers with running statistics, by path.

    Raises:
        ModelError: there is none, or one holds no values.

    >>> list(norms_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))))
    ['1']
    """
    norms = {path: module for path, module in model.named_modules() if has_running_statistics(module)}
    if not norms:
        others = "".join(f"; {path!r} is {what}" for path, what in foreign_norms(model).items())
        raise ModelError(
            f"{type(model).__name__} has no norm layer with running statistics (such as BatchNorm with "
            f"track_running_stats=True): there is nothing to measure or repair{others}"
        )
    for path, norm in norms.items():
        if norm.running_var.is_meta:  # type: ignore[union-attr]
            raise ModelError(f"{path!r} is on the meta device and holds no values: load the weights first")
    return norms  # type: ignore[return-value]


def foreign_norms(model: nn.Module) -> dict[str, str]:
    """Modules with running statistics that are no norms of torch's, by path, each with what it is.

    A library's frozen norms are among them, such as FrozenBatchNorm2d, norms that store something of their own, and
    norms inside scripted modules.

    >>> class Frozen(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.register_buffer("running_mean", torch.zeros(2))
    ...         self.register_buffer("running_var", torch.ones(2))
    >>> foreign_norms(nn.Sequential(nn.BatchNorm1d(2), Frozen()))
    {'1': "of class Frozen, not a norm of torch's: frozen, or with statistics of its own kind"}
    """
    return {
        path: "scripted, and out of reach: do this before torch.jit"
        if isinstance(module, torch.jit.ScriptModule)
        else f"of class {type(module).__name__}, not a norm of torch's: frozen, or with statistics of its own kind"
        for path, module in model.named_modules()
        if not isinstance(module, Norm) and _STATISTICS.issubset(dict(module.named_buffers(recurse=False)))
    }


def mixes_batch(norm: nn.Module) -> bool:
    """Whether the module normalises by the batch in eval mode too, as batch norm does that tracks no statistics.

    >>> mixes_batch(nn.BatchNorm1d(2, track_running_stats=False)), mixes_batch(nn.BatchNorm1d(2))
    (True, False)
    """
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is None


def pools_batch(norm: nn.Module) -> bool:
    """Whether the norm's statistics are of the whole batch; an instance norm averages those of single instances."""
    return not isinstance(norm, nn.modules.instancenorm._InstanceNorm)
