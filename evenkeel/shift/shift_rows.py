"""ShiftRow and ShiftRows: the variance shift of one norm layer, and what those of a model come to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.output.page import Histogram
from evenkeel.output.tables import Report

_LONG = 80  # letters that name two dropouts in a table's cell
_LEAST_SHARE = 1.0  # percent of a shift that is worth naming


@dataclass(frozen=True)
class ShiftRow:
    """The variance shift of one norm layer.

    Attributes:
        path: the norm's path in the model.
        running_var: the variance it stores, averaged over channels.
        eval_var: the variance of its input in eval mode, averaged over channels.
        dropouts: the dropouts, and other noise of training, that feed it: those upstream of it, back to the norms
            before, nearest first.
        causes: of a predicted shift, the dropouts and other noise that cause it, however far upstream, and their share
            in percent.
        parts: the factors that the ratio is the product of: "inherited" (from norms upstream, by their shifts) and
            "dropout" (its noise since these, gone in eval mode); of a measured shift also "initial" (what is left of
            the variance 1 that the norm was built with) and "stored" (statistics of other data, batches or weights),
            and "dropout" is then of some of the samples, with dropout on.
        slope: of a predicted shift, the slope k of what training feeds the norm on what eval mode feeds it, averaged
            over channels: 1 where `match="mean"` changes nothing, whatever the ratio.
        moved: of a measured shift: how far the mean in eval mode is from the one stored, in stored standard
            deviations, averaged over channels.
        moved_most: the same of the channel where it is farthest.
        spread: of a measured shift, smallest and largest ratio of a channel, with the norm's eps on both sides.
        initial_left: how much of the initial statistics is left, 0 to 1; None if updates were not counted.
        bad: what the norm stores that cannot be (NaN, infinite or negative), in words; nothing if all can.
        why: what the shift is made of, in words.
        channels: how many channels have which ratio, with the norm's eps on both sides.

    >>> row = ShiftRow("layer1.bn2", running_var=2.0, eval_var=1.0)
    >>> row.ratio, row.folded
    (0.5, 2.0)
    """

    path: str
    running_var: float
    eval_var: float
    dropouts: tuple[Layer, ...] = ()
    causes: tuple[tuple[Layer, float], ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)
    slope: float | None = None
    moved: float | None = None
    moved_most: float | None = None
    spread: tuple[float, float] | None = None
    initial_left: float | None = None
    bad: str = ""
    why: str = ""
    channels: Histogram | None = field(default=None, repr=False)

    @property
    def ratio(self) -> float:
        """Eval variance over train variance, Li's Delta: below 1, the stored variance is too large."""
        if self.running_var == 0:
            return 1.0 if self.eval_var == 0 else math.inf
        return self.eval_var / self.running_var

    @property
    def folded(self) -> float:
        """The ratio or its inverse, whichever is at least 1: what Li's figures plot; infinite if it is no number."""
        good = not self.bad and 0 < self.ratio < math.inf
        return max(self.ratio, 1 / self.ratio) if good else math.inf

    @property
    def fed_by(self) -> str:
        """The dropouts and noise in words, for a table's cell: the first two, or one if long, and how many more."""
        found = [(layer, f" {share:.0f} %") for layer, share in self.causes if share >= _LEAST_SHARE]
        found = found or [(layer, "") for layer in self.dropouts]
        names = [f"{_noise(layer)}{f' ({layer.where})' if layer.where else ''}{share}" for layer, share in found[:2]]
        names = names if len(", ".join(names)) <= _LONG else names[:1]
        return ", ".join(names) + (f" and {len(found) - len(names)} more" if len(found) > len(names) else "")

    @property
    def because(self) -> str:
        """What the shift is made of, if that was measured, and which dropouts cause it, none of them twice."""
        if self.bad:
            return self.bad
        if not (self.why and self.causes):
            return self.why or (self.fed_by if self.causes else "")
        if len(self.causes) == 1 and self.causes[0][0].label.partition(" ")[0] in self.why:
            return self.why
        near = replace(self, causes=()).fed_by
        return f"{self.why.replace(f'dropout {near}', 'dropout') if near else self.why}; caused by {self.fed_by}"

    def to_dict(self) -> dict[str, Any]:
        """The row as plain numbers, strings and lists."""
        return {
            "path": self.path,
            "running_var": self.running_var,
            "eval_var": self.eval_var,
            "ratio": self.ratio,
            "folded": self.folded,
            "dropouts": [_entry(layer) for layer in self.dropouts],
            "causes": [_entry(layer) | {"percent": share} for layer, share in self.causes],
            "slope": self.slope,
            "moved": self.moved,
            "moved_most": self.moved_most,
            "spread": list(self.spread) if self.spread else None,
            "parts": dict(self.parts),
            "initial_left": self.initial_left,
            "bad": self.bad,
            "why": self.why,
            "channels": self.channels and self.channels.to_dict(),
        }


def _noise(layer: Layer) -> str:
    """A dropout by its name and rate; other noise says that it is noise."""
    if layer.kind is Kind.NOISE:
        return f"noise {layer.name}"
    return layer.name if layer.kind is not Kind.DROPOUT and layer.p is None else f"{layer.name} p={_rate(layer)}"


def _entry(layer: Layer) -> dict[str, Any]:
    """A dropout as plain values; other noise says that it is noise."""
    entry = {"name": layer.name, "p": layer.p, "where": layer.where}
    return entry | {"kind": "noise"} if layer.kind is Kind.NOISE else entry


def _rate(layer: Layer) -> str:
    return "?" if layer.p is None else f"{layer.p:g}"


class ShiftRows(Report[ShiftRow]):
    """The variance shift of every norm layer, and the figures that hold for all: what a `ShiftReport` is made on."""

    @property
    def median(self) -> float:
        """Median over the norms of max(r, 1 / r), with r the ratio; 1 is even."""
        return median(row.folded for row in self.rows)

    @property
    def worst(self) -> float:
        """Largest max(r, 1 / r), with r the ratio."""
        return self.worst_row.folded

    @property
    def worst_row(self) -> ShiftRow:
        """The row that is off the most; the first that stores what cannot be, if any does."""
        return max(self.rows, key=lambda row: (bool(row.bad), row.folded))

    @property
    def is_measured(self) -> bool:
        """Whether it is of data, not predicted."""
        return any(row.why or row.moved is not None for row in self.rows)
