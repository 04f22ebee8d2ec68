"""NormSums: what reaches one norm layer, as sums over batches that add up exactly to those of all data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from evenkeel.parts.exact_sums import ExactSum
from evenkeel.statistics.population import Population, Statistics, by_batch

_CHANNELS = 6  # rows of sums by channel
_SQUARES = [1, 3, 5]  # of them


class NormSums:
    """Sums over batches of what tells a norm's population, and its standard errors.

    Of every batch, with n values a channel, s = sum of (x - c) and q = sum of (x - c)^2, c being what the norm stored
    as its mean: sums of s, q, ns, s^2, nq, q^2 by channel, and of 1, n, a, n^2, na, a^2, where a is the mean of q over
    channels. Sums over batches are exact (see `ExactSum`), so they depend neither on order nor on how data were cut.

    Args:
        center: c, shape (channels,).
        pooled: as for `Population`; if false, q is the sum of the instances' variances.

    >>> left, right = torch.randn(8, 3), torch.randn(4, 3)
    >>> sums = NormSums(torch.zeros(3))
    >>> for number, x in enumerate((left, right)):
    ...     sums.add([(number, Statistics(len(x), x.mean(0), x.var(0)))])
    >>> torch.allclose(sums.population().variance.float(), torch.cat([left, right]).var(0))
    True
    """

    def __init__(self, center: Tensor, *, pooled: bool = True) -> None:
        self.center = center.detach().to("cpu", torch.float64, copy=True)
        self.pooled = pooled
        self._by_channel, self._of_all = ExactSum(), ExactSum()

    def add(self, parts: Iterable[tuple[int, Statistics]]) -> None:
        """Add statistics of batches, each with the batch's number; a batch's parts must come in one call."""
        found = [part for part in parts if part[1].size]
        if not found:
            return
        numbers, statistics = zip(*found, strict=True)
        sizes, means, variances = zip(*statistics, strict=True)
        n = torch.tensor(sizes, dtype=torch.float64)[:, None]
        mean, variance = (torch.stack(tensors).double().cpu() for tensors in (means, variances))
        moved = mean - self.center
        squares = (n - 1) * variance + n * moved**2 if self.pooled else n * variance
        table = by_batch(numbers, torch.cat([n, n * moved, squares], 1))
        n, (s, q) = table[:, :1], table[:, 1:].tensor_split(2, dim=1)
        a = q.mean(1, keepdim=True)
        for of_batch in torch.stack([s, q, n * s, s**2, n * q, q**2], dim=1):
            self._by_channel.add(of_batch)
        for of_batch in torch.cat([n**0, n, a, n**2, n * a, a**2], 1):
            self._of_all.add(of_batch)

    def add_all(self, other: NormSums) -> None:
        """Add the sums of other data, about the same center."""
        self._by_channel.add_all(other._by_channel)
        self._of_all.add_all(other._of_all)

    def population(self, device: torch.device | None = None) -> Population:
        """The population of all that was added, its tensors on a device."""
        center, by_channel = (t.to(device) for t in (self.center, self._by_channel.value))
        return _Summed(center, by_channel, self._of_all.value, pooled=self.pooled)

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        """The sums, correctly rounded: by channel, shape (6, channels), and of all channels, shape (6,)."""
        return self._by_channel.value, self._of_all.value

    def tensors(self) -> dict[str, Tensor]:
        """All that `of_tensors` needs, by name."""
        return {"center": self.center, "channels": self._by_channel.rows, "all": self._of_all.rows}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], *, pooled: bool) -> NormSums:
        """What `tensors` gave.

        Raises:
            ValueError: it did not give these.
        """
        center, channels, of_all = (tensors[name] for name in ("center", "channels", "all"))
        if channels.shape[1:] != (_CHANNELS, *center.shape) or of_all.shape[1:] != (6,) or center.ndim != 1:
            raise ValueError(f"sums have shapes {[list(t.shape) for t in (center, channels, of_all)]}")
        if not all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in (center, channels, of_all)):
            raise ValueError("sums are not finite, or no float64")
        found = cls(center, pooled=pooled)
        found._by_channel, found._of_all = ExactSum(channels), ExactSum(of_all)
        if not float(found._of_all.value[1]) >= float(found._of_all.value[0]) >= 1:
            raise ValueError("sums are of no values")
        if bool((found._by_channel.value[_SQUARES] < 0).any()):
            raise ValueError("sums of squares are negative")
        return found


class _Summed(Population):
    """The population that sums tell; its sums for standard errors are about the center."""

    def __init__(self, center: Tensor, by_channel: Tensor, of_all: Tensor, *, pooled: bool) -> None:
        super().__init__(pooled=pooled)
        self.count = float(of_all[1])
        moved = by_channel[0] / self.count
        self.mean = center + moved
        self._squares = (by_channel[1] - by_channel[0] * moved).clamp_min(0) if pooled else by_channel[1]
        self._between, self._channels, self._center = of_all, by_channel[2:], center

    def moved(self, old: Population, new: Population) -> Population:
        """As for any population; what standard errors are about moves along."""
        other = super().moved(old, new)
        if isinstance(other, _Summed) and other is not self:
            other._center = self._center + (other.mean - self.mean)
        return other
