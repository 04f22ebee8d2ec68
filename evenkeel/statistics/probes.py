"""Probes: samples run to learn how a model treats them; nothing of them is counted, and nothing of them stays."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError
from evenkeel.model.batches import Forward, forward_pass, inputs
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.norm_calls import NormCalls, OnCall
from evenkeel.model.norms import Norm, pools_batch
from evenkeel.model.other_values import of_other_values
from evenkeel.model.own_statistics import statistics_beside
from evenkeel.model.restoring import restored, seed_all
from evenkeel.statistics.batch_merging import Group, Piece
from evenkeel.statistics.population import Population, Statistics, batch_statistics

Fed = dict[str, list[tuple[Statistics, torch.dtype]]]  # what reaches each norm, call by call, and the kind of number
FEW = 16  # samples of a batch that show how a model treats them
_ALIKE = {torch.float64: 1e-4, torch.float32: 1e-3}  # how near statistics of the same samples are; of others, 0.05


class Probes:
    """Runs samples as a pass would, and leaves the model, and the random numbers, as they were.

    Args:
        model: in eval mode.
        norms: the norms to watch, by path.
        forward: how to run a batch, if not by `call`.
    """

    def __init__(self, model: nn.Module, norms: Mapping[str, Norm], forward: Forward | None = None) -> None:
        self._model = model
        self._norms = norms
        self._forward = forward

    def bytes_of_a_sample(self, batch: Any) -> tuple[float, float]:
        """Bytes of the largest input of a norm, and of all, of one sample; BatchError if it is not taken."""
        sample = map_tensors(lambda t: (t[:1] if t.ndim else t).clone(), batch)
        sizes = [t.numel() * t.element_size() for t in tensors(sample)]
        with restored(self._model, parameters=False):
            self._try(sample, lambda path, norm, x: sizes.append(x.numel() * x.element_size()))
        return max(sizes, default=1), sum(sizes)

    def are_random(self, piece: Piece, *, is_divisible: bool) -> bool:
        """Whether samples, run twice, feed a norm something else the second time."""
        few = Group((piece.thinned(-(-piece.samples // 2) if is_divisible else 1),))
        try:
            with restored(self._model, parameters=False):
                one = self._fed(few, 1)
            with restored(self._model, parameters=False):
                other = self._fed(few, 2)
        except BatchError:  # what is wrong comes up where it is measured
            return False
        return self._first_unlike([one], other) is not None

    def strangers(
        self, batch: Any, samples: int, frozen: Collection[nn.Module]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Modules with statistics that are no norms of torch's, and norms that store those of other values, by path.

        They are told by a few samples: see `own_statistics` and `other_values`.

        Args:
            batch: one of the batches.
            samples: how many it holds.
            frozen: modules that training leaves in eval mode.
        """
        piece = Piece(1, batch if self._forward else inputs(batch), samples)

        def run() -> object:
            few = piece.thinned(-(-samples // FEW)) if piece.form is not None else piece.thinned(1)
            return forward_pass(self._model, few.batch, 1, self._forward)

        return statistics_beside(self._model, run, frozen), of_other_values(self._model, self._norms, run)

    def unlike(self, group: Group) -> str | None:
        """Path of a norm that is fed otherwise by some samples of some of the batches, apart and as one; None if none.

        Raises:
            BatchError: the model does not take so few.
        """
        count = len(group.held)
        tried = sorted({0, 1, count // 3, 2 * count // 3, count - 1})  # neighbours, as batches may take turns
        few = [piece.thinned(-(-piece.samples // 2)) for piece in (group.held[i] for i in tried)]
        with restored(self._model, parameters=False):
            alone = [self._fed(Group((piece,))) for piece in few]
            together = self._fed(Group(tuple(few)))
        return self._first_unlike(alone, together)

    def _first_unlike(self, alone: Sequence[Fed], together: Fed) -> str | None:
        for path in dict.fromkeys(path for found in (*alone, together) for path in found):
            parts = [call for found in alone for call in found.get(path, [])]
            if not _is_alike(parts, together.get(path, []), pooled=pools_batch(self._norms[path])):
                return path
        return None

    def _fed(self, group: Group, seed: int = 0) -> Fed:
        """What some samples feed the norms; what they do to the model is the caller's to restore."""
        found: Fed = {}

        def on_call(path: str, norm: Norm, x: Tensor) -> None:
            if x.numel():
                found.setdefault(path, []).append((batch_statistics(x, pooled=pools_batch(norm)), x.dtype))

        self._try(group.batch, on_call, seed)
        return found

    def _try(self, batch: Any, on_call: OnCall, seed: int = 0) -> None:
        with NormCalls(self._norms, on_call):
            seed_all(seed)
            forward_pass(self._model, batch, 1, self._forward)


def _is_alike(
    alone: Sequence[tuple[Statistics, torch.dtype]],
    together: Sequence[tuple[Statistics, torch.dtype]],
    *,
    pooled: bool,
) -> bool:
    """Whether the same values reached a norm, in whatever order; what is not finite tells nothing."""
    if not alone or not together:
        return False
    parts, whole = (_pooled((statistics for statistics, _ in calls), pooled) for calls in (alone, together))
    if parts.size != whole.size:
        return False
    if not all(t.isfinite().all() for t in (*parts[1:], *whole[1:])):
        return True
    near = max(_ALIKE.get(dtype, 0.05) for _, dtype in together)
    scale = float(whole.variance.mean() + 1e-4 * (whole.mean**2).mean())
    moved, changed = (float((a - b).abs().max()) for a, b in zip(parts[1:], whole[1:], strict=True))
    return moved <= near * math.sqrt(scale) and changed <= near * scale


def _pooled(calls: Iterable[Statistics], pooled: bool) -> Statistics:
    population = Population(pooled=pooled)
    population.add((0, statistics) for statistics in calls)
    population.pool()
    return Statistics(population.count, population.mean, population.variance)
