"""Hugging Face: a Trainer callback that re-estimates the norms' statistics after training, or for every evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from typing import Any, Literal

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.integrations.dataloaders import MappedLoader, undisturbed
from evenkeel.integrations.frameworks import importing
from evenkeel.model.batches import length
from evenkeel.model.flags import flagged
from evenkeel.statistics.reestimation import reestimate_
from evenkeel.statistics.reestimation_report import Reestimation

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
        of_trainer = self._batches is None
        with flagged(self._flags), undisturbed(train_dataloader if of_trainer else self._batches) as loader:
            endless = of_trainer and length(loader) == math.inf
            seen = state.global_step * args.gradient_accumulation_steps
            batches = MappedLoader(loader, lambda batch: batch, seen if endless else None)
            self.reestimation = reestimate_(model, batches, **self._options)
