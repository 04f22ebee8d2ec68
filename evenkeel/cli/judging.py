"""Judging: how commands are told whether a repair helps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenkeel.cli.inputs import DataOptions, load_function
from evenkeel.errors import EvenkeelError

if TYPE_CHECKING:
    from torch import nn

    from evenkeel.io.datasets import Data
    from evenkeel.model.batches import Forward
    from evenkeel.model.evaluation import Score, Scorer


@dataclass(frozen=True)
class Judging:
    """By what it is told whether a repair helps.

    Attributes:
        batches: held-out data with labels.
        score: `score(outputs, targets)`, lower is better; as `evaluate` guesses if None.
        forward: how a batch is run, if not by what it is.
    """

    batches: Iterable[Any]
    score: Scorer | None = None
    forward: Forward | None = None

    def evaluate(self, model: nn.Module) -> Score:
        """How the model does."""
        from evenkeel.reestimation.judging import scoring_on

        return scoring_on(self.batches, self.score, self.forward)(model)


def judged_by(judging: Judging | None) -> dict[str, Any]:
    """What a repair is told of it: it takes back what does not help."""
    if judging is None:
        return {}
    return {"held_out": judging.batches, "score": judging.score, "choose": "best"}


def require_better(before: Score | None, after: Score | None, what: str = "held-out loss") -> None:
    """Refuse a repair that does not lower the loss, where that is known.

    Raises:
        EvenkeelError: it gets no lower.
    """
    if before is not None and after is not None and not after.is_better_than(before):
        raise EvenkeelError(f"nothing is written: the {what} gets no lower: {before.change_to(after)}")


def score_of_test(model: nn.Module, data: Data, forward: Forward | None) -> Score | None:
    """How a model does on the data's own test images, if there are any with labels."""
    from evenkeel.model.evaluation import evaluate
    from evenkeel.output.progress import Bar

    if data.test is None or data.classes is None:
        return None
    return evaluate(model, Bar(data.test, "scoring"), forward=forward)


def judging_by(options: DataOptions, held_out: str | None, score: str | None, forward: str | None) -> Judging | None:
    """By what it is told whether a repair helps, if that is asked for."""
    if held_out is None:
        if score is not None:
            raise EvenkeelError("--score says how to judge held-out data, and there is no --held-out")
        return None
    try:
        found = options.load(held_out)
    except EvenkeelError as error:
        raise EvenkeelError(f"--held-out: {error}") from error
    batches = found.train if found.test is None else found.test
    return Judging(batches, load_function("--score", score), load_function("--forward", forward))
