"""Hugging Face: a Trainer callback that re-estimates the norms' statistics after training, or for every evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from evenkeel.errors import EvenkeelError
from evenkeel.loaders import aside
from evenkeel.reestimation import Reestimation, reestimate_


class ReestimationCallback(TrainerCallback):
    """Calls `reestimate_` on the model of a Trainer, on all of its processes.

    Args:
        when: "train_end", once, to stay, of the best model if the Trainer loads it; or "evaluation", before each one in
            training, whereafter the statistics gathered in training are put back, and are what checkpoints hold.
        batches: what to measure on; the Trainer's training loader if None, which training does not notice.
        options: of `reestimate_`, such as `tolerance=0.01` or `forward=`.

    Attributes:
        reestimation: what the last `reestimate_` returned; after an evaluation that failed, the way back.

    >>> callbacks = [ReestimationCallback(tolerance=0.01)]  # of transformers.Trainer(..., callbacks=callbacks)
    """

    def __init__(
        self,
        when: Literal["train_end", "evaluation"] = "train_end",
        *,
        batches: Iterable[Any] | None = None,
        **options: Any,
    ) -> None:
        if when not in ("train_end", "evaluation"):
            raise EvenkeelError(f"when must be 'train_end' or 'evaluation', not {when!r}")
        self.when = when
        self.reestimation: Reestimation | None = None
        self._batches = batches
        self._options = options
        self._evaluating = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Re-estimate, if this is when to."""
        if self.when == "train_end":
            self._reestimate_(**kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Re-estimate, if an evaluation follows."""
        if self.when == "evaluation" and control.should_evaluate:
            self._reestimate_(**kwargs)
            self._evaluating = True

    on_epoch_end = on_step_end

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the statistics of training back."""
        if self._evaluating and self.reestimation is not None:
            self.reestimation.undo()
            self._evaluating = False

    def _reestimate_(self, *, model: Any, train_dataloader: Any, **_: Any) -> None:
        with aside(train_dataloader if self._batches is None else self._batches) as batches:
            self.reestimation = reestimate_(model, batches, **self._options)
