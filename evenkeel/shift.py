"""variance_shift: how far the variance that a norm stores is from the one that it meets in eval mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evenkeel.batches import Forward, call, each
from evenkeel.errors import TraceError
from evenkeel.graph import Layer, LayerGraph
from evenkeel.kinds import Kind
from evenkeel.measurement import Measurement
from evenkeel.modes import restored, unwrapped
from evenkeel.norms import foreign_norms, norms_of
from evenkeel.tables import Rows, plain, table
from evenkeel.tracing import record

if TYPE_CHECKING:
    from rich.table import Table

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


class ShiftReport(Rows[ShiftRow]):
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
        super().__init__(rows)
        self.unsure = dict(unsure or {})
        self.notes = (*notes, *_grouped(self.unsure))

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

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, strings and lists, for JSON."""
        return {
            "median": self.median,
            "worst": self.worst,
            "worst_path": self.worst_row.path,
            "rows": [row.to_dict() for row in self.rows],
            "notes": list(self.notes),
            "unsure": self.unsure,
        }

    def __str__(self) -> str:
        return plain(self)

    def __repr__(self) -> str:
        return f"ShiftReport({len(self)} norms, median x{self.median:.3f}, worst x{self.worst:.3f})"

    def __rich__(self) -> Table:
        even = f"median x{self.median:.2f}, worst x{self.worst:.2f} at {self.worst_row.path}  (x1.00 is even)"
        rows = [
            (r.path, f"{r.running_var:.4g}", f"{r.eval_var:.4g}", f"{r.ratio:.3f}", f"x{r.folded:.2f}", r.fed_by)
            for r in self.rows
        ]
        columns = (*_COLUMNS[:-1], "caused by dropouts") if any(r.causes for r in self.rows) else _COLUMNS
        return table(columns, rows, [even, *self.notes], words=(columns[0], columns[-1]))


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    """A line for every reason, with the norms that it holds for."""
    paths: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        paths.setdefault(reason, []).append(path)
    return [
        f"{found[0]}{f' and {len(found) - 1} more' if found[1:] else ''}: {reason}" for reason, found in paths.items()
    ]


def variance_shift(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, max_batches: int | None = None
) -> ShiftReport:
    """Measure, at every norm layer, the variance met in eval mode against the one stored in training.

    Both are averaged over channels, and their ratio is `Delta = mean_c Var_eval / mean_c running_var` (Li et al. 2018,
    section 4). The eval variance is the unbiased variance over all values that the batches send through a channel,
    with the whole model in eval mode, where upstream norms normalise by what they store: the shift as the model
    stands. A healthy network without dropout reads up to about 1.07. The model is given back as found.

    Args:
        model: the model, in train or eval mode.
        batches: an iterable; a tensor b is run as `model(b)`, a tuple or list as `model(b[0])`, a mapping as
            `model(**b)`.
        forward: how to run anything else: `lambda model, batch: ...`.
        max_batches: how many batches to use; all if None.

    Returns:
        A `ShiftReport`: a row a norm, in execution order. Norms that no batch reaches are named in its notes.

    Raises:
        ModelError: the model has no norm with running statistics.
        BatchError: the batches raised, ran short, were empty or not finite; says which batch and layer.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=1.0))
    >>> data = [torch.randn(4096, 8)]
    >>> _ = model(data[0])
    >>> report = variance_shift(model, data)
    >>> round(report.worst, 1), report[0].dropouts
    (2.0, (Layer('0', DROPOUT, p=0.5),))
    """
    with unwrapped(model) as plain, restored(plain), torch.no_grad():
        norms = norms_of(plain)
        stream = each(batches, plain, max_batches)
        first = next(stream)
        notes: list[str] = []
        try:
            graph = record(plain, lambda batch: call(plain, batch) if forward is None else forward(plain, batch), first)
        except TraceError as error:
            graph = LayerGraph(())
            notes.append(f"which dropouts feed a norm is not known: {error}")
        measurement = Measurement(plain, norms, forward=forward)
        for group in measurement.groups(chain([first], stream)):
            measurement.add(group)
            measurement.arrivals = {}
    populations = measurement.populations
    notes += [f"{path}: never reached by the batches" for path in norms if path not in populations]
    notes += [f"{path}: {what}" for path, what in foreign_norms(plain).items()]
    rows = [
        ShiftRow(path, _mean(norms[path].running_var), _mean(population.variance), feeding(graph, norms[path]))
        for path, population in populations.items()
    ]
    return ShiftReport(rows, notes)


def feeding(graph: LayerGraph, norm: nn.Module) -> tuple[Layer, ...]:
    """The dropouts that act on a norm's input: those upstream of its calls, back to the norms before."""
    calls = [layer for layer in graph.of(Kind.NORM) if layer.module is norm]
    found = [layer for one in calls for layer in graph.upstream(one, until=Kind.NORM)]
    return tuple(dict.fromkeys(layer for layer in found if layer.p or (layer.kind is Kind.DROPOUT and layer.p is None)))


def _mean(channels: torch.Tensor | None) -> float:
    """The mean over channels; NaN if there are none."""
    return math.nan if channels is None else float(channels.double().mean())
