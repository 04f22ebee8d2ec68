"""Lightning: a callback that re-estimates the norms' statistics at the end of fit, or for every validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evenkeel.errors import EvenkeelError
from evenkeel.integrations.dataloaders import MappedLoader, undisturbed
from evenkeel.integrations.frameworks import importing
from evenkeel.model.batches import Forward, call, inputs
from evenkeel.model.flags import flagged
from evenkeel.statistics.reestimation import reestimate_
from evenkeel.statistics.reestimation_report import Reestimation

with importing("lightning", extra="lightning"):
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback, Checkpoint
    from lightning.pytorch.utilities.model_helpers import is_overridden


class ReestimationCallback(Callback):
    """Calls `reestimate_` on the LightningModule, with the trainer's precision, on all of the trainer's processes.

    Where weights are averaged, such as by Lightning's `EMAWeightAveraging`, statistics are those of the averaged ones,
    in whatever order the callbacks are listed.

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
            raise EvenkeelError("the trainer has several training loaders: pass ReestimationCallback(batches=...)")
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

    def _reestimate_(self, trainer: Trainer, pl_module: LightningModule) -> Reestimation:
        precision = trainer.precision_plugin
        of_trainer = self._batches is None

        def read(batch: Any) -> Any:
            batch = precision.convert_input(batch)
            if of_trainer:  # as training does
                batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            return inputs(batch) if self._run is call else batch

        def forward(model: nn.Module, batch: Any) -> Any:
            with precision.forward_context():
                return self._run(model, batch)

        with flagged(self._flags), undisturbed(trainer.train_dataloader if of_trainer else self._batches) as loader:
            batches = MappedLoader(loader, read, _limit(trainer) if of_trainer else None)
            return reestimate_(pl_module, batches, forward=forward, **self._options)


def _may_swap(owner: LightningModule | Callback) -> bool:
    """Whether someone acts at both ends of a validation's epoch, as what swaps weights there and back does."""
    return all(is_overridden(f"on_validation_epoch_{end}", owner) for end in ("start", "end"))


def _limit(trainer: Trainer) -> int:
    """How many batches a trainer takes in an epoch; of a loader without a length, how many it took so far."""
    most = trainer.num_training_batches
    return int(most) if most < math.inf else trainer.fit_loop.total_batch_idx + 1
