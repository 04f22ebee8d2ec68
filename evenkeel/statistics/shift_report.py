"""ShiftRow and ShiftReport: what `variance_shift` measures and `predict_shift` predicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from evenkeel.graph.layer_graph import Layer
from evenkeel.output.tables import Cells, Report, grouped

_LEAST_SHARE = 1.0  # percent of a shift that is worth naming


_COLUMNS = ("norm", "running var", "eval var", "eval/train", "folded", "fed by dropouts")


@dataclass(frozen=True)
class ShiftRow:
    """The variance shift of one norm layer.

    Attributes:
        path: the norm's path in the model.
        running_var: the variance it stores, averaged over channels.
        eval_var: the variance of its input in eval mode, averaged over channels.
        dropouts: the dropouts that feed it: those upstream of it, back to the norms before, nearest first.
        causes: of a predicted shift, the dropouts that cause it, however far upstream, and their share in percent.

    >>> row = ShiftRow("layer1.bn2", running_var=2.0, eval_var=1.0)
    >>> row.ratio, row.folded
    (0.5, 2.0)
    """

    path: str
    running_var: float
    eval_var: float
    dropouts: tuple[Layer, ...] = ()
    causes: tuple[tuple[Layer, float], ...] = ()

    @property
    def ratio(self) -> float:
        """Eval variance over train variance, Li's Delta: below 1, the stored variance is too large."""
        if self.running_var == 0:
            return 1.0 if self.eval_var == 0 else math.inf
        return self.eval_var / self.running_var

    @property
    def folded(self) -> float:
        """The ratio or its inverse, whichever is at least 1: what Li's figures plot."""
        return math.inf if self.ratio == 0 else max(self.ratio, 1 / self.ratio)

    @property
    def fed_by(self) -> str:
        """The dropouts in words, for a table's cell: the first two, and how many more."""
        found = [(layer, f" {share:.0f} %") for layer, share in self.causes if share >= _LEAST_SHARE]
        found = found or [(layer, "") for layer in self.dropouts]
        names = [
            f"{d.name} p={'?' if d.p is None else f'{d.p:g}'}{f' ({d.where})' if d.where else ''}{share}"
            for d, share in found[:2]
        ]
        return ", ".join(names) + (f" and {len(found) - 2} more" if len(found) > 2 else "")

    def to_dict(self) -> dict[str, Any]:
        """The row as plain numbers, strings and lists."""
        return {
            "path": self.path,
            "running_var": self.running_var,
            "eval_var": self.eval_var,
            "ratio": self.ratio,
            "folded": self.folded,
            "dropouts": [{"name": d.name, "p": d.p, "where": d.where} for d in self.dropouts],
            "causes": [{"name": d.name, "p": d.p, "where": d.where, "percent": share} for d, share in self.causes],
        }


class ShiftReport(Report[ShiftRow]):
    """The variance shift of every norm layer of a model, in execution order; `str()` is the table.

    Attributes:
        rows: one a norm.
        notes: what the reader must know, such as norms that no batch reached.
        unsure: of a prediction, the norms for which something had to be guessed, by path, each with the reason.

    >>> report = ShiftReport([ShiftRow("bn1", 1.0, 1.0), ShiftRow("bn2", 2.0, 1.0), ShiftRow("bn3", 1.0, 1.1)])
    >>> report.median, report.worst, report.worst_row.path
    (1.1, 2.0, 'bn2')
    """

    def __init__(
        self, rows: Iterable[ShiftRow], notes: Iterable[str] = (), *, unsure: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(rows, unsure=unsure, notes=(*notes, *grouped(unsure or {})))

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
        """The row with the largest folded ratio."""
        return max(self.rows, key=lambda row: row.folded)

    def _figures(self) -> dict[str, Any]:
        return {"median": self.median, "worst": self.worst, "worst_path": self.worst_row.path}

    def __repr__(self) -> str:
        return f"ShiftReport({len(self)} norms, median x{self.median:.3f}, worst x{self.worst:.3f})"

    def _cells(self) -> Cells:
        even = f"median x{self.median:.2f}, worst x{self.worst:.2f} at {self.worst_row.path}  (x1.00 is even)"
        rows = [
            (r.path, f"{r.running_var:.4g}", f"{r.eval_var:.4g}", f"{r.ratio:.3f}", f"x{r.folded:.2f}", r.fed_by)
            for r in self.rows
        ]
        columns = (*_COLUMNS[:-1], "caused by dropouts") if any(r.causes for r in self.rows) else _COLUMNS
        return Cells(columns, rows, [even, *self.notes], words=(columns[0], columns[-1]))
