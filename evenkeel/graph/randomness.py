"""Law: mean and variance of the elements of a tensor without signal, followed through what is done to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from evenkeel.graph.kinds import (
    DIVISIONS,
    FILLED,
    FILLED_BY,
    GREATER,
    INTEGERS,
    INVERSIONS,
    LESS,
    MASKS,
    NEGATIONS,
    NORMAL,
    RANDOM,
    REVERSED,
    ROUNDED_DOWN,
    SUBTRACTIONS,
    UNIFORM,
    Kind,
    kind_of_function,
)


@dataclass(frozen=True)
class Law:
    """What is known of the elements of a random tensor, or of one that is filled with one value.

    Attributes:
        mean: their mean; None if it is not known.
        variance: their variance, 0 of a tensor filled with one value; None if it is not known.
        peak: of a mask, whose elements are 0 or this value; NaN if that is not known.
        bounds: of a uniform law.

    >>> Law(mean=1.0, variance=0.25).p, Law(mean=0.8, variance=0.16, peak=1.0).scaled
    (0.2, False)
    """

    mean: float | None = None
    variance: float | None = None
    peak: float | None = None
    bounds: tuple[float, float] | None = None

    @property
    def is_random(self) -> bool:
        """Whether elements differ by chance, as far as is known."""
        return self.variance != 0

    @property
    def is_centered(self) -> bool:
        """Whether the mean is 0: noise that is added, for no product with it keeps the signal."""
        return self.mean == 0

    @property
    def p(self) -> float | None:
        """The rate of the dropout with the noise of a product: `p / (1 - p)` is its variance over its squared mean."""
        if self.mean is None or self.variance is None or (not self.mean and not self.variance):
            return None
        rate = self.variance / (self.variance + self.mean**2)
        return rate if self.peak is not None or self.scaled else None

    @property
    def scaled(self) -> bool:
        """Whether a product keeps the signal's mean."""
        return self.mean is not None and abs(self.mean - 1) < 1e-6

    @property
    def is_dropout(self) -> bool:
        """Whether a product with it may be dropout: it is a mask, or has a mean, which keeps the signal."""
        return not self.is_centered and (self.peak is not None or self.mean is not None)

    def mask_of(self, keep: float | None) -> Law:
        """A mask of ones that keeps values with a probability."""
        return Law(keep, None if keep is None else keep * (1 - keep), 1.0)

    def times(self, other: Law) -> Law:
        """The product with independent elements."""
        zero = self.mean == 0 or other.mean == 0
        mean = 0.0 if zero else None if self.mean is None or other.mean is None else self.mean * other.mean
        kept = self._scaled_by(other) or other._scaled_by(self)
        if not kept and (self.peak is not None or other.peak is not None):
            kept = {"peak": math.nan}  # 0 where a mask is, and some value elsewhere
        if None in (self.mean, self.variance, other.mean, other.variance):
            return replace(Law(mean, None), **kept)
        seconds = [law.variance + law.mean**2 for law in (self, other)]  # type: ignore[operator]
        variance = max(seconds[0] * seconds[1] - mean**2, 0.0)  # type: ignore[operator]
        return replace(Law(mean, variance), **kept)

    def plus(self, other: Law, sign: float = 1.0) -> Law:
        """The sum with independent elements, or the difference."""
        mean = None if self.mean is None or other.mean is None else self.mean + sign * other.mean
        variance = None if self.variance is None or other.variance is None else self.variance + other.variance
        bounds = None
        if self.bounds and mean is not None and not other.is_random:
            bounds = tuple(bound + sign * (other.mean or 0.0) for bound in self.bounds)
        return Law(mean, variance, bounds=bounds)  # type: ignore[arg-type]

    def below(self, limit: Law) -> Law:
        """The mask of elements below a limit; of uniform ones the share is known."""
        if self.bounds is None or limit.mean is None or limit.is_random:
            return self.mask_of(None)
        low, high = self.bounds
        return self.mask_of(min(max((limit.mean - low) / max(high - low, 1e-300), 0.0), 1.0))

    def inverted(self) -> Law:
        """One minus a mask of ones."""
        return self.mask_of(None if self.mean is None else 1 - self.mean) if self.peak == 1 else Law()

    def _scaled_by(self, factor: Law) -> dict[str, Any]:
        """Peak and bounds, once all elements are multiplied by one value."""
        if factor.is_random or factor.mean is None or (self.peak is None and self.bounds is None):
            return {}
        by = factor.mean
        bounds = None if self.bounds is None else tuple(sorted(bound * by for bound in self.bounds))
        return {"peak": None if self.peak is None else self.peak * by, "bounds": bounds}


Look = Callable[[Tensor], "Law | None"]


def law_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], look: Look, *, in_place: bool) -> Law | None:
    """The law of what a function makes of tensors without signal; None if it is not random, and no value is known.

    Args:
        name: the function's, as `function_name` gives it.
        args: the call's arguments.
        kwargs: likewise, by name.
        look: the law of a tensor, if one is known.
        in_place: whether it overwrites its first argument.
    """

    def law(value: Any) -> Law | None:
        if isinstance(value, Tensor):
            return look(value)
        return Law(float(value), 0.0) if isinstance(value, (int, float)) else None

    if name in FILLED:
        return Law(FILLED[name], 0.0)
    if name in FILLED_BY:
        return law(kwargs.get("fill_value", kwargs.get("value", (*args, None, None, None)[FILLED_BY[name]])))
    if name in RANDOM:
        return _drawn(name, args[1:] if in_place else args, kwargs, law, in_place=in_place)
    if args and isinstance(args[0], (tuple, list)):
        return Law() if any((found := law(value)) and found.is_random for value in args[0]) else None
    return _changed(name, [law(value) for value in (*args, *kwargs.values())], kwargs.get("alpha", 1))


def _changed(name: str, given: list[Law | None], alpha: float) -> Law | None:
    """The law of what a function makes of tensors, by the laws of its arguments, as far as these are known."""
    random, kind = any(law is not None and law.is_random for law in given), kind_of_function(name)
    if kind is Kind.PASS:
        return given[0] if given else None
    operands = [law or Law(None, 0.0) for law in given[:2]]
    if len(operands) == 2 and (random or all(given[:2])) and kind in (Kind.JOIN, Kind.GATE):
        first, second = reversed(operands) if name in REVERSED else operands
        return _multiplied(name, first, second) if kind is Kind.GATE else _added(name, first, second, alpha)
    return _of_random(name, operands) if random else None


def _added(name: str, first: Law, second: Law, alpha: float) -> Law:
    second = second.times(Law(float(alpha), 0.0))
    if name in SUBTRACTIONS and first.mean == 1 and not first.is_random and second.peak == 1:
        return second.inverted()
    return first.plus(second, -1.0 if name in SUBTRACTIONS else 1.0)


def _multiplied(name: str, first: Law, second: Law) -> Law:
    if name not in DIVISIONS:
        return first.times(second)
    if second.is_random or not second.mean:
        return first.times(Law())
    return first.times(Law(1 / second.mean, 0.0))


def _of_random(name: str, operands: list[Law]) -> Law:
    """The law of a comparison, a negation or a rounding; of anything else, nothing is known."""
    first = operands[0] if operands else Law()
    if name in LESS or name in GREATER:
        mask = first.below(operands[1])
        return mask.inverted() if name in GREATER else mask
    if name in INVERSIONS:
        return first.inverted()
    if "max" in name and first.peak is not None and kind_of_function(name) is Kind.POOL:
        return Law(peak=first.peak)  # a mask of blocks
    if name in NEGATIONS:
        return first.times(Law(-1.0, 0.0))
    if name in ROUNDED_DOWN and first.bounds and 0 <= first.bounds[0] <= 1 <= first.bounds[1] <= 2:
        return first.below(Law(1.0, 0.0)).inverted()  # 1 from 1 on, 0 below
    return Law()


def dropped(kept: Law, p: float) -> Law:
    """The law of dropout of one value: that value, scaled, or 0."""
    if kept.mean is None or p >= 1:
        return Law()
    return Law(kept.mean, kept.mean**2 * p / (1 - p), kept.mean / (1 - p))


def _drawn(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], law: Callable[[Any], Law | None], *, in_place: bool
) -> Law:
    """The law of what is drawn; `args` are without the tensor that is overwritten."""
    if name in NORMAL:
        mean, deviation = Law(0.0, 0.0), Law(1.0, 0.0)
        if NORMAL[name]:
            mean = law(kwargs.get("mean", args[0] if args else 0.0)) or Law(None, 0.0)
            deviation = law(kwargs.get("std", args[1] if len(args) > 1 else 1.0)) or Law(None, 0.0)
        known = deviation.mean is not None and not deviation.is_random and mean.variance is not None
        return Law(mean.mean, mean.variance + deviation.mean**2 if known else None)  # type: ignore[operator]
    if name in UNIFORM:
        low, high = (kwargs.get("from", args[0] if args else 0.0), kwargs.get("to", (*args, 1.0, 1.0)[1]))
        low, high = (low, high) if UNIFORM[name] else (0.0, 1.0)
        return Law((low + high) / 2, (high - low) ** 2 / 12, bounds=(float(low), float(high)))
    if name in INTEGERS and [a for a in (*args, *kwargs.values()) if type(a) is int] in ([2], [0, 2]):
        return Law().mask_of(0.5)
    if name in MASKS:
        rates = args if in_place else args[1:]  # by default a half, or what the first argument says
        keep = kwargs.get("p", rates[0] if rates else 0.5 if in_place else args[0])
        found = law(keep)
        return Law().mask_of(None if found is None or found.is_random else found.mean)
    return Law()
