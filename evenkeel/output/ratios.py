"""Ratios in words, signs and colours."""

from __future__ import annotations

import math

from evenkeel.output.page import tone_of

TIMES = "\N{MULTIPLICATION SIGN}"


def ratio_text(value: float | None) -> str:
    """A ratio in a few letters.

    >>> [ratio_text(value)[1:] for value in (0.631, 12345.6, float("inf"))], ratio_text(None)
    (['0.63', '1.23e+04', 'inf'], 'unknown')
    """
    if value is None or math.isnan(value):
        return "unknown"
    return f"{TIMES}{value:.2f}" if 0.01 <= value < 1000 else f"{TIMES}{value:.3g}"


def side_of(value: float | None) -> str:
    """On which side of 1 a ratio is: a colour's name.

    >>> [side_of(value) for value in (0.5, 1.01, 2.0, None)]
    ['below', 'flat', 'above', 'flat']
    """
    return "flat" if tone_of(value) in ("even", "plain") else "below" if value is not None and value < 1 else "above"


def sign_of(value: float | None) -> str:
    """The same as a sign, for who sees no colours."""
    return {"flat": "●", "below": "▼", "above": "▲"}[side_of(value)]


def distance(ratio: float) -> float:
    """How far a ratio is from 1: the size of its logarithm; infinite if it has none.

    >>> distance(0.5) == distance(2.0), distance(0.0)
    (True, inf)
    """
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf
