"""StreamMix: whether the batches of a stream are as unlike each other as no shuffled ones are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evenkeel.model.nested import tensors
from evenkeel.statistics.population import Population

_FEWEST = 6  # batches of which classes are compared
_RARE = 10  # samples in all: classes of fewer count as one, since two that meet by chance would weigh much
_FAR = 8.0  # standard deviations that a shuffled stream does not reach
_ASSOCIATED = 0.1  # of the largest chi-squared there can be, beyond chance: less does no harm
_FEWEST_MEASURED = 8  # batches of which statistics are compared
_SPREAD = 5.0  # variance between batches over that to be expected from within them

_SORTED = (
    "the stream looks sorted by class: of batch {number}, {part:.0%} are predicted as class {label}, of all "
    "{whole:.0%}, and over {batches} batches chi-squared is {found:.0f}, shuffled {chance:.0f} +- {spread:.0f}; "
    "statistics of such batches are those of their classes, and mislead: shuffle, pass larger batches, or a larger "
    "prior, unless it is the domain that changes, not the mix of classes"
)
_SPREAD_OUT = (
    "batches of the stream differ: at norm {path!r} the means of {batches} batches vary {ratio:.1f} times as much as "
    "samples within them allow, most at batch {number}; if that is the domain changing, adapting is right, and if the "
    "stream is sorted by what is to be predicted, it misleads: shuffle, pass larger batches, or a larger prior"
)


class StreamMix:
    """Compares the batches of a stream as they come, and says once that they are unlike.

    Of classifiers, the table of batches and predicted classes: its chi-squared statistic against the mean and variance
    that it has over all orders of the samples (Haldane 1940). Of others, at each norm, the variance between batches'
    means over what the samples within batches let expect.

    >>> mix = StreamMix()
    >>> any(mix.add(torch.eye(4)[torch.arange(64) % 4], {}) for _ in range(20))
    False
    >>> any(mix.add(torch.eye(4)[torch.full((64,), i % 4)], {}) for i in range(20))
    True
    """

    def __init__(self) -> None:
        self._counts: list[Tensor] = []
        self._measured: list[Mapping[str, Population]] = []
        self._is_said = False

    def add(self, outputs: Any, measured: Mapping[str, Population]) -> str:
        """Take what the model returned for one batch, and what was measured; what to say, most often nothing.

        Args:
            outputs: for the classes in them, if there are any, see `classes_of`.
            measured: what each norm was fed, with standard errors.
        """
        if self._is_said:
            return ""
        if classes := classes_of(outputs):
            labels = tensors(outputs)[0].argmax(1)
            self._counts.append(labels.bincount(minlength=classes).double().cpu())
            message = self._of_classes() if len(self._counts) >= _FEWEST else ""
        else:
            self._measured.append(measured)
            message = self._of_statistics() if len(self._measured) >= _FEWEST_MEASURED else ""
        self._is_said = bool(message)
        return message

    def _of_classes(self) -> str:
        table = torch.stack([counts for counts in self._counts if len(counts) == len(self._counts[0])])
        rare = table.sum(0) < _RARE
        frequent = torch.cat([table[:, ~rare], table[:, rare].sum(1, keepdim=True)], 1)
        found, chance, spread = chi_squared(frequent)
        most = float(table.sum()) * max(min(len(table), int((frequent.sum(0) > 0).sum())) - 1, 1)
        if found - chance < max(_FAR * spread, _ASSOCIATED * most):
            return ""
        parts, whole = table / table.sum(1, keepdim=True).clamp_min(1), table.sum(0) / table.sum()
        number = int((parts - whole).abs().sum(1).argmax())
        label = int((parts[number] - whole).argmax())
        return _SORTED.format(
            number=number + 1,
            part=float(parts[number, label]),
            label=label,
            whole=float(whole[label]),
            batches=len(table),
            found=found,
            chance=chance,
            spread=spread,
        )

    def _of_statistics(self) -> str:
        ratios = {path: self._ratio(path) for path in self._measured[-1] if all(path in m for m in self._measured)}
        path = max(ratios, key=lambda path: ratios[path][0], default="")
        if not ratios or ratios[path][0] < _SPREAD:
            return ""
        ratio, number = ratios[path]
        return _SPREAD_OUT.format(path=path, batches=len(self._measured), ratio=ratio, number=number)

    def _ratio(self, path: str) -> tuple[float, int]:
        """The variance of batches' means over that expected, and the number of the batch that is farthest off."""
        populations = [measured[path] for measured in self._measured]
        means = torch.stack([p.mean for p in populations])
        scales = torch.tensor([float(p.variance.mean()) for p in populations])
        errors = torch.tensor([p.errors[0] for p in populations]) ** 2 * scales
        if not (errors.isfinite().all() and errors.sum() > 0):  # as of batches of one sample
            return 0.0, 0
        between = float(means.var(0).mean())
        return between / float(errors.mean()), int((means - means.mean(0)).square().sum(1).argmax()) + 1


def classes_of(outputs: Any) -> int:
    """How many classes a classifier tells apart, whose first output has the shape (samples, classes); 0 of others."""
    scores = next(iter(tensors(outputs)), None)
    return scores.shape[1] if scores is not None and scores.ndim == 2 and scores.shape[1] > 1 else 0


def chi_squared(table: Tensor) -> tuple[float, float, float]:
    """Pearson's chi-squared statistic of a table of counts, and its mean and deviation over orders of what is counted.

    With both margins given, and n counted in r rows and c columns, its mean is `n (r - 1)(c - 1) / (n - 1)`, and its
    variance that of Haldane (1940), as in Lewis, Saunders & Westcott (1984).

    >>> found, mean, deviation = chi_squared(torch.tensor([[8.0, 0.0], [0.0, 8.0]]))
    >>> found, round(mean, 2), round(deviation, 2)
    (16.0, 1.07, 1.46)
    """
    table = table.double()
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    n, rows, columns = float(table.sum()), table.sum(1), table.sum(0)
    if n < 4 or min(table.shape) < 2:
        return 0.0, 0.0, 0.0
    expected = rows[:, None] * columns / n
    (v, w), (x, y) = _terms(rows, n), _terms(columns, n)
    variance = 2 * n / (n - 3) * (v - w) * (x - y) + n**2 / (n - 1) * w * y
    mean = n * (len(rows) - 1) * (len(columns) - 1) / (n - 1)
    return float(((table - expected) ** 2 / expected).sum()), mean, math.sqrt(max(variance, 0.0))


def _terms(margin: Tensor, n: float) -> tuple[float, float]:
    k = len(margin)
    return (k - 1) * (n - k) / (n - 1), (n * float((1 / margin).sum()) - k**2) / (n - 2)
