"""Convergence: how fast and how steadily a training came to where it ended, read from its history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from evenkeel.papers.lab import measures
from evenkeel.papers.lab.specs import Scale
from evenkeel.papers.lab.training import History
from evenkeel.papers.lab.trials import Trial

_ERROR = "test_eval_error"

# The test error by whose first epoch trainings are called fast or slow: one that all arms pass halfway or so.
LEVELS: dict[Scale, float] = {"smoke": 0.9, "quick": 0.6, "desk": 0.25, "full": 0.2}
_TIMES = {"cifar100": 2.5, "mnist": 0.1}  # how many times as large it is there


def convergence(trial: Trial) -> dict[str, Any]:
    """Scores and the shift of norms, as `measures.shift`, and how fast and how steadily test errors fell.

    Figures: `epochs_to_level`, see `epochs_to`, of the scale's level; `mean_error`, over all epochs; `spread`, see
    `spread`; all of the watched test images in eval mode.
    """
    assert trial.trained is not None
    history, recipe = trial.trained.history, trial.trained.training.recipe
    errors = [epoch.get(_ERROR, math.nan) for epoch in history]
    level = LEVELS[trial.scale] * _TIMES.get(trial.trained.training.source.name, 1)
    return {
        **measures.shift(trial),
        "epochs_to_level": epochs_to(level, errors, recipe.epochs),
        "mean_error": fmean(errors) if len(errors) == recipe.epochs else math.nan,
        "spread": spread(history),
    }


def epochs_to(level: float, errors: Sequence[float], epochs: int) -> float:
    """After how many epochs an error first is at a level or below, interpolated between epochs.

    Args:
        level: of the error.
        errors: after each epoch.
        epochs: of the whole training; one that does not get there counts as one epoch more.

    >>> epochs_to(0.5, [0.8, 0.6, 0.4], 3), epochs_to(0.9, [0.8], 3), epochs_to(0.1, [0.8, 0.6, 0.4], 3)
    (2.5, 1.0, 4.0)
    """
    for epoch, error in enumerate(errors, 1):
        if error <= level:
            above = errors[epoch - 2] if epoch > 1 else level
            share = (error - level) / (error - above) if above > level else 0.0
            return epoch - share
    return epochs + 1.0


def spread(history: History, key: str = _ERROR) -> float:
    """The deviation of a figure from epoch to epoch around its trend.

    The root mean square of second differences over the square root of 6, which of values that scatter about a straight
    line, independent of each other, is their standard deviation. Left out are the first third of the epochs, and
    differences over epochs between which the learning rate changes by more than half. Of a training of fewer than three
    such epochs in a row it is the last difference over the square root of 2.

    Args:
        history: figures an epoch, the learning rate `lr` among them.
        key: the figure.

    >>> steady = [{"lr": 0.1, "error": 0.9 - 0.1 * epoch} for epoch in range(6)]
    >>> round(spread(steady, "error"), 6)
    0.0
    >>> round(spread([{"lr": 0.1, "error": value} for value in (1, 0, 1, 0, 1, 0)], "error"), 2)
    0.82
    """
    later = history[len(history) // 3 :]
    threes = [three for three in zip(later, later[1:], later[2:], strict=False) if _even(three)]
    if not threes:
        values = [epoch.get(key, math.nan) for epoch in history[-2:]]
        return abs(values[-1] - values[0]) / math.sqrt(2)
    seconds = [a.get(key, math.nan) - 2 * b.get(key, math.nan) + c.get(key, math.nan) for a, b, c in threes]
    return math.sqrt(fmean(second**2 for second in seconds) / 6)


def _even(epochs: Sequence[dict[str, float]]) -> bool:
    return all(later["lr"] >= earlier["lr"] / 2 for earlier, later in pairwise(epochs))
