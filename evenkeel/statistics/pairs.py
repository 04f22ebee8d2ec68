"""Pairs: what reaches a norm with noise off and on, sample by sample, and what the norm is to store for it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from evenkeel.statistics.population import KNOWN, Population, Statistics, batch_statistics

_UNKNOWN = 0.1  # standard error of a slope, relative if that is below 1, above which it stays 1
_WELL = 0.03  # standard error, over channels, that asks for no more samples
_FEWEST = 4  # parts that must have a share in what varies with noise off, or a slope's error says nothing
_PRIOR = 4  # parts that the median of the channels' errors counts for in that of each
_DEAD = 1e-9  # of what training left: what varies less with noise off does not vary
_SURELY = 9.0  # squared, in standard errors, from which on a difference of means is taken as it is
Match = Literal["variance", "mean"]


class Slope(NamedTuple):
    """How strongly what reaches a norm with noise on follows what reaches it with noise off, by channel (channels,).

    Attributes:
        value: the slope; 1 where it is not known.
        error: its standard error; NaN where too few batches tell.
        is_known: whether it is known well enough to be used.
        is_dead: whether nothing varies with noise off.
    """

    value: Tensor
    error: Tensor
    is_known: Tensor
    is_dead: Tensor

    @property
    def doubt(self) -> str:
        """In words, which channels keep a slope of 1 because theirs is not known; empty if none does."""
        doubtful = ~self.is_known & ~self.is_dead
        if not doubtful.any():
            return ""
        errors = self.error[doubtful & self.error.isfinite()]
        worst = f"standard errors up to {float(errors.max()):.2f}" if len(errors) else "too few samples for an error"
        return (
            f"{int(doubtful.sum())} of {len(doubtful)} channels store the variance that they stored: slopes are not "
            f"known to within {_UNKNOWN:g} ({worst}), or not above 0; more samples, or the same several times, tell"
        )


class Pairs(Population):
    """The population of z_e, z_t and z_t - z_e, one after the other as channels: norm inputs with noise off and on.

    The mean is matched by `k = Cov(z_e, z_t) / Var(z_e)`, z_t of one noisy pass. Masks are drawn independently of x,
    so that is `Cov(z_e, E[z_t | x])`: the slope of the best affine prediction of the average over masks. The variance
    relative to training's is matched by `k^2 = Var(z_t) / Var(z_e)`. With either, a norm stores

        v' = (v + eps) / k^2 - eps        m' = E z_e - (E z_t - m) / k

    where m and v are what training left there. Standard errors are those of a ratio over batches, whose masks are
    independent. A k that is not known to within 0.1, or a tenth of it, or not above 0, stays 1, which changes nothing
    but the mean. Differences of means that may be chance are shrunk by how far the channels' are from 0 together.

    Args:
        mean, variance: m and v, shape (channels,).
        eps: of the norm.
        match: what to preserve.
        pooled: as for `Population`.

    Attributes:
        left: m and v, float64.

    >>> x, noise = torch.randn(512, 1), torch.randn(512, 1)
    >>> pairs = Pairs(torch.zeros(1), torch.full((1,), 2.0), eps=0.0)
    >>> for number in range(8):
    ...     one = slice(64 * number, 64 * number + 64)
    ...     pairs.add([(number, paired_statistics(2 * x[one], x[one] + 0.1 * noise[one]))])
    >>> pairs.merge()
    >>> round(float(pairs.slope.value), 1), round(float(pairs.matched().variance))
    (0.5, 8)
    """

    def __init__(
        self, mean: Tensor, variance: Tensor, *, eps: float, match: Match = "mean", pooled: bool = True
    ) -> None:
        super().__init__(pooled=pooled)
        self.left = mean.double(), variance.double()
        self._eps = eps
        self._match = match
        # Over batches with squares e, t, d: sums of them, and of their products; by channel, and of all channels.
        self._sums = torch.zeros(3, 1, dtype=torch.float64)
        self._products = torch.zeros(3, 3, 1, dtype=torch.float64)

    def _add_between(self, n: Tensor, means: Tensor, squares: Tensor) -> None:
        super()._add_between(n, means, squares)
        three = torch.stack(squares.tensor_split(3, dim=1))  # (3, batches, channels)
        three = torch.cat([three, three.sum(2, keepdim=True)], 2)
        self._sums = self._sums.to(three) + three.sum(1)
        self._products = self._products.to(three) + torch.einsum("ibc,jbc->ijc", three, three)

    @property
    def off(self) -> Statistics:
        """Statistics with noise off."""
        return Statistics(self.count, self._third(self.mean, 0), self._third(self.variance, 0))

    @property
    def on(self) -> Statistics:
        """Statistics with noise on."""
        return Statistics(self.count, self._third(self.mean, 1), self._third(self.variance, 1))

    @property
    def slope(self) -> Slope:
        """The slope of every channel, as far as it is known."""
        done = self._closed()
        off, on = done.off.variance, done.on.variance
        is_dead = off <= _DEAD * (self.left[1].to(off) + self._eps)
        value = done._slope_of(off, on, self._third(done.variance, 2))
        error = done._moderated(done._errors_of_slope()[:-1].to(value), ~is_dead)
        is_told = done._sums[0, :-1] ** 2 >= (_FEWEST - 1e-6) * done._products[0, 0, :-1]
        is_near = error <= _UNKNOWN * value.clamp_max(1)
        is_known = (value > 0) & value.isfinite() & is_near & is_told.to(value.device) & ~is_dead
        error = torch.where(is_told.to(value.device), error, math.nan)
        return Slope(torch.where(is_known, value, 1.0), error, is_known, is_dead)

    def missing(self, most: float) -> float:
        """How many times as many samples it takes until slopes and differences of means are known well.

        That is, to within a root mean square over channels of 0.03, which adds a thousandth to the variance of what the
        norm passes on; and each slope as well as it takes to be used, where so many samples can be had. Infinite where
        too few parts tell.

        Args:
            most: times as many samples as there may be.
        """
        matched = self.matched()
        slope, (of_means, _) = matched.slope, matched.errors
        error = (slope.error / slope.value)[~slope.is_dead]
        if math.isnan(of_means) or bool(error.isnan().any()):
            return math.inf
        can_be_known = error <= _UNKNOWN * math.sqrt(most)
        unknown = error[can_be_known & ~slope.is_known[~slope.is_dead]]
        of_slopes = float(error[can_be_known].square().mean().nan_to_num().sqrt())
        worst = float(unknown.max()) if len(unknown) else 0.0
        return max(of_means / _WELL, of_slopes / _WELL, worst / _UNKNOWN) ** 2

    def matched(self) -> Matched:
        """What the norm is to store."""
        done, slope = self._closed(), self.slope
        mean, variance = (t.to(slope.value) for t in self.left)
        k = slope.value
        wanted = torch.where(k == 1, variance, (variance + self._eps) / k**2 - self._eps).clamp_min(0)
        shift, shift_error = done.off.mean - done.on.mean, self._third(done._channel_errors()[0], 2)
        moved = mean + _shrunk(shift, shift_error, variance) + (done.on.mean - mean) * (1 - 1 / k)
        return Matched(moved, wanted, self.count, slope, shift_error, self.standard_error, pooled=self.pooled)

    @property
    def standard_error(self) -> float:
        """Standard error of the slope of all channels together; NaN from fewer than two batches."""
        return float(self._closed()._errors_of_slope()[-1])

    def _closed(self) -> Pairs:
        """This, with all that was added counted."""
        if not self._open and not self._waiting:
            return self
        other = self.copy()
        other.merge()
        return other  # type: ignore[return-value]

    def _moderated(self, error: Tensor, is_live: Tensor) -> Tensor:
        """Errors of which few parts tell little, each drawn towards the median over channels."""
        known = error[is_live & error.isfinite()]
        if not len(known):
            return error
        freedom = self.parts - 1
        return ((freedom * error**2 + _PRIOR * known.median() ** 2) / (freedom + _PRIOR)).sqrt()

    def _third(self, values: Tensor, which: int) -> Tensor:
        return values.tensor_split(3)[which]

    def _slope_of(self, off: Tensor, on: Tensor, difference: Tensor) -> Tensor:
        if self._match == "variance":
            return (on / off).sqrt()
        return (off + on - difference) / (2 * off)  # 1 to the last bit where noise changes nothing

    def _errors_of_slope(self) -> Tensor:
        """Standard errors of the slopes, channels and then all together: of a ratio, by how batches depart from it."""
        k = self._slope_of(*self._sums)
        off, on, _ = self._sums
        if self._match == "variance":
            weights = torch.stack([-k / (2 * off), k / (2 * on), torch.zeros_like(k)])
        else:
            weights = torch.stack([0.5 - k, torch.full_like(k, 0.5), torch.full_like(k, -0.5)]) / off
        square = torch.einsum("ic,ijc,jc->c", weights, self._products, weights).clamp_min(0)
        if self.parts < KNOWN:
            return torch.full_like(square, math.nan)
        return (self.parts / (self.parts - 1) * square).sqrt()


class Matched(Population):
    """What a norm is to store, with how well it is known, in the form of a population.

    Args:
        mean, variance: to be stored, shape (channels,).
        count: of values that tell.
        slope: of the norm.
        mean_error: standard errors of means, in units of the input, squared, shape (channels,).
        standard_error: of the slope of all channels together.
        pooled: as for `Population`.
    """

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor,
        count: float,
        slope: Slope,
        mean_error: Tensor,
        standard_error: float,
        *,
        pooled: bool = True,
    ) -> None:
        super().__init__(pooled=pooled)
        self.mean, self.count, self.slope = mean, count, slope
        self._squares = variance * (max(count - 1, 1) if pooled else count)
        self._mean_error, self._error = mean_error, standard_error

    @property
    def standard_error(self) -> float:
        """That of the slope."""
        return self._error

    @property
    def errors(self) -> tuple[float, float]:
        """As of `Population`: of means, in deviations, and of log variances."""
        relative = torch.where(self.slope.is_known, 2 * self.slope.error / self.slope.value, 0.0)
        return math.sqrt(float(self._mean_error.mean()) / self._scale), float(relative.square().mean().sqrt())


def _shrunk(shift: Tensor, error: Tensor, scale: Tensor) -> Tensor:
    """Differences of means by channel, those that may be chance shrunk towards 0.

    Args:
        shift: the differences.
        error: their standard errors, squared; NaN if not known.
        scale: the channels' variances.
    """
    spread = ((shift**2 - error) / scale.clamp_min(1e-300)).mean().clamp_min(0) * scale
    weight = torch.where(error > 0, spread / (spread + error).clamp_min(1e-300), 1.0)
    weight = torch.where(shift**2 >= _SURELY * error, 1.0, weight)
    return shift * weight.nan_to_num(0.0)


def paired_statistics(off: Tensor, on: Tensor, *, pooled: bool = True) -> Statistics:
    """What `Pairs.add` takes, of a norm's input with noise off and on, both of shape (samples, channels, ...).

    >>> paired_statistics(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [5.0]])).variance
    tensor([2., 8., 2.])
    """
    wide = off.dtype if off.dtype == torch.float64 else torch.float32
    parts = [batch_statistics(x, pooled=pooled) for x in (off, on, on.to(wide) - off.to(wide))]
    sizes, means, variances = zip(*parts, strict=True)
    return Statistics(sizes[0], torch.cat(means), torch.cat(variances))
