"""ShiftReport: what `variance_shift` measures and `predict_shift` predicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from evenkeel.output.page import Page
from evenkeel.output.tables import Cells, grouped
from evenkeel.shift.shift_causes import OTHERS
from evenkeel.shift.shift_page import shift_page
from evenkeel.shift.shift_rows import ShiftRow, ShiftRows

_COLUMNS = ("norm", "running var", "eval var", "eval/train")
_MEASURED = (*_COLUMNS, "channels", "mean off", "made of")
_PREDICTED = (*_COLUMNS, "slope", "off by", "fed by dropouts")
_CAUSED = (*_COLUMNS, "slope", "off by", "caused by dropouts")
_INHERITED = (*_COLUMNS, "slope", "own", "inherited", "caused by dropouts")
_MEASURED_CAUSED = (*_MEASURED[:-1], "because of")
_SPARE = (
    "off by",
    "eval var",
    "channels",
    "slope",
    "mean off",
    "running var",
    "own",
    "inherited",
)  # least needed first
LARGEST = 1e6  # figures of which are printed: those of untrained nets have no bounds
_NAMED = 0.005  # log ratio of an inherited part that a table shows


class ShiftReport(ShiftRows):
    """The variance shift of every norm layer of a model, in execution order; `str()` is the table.

    The table has norms first that store what cannot be.

    Attributes:
        rows: one a norm.
        notes: what the reader must know, such as norms that no batch reached.
        unsure: of a prediction, the norms for which something had to be guessed, by path, each with the reason; of a
            measurement, those that store statistics of other values than eval mode normalises.
        other_data: of a measurement, norms that meet other data than in training, unless weights have changed since,
            by path, each with how far they are off.

    >>> report = ShiftReport([ShiftRow("bn1", 1.0, 1.0), ShiftRow("bn2", 2.0, 1.0), ShiftRow("bn3", 1.0, 1.1)])
    >>> report.median, report.worst, report.worst_row.path
    (1.1, 2.0, 'bn2')
    """

    _width = 120
    _title = "variance shift"

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
        return f"{path} {how}{others}: {OTHERS}"

    def _figures(self) -> dict[str, Any]:
        worst = {"median": self.median, "worst": self.worst, "worst_path": self.worst_row.path}
        drawn = {"network": self.network.to_dict()} if self.network else {}
        return worst | {"other_data": self.other_data} | drawn

    def page(self, after: ShiftReport | None = None) -> Page:
        """What `save_html` shows, as plain data.

        Args:
            after: the same after a repair, if there was one: both are shown.
        """
        return shift_page(self, after)

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
        return Cells(columns, rows, [even, *self.notes], words=(columns[0], columns[-1]), spare=_SPARE)

    def _columns(self) -> tuple[str, ...]:
        if self.is_measured:
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
        return slope, *parts, row.bad or row.fed_by
    if columns not in (_MEASURED, _MEASURED_CAUSED):
        return slope, f"x{row.folded:.2f}", row.bad or row.fed_by
    spread = "" if row.spread is None else "-".join(_figure(ratio, ".2f") for ratio in row.spread)
    because = row.why if columns is _MEASURED else row.because
    return spread, "" if row.moved is None else _figure(row.moved, ".2f"), because
