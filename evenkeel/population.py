"""Population: mean and variance per channel of all that reaches a norm layer, merged exactly over batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Population:
    """Mean and variance per channel of a stream of batches, and how far the variance may still be off.

    Batches are merged by the update of Chan, Golub and LeVeque (1983) in float64: the variance is that within the
    batches plus that between their means, each batch weighted by its size; it is never negative. The standard error
    comes from the spread between batches: of each batch's second moment about the pooled mean, averaged over channels.

    Args:
        pooled: pool all values of a channel, as batch norm does; if false, average the statistics of single
            instances, as instance norm does (then a batch's count is its number of instances).

    >>> left, right = torch.randn(256, 3), 5 + torch.randn(8, 3)
    >>> population = Population()
    >>> for batch in (left, right):
    ...     population.add(0, len(batch), batch.mean(0), batch.var(0))
    >>> population.merge()
    >>> torch.allclose(population.variance.float(), torch.cat([left, right]).var(0))
    True
    """

    def __init__(self, *, pooled: bool = True) -> None:
        self.pooled = pooled
        self.count = 0.0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())  # sum of squared deviations from the mean
        self._waiting: list[tuple[int, float, Tensor, Tensor]] = []
        # Over batches with counts n and second moments s about the pooled mean: sums of 1, n, n s, n^2, n^2 s, n^2 s^2.
        self._spread = torch.zeros(6, dtype=torch.float64)

    def add(self, batch: int, count: float, mean: Tensor, variance: Tensor) -> None:
        """Hand in one call's statistics, to be merged by `merge`.

        Args:
            batch: the number of the batch that the call belongs to; a norm may be called more than once in one.
            count: values per channel.
            mean: their mean, shape (channels,); kept, not copied.
            variance: their unbiased variance, shape (channels,); kept, not copied.
        """
        if count:
            self._waiting.append((batch, count, mean, variance))

    def drop(self, batch: int) -> None:
        """Forget what waits of a batch."""
        self._waiting = [entry for entry in self._waiting if entry[0] != batch]

    def merge(self) -> int | None:
        """Merge what was handed in since the last merge.

        Returns:
            None, or the number of the first batch that is not finite; nothing is merged then.
        """
        if not self._waiting:
            return None
        batches, counts, means, variances = zip(*self._waiting, strict=True)
        mean, variance = torch.stack(means).double(), torch.stack(variances).double()
        finite = (mean.isfinite() & variance.isfinite()).all(1)
        if not finite.all():
            return batches[int(finite.logical_not().nonzero()[0])]
        self._waiting.clear()
        n = torch.tensor(counts, dtype=torch.float64, device=mean.device)[:, None]
        before, self.count = self.count, self.count + float(n.sum())
        old_mean = self.mean.to(mean)
        self.mean = (before * old_mean + (n * mean).sum(0)) / self.count
        squares = (n - 1) * variance + n * (mean - self.mean) ** 2 if self.pooled else n * variance
        drift = before * (old_mean - self.mean) ** 2 if self.pooled else 0.0
        self._squares = self._squares.to(mean) + drift + squares.sum(0)
        n, squares = _by_batch(batches, torch.cat([n, squares.mean(1, keepdim=True)], 1)).unbind(1)
        self._spread += torch.stack([n**0, n, squares, n**2, n * squares, squares**2]).sum(1).cpu()
        return None

    @property
    def variance(self) -> Tensor:
        """Variance per channel, unbiased as torch stores it, shape (channels,), float64."""
        return self._squares / max(self.count - 1, 1) if self.pooled else self._squares / self.count

    @property
    def standard_error(self) -> float:
        """Standard error of the variance's mean over channels, relative to it; NaN from fewer than two batches."""
        k, count, squares, *second = self._spread.tolist()
        if k < 2:
            return math.nan
        center = squares / count
        deviations = max(second[2] - 2 * center * second[1] + center**2 * second[0], 0)
        return math.sqrt(k / (k - 1) * deviations) / count / center if center > 0 else 0.0


def _by_batch(batches: tuple[int, ...], rows: Tensor) -> Tensor:
    """Sum the rows of one batch."""
    _, index = torch.tensor(batches, device=rows.device).unique_consecutive(return_inverse=True)
    return rows.new_zeros(int(index[-1]) + 1, rows.shape[1]).index_add_(0, index, rows)


def batch_moments(x: Tensor, *, pooled: bool = True) -> tuple[float, Tensor, Tensor]:
    """What `Population.add` takes, computed from the input of a norm layer.

    Args:
        x: input, shape (samples, channels, ...).
        pooled: as for `Population`.

    Returns:
        Count, mean and unbiased variance per channel.
    """
    x = x if x.dtype == torch.float64 else x.float()
    if not pooled:
        variance, mean = torch.var_mean(x.flatten(2), dim=2)
        return len(x), mean.mean(0), variance.mean(0)
    dims = [dim for dim in range(x.ndim) if dim != 1]
    count = x.numel() // x.shape[1]
    variance, mean = torch.var_mean(x, dim=dims, correction=1 if count > 1 else 0)
    return count, mean, variance
