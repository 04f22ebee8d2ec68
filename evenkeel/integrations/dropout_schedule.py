"""DropoutSchedule: drop rates as a function of the step of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.graph.drop_rates import DropRates, require_rates

if TYPE_CHECKING:
    from typing_extensions import Self

_OVER = "the schedule was undone: make a new one"

Factor = Callable[[float], float]


class DropoutSchedule:
    """Sets a model's drop rates step by step: what it was built with, times a factor.

    Rates are set for the first step at once, and for the next one by every `step()`, to be called behind the
    optimizer's. They are no part of a state dict: to go on from a checkpoint, save `state_dict()` beside the model's.
    While a schedule is on, `lint` reads the rates that it ends with. A compiled model is compiled again for each rate:
    `quiet_end`, `early` and `late` have two.

    Args:
        model: the model; rates are set in its modules (`DropRates` says which, and what it cannot set).
        steps: of the whole training.
        factor: what the rates are multiplied by, as a function of progress: 0 at the first step, 1 at the last.
        example: as for `trace`: with it, dropouts that stay as they are, such as a functional one with its rate in the
            source, are named in `untouched`.

    Attributes:
        rates: the rates found, by path and attribute, such as "drop.p".
        untouched: dropouts whose rate cannot be set, by layer, each with the reason.
        notes: what is not known.
        steps: of the whole training.
        now: the number of steps done.

    Raises:
        ModelError: no module holds a rate.
        EvenkeelError: steps is no positive number, another schedule is on, or a rate would not be within 0 and 1 at the
            first step or the last.

    >>> model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    >>> with DropoutSchedule.quiet_end(model, steps=4, last=2) as schedule:
    ...     rates = [(model[0].p, schedule.step())[0] for _ in range(4)]
    >>> rates, model[0].p
    ([0.5, 0.5, 0.0, 0.0], 0.5)
    """

    def __init__(self, model: nn.Module, steps: int, factor: Factor, *, example: Any = None) -> None:
        require_count("steps", steps)
        self.steps = steps
        self.now = 0
        self._factor = factor
        self._held = DropRates(model, example)
        self.rates = dict(self._held.found)
        self.untouched = dict(self._held.untouched)
        self.notes = self._held.notes
        first, ending = self._rates_at(0), self._rates_at(steps - 1)
        require_rates(first)
        require_rates(ending)
        self._held.announce(ending)
        self._held.write(first)
        self._is_on = True

    @classmethod
    def quiet_end(cls, model: nn.Module, steps: int, last: int, *, example: Any = None) -> Self:
        """Dropout off for the last steps, in which the norms' statistics forget it.

        Of the statistics of noisy inputs a share (1 - momentum)^last is left.

        Args:
            model: the model.
            steps: of the whole training.
            last: how many of them are without dropout.
            example: as for the class.
        """
        _require_part("last", last, steps)
        return cls.early(model, steps, steps - last, example=example)

    @classmethod
    def early(cls, model: nn.Module, steps: int, until: int, *, linear: bool = False, example: Any = None) -> Self:
        """Early dropout (Liu et al. 2023, arXiv 2303.01500): on for the first steps, then off.

        Args:
            model: the model.
            steps: of the whole training.
            until: how many steps are with dropout.
            linear: whether rates fall to 0 in equal parts until then.
            example: as for the class.
        """
        _require_part("until", until, steps)

        def factor(progress: float) -> float:
            step = _step(progress, steps)
            return 0.0 if step >= until else 1 - step / until if linear else 1.0

        return cls(model, steps, factor, example=example)

    @classmethod
    def late(cls, model: nn.Module, steps: int, start: int, *, example: Any = None) -> Self:
        """Late dropout (Liu et al. 2023): off for the first steps, then on. It leaves the shift of dropout in full.

        Args:
            model: the model.
            steps: of the whole training.
            start: how many steps are without dropout.
            example: as for the class.
        """
        _require_part("start", start, steps)
        return cls(model, steps, lambda progress: float(_step(progress, steps) >= start), example=example)

    def step(self, to: int | None = None) -> None:
        """Set the rates for the next step, or for the one after so many; behind the last they stay.

        Raises:
            EvenkeelError: the schedule was undone, the number is no whole one of at least 0, or a rate would not be
                within 0 and 1; rates are as before.
        """
        if not self._is_on:
            raise EvenkeelError(_OVER)
        now = self.now + 1 if to is None else to
        if now < 0 or now % 1:
            raise EvenkeelError(f"{now} steps cannot be done: give a whole number, 0 or more")
        self._held.write(self._rates_at(now))
        self.now = now

    def undo(self) -> None:
        """Put the rates found back; the schedule is over."""
        if self._is_on:
            self._held.write(self.rates)
            self._held.withdraw()
            self._is_on = False

    def state_dict(self) -> dict[str, Any]:
        """Steps done, and the rates that the model was built with: plain numbers."""
        return {"now": self.now, "rates": dict(self.rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another schedule was, of the same model.

        Raises:
            EvenkeelError: it was of other rates, or is none, or the schedule was undone; all is as before then.
        """
        if not self._is_on:
            raise EvenkeelError(_OVER)
        if missing := [name for name in ("now", "rates") if name not in state]:
            raise EvenkeelError(f"the state has no {missing[0]!r}: pass what state_dict() of a schedule gave")
        if other := sorted(set(state["rates"]) ^ set(self.rates)):
            raise EvenkeelError(f"the state is of another model: only one of both has the rate {other[0]}")
        require_rates(state["rates"])
        before, self.rates = self.rates, dict(state["rates"])
        try:
            ending = self._rates_at(self.steps - 1)
            require_rates(ending)
            self.step(state["now"])
        except BaseException:
            self.rates = before
            raise
        self._held.withdraw()
        self._held.announce(ending)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"DropoutSchedule({len(self.rates)} rates, {self.now} of {self.steps} steps)"

    def _rates_at(self, step: int) -> dict[str, float]:
        last = self.steps - 1
        factor = float(self._factor(min(step, last) / last if last else 1.0))
        return {name: factor * rate for name, rate in self.rates.items()}


def require_count(name: str, value: int) -> None:
    """Refuse a number of steps that is no positive whole number.

    Raises:
        EvenkeelError: it is none.

    >>> require_count("last", 10)
    """
    if value < 1 or value % 1:
        raise EvenkeelError(f"{name} is {value}: give a whole number of steps, 1 or more")


def _step(progress: float, steps: int) -> int:
    return round(progress * (steps - 1))


def _require_part(name: str, value: int, steps: int) -> None:
    require_count("steps", steps)
    if value % 1 or not 0 <= value <= steps:
        raise EvenkeelError(f"{name} is {value}: give a whole number of steps, 0 to {steps}")
