"""Hugging Face: Trainer callbacks that re-estimate norms' statistics, log shifts, schedule dropout and freeze norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.integrations.dataloaders import MappedLoader, undisturbed
from evenkeel.integrations.dropout_schedule import DropoutSchedule, require_count
from evenkeel.integrations.frameworks import importing
from evenkeel.integrations.norm_freezing import FrozenNorms, freeze_norms_
from evenkeel.integrations.shift_log import ShiftLog
from evenkeel.model.batches import length
from evenkeel.model.flags import flagged
from evenkeel.reestimation.reestimation import reestimate_
from evenkeel.reestimation.reestimation_report import Reestimation

with importing("transformers", extra="hf"):
    import_module("transformers.trainer")  # whose callbacks these are: it may fail where the parts below do not
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments


class ReestimationCallback(TrainerCallback):
    """Calls `reestimate_` on the model of a Trainer, on all of its processes.

    Args:
        when: "train_end", once, to stay, of the best model if the Trainer loads it; or "evaluation", before each one in
            training, after which the statistics of training are put back: checkpoints hold those.
        batches: what to measure on; the Trainer's training loader if None, which training does not notice, and of an
            endless one as many batches as training took.
        eval_sets: how many sets the Trainer evaluates on each time, if it has a mapping of them.
        options: of `reestimate_`, such as `tolerance=0.01` or `forward=`.

    Attributes:
        reestimation: what the last `reestimate_` returned; after an evaluation that failed, the way back.

    Raises:
        EvenkeelError: no such time.

    >>> callbacks = [ReestimationCallback(tolerance=0.01)]  # of transformers.Trainer(..., callbacks=callbacks)
    """

    def __init__(
        self,
        when: Literal["train_end", "evaluation"] = "train_end",
        *,
        batches: Iterable[Any] | None = None,
        eval_sets: int = 1,
        **options: Any,
    ) -> None:
        if when not in ("train_end", "evaluation"):
            raise EvenkeelError(f"when must be 'train_end' or 'evaluation', not {when!r}")
        self.when = when
        self.reestimation: Reestimation | None = None
        self._batches = batches
        self._eval_sets = eval_sets
        self._options: dict[str, Any] = {"unsure": "write"} | options  # frozen ones apart
        self._to_come = 0  # sets still to be evaluated on
        self._flags: dict[nn.Module, bool] = {}  # train/eval flags in training, which show what is frozen

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the statistics of training back, should an evaluation not have taken place."""
        self._put_back()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Re-estimate, if an evaluation follows."""
        self._flags = {module: module.training for module in kwargs["model"].modules()}
        self.on_epoch_end(args, state, control, **kwargs)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Re-estimate, if an evaluation follows."""
        if self.when == "evaluation" and control.should_evaluate:
            self._put_back()
            self._reestimate_(args, state, **kwargs)
            self._to_come = self._eval_sets

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the statistics of training back after the last set."""
        if self._to_come == 1:
            self._put_back()
        self._to_come = max(self._to_come - 1, 0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Re-estimate, if this is when to."""
        self._put_back()
        if self.when == "train_end":
            self._reestimate_(args, state, **kwargs)
        self._flags = {}

    def _put_back(self) -> None:
        if self._to_come and self.reestimation is not None:
            self.reestimation.undo()
            self._to_come = 0

    def _reestimate_(
        self, args: TrainingArguments, state: TrainerState, *, model: Any, train_dataloader: Any, **_: Any
    ) -> None:
        with (
            flagged(self._flags),
            _as_trained(args, train_dataloader, self._batches, state.global_step) as batches,
        ):
            self.reestimation = reestimate_(model, batches, **self._options)


