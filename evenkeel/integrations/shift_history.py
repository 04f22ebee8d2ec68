"""ShiftHistory: the variance shift of norms over the steps of training, as rows, as a CSV file and as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError, brief
from evenkeel.integrations.frameworks import importing
from evenkeel.output.figures import save_figure
from evenkeel.output.tables import Cells, Report
from evenkeel.shift.shift_rows import ShiftRow

_PARTS = ("inherited", "dropout", "initial", "stored")
_NAMED = 8  # norms that a picture names: those that were off the most


@dataclass(frozen=True)
class ShiftRecord:
    """The variance shift of one norm at one step of training.

    Attributes:
        step: steps of training done.
        epoch: epochs done.
        path: the norm's path; "" where nothing could be measured.
        running_var: the variance it stores, averaged over channels.
        eval_var: the variance of its input in eval mode, averaged over channels.
        ratio: eval over stored variance.
        folded: the ratio or its inverse, whichever is at least 1; infinite where it is no number.
        moved: how far the mean in eval mode is from the one stored, in stored standard deviations.
        inherited, dropout, initial, stored: the factors that the ratio is the product of (see `ShiftRow.parts`).
        dropouts: the dropouts that feed it.
        why: what the shift is made of, or why nothing was measured.
    """

    step: int
    epoch: int
    path: str = ""
    running_var: float = math.nan
    eval_var: float = math.nan
    ratio: float = math.nan
    folded: float = math.inf
    moved: float = math.nan
    inherited: float = math.nan
    dropout: float = math.nan
    initial: float = math.nan
    stored: float = math.nan
    dropouts: str = ""
    why: str = ""

    @classmethod
    def of(cls, row: ShiftRow, step: int, epoch: int) -> ShiftRecord:
        """The record of a row that `variance_shift` returned.

        >>> ShiftRecord.of(ShiftRow("bn", 2.0, 1.0, parts={"dropout": 0.5}), step=10, epoch=1).dropout
        0.5
        """
        return cls(
            step,
            epoch,
            row.path,
            row.running_var,
            row.eval_var,
            row.ratio,
            row.folded,
            math.nan if row.moved is None else row.moved,
            **{part: row.parts.get(part, math.nan) for part in _PARTS},
            dropouts=row.fed_by,
            why=row.bad or row.why,
        )


_COLUMNS = tuple(field.name for field in fields(ShiftRecord))
_NUMBERS: dict[str, type] = {"step": int, "epoch": int} | dict.fromkeys(_COLUMNS[3:12], float)


class ShiftHistory(Report[ShiftRecord]):
    """The variance shift of norms over training, a row a norm and step; `str()` is the table of first and last.

    Attributes:
        rows: in the order of steps, and of execution within one.

    >>> history = ShiftHistory([ShiftRecord(10, 1, "bn", ratio=0.5, folded=2.0)])
    >>> history.steps, history.worst
    ((10,), {10: 2.0})
    """

    _title = "shift over training"

    def __init__(self, rows: Iterable[ShiftRecord]) -> None:
        super().__init__(rows)
        failed = [row for row in self.rows if not row.path]
        self.notes = tuple(f"step {row.step}: not measured: {row.why}" for row in failed)

    @classmethod
    def read(cls, path: str | Path) -> ShiftHistory:
        """Read the CSV file of a `ShiftLog`; a last line that was cut short, and what belongs to it, is left out.

        Args:
            path: of the file.

        Raises:
            EvenkeelError: it cannot be read, or is no such file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EvenkeelError(f"{path} cannot be read: {brief(error)}") from error
        whole, _, torn = text.rpartition("\n")
        header, *lines = csv.reader(StringIO(whole)) if whole else ([],)
        if tuple(header) != _COLUMNS:
            raise EvenkeelError(f"{path} is no log of norms' shifts: its columns are not {', '.join(_COLUMNS)}")
        records = [_record(line, path, number) for number, line in enumerate(lines, 2)]
        return cls(record for record in records if not torn or record.step < records[-1].step)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps at which was measured."""
        return tuple(dict.fromkeys(row.step for row in self))

    @property
    def worst(self) -> dict[int, float]:
        """How far the worst norm was off, by step."""
        return {step: max(row.folded for row in rows) for step, rows in groupby(self, lambda row: row.step)}

    def to_csv(self, *, header: bool = True) -> str:
        """The rows as text of a CSV file; numbers in full, so that reading gives the same bits."""
        out = StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([_COLUMNS] if header else [])
        writer.writerows(astuple(row) for row in self)
        return out.getvalue()

    def plot(self, path: str | Path) -> None:
        """Draw each norm's ratio of eval to stored variance against the steps, and write the picture.

        The eight norms that were off the most are named, others are grey; what is not finite is left out, and counted.

        Args:
            path: of the file; its suffix says the format, such as .svg or .png.

        Raises:
            EvenkeelError: there is nothing to draw, matplotlib is not installed, the format is unknown, or the file
                cannot be written.
        """
        curves = self._curves()
        if not curves:
            raise EvenkeelError("there is no ratio to draw: nothing was measured yet, or nothing that is finite")
        with importing("matplotlib", extra="plots"):
            from matplotlib.figure import Figure
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes: Any = figure.subplots()
        off = {name: max(abs(math.log(ratio)) for _, ratio in points) for name, points in curves.items()}
        named = set(sorted(off, key=lambda name: -off[name])[:_NAMED])
        for name, points in sorted(curves.items(), key=lambda item: item[0] in named):
            style = {"label": name, "zorder": 2} if name in named else {"color": "0.8", "zorder": 1}
            axes.plot([step for step, _ in points], [ratio for _, ratio in points], ".-", linewidth=1, **style)
        axes.axhline(1, color="0.5", linewidth=1, zorder=0)
        missing = sum(not _is_drawn(row) for row in self)
        title = f"{len(curves)} norms" + (f", {missing} values not finite" if missing else "")
        axes.set(xlabel="step of training", ylabel="eval over stored variance", yscale="log", title=title)
        axes.legend(fontsize="small", frameon=False)
        save_figure(figure, path)

    def _curves(self) -> dict[str, list[tuple[int, float]]]:
        """By norm, steps and ratios as far as these can be drawn."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in filter(_is_drawn, self):
            curves.setdefault(row.path, []).append((row.step, row.ratio))
        return curves

    def _cells(self) -> Cells:
        by_norm: dict[str, list[ShiftRecord]] = {}
        for row in self:
            if row.path:
                by_norm.setdefault(row.path, []).append(row)
        rows = [
            (path, f"{first.ratio:.3f}", f"{last.ratio:.3f}", f"{most.folded:.3f}", f"{most.step}", last.why)
            for path, found in by_norm.items()
            for first, last, most in [(found[0], found[-1], max(found, key=lambda row: row.folded))]
        ]
        steps = self.steps
        span = f"{len(steps)} measurements" + (f", steps {steps[0]} to {steps[-1]}" if steps else "")
        columns = ("norm", "first eval/train", "last", "most off", "at step", "last made of")
        return Cells(columns, rows, [span, *self.notes], words=(columns[0], columns[-1]))


def _is_drawn(row: ShiftRecord) -> bool:
    return 0 < row.ratio < math.inf


def _record(line: Sequence[str], path: str | Path, number: int) -> ShiftRecord:
    try:
        values = [_NUMBERS.get(name, str)(value) for name, value in zip(_COLUMNS, line, strict=True)]
    except ValueError as error:
        raise EvenkeelError(f"{path}, line {number}, cannot be read: {brief(error)}") from error
    return ShiftRecord(*values)
