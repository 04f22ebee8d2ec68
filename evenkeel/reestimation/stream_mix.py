"""StreamMix: whether the batches of a stream are as unlike each other as no shuffled ones are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenkeel.model.nested import tensors
from evenkeel.statistics.population import Population

_FEWEST = 6  # rows of which classes are compared
_FEW = 8  # samples of a row, at least: of smaller batches several in turn are one
_MOST = 256  # rows kept: of more, two in turn become one, so that no stream is too long
_GROWTH = 1.05  # by which the samples, or batches, have grown when they are compared again
_RARE = 10  # samples in all: classes of fewer count as one, since two that meet by chance would weigh much
_FAR = 8.0  # standard deviations that a shuffled stream does not reach
_ASSOCIATED = 0.1  # of the largest chi-squared there can be, beyond chance: less does no harm
_FEWEST_MEASURED = 8  # batches of which statistics are compared
_SPREAD = 5.0  # variance between batches over that to be expected from within them

_SORTED = (
    "the stream looks sorted by class: of {which}, {part:.0%} are predicted as class {label}, of all "
    "{whole:.0%}, and over {batches} batches chi-squared is {found:.0f}, shuffled {chance:.0f} +- {spread:.0f}; "
    "statistics of such batches are those of their classes, and mislead: shuffle, pass larger batches, or a larger "
    "prior, unless it is the domain that changes, not the mix of classes"
)
_SPREAD_OUT = (
    "batches of the stream differ: at norm {path!r} the means of {batches} batches vary {ratio:.1f} times as much as "
    "samples within them allow, most at {which}; if that is the domain changing, adapting is right, and if the "
    "stream is sorted by what is to be predicted, it misleads: shuffle, pass larger batches, or a larger prior"
)


@dataclass(frozen=True)
class _Row:
    """Batches in turn: the numbers of the first and the last, and what they hold, of whatever kind."""

    first: int
    last: int
    held: Tensor

    def joined(self, other: _Row) -> _Row:
        return _Row(self.first, other.last, self.held + other.held)

    @property
    def which(self) -> str:
        return f"batch {self.first}" if self.first == self.last else f"batches {self.first} to {self.last}"


class StreamMix:
    """Compares the batches of a stream as they come, and says once that they are unlike.

    Of classifiers, the table of batches and predicted classes: its chi-squared statistic against the mean and variance
    that it has over all orders of the samples (Haldane 1940). Of others, at each norm, the variance between batches'
    means over what the samples within batches let expect; batches of one sample, which do not tell, are left out.
    Batches of fewer than 8 samples are compared several at a time, and so are those of a long stream: its memory and
    the time a batch do not grow with it.

    >>> mix = StreamMix()
    >>> any(mix.add(torch.eye(4)[torch.arange(64) % 4], {}) for _ in range(20))
    False
    >>> any(mix.add(torch.eye(4)[torch.full((64,), i % 4)], {}) for i in range(20))
    True
    """

    def __init__(self) -> None:
        self._number = 0
        self._counts: list[_Row] = []  # of samples by class
        self._means: dict[str, list[_Row]] = {}  # by norm: the mean by channel, its squared error, and 1, to be added
        self._next = 0.0  # samples, or batches, of which is compared next
        self._is_said = False

    def add(self, outputs: Any, measured: Mapping[str, Population]) -> str:
        """Take what the model returned for one batch, and what was measured; what to say, most often nothing.

        Args:
            outputs: for the classes in them, if there are any, see `classes_of`.
            measured: what each norm was fed, with standard errors.
        """
        self._number += 1
        if self._is_said:
            return ""
        if classes := classes_of(outputs):
            labels = tensors(outputs)[0].argmax(1)
            counts = labels.bincount(minlength=classes).double().cpu()
            if self._counts and len(counts) != len(self._counts[0].held):
                return ""  # a table has as many columns as its first row
            _append(self._counts, _Row(self._number, self._number, counts), lambda row: float(row.held.sum()) < _FEW)
            message = self._of_classes()
        else:
            for path, population in measured.items():
                if (held := _mean_and_error(population)) is not None:
                    _append(self._means.setdefault(path, []), _Row(self._number, self._number, held))
            message = self._of_statistics()
        self._is_said = bool(message)
        return message

    def _is_time(self, size: float) -> bool:
        """Whether what is compared has grown by enough since it was last."""
        if size < self._next:
            return False
        self._next = _GROWTH * size
        return True

    def _of_classes(self) -> str:
        rows = self._counts
        if len(rows) < _FEWEST or not self._is_time(sum(float(row.held.sum()) for row in rows)):
            return ""
        table = torch.stack([row.held for row in rows])
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
            which=rows[number].which,
            part=float(parts[number, label]),
            label=label,
            whole=float(whole[label]),
            batches=self._number,
            found=found,
            chance=chance,
            spread=spread,
        )

    def _of_statistics(self) -> str:
        if self._number < _FEWEST_MEASURED or not self._is_time(self._number):
            return ""
        ratios = {path: _ratio(rows) for path, rows in self._means.items() if len(rows) >= _FEWEST_MEASURED}
        path = max(ratios, key=lambda path: ratios[path][0], default="")
        if not ratios or ratios[path][0] < _SPREAD:
            return ""
        ratio, row = ratios[path]
        return _SPREAD_OUT.format(path=path, batches=self._number, ratio=ratio, which=row.which)


def _append(rows: list[_Row], row: _Row, is_short: Callable[[_Row], bool] = lambda row: False) -> None:
    """Add a row, to the last one if that is short; of too many, join two in turn."""
    if rows and is_short(rows[-1]):
        rows[-1] = rows[-1].joined(row)
        return
    if len(rows) >= _MOST:
        rows[:] = [left.joined(right) for left, right in zip(rows[::2], rows[1::2], strict=True)]
    rows.append(row)


def _mean_and_error(population: Population) -> Tensor | None:
    """What is added up over batches: the means by channel, their squared error, and 1; None of a single sample."""
    squared = population.errors[0] ** 2 * float(population.variance.mean())
    if not math.isfinite(squared):
        return None
    return torch.cat([population.mean.double().cpu(), torch.tensor([squared, 1.0], dtype=torch.float64)])


def _ratio(rows: Sequence[_Row]) -> tuple[float, _Row]:
    """The variance of rows' means over that expected, and the row that is farthest off."""
    table = torch.stack([row.held for row in rows])
    counts = table[:, -1:]
    means, expected = table[:, :-2] / counts, float((table[:, -2] / counts[:, 0].square()).mean())
    ratio = float(means.var(0).mean()) / expected if expected > 0 else 0.0
    return ratio, rows[int((means - means.mean(0)).square().sum(1).argmax())]


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