class ShiftLogCallback(TrainerCallback):
    """Logs each norm's variance shift over training, by a `ShiftLog` that is made when it starts, by `global_step`.

    It goes on with its file where a training that is resumed from a checkpoint does: lines of later steps are replaced.

    Args:
        path: of the CSV file; None for `log.history` alone.
        every: measure after each so many steps, too; if None, at the end of epochs.
        batches: what to measure on; the first ones of the Trainer's training loader if None, which training does not
            notice.
        options: of `ShiftLog`, such as `norms=`, `max_batches=`, `forward=` and `writer=`.

    Attributes:
        log: the `ShiftLog` of the last training.

    >>> callbacks = [ShiftLogCallback("shift.csv", every=100)]  # of transformers.Trainer(..., callbacks=callbacks)
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        every: int | None = None,
        batches: Iterable[Any] | None = None,
        **options: Any,
    ) -> None:
        self.log: ShiftLog | None = None
        self._path = path
        self._batches = batches
        self._options: dict[str, Any] = {"every": every} | options

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Make the log."""
        done = state.global_step
        with _as_trained(args, train_dataloader, self._batches, done) as batches:
            self.log = ShiftLog(model, batches, self._path, resume=done > 0, **self._options)
        self.log.load_state_dict({"steps": done, "epochs": int(state.epoch or 0)})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure, if it is time."""
        if self.log is not None:
            self.log.step(state.global_step)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure."""
        if self.log is not None:
            self.log.epoch(round(state.epoch or 0))


class DropoutScheduleCallback(TrainerCallback):
    """Sets drop rates over training by a `DropoutSchedule`, by `global_step`, and puts them back at its end.

    A training that is resumed from a checkpoint goes on with the rates of its step.

    Args:
        make: makes the schedule of a model and the number of steps that training takes, such as
            `partial(ek.DropoutSchedule.quiet_end, last=100)`.

    Attributes:
        schedule: the schedule of the last training.

    >>> from functools import partial
    >>> from evenkeel.integrations.dropout_schedule import DropoutSchedule
    >>> callback = DropoutScheduleCallback(partial(DropoutSchedule.early, until=500, linear=True))
    """

    def __init__(self, make: Callable[[nn.Module, int], DropoutSchedule]) -> None:
        self.schedule: DropoutSchedule | None = None
        self._make = make

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Make the schedule; one of a training that failed is over."""
        self.on_train_end(args, state, control)
        self.schedule = self._make(model, state.max_steps)
        self.schedule.step(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the rates for the next step."""
        if self.schedule is not None:
            self.schedule.step(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the rates back."""
        if self.schedule is not None:
            self.schedule.undo()


class FreezeNormsCallback(TrainerCallback):
    """Calls `freeze_norms_` before the last steps of training, on all processes, and thaws norms at its end.

    A training that is resumed behind that step freezes norms on the statistics of the checkpoint. Not to be used with a
    `ReestimationCallback`, which leaves frozen norms alone.

    Args:
        last: how many steps norms are frozen for.
        batches: what to measure on; the Trainer's training loader if None, as for `ReestimationCallback`.
        options: of `reestimate_`, such as `tolerance=0.01` or `forward=`.

    Attributes:
        frozen: what `freeze_norms_` returned; its `undo()` takes back the statistics.

    Raises:
        EvenkeelError: last is no positive whole number.

    >>> callback = FreezeNormsCallback(last=100, tolerance=0.01)
    """

    def __init__(self, last: int, *, batches: Iterable[Any] | None = None, **options: Any) -> None:
        require_count("last", last)
        self.frozen: FrozenNorms | None = None
        self._last = last
        self._batches = batches
        self._options = options

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Freeze, if that step is over; norms of a training that failed are thawed."""
        self.on_train_end(args, state, control)
        self.frozen = freeze_norms_(model) if state.global_step > state.max_steps - self._last else None

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Freeze, if it is time."""
        if self.frozen is None and state.global_step >= state.max_steps - self._last:
            with _as_trained(args, train_dataloader, self._batches, state.global_step) as batches:
                self.frozen = freeze_norms_(model, batches, **self._options)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Thaw."""
        if self.frozen is not None:
            self.frozen.thaw()


@contextmanager
def _as_trained(
    args: TrainingArguments, loader: Any, batches: Iterable[Any] | None, steps: int
) -> Generator[Iterable[Any]]:
    """Batches; the Trainer's own if None are given, of an endless loader as many as training took, undisturbed."""
    with undisturbed(loader if batches is None else batches) as borrowed:
        endless = batches is None and length(borrowed) == math.inf
        seen = max(steps, 1) * args.gradient_accumulation_steps
        yield MappedLoader(borrowed, lambda batch: batch, seen if endless else None)
