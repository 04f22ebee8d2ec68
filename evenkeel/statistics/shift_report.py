"""ShiftRow and ShiftReport: what `variance_shift` measures and `predict_shift` predicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.output.tables import Cells, Report, grouped

_LEAST_SHARE = 1.0  # percent of a shift that is worth naming


_COLUMNS = ("norm", "running var", "eval var", "eval/train")
_MEASURED = (*_COLUMNS, "channels", "mean off", "made of")
_PREDICTED = (*_COLUMNS, "slope", "folded", "fed by dropouts")
_CAUSED = (*_COLUMNS, "slope", "folded", "caused by dropouts")
_INHERITED = (*_COLUMNS, "slope", "own", "inherited", "caused by dropouts")
_MEASURED_CAUSED = (*_MEASURED, "caused by dropouts")
LARGEST = 1e6  # figures of which are printed: those of untrained nets have no bounds
_NAMED = 0.005  # log ratio of an inherited part that a table shows


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
        """The dropouts and other noise in words, for a table's cell: the first two, and how many more."""
        found = [(layer, f" {share:.0f} %") for layer, share in self.causes if share >= _LEAST_SHARE]
        found = found or [(layer, "") for layer in self.dropouts]
        names = [f"{_noise(layer)}{f' ({layer.where})' if layer.where else ''}{share}" for layer, share in found[:2]]
        return ", ".join(names) + (f" and {len(found) - 2} more" if len(found) > 2 else "")

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


class ShiftReport(Report[ShiftRow]):
    """The variance shift of every norm layer of a model, in execution order; `str()` is the table.

    The table has norms first that store what cannot be.

    Attributes:
        rows: one a norm.
        notes: what the reader must know, such as norms that no batch reached.
        unsure: of a prediction, the norms for which something had to be guessed, by path, each with the reason.
        other_data: of a measurement, norms that meet other data than in training, unless weights have changed since,
            by path, each with how far they are off.

    >>> report = ShiftReport([ShiftRow("bn1", 1.0, 1.0), ShiftRow("bn2", 2.0, 1.0), ShiftRow("bn3", 1.0, 1.1)])
    >>> report.median, report.worst, report.worst_row.path
    (1.1, 2.0, 'bn2')
    """

    _width = 120

    def __init__(
        self,
        rows: Iterable[ShiftRow],
        notes: Iterable[str] = (),
        *,
        unsure: Mapping[str, str] | None = None,
        other_data: Mapping[str, str] | None = None,
    ) -> None:
        self.other_data = dict(other_data or {})
        warning = (f"{self.accusation}: check their scaling, normalization and domain",) if self.other_data else ()
        super().__init__(rows, unsure=unsure, notes=(*warning, *notes, *grouped(unsure or {})))

    @property
    def accusation(self) -> str:
        """Which norm shows that the data are not those of training, and how far it is off; nothing if none does."""
        if not self.other_data:
            return ""
        (path, how), more = next(iter(self.other_data.items())), len(self.other_data) - 1
        others = f", and {more} more norm{'s' if more > 1 else ''} likewise" if more else ""
        return f"{path} {how}{others}: these are not the data of training, or weights have changed since"

    @property
    def median(self) -> float:
        """Median over the norms of the folded ratio; 1 is even."""
        return median(row.folded for row in self.rows)

    @property
    def worst(self) -> float:
        """Largest folded ratio."""
        return self.worst_row.folded

    @property
    def worst_row(self) -> ShiftRow:
        """The row with the largest folded ratio; the first that stores what cannot be, if any does."""
        return max(self.rows, key=lambda row: (bool(row.bad), row.folded))

    def _figures(self) -> dict[str, Any]:
        worst = {"median": self.median, "worst": self.worst, "worst_path": self.worst_row.path}
        return worst | {"other_data": self.other_data}

    def __repr__(self) -> str:
        return f"ShiftReport({len(self)} norms, median x{self.median:.3f}, worst x{self.worst:.3f})"

    def _cells(self) -> Cells:
        median, worst = _figure(self.median, ".2f", "x"), _figure(self.worst, ".2f", "x")
        even = f"median {median}, worst {worst} at {self.worst_row.path}  (x1.00 is even)"
        columns = self._columns()
        rows = [
            (
                r.path,
                _figure(r.running_var, ".4g"),
                _figure(r.eval_var, ".4g"),
                _figure(r.ratio, ".3f"),
                *_last(r, columns),
            )
            for r in sorted(self.rows, key=lambda row: not row.bad)
        ]
        return Cells(columns, rows, [even, *self.notes], words=(columns[0], "made of", columns[-1]))

    def _columns(self) -> tuple[str, ...]:
        if any(row.why or row.moved is not None for row in self.rows):
            return _MEASURED_CAUSED if any(row.causes for row in self.rows) else _MEASURED
        if any(abs(math.log(row.parts.get("inherited", 1.0))) > _NAMED for row in self.rows):
            return _INHERITED
        return _CAUSED if any(row.causes for row in self.rows) else _PREDICTED


def _figure(value: float, form: str, sign: str = "") -> str:
    """A figure, in few letters where it is so large that it says no more than that."""
    return f">{sign}{LARGEST:g}" if LARGEST < value < math.inf else f"{sign}{value:{form}}"


def _last(row: ShiftRow, columns: tuple[str, ...]) -> tuple[str, ...]:
    """The last cells of a row."""
    slope = "" if row.slope is None else f"{row.slope:.2f}"
    if columns is _INHERITED:
        parts = (f"x{row.parts[name]:.2f}" if name in row.parts else "" for name in ("dropout", "inherited"))
        return slope, *parts, row.fed_by
    if columns not in (_MEASURED, _MEASURED_CAUSED):
        return slope, f"x{row.folded:.2f}", row.fed_by
    spread = "" if row.spread is None else "-".join(_figure(ratio, ".2f") for ratio in row.spread)
    caused = () if columns is _MEASURED else (row.fed_by if row.causes else "",)
    return spread, "" if row.moved is None else _figure(row.moved, ".2f"), row.why, *caused
