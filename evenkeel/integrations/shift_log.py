"""ShiftLog: measures each norm's variance shift again and again while a model trains, and keeps it."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from torch import distributed, nn

from evenkeel.errors import BatchError, EvenkeelError, similar
from evenkeel.integrations.dataloaders import undisturbed
from evenkeel.integrations.dropout_schedule import require_count
from evenkeel.integrations.frameworks import importing
from evenkeel.integrations.shift_history import ShiftHistory, ShiftRecord
from evenkeel.model.batches import Forward, each
from evenkeel.model.norms import norms_of
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.files import atomic_write, require_folder
from evenkeel.shift.shift import variance_shift

_SCALARS = {"shift": "ratio", "mean_off": "moved"}  # of TensorBoard, by the first part of their names


class ShiftLog:
    """Logs each norm's variance shift over time, by `variance_shift` on a few batches; training notices nothing.

    Call `step()` behind the optimizer's, and `epoch()` at the end of each epoch. The batches are read once, when the
    log is made, and held, so that all measurements are of the same samples; a training DataLoader iterates afterwards
    as it would have, unless its data set draws from a generator of its own. Each measurement is a block of lines at
    the end of a CSV file, on the disk before training goes on. With `resume=True` a log goes on where the file ends,
    or, told by `load_state_dict` or `step(to)`, at an earlier step: lines of that step and later are then replaced.

    With torch.distributed every process makes a log and calls it. Each measures its own batches, waiting for no other,
    unless the model is sharded; the first one alone writes. Where the others cannot read its file, tell a resumed log
    by `load_state_dict`.

    Args:
        model: the model in training.
        batches: what to measure on, as for `variance_shift`.
        path: of the CSV file; None for `history` alone.
        every: measure after each so many steps, too; if None, at the end of epochs.
        max_batches: how many batches to hold; fewer if there are fewer. A few hundred samples tell what a shift is
            made of.
        norms: paths of the norms to log; all if None.
        forward: how to run a batch, if not as `variance_shift` does.
        writer: of TensorBoard: a `torch.utils.tensorboard.SummaryWriter`, or a folder for one; it is given the scalars
            shift/PATH, the ratio, and mean_off/PATH.
        resume: whether a file that is there is continued.

    Attributes:
        steps: steps of training done.
        epochs: epochs done.

    Raises:
        EvenkeelError: the file is there and not to be continued, is no such log, or cannot be written; there is no norm
            of such a path; or tensorboard is not installed.
        ModelError: the model has no norm with running statistics.
        BatchError: there is no batch.

    >>> import torch
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    >>> data = [torch.randn(64, 2) for _ in range(8)]
    >>> log = ShiftLog(model, data, every=4)
    >>> for batch in data:
    ...     _ = model(batch)
    ...     log.step()
    >>> log.history.steps, [row.path for row in log.history]
    ((4, 8), ['1', '1'])
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        path: str | Path | None = None,
        *,
        every: int | None = None,
        max_batches: int = 4,
        norms: Collection[str] | str | None = None,
        forward: Forward | None = None,
        writer: Any = None,
        resume: bool = False,
    ) -> None:
        if every is not None:
            require_count("every", every)
        if max_batches < 1 or max_batches % 1:
            raise EvenkeelError(f"max_batches is {max_batches}: give a whole number, 1 or more")
        self.steps = self.epochs = 0
        self._model, self._forward, self._every = model, forward, every
        self._norms = _chosen(model, norms)
        self._writes = not _is_ranked() or distributed.get_rank() == 0
        file = None if path is None else Path(path)
        self._records = _continued(file, resume=resume, writes=self._writes) if file else []
        self._path = file if self._writes else None
        if self._records:
            self.steps, self.epochs = self._records[-1].step, self._records[-1].epoch
        self._writer: Any = _writer(writer) if writer is not None and self._writes else None
        self._last = -1  # step at which was measured last
        with restored(model, parameters=False), undisturbed(batches) as loader:
            self._held = list(each(islice(_iterable(loader), max_batches), model, None))

    @property
    def history(self) -> ShiftHistory:
        """All that was measured, what a continued file held included: a report with `plot(path)`."""
        return ShiftHistory(self._records)

    def step(self, to: int | None = None) -> None:
        """Count a step of training, or say how many are done, and measure if it is time.

        Raises:
            BatchError: nothing could be measured, at the first time; later that is a row, whose `why` says it.
            EvenkeelError: the file cannot be written, or the number is no whole one of at least 0.
        """
        before, self.steps = self.steps, self.steps + 1 if to is None else _done("steps", to)
        if self._every and self.steps // self._every > before // self._every:
            self.measure()

    def epoch(self, to: int | None = None) -> None:
        """Count an epoch, or say how many are done, and measure, unless that was done at this step.

        Raises:
            BatchError: as for `step`.
            EvenkeelError: as for `step`.
        """
        self.epochs = self.epochs + 1 if to is None else _done("epochs", to)
        if self.steps != self._last:
            self.measure()

    def measure(self) -> ShiftHistory:
        """Measure now, and keep it in place of what is kept of this step and of later ones.

        Returns:
            The rows of this measurement.

        Raises:
            BatchError: as for `step`.
            EvenkeelError: as for `step`.
        """
        try:
            report = variance_shift(self._model, self._held, forward=self._forward)
            found = [ShiftRecord.of(row, self.steps, self.epochs) for row in report]
            found = [record for record in found if self._norms is None or record.path in self._norms]
        except BatchError as error:
            if self._last < 0:  # what never worked is a mistake; later it is training that has gone wrong
                raise
            found = [ShiftRecord(self.steps, self.epochs, why=str(error))]
        kept = [record for record in self._records if record.step < self.steps]
        history = ShiftHistory(found)
        if self._path:
            self._write(history, anew=len(kept) < len(self._records), kept=kept)
        self._records = [*kept, *found]
        self._last = self.steps
        self._show(found)
        return history

    def state_dict(self) -> dict[str, int]:
        """Steps and epochs done, to be saved in a checkpoint."""
        return {"steps": self.steps, "epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at the steps and epochs of a checkpoint.

        Raises:
            EvenkeelError: it is no state of a log.
        """
        if missing := [name for name in ("steps", "epochs") if name not in state]:
            raise EvenkeelError(f"the state has no {missing[0]!r}: pass what state_dict() of a log gave")
        steps, epochs = (_done(name, state[name]) for name in ("steps", "epochs"))
        self.steps, self.epochs = steps, epochs

    def __repr__(self) -> str:
        where = f", {self._path}" if self._path else ""
        return f"ShiftLog({len(self.history.steps)} measurements in {self.steps} steps{where})"

    def _write(self, history: ShiftHistory, *, anew: bool, kept: list[ShiftRecord]) -> None:
        assert self._path is not None
        if anew or not self._path.exists():
            with atomic_write(self._path) as temporary:
                temporary.write_text(ShiftHistory([*kept, *history]).to_csv(), encoding="utf-8")
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(history.to_csv(header=False).encode())  # in one call: a block is there or not
                os.fsync(file.fileno())
        except OSError as error:
            raise EvenkeelError(f"{self._path} cannot be written: {error}") from error

    def _show(self, found: list[ShiftRecord]) -> None:
        if self._writer is None:
            return
        for record in found:
            for name, attribute in _SCALARS.items():
                value = getattr(record, attribute)
                if record.path and not math.isnan(value):
                    self._writer.add_scalar(f"{name}/{record.path}", value, self.steps)


def _done(name: str, value: int) -> int:
    """A number of steps or epochs done, if it is one."""
    if value < 0 or value % 1:
        raise EvenkeelError(f"{value} {name} cannot be done: give a whole number, 0 or more")
    return value


def _chosen(model: nn.Module, norms: Collection[str] | str | None) -> frozenset[str] | None:
    with unwrapped(model) as plain:
        known = list(norms_of(plain))
    if isinstance(norms, str):
        norms = [norms]
    for path in norms or ():
        if path not in known:
            raise EvenkeelError(f"there is no norm {path!r}: {similar(path, known) or 'give some of ' + repr(known)}")
    return None if norms is None else frozenset(norms)


def _continued(path: Path, *, resume: bool, writes: bool) -> list[ShiftRecord]:
    """The rows of a file to be continued, which then holds these alone; none if there is no file."""
    if writes:
        require_folder(path)
    if not path.exists() or not (writes or resume):
        return []
    if not path.is_file():
        raise EvenkeelError(f"{path} is no regular file: a log is read again when it is continued")
    if not resume:
        raise EvenkeelError(f"{path} is there: pass resume=True to continue it, or name another file")
    history = ShiftHistory.read(path)
    if writes and (text := history.to_csv()) != path.read_text(encoding="utf-8"):  # its end was cut
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(history)


def _iterable(batches: Any) -> Any:
    if isinstance(batches, (Mapping, str)) or not hasattr(batches, "__iter__"):
        raise BatchError(f"batches must be an iterable of batches, not one {type(batches).__name__}: pass [batch]")
    return batches


def _writer(writer: Any) -> Any:
    if not isinstance(writer, (str, Path)):
        return writer
    with importing("tensorboard", extra="tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(writer))


def _is_ranked() -> bool:
    return distributed.is_available() and distributed.is_initialized()
