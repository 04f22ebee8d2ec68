"""Lightning: callbacks that re-estimate norms' statistics, log shifts, schedule dropout and freeze norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evenkeel.errors import EvenkeelError
from evenkeel.integrations.dataloaders import MappedLoader, undisturbed
from evenkeel.integrations.dropout_schedule import DropoutSchedule, require_count
from evenkeel.integrations.frameworks import importing
from evenkeel.integrations.norm_freezing import FrozenNorms, freeze_norms_
from evenkeel.integrations.shift_log import ShiftLog
from evenkeel.model.batches import Forward, call, inputs
from evenkeel.model.flags import flagged
from evenkeel.reestimation.reestimation import reestimate_
from evenkeel.reestimation.reestimation_report import Reestimation

with importing("lightning", extra="lightning"):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback, Checkpoint
    from lightning.pytorch.utilities.model_helpers import is_overridden

_SEVERAL = "the trainer has several training loaders: pass the callback batches=..."


class ReestimationCallback(Callback):
    """Calls `reestimate_` on the LightningModule, with the trainer's precision, on all of the trainer's processes.

    Where weights are averaged, such as by Lightning's `EMAWeightAveraging`, statistics are those of the averaged ones,
    in whatever order the callbacks are listed, and match variances unless told otherwise: the stored ones are of
    other weights.

    Args:
        when: "fit_end", once, to stay; or "validation", before the first batch of each one, after which the statistics
            of training are put back, and are what checkpoints hold. They are back before `on_validation_epoch_end`
            if a callback, or the module, has that hook and `on_validation_epoch_start`, and so may swap weights.
        batches: what to measure on; the trainer's training loader if None, which training does not notice, with its
            limits and transfer hooks, and of an endless one as many batches as training took.
        forward: how to run a batch b, if not by `module(b[0])` or as `reestimate_` does.
        options: of `reestimate_`, such as `tolerance=0.01`.

    Attributes:
        reestimation: what the last `reestimate_` returned.

    Raises:
        EvenkeelError: no such time; or, when training starts, the trainer has several training loaders.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(callbacks=[ReestimationCallback(tolerance=0.01)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        when: Literal["fit_end", "validation"] = "fit_end",
        *,
        batches: Iterable[Any] | None = None,
        forward: Forward | None = None,
        **options: Any,
    ) -> None:
        if when not in ("fit_end", "validation"):
            raise EvenkeelError(f"when must be 'fit_end' or 'validation', not {when!r}")
        self.when = when
        self.reestimation: Reestimation | None = None
        self._batches = batches
        self._run = forward or call
        self._options: dict[str, Any] = {"unsure": "write"} | options  # frozen ones apart
        self._flags: dict[nn.Module, bool] = {}  # train/eval flags in training, which show what is frozen
        self._undo: Callable[[], None] | None = None  # of a validation under way
        self._found: dict[str, Tensor] = {}  # by name, the buffers of training that it replaced

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Go where the order of callbacks is right: undo before others swap weights back, stay after they are final."""
        others = [callback for callback in trainer.callbacks if callback is not self]
        behind = sum(not isinstance(callback, Checkpoint) for callback in others) if self.when == "fit_end" else 0
        trainer.callbacks = [*others[:behind], self, *others[behind:]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what would fail when training is over."""
        if self._batches is None and isinstance(trainer.train_dataloader, (Mapping, list, tuple)):
            raise EvenkeelError(_SEVERAL)
        self._remember(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the train/eval flags."""
        self._remember(pl_module)

    def on_train_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Re-estimate, if this is when to."""
        if self.when == "fit_end":
            self.reestimation = self._reestimate_(trainer, pl_module)
            for callback in trainer.callbacks:
                average = getattr(callback, "_average_model", None)
                if isinstance(average, AveragedModel):  # what checkpoints hold and `validate` takes from now on
                    average.module.load_state_dict(pl_module.state_dict())
        self._flags = {}

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Re-estimate before the first batch, when averaged weights are in, if training is under way."""
        in_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.when == "validation" and in_training and self._undo is None:
            found = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
            self.reestimation = self._reestimate_(trainer, pl_module)
            self._undo = self.reestimation.undo
            now = dict(pl_module.named_buffers())
            self._found = {name: buffer for name, buffer in found.items() if not torch.equal(buffer, now[name])}

    def on_validation_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Put the statistics of training back, if weights may be swapped next."""
        if any(map(_may_swap, (pl_module, *trainer.callbacks))):
            self._put_back()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the statistics of training back."""
        self._put_back()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give a checkpoint that is saved during a validation the statistics of training."""
        state = checkpoint["state_dict"]
        state.update({name: buffer for name, buffer in self._found.items() if name in state})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the statistics of training back, if it was a validation that failed."""
        self._put_back()

    def _put_back(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo, self._found = None, {}

    def _remember(self, pl_module: LightningModule) -> None:
        self._flags = {module: module.training for module in pl_module.modules()}

    def _reestimate_(self, trainer: Any, pl_module: LightningModule) -> Reestimation:
        kind = AveragedModel if self.when == "validation" else nn.Module  # as of SWA, which is in at the end alone
        is_average = any(isinstance(getattr(one, "_average_model", None), kind) for one in trainer.callbacks)
        options: dict[str, Any] = ({"match": "variance"} if is_average else {}) | self._options
        with flagged(self._flags), _as_trained(trainer, pl_module, self._batches, self._run) as (batches, forward):
            return reestimate_(pl_module, batches, forward=forward, **options)


class ShiftLogCallback(Callback):
    """Logs each norm's variance shift over a fit, by a `ShiftLog` that is made when it starts.

    It goes on with its file where a fit that is resumed from a checkpoint does: lines of later steps are replaced.
    Steps are the trainer's `global_step`.

    Args:
        path: of the CSV file; None for `log.history` alone.
        every: measure after each so many steps, too; if None, at the end of epochs.
        batches: what to measure on; the first ones of the trainer's training loader if None, which training does not
            notice, with its transfer hooks and precision.
        forward: how to run a batch b, if not by `module(b[0])` or as `variance_shift` does.
        options: of `ShiftLog`, such as `norms=`, `max_batches=` and `writer=`, which may be `logger.experiment` of
            Lightning's TensorBoardLogger.

    Attributes:
        log: the `ShiftLog` of the last fit.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(callbacks=[ShiftLogCallback("shift.csv", every=100)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        every: int | None = None,
        batches: Iterable[Any] | None = None,
        forward: Forward | None = None,
        **options: Any,
    ) -> None:
        self.log: ShiftLog | None = None
        self._path = path
        self._batches = batches
        self._run = forward or call
        self._options: dict[str, Any] = {"every": every} | options

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the log."""
        done = trainer.global_step
        with _as_trained(trainer, pl_module, self._batches, self._run) as (batches, forward):
            self.log = ShiftLog(pl_module, batches, self._path, forward=forward, resume=done > 0, **self._options)
        self.log.load_state_dict({"steps": done, "epochs": trainer.current_epoch})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, if it is time."""
        if self.log is not None and trainer.global_step != self.log.steps:
            self.log.step(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure."""
        if self.log is not None:
            self.log.epoch(trainer.current_epoch + 1)


class DropoutScheduleCallback(Callback):
    """Sets drop rates over a fit by a `DropoutSchedule`, by the trainer's `global_step`, and puts them back at its end.

    A fit that is resumed from a checkpoint goes on with the rates of its step.

    Args:
        make: makes the schedule of a model and the number of steps that the fit takes, such as
            `partial(ek.DropoutSchedule.quiet_end, last=100)`.

    Attributes:
        schedule: the schedule of the last fit.

    Raises:
        EvenkeelError: when training starts, the trainer does not know how many steps it will take; or as for the
            schedule.

    >>> from functools import partial
    >>> from evenkeel.integrations.dropout_schedule import DropoutSchedule
    >>> callback = DropoutScheduleCallback(partial(DropoutSchedule.early, until=500, linear=True))
    """

    def __init__(self, make: Callable[[nn.Module, int], DropoutSchedule]) -> None:
        self.schedule: DropoutSchedule | None = None
        self._make = make

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the schedule."""
        self.schedule = self._make(pl_module, _steps_of(trainer))
        self.schedule.step(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates for the next step."""
        if self.schedule is not None:
            self.schedule.step(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the rates back."""
        if self.schedule is not None:
            self.schedule.undo()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the rates back."""
        self.on_train_end(trainer, pl_module)


class FreezeNormsCallback(Callback):
    """Calls `freeze_norms_` before the last steps of a fit, on all of the trainer's processes; thaws norms at its end.

    A fit that is resumed behind that step freezes norms on the statistics of the checkpoint. Not to be used with a
    `ReestimationCallback`, which leaves frozen norms alone.

    Args:
        last: how many steps norms are frozen for.
        batches: what to measure on; the trainer's training loader if None, as for `ReestimationCallback`.
        forward: how to run a batch b, if not by `module(b[0])` or as `reestimate_` does.
        options: of `reestimate_`, such as `tolerance=0.01`.

    Attributes:
        frozen: what `freeze_norms_` returned; its `undo()` takes back the statistics.

    Raises:
        EvenkeelError: last is no positive whole number; or, when training starts, the trainer does not know how many
            steps it will take.

    >>> callback = FreezeNormsCallback(last=100, tolerance=0.01)
    """

    def __init__(
        self, last: int, *, batches: Iterable[Any] | None = None, forward: Forward | None = None, **options: Any
    ) -> None:
        require_count("last", last)
        self.frozen: FrozenNorms | None = None
        self._last = last
        self._batches = batches
        self._run = forward or call
        self._options = options
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn when to freeze; do so, if that step is over."""
        self._first = max(_steps_of(trainer) - self._last, 0)
        self.frozen = freeze_norms_(pl_module) if trainer.global_step > self._first else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Freeze, if it is time."""
        if self.frozen is None and trainer.global_step >= self._first:
            with _as_trained(trainer, pl_module, self._batches, self._run) as (batches, forward):
                self.frozen = freeze_norms_(pl_module, batches, forward=forward, **self._options)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Thaw."""
        if self.frozen is not None:
            self.frozen.thaw()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Thaw."""
        self.on_train_end(trainer, pl_module)


@contextmanager
def _as_trained(
    trainer: Trainer, pl_module: LightningModule, batches: Iterable[Any] | None, run: Forward
) -> Generator[tuple[Iterable[Any], Forward]]:
    """Batches, the trainer's own if None are given, and how to run them, as training does; it does not notice."""
    precision = trainer.precision_plugin
    of_trainer = batches is None
    if of_trainer and isinstance(trainer.train_dataloader, (Mapping, list, tuple)):
        raise EvenkeelError(_SEVERAL)

    def read(batch: Any) -> Any:
        batch = precision.convert_input(batch)
        if of_trainer:
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return inputs(batch) if run is call else batch

    def forward(model: nn.Module, batch: Any) -> Any:
        with precision.forward_context():
            return run(model, batch)

    with undisturbed(trainer.train_dataloader if of_trainer else batches) as loader:
        yield MappedLoader(loader, read, _limit(trainer) if of_trainer else None), forward


def _may_swap(owner: LightningModule | Callback) -> bool:
    """Whether someone acts at both ends of a validation's epoch, as what swaps weights there and back does."""
    return all(is_overridden(f"on_validation_epoch_{end}", owner) for end in ("start", "end"))


def _limit(trainer: Trainer) -> int:
    """How many batches a trainer takes in an epoch; of a loader without a length, how many it took so far."""
    most = trainer.num_training_batches
    return int(most) if most < math.inf else trainer.fit_loop.total_batch_idx + 1


def _steps_of(trainer: Trainer) -> int:
    """How many steps a fit takes in all."""
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise EvenkeelError("the trainer does not know how many steps it will take: give it max_steps or max_epochs")
    return int(steps)
