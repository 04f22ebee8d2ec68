"""Scores of outputs on held-out data, all lower is better: what needs labels is fitted on one half, the other scored.

A task has its loss (what a choice is made by) and its scores (of outputs to fit on and outputs to score).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from evenkeel.model.evaluation import evaluate

Labelled = tuple[Tensor, Tensor]  # outputs and targets
Half = slice
HALVES = (slice(0, None, 2), slice(1, None, 2))


@dataclass(frozen=True)
class Task:
    """What nets are for.

    Attributes:
        names: of the scores.
        scores: of outputs to fit on and outputs to score.
        loss: of outputs; what a choice is made by.
        combine: what is averaged over noisy passes, of a pass's outputs.
        finish: outputs again, of that average.
    """

    names: tuple[str, ...]
    scores: Callable[[Labelled, Labelled], tuple[float, ...]]
    loss: Callable[[Tensor, Tensor], float]
    combine: Callable[[Tensor], Tensor] = field(default_factory=nn.Identity)
    finish: Callable[[Tensor], Tensor] = field(default_factory=nn.Identity)

    def crossed(self, halves: tuple[Tensor, Tensor], y: Tensor) -> list[float]:
        """Scores of the second half by what was fitted on the first, and the other way, averaged.

        Args:
            halves: outputs on all held-out data of what was chosen by the first half, and by the second.
            y: all held-out targets.
        """
        found = [
            self.scores((outputs[fitted], y[fitted]), (outputs[scored], y[scored]))
            for outputs, fitted, scored in zip(halves, HALVES, HALVES[::-1], strict=True)
        ]
        return [float(f"{fmean(values):.5g}") for values in zip(*found, strict=True)]


def log_loss(logits: Tensor, y: Tensor) -> float:
    return float(F.cross_entropy(logits, y))


def of_classes(fit: Labelled, test: Labelled) -> tuple[float, ...]:
    """Error, log loss as it is and after one fitted temperature, calibration error."""
    found = evaluate(nn.Identity(), [test])
    assert found.error is not None
    assert found.calibration_error is not None
    heat = temperature(*fit)
    return 100 * found.error, found.loss, log_loss(test[0] / heat, test[1]), 100 * found.calibration_error


def temperature(logits: Tensor, y: Tensor) -> float:
    """What logits are divided by for the lowest log loss."""
    found = minimize_scalar(lambda t: log_loss(logits / 2.0**t, y), bounds=(-6, 6), method="bounded")
    return 2.0 ** float(found.x)


def squared_error(outputs: Tensor, y: Tensor) -> float:
    return float((outputs - y).double().square().mean())


def of_values(fit: Labelled, test: Labelled) -> tuple[float, ...]:
    """Squared error as it is and after one fitted slope and offset."""
    slope, offset = line(*fit)
    return squared_error(*test), squared_error(slope * test[0] + offset, test[1])


def line(outputs: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and offset of the targets by least squares."""
    off = outputs - outputs.mean()
    slope = float((off * (y - y.mean())).sum() / off.square().sum().clamp_min(1e-12))
    return slope, float(y.mean() - slope * outputs.mean())


def cosines(embeddings: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs from the highest, and whether both are of one class."""
    units = F.normalize(embeddings)
    first, second = torch.triu_indices(len(y), len(y), 1)
    values, order = (units @ units.T)[first, second].sort(descending=True)
    return values, (y[first] == y[second])[order]


def rates(same: Tensor) -> tuple[Tensor, Tensor]:
    """For a threshold below each pair: the share of pairs of one class above it, and that of others."""
    hits = same.double().cumsum(0)
    false = (~same).double().cumsum(0)
    return hits / hits[-1], false / false[-1]


def area_missed(embeddings: Tensor, y: Tensor) -> float:
    """How often the cosine of a pair of one class is below that of a pair of two."""
    same = cosines(embeddings, y)[1]
    hit, _ = rates(same)
    return float(1 - hit[~same].mean())


def of_pairs(fit: Labelled, test: Labelled) -> tuple[float, ...]:
    """Verification error at the threshold that is best on the pairs to fit on, both kinds counting the same; area."""
    values, same = cosines(*fit)
    hit, false = rates(same)
    last = int((1 - hit + false)[:-1].argmin())
    threshold = values[last : last + 2].mean()
    values, same = cosines(*test)
    is_same = values >= threshold
    wrong = (float((~is_same)[same].double().mean()) + float(is_same[~same].double().mean())) / 2
    return 100 * wrong, area_missed(*test)


TASKS = {
    "classes": Task(
        ("error %", "log loss", "log loss, temperature fitted", "calibration error %"),
        of_classes,
        log_loss,
        lambda outputs: outputs.softmax(1),
        lambda probabilities: probabilities.clamp_min(1e-30).log(),
    ),
    "values": Task(("squared error", "squared error, line fitted"), of_values, squared_error),
    "pairs": Task(("verification error %", "1 - area under the curve"), of_pairs, area_missed, F.normalize),
}
