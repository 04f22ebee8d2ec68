"""InitRow and InitReport: what `init_` did, and what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor, nn

from evenkeel.init.drawing import Distribution
from evenkeel.init.gains import Mode
from evenkeel.model.buffers import write_
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.tables import Cells, Report, grouped
from evenkeel.signals.propagation import MeanSquares

_COLUMNS = ("layer", "before", "after", "gain", "train var", "eval var", "train grad var", "eval grad var")


@dataclass(frozen=True)
class InitRow:
    """One weight layer as `init_` left it.

    Attributes:
        name: the layer's name in the graph.
        before, after: what lies between it and the weight layers before and after it, nearest first.
        fan_in, fan_out: how many weights meet in one output, and how many one input meets.
        gain: the root mean square of its weights times the root of fan_in; 1 is the unit sphere.
        predicted: mean squares of its output and of the gradients there, in train and in eval mode.
    """

    name: str
    before: str
    after: str
    fan_in: float
    fan_out: float
    gain: float
    predicted: MeanSquares


class InitReport(Report[InitRow]):
    """What `init_` did and what it predicts, layer by layer in execution order; `str()` is the table.

    Attributes:
        rows: one a weight layer, made when they are first read; the predictions are those of the model as it was left.
        untouched: weight layers and parameters that were not drawn, by name, each with the reason.
        unsure: weight layers whose gain is a guess, by name, each with what it is guessed from.
        notes: what concerns the whole model.
        mode, weights: as asked for.
    """

    _width = 140

    def __init__(
        self,
        rows: Callable[[], Iterable[InitRow]],
        *,
        untouched: Mapping[str, str],
        unsure: Mapping[str, str],
        notes: Iterable[str],
        mode: Mode,
        weights: Distribution,
        model: nn.Module,
        before: dict[nn.Parameter, Tensor],
    ) -> None:
        super().__init__(rows, untouched=untouched, unsure=unsure, notes=notes)
        self.mode: Mode = mode
        self.weights: Distribution = weights
        self._model = model
        self._before = before

    def undo(self) -> None:
        """Put back every parameter as it was before `init_`."""
        with unwrapped(self._model):  # where it is sharded, these are its parameters only meanwhile
            for parameter, values in self._before.items():
                write_(parameter, values)

    def _figures(self) -> dict[str, Any]:
        return {"mode": self.mode, "weights": self.weights}

    def __repr__(self) -> str:
        return f"InitReport({len(self)} weight layers, mode={self.mode!r}, weights={self.weights!r})"

    def _cells(self) -> Cells:
        rows = [
            (row.name, row.before, row.after, f"{row.gain:.4f}", *(f"{value:.3g}" for value in astuple(row.predicted)))
            for row in self.rows
        ]
        caption = [*grouped(self.untouched, "not drawn"), *grouped(self.unsure, "gain is a guess"), *self.notes]
        return Cells(_COLUMNS, rows, caption, words=_COLUMNS[:3])
