"""Stretching: what matching variances does to outputs where dropout stands right before a norm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from evenkeel.errors import StretchWarning
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.queries import right_before
from evenkeel.model.evaluation import named_targets
from evenkeel.model.norms import Norm
from evenkeel.statistics.norm_change import NormChange

_EVEN = 1.05  # times larger


def stretched(graph: LayerGraph, norms: Mapping[str, Norm], changes: Iterable[NormChange]) -> str:
    """In words, how much more norms right behind a dropout pass on with their new statistics; empty if no more.

    In training such a norm divides by the deviation of signal and noise; in eval mode, with the variance of the signal
    alone, by less. What is behind it gets more than it was trained on: the arg max of a classifier stays as it is, the
    output of a regression grows.

    Args:
        graph: of the model.
        norms: by path.
        changes: what was done to them.
    """
    factors = {
        change.path: 1 / math.sqrt(change.ratio)
        for change in changes
        if change.ratio > 0 and change.ratio < _EVEN**-2 and right_before(graph, norms[change.path])
    }
    if not factors:
        return ""
    worst = max(factors, key=factors.__getitem__)
    others = f", and {len(factors) - 1} more," if len(factors) > 1 else ""
    return (
        f"norm {worst!r}{others} right behind a dropout, now pass{'' if others else 'es'} on x{factors[worst]:.2f} of "
        "what training gave to the layers behind: harmless to a classifier's arg max, but a regression's error may "
        'grow; judge by held_out= (with choose="best"), or undo() where outputs count'
    )


def warn(note: str) -> None:
    """Warn of it, with the caller of the verb as the place."""
    if note:
        warnings.warn(note, StretchWarning, stacklevel=3)


def has_class_labels(batch: Any) -> bool:
    """Whether a batch holds whole numbers for targets, as a classifier's does.

    >>> has_class_labels((torch.ones(2, 3), torch.tensor([1, 0]))), has_class_labels((torch.ones(2), torch.ones(2)))
    (True, False)
    """
    target = named_targets(batch)
    if target is None and isinstance(batch, (tuple, list)) and len(batch) > 1:
        target = batch[1]
    if isinstance(target, (tuple, list)):  # of detectors, an entry a sample
        target = target[0] if target else None
    if isinstance(target, Mapping):
        return has_class_labels(target)
    return isinstance(target, int) or (isinstance(target, Tensor) and target.dtype in _WHOLE)


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
