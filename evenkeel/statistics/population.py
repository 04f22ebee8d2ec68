"""Population: mean and variance per channel of all that reaches a norm layer, merged exactly over batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_KERNEL_DTYPES = (torch.float32, torch.float64)
_KERNEL_DEVICES = ("cpu", "cuda")
_ROWS = 1024  # that the kernel may sum in float32
_SLACK = 0.01
KNOWN = 4  # parts of the data from which the variance between them says enough


class Statistics(NamedTuple):
    """Statistics of a part of a batch: values per channel, their mean and their unbiased variance, both (channels,)."""

    size: float
    mean: Tensor
    variance: Tensor


class Population:
    """Mean and variance per channel of a stream of batches, and the standard error of the variance.

    Batches are merged by the update of Chan, Golub and LeVeque (1983) in float64: the variance is that within the
    batches plus that between their means, each batch weighted by its size; it is never negative. Standard errors come
    from how batches differ, since samples of one batch may be alike: in their means, and in their second moments about
    the pooled mean, averaged over channels.

    Args:
        pooled: pool all values of a channel, as batch norm does; if false, average the statistics of single
            instances, as instance norm does (then a batch's count is its number of instances).

    >>> left, right = torch.randn(256, 3), 5 + torch.randn(8, 3)
    >>> population = Population()
    >>> for number, batch in enumerate((left, right)):
    ...     population.add([(number, Statistics(len(batch), batch.mean(0), batch.var(0)))])
    >>> population.merge()
    >>> torch.allclose(population.variance.float(), torch.cat([left, right]).var(0))
    True
    """

    def __init__(self, *, pooled: bool = True) -> None:
        self.pooled = pooled
        self.count = 0.0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())  # sum of squared deviations from the mean
        self._waiting: list[tuple[int, Statistics]] = []
        self._open: list[tuple[tuple[int, ...], Tensor, Tensor, Tensor]] = []  # pooled, of batches that may go on
        # Over batches with counts n and second moments s about the pooled mean: sums of 1, n, n s, n^2, n^2 s, n^2 s^2.
        self._between = torch.zeros(6, dtype=torch.float64)
        # The same per channel, with means m: sums of n^2 m, n^2 m^2, n^2 s, n^2 s^2.
        self._channels = torch.zeros(4, 1, dtype=torch.float64)
        self._center: Tensor | float = 0.0  # what these means are taken from

    def add(self, parts: Iterable[tuple[int, Statistics]]) -> None:
        """Add one call's statistics, to be merged by `pool` or `merge`.

        Args:
            parts: statistics of the parts of a batch, kept, not copied, each with the number that its part has; a norm
                may be called more than once for one part.
        """
        self._waiting.extend(part for part in parts if part[1].size)

    def pool(self) -> None:
        """Merge what was added since the last time into mean and variance."""
        if not self._waiting:
            return
        batches, statistics = zip(*self._waiting, strict=True)
        counts, means, variances = zip(*statistics, strict=True)
        mean, variance = torch.stack(means).double(), torch.stack(variances).double()
        self._waiting = []
        n = torch.tensor(counts, dtype=torch.float64, device=mean.device)[:, None]
        before, self.count = self.count, self.count + float(sum(counts))
        old_mean = self.mean.to(mean)
        self.mean = (before * old_mean + (n * mean).sum(0)) / self.count
        squares = self._squared(n, mean, variance)
        drift = before * (old_mean - self.mean) ** 2 if self.pooled else 0.0
        self._squares = self._squares.to(mean) + drift + squares.sum(0)
        self._open = [*self._open, (batches, n, mean, variance)]

    def close(self) -> None:
        """Count the batches pooled since the last time in the variance between batches."""
        if self._open:
            batches = [batch for numbers, *_ in self._open for batch in numbers]
            rows = [torch.cat([n, n * mean, self._squared(n, mean, v)], 1) for _, n, mean, v in self._open]
            table = by_batch(batches, torch.cat(rows))
            n, (means, squares) = table[:, :1], table[:, 1:].tensor_split(2, dim=1)
            self._open = []
            self._add_between(n, means, squares)

    def _add_between(self, n: Tensor, means: Tensor, squares: Tensor) -> None:
        """Count batches in the variance between them: sizes (batches, 1), sums and squares (batches, channels)."""
        mean_squares = squares.mean(1, keepdim=True)
        sums = torch.cat([n**0, n, mean_squares, n**2, n * mean_squares, mean_squares**2], 1).sum(0)
        self._between = self._between + sums.cpu()
        channels = torch.stack([(n * means).sum(0), (means**2).sum(0), (n * squares).sum(0), (squares**2).sum(0)])
        self._channels = self._channels.to(channels) + channels

    def _squared(self, n: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Sums of squared deviations from the mean of all, given the statistics of parts."""
        return (n - 1) * variance + n * (mean - self.mean) ** 2 if self.pooled else n * variance

    def merge(self) -> None:
        """Pool and close."""
        self.pool()
        self.close()

    def with_call(self, parts: Iterable[tuple[int, Statistics]]) -> Population:
        """This population and one call more, which does not count in the standard errors."""
        result = self.copy()
        result.add(parts)
        result.pool()
        result._open = self._open
        return result

    def copy(self) -> Population:
        """The population as it is now, whatever is added to this one later."""
        other = copy.copy(self)
        other._waiting = list(self._waiting)
        return other

    @property
    def statistics(self) -> Statistics:
        """What `add` takes, of all that was merged."""
        return Statistics(self.count, self.mean, self.variance)

    @property
    def variance(self) -> Tensor:
        """Variance per channel, unbiased as torch stores it, shape (channels,), float64."""
        return self._squares / self._divisor

    @property
    def _divisor(self) -> float:
        return max(self.count - 1, 1) if self.pooled else self.count

    def moved(self, old: Population, new: Population) -> Population:
        """This population, changed as `new` differs from `old`: part of the samples, measured before and after.

        Variances change by their ratio, and means by their difference: of a part of the samples, the change is known
        far better than the statistics themselves.
        """
        if not old.count or not new.count:
            return self
        other = self.copy()
        slack = _SLACK * self.variance  # a channel that hardly varied in the part says nothing of the whole
        other._squares = self._squares * (new.variance + slack) / (old.variance + slack).clamp_min(1e-300)
        other._squares = torch.where(self._squares > 0, other._squares, new.variance * self._divisor)
        other.mean = self.mean + (new.mean - old.mean)
        return other

    def joined(self, count: float, mean: Tensor, variance: Tensor) -> Population:
        """This population and so many values more, perhaps fewer than one, of this mean and variance."""
        result = self.copy()
        result.pool()
        own, total = result.count, result.count + count
        drift = own * count / total * (result.mean - mean) ** 2 if self.pooled else 0.0
        result._squares = result._squares + count * variance + drift
        result.count, result.mean = total, (own * result.mean + count * mean) / total
        return result

    def toward(self, other: Population, step: float) -> Population:
        """This population, its mean and variance a part of the way, from 0 to 1, nearer to another's."""
        result = self.copy()
        result.mean = self.mean.lerp(other.mean, step)
        result._squares = self.variance.lerp(other.variance, step) * self._divisor
        return result

    @property
    def parts(self) -> int:
        """How many batches the standard error is based on."""
        return int(self._between[0])

    def distance(self, other: Population | None) -> float:
        """The largest difference between channels' means, or variances, relative to the mean variance."""
        if other is None:
            return math.inf
        scale = float(self.variance.mean()) or 1.0
        moved, changed = (self.mean - other.mean).abs().max(), (self.variance - other.variance).abs().max()
        return max(float(moved) / math.sqrt(scale), float(changed) / scale)

    def mean_distance(self, other: Population) -> float:
        """The difference of mean variances, relative to this one, or of means, in deviations, whichever is larger."""
        changed = abs(float((self.variance - other.variance).mean())) / self._scale
        return max(changed, math.sqrt(float(((self.mean - other.mean) ** 2).mean()) / self._scale))

    @property
    def standard_error(self) -> float:
        """Standard error of the variance's mean over channels, relative to it; NaN from fewer than two batches."""
        k, count, squares, *second = self._between.tolist()
        if k < 2:
            return math.nan
        center = squares / count
        deviations = max(second[2] - 2 * center * second[1] + center * center * second[0], 0)
        return math.sqrt(k / (k - 1) * deviations) / count / center if center > 0 else 0.0

    @property
    def errors(self) -> tuple[float, float]:
        """Standard errors of means, in deviations, and of log variances: root mean squares over channels.

        Of a pooled variance, squares about the mean of all do not show all: of k batches of normal means, of squared
        standard error e^2 in deviations, they lack 2 e^4, and few may show less than the 2 k e^4 there are in all;
        and the variance itself lacks e^2. A variance of squared relative error r^2, as of 2 / r^2 normal values, has
        a log of squared error psi'(1 / r^2) + (psi(1 / r^2) - ln(1 / r^2))^2. Of two batches that is too much, up to
        twice the error, since e^4 is known from one difference. NaN from fewer than two.
        """
        of_means, of_variances = self._channel_errors()
        variance = (self._squares / max(self.count, 1)).clamp_min(1e-3 * self._scale)
        relative = of_variances / variance**2
        if self.pooled:
            spread = (of_means / variance) ** 2
            relative = torch.maximum(relative + 3 * spread, 2 * self.parts * spread)
        half = 1 / relative.clamp_min(1e-12)
        of_logs = torch.polygamma(1, half) + (torch.digamma(half) - half.log()) ** 2
        return math.sqrt(float((of_means / self._scale).mean())), math.sqrt(float(of_logs.mean()))

    def _channel_errors(self) -> tuple[Tensor, Tensor]:
        """Squared standard errors of means and of variances, by channel; NaN from fewer than two batches."""
        k, count, _, square, *_ = self._between.tolist()
        if k < 2:
            return self.mean * math.nan, self.mean * math.nan
        variance = self._squares / count
        mean_cross, mean_second, cross, second = self._channels
        mean = self.mean - self._center
        of_means = mean_second - 2 * mean * mean_cross + mean**2 * square
        of_variances = second - 2 * variance * cross + variance**2 * square
        scale = k / (k - 1) / count**2
        return scale * of_means.clamp_min(0), scale * of_variances.clamp_min(0)

    def chance(self, mean: Tensor, variance: Tensor) -> float:
        """How much of the squared distance from other statistics is to be expected by chance, 0 to 1; 0 if not known.

        The distance is that of means, in deviations, and of log variances.
        """
        mean, variance, least = mean.to(self.mean), variance.to(self.mean), 1e-3 * self._scale
        moved = ((self.mean - mean) ** 2).mean() / self._scale
        changed = ((self.variance.clamp_min(least) / variance.clamp_min(least)).log() ** 2).mean()
        (of_means, of_variances), distance = self.errors, float(moved + changed)
        error = of_means**2 + of_variances**2
        if math.isnan(error) or not math.isfinite(distance):
            return 0.0
        return min(error / distance, 1.0) if distance else 1.0

    @property
    def _scale(self) -> float:
        """The mean variance, above zero."""
        return max(float(self.variance.mean()), 1e-300)


def by_batch(batches: Sequence[int], rows: Tensor) -> Tensor:
    """Sums of the rows of each batch, given the batch of each row; in the order of their numbers."""
    _, index = torch.tensor(batches, device=rows.device).unique(return_inverse=True)
    return rows.new_zeros(int(index.max()) + 1, rows.shape[1]).index_add_(0, index, rows)


def batch_statistics(x: Tensor, *, pooled: bool = True) -> Statistics:
    """What `Population.add` takes, computed from the input of a norm layer.

    Args:
        x: input, shape (samples, channels, ...).
        pooled: as for `Population`.

    Returns:
        Count, mean and unbiased variance per channel.

    >>> batch_statistics(torch.tensor([[1.0], [3.0]]))
    Statistics(size=2, mean=tensor([2.]), variance=tensor([2.]))
    """
    if not pooled:
        x = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(x.flatten(2), dim=2)
        return Statistics(len(x), mean.mean(0), variance.mean(0))
    count = x.numel() // x.shape[1]
    if x.dtype in _KERNEL_DTYPES and x.device.type in _KERNEL_DEVICES and count > 1:
        in_rows = not x.is_contiguous() or x.shape[2:].numel() == 1  # channels last, as far as the kernel is concerned
        if x.device.type == "cpu" and count > _ROWS and in_rows:
            return _by_rows(x.movedim(1, -1).reshape(-1, x.shape[1]))
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)  # batch norm's own reduction
        return Statistics(count, mean, variance * (count / (count - 1)))
    x = x if x.dtype == torch.float64 else x.float()
    dims = [dim for dim in range(x.ndim) if dim != 1]
    variance, mean = torch.var_mean(x, dim=dims, correction=1 if count > 1 else 0)
    return Statistics(count, mean, variance)


def _by_rows(rows: Tensor) -> Statistics:
    """Statistics of columns: on a CPU the kernel adds rows one to the next, which few of them survive in float32."""
    blocks = rows.split(_ROWS)
    means, variances = zip(*(torch.batch_norm_update_stats(block, None, None, 0.0) for block in blocks), strict=True)
    n = torch.tensor([len(block) for block in blocks], dtype=torch.float64)[:, None]
    mean, variance = torch.stack(means).double(), torch.stack(variances).double()
    center = (n * mean).sum(0) / len(rows)
    return Statistics(len(rows), center, (n * (variance + (mean - center) ** 2)).sum(0) / (len(rows) - 1))
