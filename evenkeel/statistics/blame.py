"""Blame: whether a batch or the model is at fault where what reaches a norm is not finite."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from evenkeel.model.nested import tensors
from evenkeel.model.norms import Norm
from evenkeel.model.quantizers import unscalable
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.stored_values import damage_of, is_untrained

_NEVER = "; no norm was ever updated, so that none keeps signals small: load the weights first"


def blame(model: nn.Module, norms: Mapping[str, Norm], path: str, group: Group, number: int) -> str:
    """What is at fault, in words: a batch, or the model, if what it is given is finite.

    Args:
        model: that a group was run through.
        norms: its norms that were watched, by path.
        path: of the norm that something not finite reaches.
        group: the batches that were run.
        number: of the batch that it shows in.
    """
    what = getattr(norms[path], "stands_for", "norm")
    given = (t for piece in group.held for t in tensors(piece.batch) if t.is_floating_point())
    damage = damage_of(model) if all(bool(t.isfinite().all()) for t in given) else ""
    if damage:
        return f"{damage} is not finite, as shows at {what} {path!r}: the model is damaged, not the data"
    if fault := unscalable(model):
        return f"what reaches {what} {path!r} is not finite: {fault}"
    untrained = _NEVER if all(map(is_untrained, norms.values())) else ""
    return f"batch {number} is not finite at {what} {path!r}: its mean or variance is NaN or infinite{untrained}"
