"""Judging: how commands are told whether a repair helps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenkeel.cli.inputs import DataOptions, load_function
from evenkeel.errors import EvenkeelError

if TYPE_CHECKING:
    from torch import nn

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
        from evenkeel.statistics.judging import scoring_on

        return scoring_on(self.batches, self.score, self.forward)(model)


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
