"""MatchReport: what `match_` did, and the way back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import count_text
from evenkeel.merging.folds import NOTHING, Target, is_live, write_weights_
from evenkeel.model.buffers import Held, put_back_
from evenkeel.model.evaluation import Score, outcome
from evenkeel.output.tables import Cells, Report, grouped
from evenkeel.statistics.norm_change import NormChange
from evenkeel.statistics.population import Population

_LITTLE = 1e-4  # of the largest deviation asked for in a layer: less is none


@dataclass(frozen=True)
class MatchRow:
    """What was done to the units of one weight layer.

    Attributes:
        path: the layer's path in the model.
        units: how many there are.
        mean_before, mean_after, mean_target: of their outputs, averaged over units.
        deviation_before, deviation_after, deviation_target: the standard deviation of their outputs, likewise.
        off_before, off_after: how far the worst unit is from its target: its mean, in target deviations, or its
            deviation, relative, whichever is more; of units that vary.
        has_bias: whether there is a bias to shift the mean by; if not, `off_after` is of deviations alone.
        dead: how many units do not vary, though their target does; they are not in `off_after`.

    >>> MatchRow("fc", 2, 0.0, 0.1, 0.1, 0.5, 1.0, 1.0, 0.6, 0.0, True).ratio
    0.5
    """

    path: str
    units: int
    mean_before: float
    mean_after: float
    mean_target: float
    deviation_before: float
    deviation_after: float
    deviation_target: float
    off_before: float
    off_after: float
    has_bias: bool
    dead: int = 0

    @classmethod
    def of(cls, path: str, before: Population, after: Population, target: Target, *, has_bias: bool) -> MatchRow:
        """Of what was measured and asked for."""
        found, left = Target.of(before), Target.of(after)
        return cls(
            path,
            len(target.mean),
            mean_before=float(found.mean.mean()),
            mean_after=float(left.mean.mean()),
            mean_target=float(target.mean.mean()),
            deviation_before=float(found.deviation.mean()),
            deviation_after=float(left.deviation.mean()),
            deviation_target=float(target.deviation.mean()),
            off_before=distance(before, target, has_bias=has_bias),
            off_after=distance(after, target, has_bias=has_bias),
            has_bias=has_bias,
            dead=_dead(before, target),
        )

    @property
    def ratio(self) -> float:
        """The deviation found over the one asked for: below 1 where merging has taken variance away."""
        return self.deviation_before / self.deviation_target if self.deviation_target else math.nan

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self) | {"ratio": self.ratio}


def distance(population: Population, target: Target, *, has_bias: bool) -> float:
    """How far the worst unit is from its target, as in `MatchRow.off_after`."""
    live = is_live(population, target) & (target.deviation > 0)
    if not live.any():
        return 0.0
    mean, deviation = Target.of(population)
    off = (deviation / target.deviation - 1).abs()[live]
    if has_bias:
        off = torch.maximum(off, ((mean - target.mean).abs() / target.deviation)[live])
    return float(off.max())


def _dead(population: Population, target: Target) -> int:
    """How many units do not vary, though they are to, by more than rounding makes those of the layer."""
    mean, deviation = target
    is_to = deviation > torch.maximum(NOTHING * mean.abs().max(), _LITTLE * deviation.max())
    return int((~is_live(population, target) & is_to).sum())


class MatchReport(Report[MatchRow]):
    """What `match_` did, a row a weight layer in execution order, and the way back; `str()` is the table.

    Attributes:
        rows: one a weight layer matched.
        norms: what was done to the norms with stored statistics, one a norm.
        references: how many end points there were.
        batches: number of batches used.
        samples: number of samples in them.
        passes: how many times all the data were run through the model, the end points not counted.
        untouched: layers left as they were, by path, each with the reason.
        unsure: layers whose units are not where they should be, by path, each with how far off.
        notes: what else the reader must know.
        before, after: the model's scores on held-out data, if there were any, before and after.
        kept: whether the new weights are in the model, or, having been no better, were taken back.
    """

    _title = "match"

    def __init__(
        self,
        rows: Iterable[MatchRow],
        *,
        norms: Sequence[NormChange],
        references: int,
        batches: int,
        samples: int,
        passes: int,
        untouched: Mapping[str, str],
        unsure: Mapping[str, str],
        notes: Iterable[str],
        weights: Mapping[nn.Parameter, Tensor],
        held: Held,
    ) -> None:
        super().__init__(rows, untouched=untouched, unsure=unsure, notes=notes)
        self.norms = tuple(norms)
        self.references = references
        self.batches = batches
        self.samples = samples
        self.passes = passes
        self.before: Score | None = None
        self.after: Score | None = None
        self.kept = True
        self._weights = weights
        self._held = held

    def undo(self) -> None:
        """Put weights, biases and statistics found before back, in place."""
        write_weights_(self._weights)
        put_back_(self._held)

    @property
    def summary(self) -> str:
        """What it was made from, and whether it helped, in words."""
        found = outcome(self.before, self.after, kept=self.kept)
        scores = f"; {found}" if found else ""
        points = count_text(self.references, "end point")
        return f"{points}, {self.samples} samples in {self.batches} batches, {self.passes} passes{scores}"

    def __repr__(self) -> str:
        untouched = "".join(f"; {path!r} untouched: {reason}" for path, reason in self.untouched.items())
        norms = f", {count_text(len(self.norms), 'norm')}" if self.norms else ""
        return f"MatchReport({count_text(len(self), 'layer')}{norms} matched to {self.summary}{untouched})"

    def _figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {"norms": [asdict(norm) for norm in self.norms], "references": self.references}
        figures |= {"batches": self.batches, "samples": self.samples, "passes": self.passes, "kept": self.kept}
        return figures | {"before": self.before and asdict(self.before), "after": self.after and asdict(self.after)}

    def _cells(self) -> Cells:
        rows = [
            (
                r.path,
                str(r.units),
                *(f"{x:.4g}" for x in (r.deviation_before, r.deviation_after, r.deviation_target)),
                f"{r.ratio:.3f}",
                *(f"{x:.4g}" for x in (r.mean_before, r.mean_after, r.mean_target)),
                f"{r.off_after:.2g}",
            )
            for r in self
        ]
        columns = ("layer", "units", "deviation", "matched", "target", "ratio before")
        columns += ("mean", "mean matched", "mean target", "off")
        norms = [f"{count_text(len(self.norms), 'norm')} re-estimated on the same batches"] if self.norms else []
        caption = [f"matched to {self.summary}", *norms, *grouped(self.untouched, "untouched")]
        return Cells(columns, rows, [*caption, *grouped(self.unsure), *self.notes], words=columns[:1])
