"""InitRow and InitReport: what `init_` did, and what it predicts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from evenkeel.model.buffers import write_
from evenkeel.output.tables import Cells, Report
from evenkeel.signals.propagation import MeanSquares

if TYPE_CHECKING:
    pass


_COLUMNS = ("layer", "before", "after", "gain", "train var", "eval var", "train error", "eval error")


@dataclass(frozen=True)
class InitRow:
    """One weight layer as `init_` left it.

    Attributes:
        name: the layer's name in the graph.
        before, after: what stands between it and the layers before and after, nearest first, in words.
        fan_in, fan_out: how many weights meet in one output, and how many one input meets.
        gain: its weights' root mean square times the root of fan_in; 1 is the unit sphere.
        predicted: mean squares of its output and of the errors there, in train and in eval mode.
        drawn: whether its weights were drawn by it; if not, `note` says why.
        note: what else there is to know.
    """

    name: str
    before: str
    after: str
    fan_in: float
    fan_out: float
    gain: float
    predicted: MeanSquares
    drawn: bool = True
    note: str = ""


class InitReport(Report[InitRow]):
    """What `init_` did and what it predicts, layer by layer in execution order; `str()` is the table.

    Attributes:
        rows: one a weight layer.
        notes: what the reader must know.
        mode, weights: as asked for.
    """

    _width = 140

    def __init__(
        self, rows: Iterable[InitRow], notes: Iterable[str], mode: str, weights: str, before: dict[nn.Parameter, Tensor]
    ) -> None:
        super().__init__(rows, notes=notes)
        self.mode = mode
        self.weights = weights
        self._before = before

    def undo(self) -> None:
        """Put every weight and bias back as it was before `init_`."""
        for parameter, values in self._before.items():
            write_(parameter, values)

    def _figures(self) -> dict[str, Any]:
        return {"mode": self.mode, "weights": self.weights}

    def __repr__(self) -> str:
        return f"InitReport({len(self)} weight layers, mode={self.mode!r}, weights={self.weights!r})"

    def _cells(self) -> Cells:
        rows = [
            (
                *(row.name, row.before, row.after, f"{row.gain:.4f}"),
                *(f"{value:.3g}" for value in astuple(row.predicted)),
            )
            for row in self.rows
        ]
        notes = [f"{row.name}: {row.note}" for row in self.rows if row.note]
        return Cells(_COLUMNS, rows, [*notes, *self.notes], words=_COLUMNS[:3])
