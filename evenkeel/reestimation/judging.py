"""Judge: which statistics a model does best with, by its score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from evenkeel.errors import BatchError, EvenkeelError, ModelError
from evenkeel.model.batches import Forward
from evenkeel.model.evaluation import Score, Scorer, evaluate
from evenkeel.model.norms import Norm, has_running_statistics
from evenkeel.model.wrappers import unwrapped
from evenkeel.reestimation.attempt import Attempt
from evenkeel.reestimation.reestimation_report import Reestimation
from evenkeel.statistics.distributed import Ranks
from evenkeel.statistics.stored_values import fault_of

_ENOUGH = 8192  # samples
_OWN = 0.95  # of the loss as found, on data that a model was fitted to: a smaller gain there often is none on others
_UNDECIDED = (
    "the loss is no finite number before, nor after, so nothing was decided, and what was found stays: see whether the "
    "data to judge by are finite"
)
_DAMAGED = "{!r} stores what cannot be, and the repair that replaces it was taken back: {}"
_BY_OWN = (
    "judged by the targets of these data themselves, whose loss must fall by a twentieth: held_out= tells more, "
    "match='mean' does not ask"
)


class Judged(Protocol):
    """What a repair returns, as far as it is judged by scores before and after."""

    before: Score | None
    after: Score | None
    kept: bool
    notes: tuple[str, ...]

    def undo(self) -> None:
        """Take the repair back."""


Done = TypeVar("Done", bound=Judged)


def require_judging(held_out: Iterable[Any] | None, score: Scorer | None, choose: str) -> None:
    """Refuse arguments that a repair cannot be judged by.

    Raises:
        EvenkeelError: they do not go together.
        BatchError: the held-out data can be had only once.
    """
    if choose not in ("new", "best") or (choose == "best" and held_out is None):
        raise EvenkeelError(f"choose must be 'new', or, with held_out data to judge by, 'best', not {choose!r}")
    if score is not None and held_out is None:
        raise EvenkeelError("score says how to judge held-out data, and there are none: pass held_out=")
    if isinstance(held_out, Iterator):
        what = type(held_out).__name__
        raise BatchError(f"held_out is scored twice, and a {what} is used up by then: pass a list or a DataLoader")


def scoring_on(
    held_out: Iterable[Any], score: Scorer | None = None, forward: Forward | None = None
) -> Callable[[nn.Module], Score]:
    """`evaluate` on held-out data: its errors say that they are of these, not of the data that a repair measures.

    >>> try:
    ...     scoring_on([torch.ones(3, 2)])(nn.Linear(2, 2))
    ... except BatchError as error:
    ...     print(str(error).split(",")[0])
    held-out data: batch 1 holds no labels
    """

    def scored(model: nn.Module) -> Score:
        try:
            return evaluate(model, held_out, score=score, forward=forward)
        except BatchError as error:
            raise BatchError(f"held-out data: {error}") from error

    return scored


@dataclass(frozen=True)
class Beginning:
    """The first of some batches, as many as hold enough samples to judge by; can be iterated over again if they can."""

    batches: Iterable[Any]
    count: Callable[[Any], int]

    def __iter__(self) -> Iterator[Any]:
        samples = 0
        for batch in self.batches:
            yield batch
            samples += self.count(batch)
            if samples >= _ENOUGH:
                return


@dataclass(frozen=True)
class Judge:
    """Scores a model, on all ranks together, and keeps what it does best with.

    Attributes:
        model: the model.
        evaluate: scores it.
        ranks: of which the first decides.
    """

    model: nn.Module
    evaluate: Callable[[nn.Module], Score]
    ranks: Ranks

    def score(self) -> Score:
        """The model's score as it is."""
        with unwrapped(self.model) as plain:
            return self.ranks.collectively(partial(self.evaluate, plain))

    def judged(self, done: Done, before: Score) -> Done:
        """What was done, with the scores before and after; undone if it cannot be scored."""
        try:
            done.before, done.after = before, self.score()
        except BaseException:
            done.undo()
            raise
        return done

    def best(self, attempt: Attempt, before: Score) -> Reestimation:
        """The better of matching the mean and matching the variance, kept if it is better than the model as found."""
        try:
            done = self.judged(attempt.reestimated(self.model, "mean"), before)
        except (ModelError, BatchError) as error:
            done = self.judged(attempt.reestimated(self.model, "variance"), before)
            done.notes = (*done.notes, f"match='mean' was not tried: {error}")
        if done.match == "mean":
            done.undo()
            other = self.judged(attempt.reestimated(self.model, "variance"), before)
            scores = {"mean": done.after, "variance": other.after}
            if self._is_better(other.after, done.after):
                done = other
            else:
                other.undo()
                done.redo()
            done.scores = scores
        self.keep_better(done)
        return done

    def better_by_own_targets(self, done: Reestimation) -> Reestimation:
        """What was done, unless the loss by the targets of the data themselves falls by less than a twentieth.

        Matching variances is not tried: a net that fits its own data too well looks better with larger outputs.
        """
        done.undo()
        try:
            before = self.score()
        except BatchError:
            done.redo()
            return done
        done.redo()
        self.keep_better(self.judged(done, before), _OWN)
        done.notes = (*done.notes, _BY_OWN)
        return done

    def keep_better(self, done: Judged, part: float = 1.0) -> None:
        """Take new statistics back if the loss is not below this part of what it was with those found."""
        assert done.before is not None
        done.kept = self._is_better(done.after, replace(done.before, loss=part * done.before.loss))
        if not done.kept:
            done.undo()
            done.notes = (*done.notes, *self._left(done))

    def _left(self, done: Judged) -> Iterator[str]:
        """What the reader must know of what was put back."""
        assert done.before is not None and done.after is not None
        if not math.isfinite(done.before.loss) and not math.isfinite(done.after.loss):
            yield _UNDECIDED
        with unwrapped(self.model) as plain:
            norms = [(path, norm) for path, norm in plain.named_modules() if isinstance(norm, Norm)]
            faults = {path: fault_of(norm) for path, norm in norms if has_running_statistics(norm)}
            yield from (_DAMAGED.format(path, fault) for path, fault in faults.items() if fault)

    def _is_better(self, one: Score | None, other: Score | None) -> bool:
        assert one is not None and other is not None
        return bool(self.ranks.first(torch.tensor([one.is_better_than(other)])))
