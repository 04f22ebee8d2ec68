"""Norm layers with running statistics: what is measured, re-estimated and corrected."""

from __future__ import annotations

import re

import torch
from torch import nn

from evenkeel.errors import ModelError

Norm = nn.modules.batchnorm._NormBase
# Names of what norms store, in torch and elsewhere: running_mean, running_covar, moving_std, running_avg_mean, ...
_RUNNING = re.compile(r"running|moving|(^|_)ema(_|$)|tracked_[^b]")
_STATISTIC = re.compile(r"mean|avg|average|(^|_)mu(_|$)|var|std|sigma|scale|norm|phi|whiten|(^|_)m[12]?$")


def has_running_statistics(module: nn.Module) -> bool:
    """Whether the module is a norm layer that stores a running mean and variance for eval mode.

    >>> has_running_statistics(nn.BatchNorm1d(4)), has_running_statistics(nn.LayerNorm(4))
    (True, False)
    """
    return isinstance(module, Norm) and module.running_mean is not None and module.running_var is not None


def norms_of(model: nn.Module) -> dict[str, Norm]:
    """The model's norm layers with running statistics, by path; of those that share them, the first one stands for all.

    Raises:
        ModelError: there is none, or one holds no values.

    >>> list(norms_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))))
    ['1']
    """
    norms: dict[str, nn.Module] = {}
    seen = set[int]()
    for path, module in model.named_modules():
        if has_running_statistics(module) and id(module.running_var) not in seen:
            norms[path] = module
            seen.add(id(module.running_var))
    if not norms:
        others = "".join(f"; {path!r} is {what}" for path, what in (foreign_norms(model) or _holders(model)).items())
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
    {'1': "of class Frozen, not a norm of torch's: frozen, or with statistics of its own kind (running_mean)"}
    """
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, Norm) or not (names := _statistics_in(module)):
            continue
        found[path] = (
            "scripted, and out of reach: do this before torch.jit"
            if isinstance(module, torch.jit.ScriptModule)
            else f"of class {type(module).__name__}, not a norm of torch's: frozen, or with statistics of its own kind "
            f"({names[0]})"
        )
    return found


def _holders(model: nn.Module) -> dict[str, str]:
    """Modules, not torch's, with tensors that are not learned and may be statistics, by path, each with what it is."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        held = {**vars(module), **module._buffers}
        names = [
            name
            for name, value in held.items()
            if isinstance(value, torch.Tensor) and value.ndim and value.is_floating_point() and not value.requires_grad
        ]
        if names and not type(module).__module__.startswith("torch."):
            found[path] = (
                f"of class {type(module).__name__}, not a norm of torch's, and holds {', '.join(names)}: if these are "
                "statistics, they are neither measured nor repaired"
            )
    return found


def _statistics_in(module: nn.Module) -> list[str]:
    """Names of what a module itself stores that look like running statistics."""
    stored = dict(module.named_buffers(recurse=False))
    stored |= {name: p for name, p in module.named_parameters(recurse=False) if not p.requires_grad}
    return [name for name in stored if _RUNNING.search(name) and _STATISTIC.search(name)]


def mixes_batch(norm: nn.Module) -> bool:
    """Whether the module normalises by the batch in eval mode too, as batch norm does that tracks no statistics.

    >>> mixes_batch(nn.BatchNorm1d(2, track_running_stats=False)), mixes_batch(nn.BatchNorm1d(2))
    (True, False)
    """
    return isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is None


def pools_batch(norm: nn.Module) -> bool:
    """Whether the norm's statistics are of the whole batch; an instance norm averages those of single instances."""
    return not isinstance(norm, nn.modules.instancenorm._InstanceNorm)
