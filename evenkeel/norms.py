"""Norm layers with running statistics: what is measured, re-estimated and corrected."""

from __future__ import annotations

from torch import nn

from evenkeel.errors import ModelError

Norm = nn.modules.batchnorm._NormBase


def has_running_statistics(module: nn.Module) -> bool:
    """Whether the module is a norm layer that stores a running mean and variance for eval mode.

    >>> has_running_statistics(nn.BatchNorm1d(4)), has_running_statistics(nn.LayerNorm(4))
    (True, False)
    """
    return isinstance(module, Norm) and module.running_mean is not None and module.running_var is not None


def norms_of(model: nn.Module) -> dict[str, Norm]:
    """The model's norm layers with running statistics, by path.

    Args:
        model: the model.

    Returns:
        The modules, a shared one once.

    Raises:
        ModelError: there is none, or one holds no values.

    >>> list(norms_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))))
    ['1']
    """
    norms = {path: module for path, module in model.named_modules() if has_running_statistics(module)}
    if not norms:
        raise ModelError(
            f"{type(model).__name__} has no norm layer with running statistics (such as BatchNorm with "
            "track_running_stats=True): there is nothing to measure or repair"
        )
    for path, norm in norms.items():
        if norm.running_var.is_meta:  # type: ignore[union-attr]
            raise ModelError(f"{path!r} is on the meta device and holds no values: load the weights first")
    return norms  # type: ignore[return-value]


def pools_batch(norm: nn.Module) -> bool:
    """Whether the norm's statistics are of the whole batch; an instance norm averages those of single instances."""
    return not isinstance(norm, nn.modules.instancenorm._InstanceNorm)
