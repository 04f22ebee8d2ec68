"""compat: functions of torch by their own names and signatures, so that a user changes one import."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from evenkeel.model.norms import has_running_statistics
from evenkeel.reestimation.reestimation import reestimate_


def update_bn(loader: Iterable[Any], model: nn.Module, device: torch.device | str | int | None = None) -> None:
    """What `torch.optim.swa_utils.update_bn` is called for, by `reestimate_`: dropout off, exact pooling, safe.

    Args:
        loader: yields batches: tensors, or tuples and lists whose first element is the input; others, such as mappings,
            as `reestimate_` takes them.
        model: its norms' running statistics are replaced; one without such norms is left as it is, as by torch.
        device: as for torch, where the batches belong; here they are brought to where the model is.

    Raises:
        BatchError: see `reestimate_`; the model is as it was then.

    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    >>> data = [(torch.randn(256, 2), torch.zeros(256)) for _ in range(4)]
    >>> update_bn(data, model)
    >>> torch.allclose(model[1].running_var, torch.cat([x for x, _ in data]).var(0))
    True
    """
    if any(has_running_statistics(module) for module in model.modules()):
        reestimate_(model, loader, match="variance", unsure="write")  # averages of weights are what it is for
