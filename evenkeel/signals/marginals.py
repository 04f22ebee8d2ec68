"""Marginal: the distribution of a signal's values over random weights, inputs and masks, by a normal variable."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

_END = 8.0  # nodes lie between -8 and 8
_PIECES = 256  # of the interval, each with its own rule, so that kinks at multiples of 1/16 are met exactly
_RULE = 2  # Gauss-Legendre nodes on one piece
_DEGREE = 32  # of the Hermite series that carries correlations through an activation
_WIDTH = 0.1  # of a bin of levels, in log variance
MOST_LEVELS = 128
_GRID = torch.linspace(-1, 1, 401, dtype=torch.float64)


@cache
@torch.inference_mode(False)
def nodes() -> tuple[Tensor, Tensor]:
    """Nodes z and weights of a quadrature rule for E g(z), z ~ N(0, 1)."""
    x, w = np.polynomial.legendre.leggauss(_RULE)
    edges = np.linspace(-_END, _END, _PIECES + 1)
    half = _END / _PIECES
    z = torch.from_numpy((edges[:-1, None] + half + half * x).ravel())
    weights = torch.from_numpy(np.tile(w * half, _PIECES)) * torch.exp(-(z**2) / 2)
    return z, weights / weights.sum()


@dataclass(frozen=True, eq=False)
class Marginal:
    """The distribution ("law") of one element of a signal, given the level of its sample.

    Weights, inputs and masks are random, so an element of a pre-activation is normal *given its sample's level*: the
    mean square of the values that reach it. Levels vary from sample to sample, because layers are of finite width and
    dropout thins them. That matters: the mean square behind an activation differs between a mixture of levels and
    their mean.

    Attributes:
        levels: mean square of single samples, relative to the mean over samples; shape (K,).
        masses: how likely each level is; shape (K,).
        values: the element at the nodes z and, last, its value if dropped, by level, in units of the root of the
            second moment; shape (K, N + 1).
        slopes: (dx/dz)^2 there, up to a factor; shape (K, N + 1).
        weights: of the nodes and, last, the share that is dropped; shape (N + 1,).
        mean: E x in these units.
        fourth: E x^4 given the level, over the level's square; shape (K,).
        paired: E x^2 g^2 given the level, g = dx/dz, over E x^2 E g^2: how much stronger x is where gradients pass;
            shape (K,).
        normal: whether values are still linear in z.
        kept: of normal values, the share that is not dropped; None if values are no longer linear in z.
        channelwise: whether a mask drops all positions of a channel at once.
    """

    levels: Tensor
    masses: Tensor
    values: Tensor
    slopes: Tensor
    weights: Tensor
    mean: float
    fourth: Tensor
    paired: Tensor
    normal: bool = True
    kept: float | None = 1.0
    channelwise: bool = False

    @cached_property
    def hermite(self) -> Array:
        """The coefficients of the mean over levels, before dropout, in normalized Hermite polynomials of z."""
        _, weights = nodes()
        return (_hermite() @ (weights * (self.masses @ self.values)[:-1])).numpy()

    @property
    def level_variance(self) -> float:
        """Relative variance of the levels."""
        return float((self.masses * self.levels**2).sum()) - 1

    def at_mean(self) -> Marginal:
        """The law with all samples at the mean level."""
        one = torch.ones(1, dtype=torch.float64)
        values = gaussian(mean=self.mean).values if self.normal else (self.masses @ self.values)[None]
        slopes, fourth, paired = ((self.masses @ t)[None] for t in (self.slopes, self.fourth, self.paired))
        return replace(self, levels=one, masses=one, values=values, slopes=slopes, fourth=fourth, paired=paired)

    def mapped(self, values: Tensor, slopes: Tensor | float = 1.0) -> tuple[Marginal, float]:
        """The law of a function of the element, and its second moment in units of the present one.

        Args:
            values: of the function, in place of the law's values.
            slopes: squares of its derivative there.
        """
        squares, slopes = (values**2) @ self.weights, self.slopes * slopes
        second = float(squares @ self.masses)
        if second <= 0:
            raise ArithmeticError("nothing is left of the signal")
        passing = (squares * (slopes @ self.weights)).clamp_min(1e-300)
        return Marginal(
            squares / second,
            self.masses,
            values / math.sqrt(second),
            slopes,
            self.weights,
            float((values @ self.weights) @ self.masses) / math.sqrt(second),
            (values**4) @ self.weights / squares.clamp_min(1e-300) ** 2,
            (values**2 * slopes) @ self.weights / passing,
            normal=False,
            kept=None,
            channelwise=self.channelwise,
        ), second

    def dropped(self, keep: float, *, channelwise: bool) -> Marginal:
        """The law after dropout: a share 1 - keep of values is 0, the rest is divided by keep, and units grow along."""
        kept = torch.cat([self.weights[:-1] * keep, 1 - keep * self.weights[:-1].sum()[None]])
        scale = torch.ones_like(kept)
        scale[-1] = 0  # values dropped earlier, other than 0, become 0, too
        return replace(
            self,
            values=self.values * scale / math.sqrt(keep),
            slopes=self.slopes * scale / keep,
            weights=kept,
            mean=self.mean * math.sqrt(keep),
            fourth=self.fourth / keep,
            paired=self.paired / keep,
            normal=False,
            kept=self.kept and self.kept * keep,
            channelwise=channelwise,
        )

    def largest(self, count: float, correlation: float) -> tuple[Marginal, float, Tensor]:
        """The law of the largest of `count` elements of one sample.

        Elements share a normal variable, so that their z correlate; given it they are independent, and the largest
        has the count-th power of their distribution function.

        Returns:
            The law, its second moment in units of the present one, and by how much larger than on average the squared
            slope of the largest is, by level.
        """
        if self.channelwise:
            bare, keep = replace(self, weights=gaussian().weights, channelwise=False), float(1 - self.weights[-1])
            law, second, steeper = bare.largest(count, correlation)
            return law.dropped(keep, channelwise=True), second * keep, steeper
        z, weights = nodes()
        common = math.sqrt(min(max(correlation, 0.0), 0.99))
        own = math.sqrt(1 - common**2)
        order = self.values.argsort(dim=1, stable=True)
        total = torch.zeros_like(self.values)
        points, shares = np.polynomial.hermite_e.hermegauss(12)
        for point, share in zip(points, shares / shares.sum(), strict=True):
            given = weights * torch.exp(z**2 / 2 - ((z - common * float(point)) / own) ** 2 / 2)
            given = torch.cat([given / given.sum() * (1 - self.weights[-1]), self.weights[-1:]])
            below = given.expand_as(self.values).gather(1, order).cumsum(1).clamp(0, 1)
            total += float(share) * torch.diff(below**count, dim=1, prepend=torch.zeros_like(below[:, :1]))
        ranked, slopes = self.values.gather(1, order), self.slopes.gather(1, order)
        steeper = (slopes * total).sum(1) / (self.slopes @ self.weights).clamp_min(1e-300)
        values, slopes = _at_nodes(ranked, slopes, total)
        law, second = replace(self, slopes=slopes, weights=gaussian().weights).mapped(values)
        return law, second, steeper

    def summed(self, fan_in: float, most: int = MOST_LEVELS) -> Sum:
        """The law of a sum of fan_in such elements with random weights, and how levels have moved.

        Given the sample, the sum is normal; its level is the elements' mean square, which itself varies by
        `(E x^4 - (E x^2)^2) / fan_in` around its expectation. Where gradients pass, one of the elements is stronger.
        """
        if most == 1:
            all_moved = torch.ones_like(self.levels)[None]
            return Sum(gaussian(), all_moved, all_moved)
        variance = ((self.fourth - 1) / fan_in).clamp_min(0)
        passing = torch.log1p(((self.paired - 1) / fan_in).clamp_min(-0.5))
        levels, masses, moved, passed = _scattered(self.levels, self.masses, variance, passing, most)
        return Sum(gaussian(levels, masses), moved, passed)


@dataclass(frozen=True)
class Sum:
    """The law of a weighted sum.

    Attributes:
        law: the law.
        moved: P(new level | level), shape (new K, K).
        passed: the same for gradients that pass one of the elements.
    """

    law: Marginal
    moved: Tensor
    passed: Tensor


def gaussian(levels: Tensor | None = None, masses: Tensor | None = None, mean: float = 0.0) -> Marginal:
    """A normal law of unit second moment and the given mean, its levels all 1 if not given.

    >>> gaussian().values.shape[0], gaussian().mean
    (1, 0.0)
    """
    if levels is None or masses is None or len(levels) == 1:
        return _unlevelled(mean)
    return _normal(levels, masses, mean)


def _normal(levels: Tensor, masses: Tensor, mean: float) -> Marginal:
    z, weights = nodes()
    deviation = (levels - mean**2).clamp_min(0).sqrt()
    values = _with_last(mean + deviation[:, None] * z, 0.0)
    slopes = _with_last(torch.ones_like(values[:, :-1]), 0.0)
    fourth = 3 - 2 * (mean**2 / levels) ** 2
    return Marginal(levels, masses, values, slopes, _with_last(weights, 0.0), mean, fourth, torch.ones_like(levels))


@lru_cache(256)
@torch.inference_mode(False)
def _unlevelled(mean: float) -> Marginal:
    one = torch.ones(1, dtype=torch.float64)
    return _normal(one, one, mean)


def shared(marginal: Marginal, rho: Tensor, same_mask: bool = False) -> Tensor:
    """What two elements share, E x x' over E x^2, if the normal variables behind them correlate by rho.

    By Mehler's formula it is sum_n a_n^2 rho^n, a_n the coefficients of x in normalized Hermite polynomials of z.
    What the series leaves of E x^2 is shared only where rho is 1, and the element is not dropped by a mask of its own.

    Args:
        marginal: the law of each.
        rho: the correlation, of any shape.
        same_mask: whether one mask drops both.
    """
    powers = np.polynomial.polynomial.polyval(rho.clamp(-1, 1).numpy(), _coefficients(marginal, same_mask))
    return torch.from_numpy(powers)


def latent_correlation(marginal: Marginal, share: Tensor, same_mask: bool = False) -> Tensor:
    """The correlation of the normal variables behind two elements that share so much: the inverse of `shared`."""
    known = shared(marginal, _GRID, same_mask).cummax(0).values
    return torch.from_numpy(np.interp(share.numpy(), known.numpy(), _GRID.numpy()))


def _coefficients(marginal: Marginal, same_mask: bool) -> Array:
    """The squares a_n^2 and, last, the rest of E x^2, as far as the masks of both elements keep it."""
    keep, last = float(marginal.weights[:-1].sum()), float(marginal.masses @ marginal.values[:, -1])
    terms, dropped = marginal.hermite**2, last * (1 - keep)  # of what is kept, and of what is not
    if same_mask:
        squares = keep * terms
        squares[0] += dropped * last
        left = 1 - squares.sum()
    else:
        squares = keep**2 * terms
        squares[0] = (keep * marginal.hermite[0] + dropped) ** 2
        left = keep**2 * ((1 - dropped * last) / max(keep, 1e-300) - terms.sum())
    return np.append(squares, max(left, 0.0))


@cache
@torch.inference_mode(False)
def _hermite() -> Tensor:
    """Normalized Hermite polynomials at the nodes; shape (degrees, N)."""
    z, _ = nodes()
    rows = [torch.ones_like(z), z]
    for n in range(1, _DEGREE):
        rows.append((z * rows[-1] - math.sqrt(n) * rows[-2]) / math.sqrt(n + 1))
    return torch.stack(rows)


def _scattered(
    levels: Tensor, masses: Tensor, variance: Tensor, shift: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Replace each level by a log-normal distribution with that relative variance, and sort the mixture into bins.

    Every bin keeps its mass and its mean, so that binning changes no mean. Also returned is the share of each level in
    each bin if the distribution is shifted in logarithm.
    """
    deviation = torch.log1p(variance).sqrt().clamp_min(1e-9)
    center = levels.clamp_min(1e-300).log() - deviation**2 / 2
    low, high = float((center - 6 * deviation).min()), float((center + 7 * deviation).max())
    bins = min(max(math.ceil((high - low) / _WIDTH), 1), most)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)[:, None]
    score = (edges - center) / deviation
    moved, passed = (torch.special.ndtr(score - by).diff(dim=0) for by in (0.0, shift / deviation))
    sums = torch.special.ndtr(score - deviation).diff(dim=0) @ (masses * levels)
    held = moved @ masses
    used = held > 1e-14
    moved, passed = (share[used] / share[used].sum(0).clamp_min(1e-300) for share in (moved, passed))
    sums, held = sums[used], held[used]
    scale = (masses * levels).sum() / sums.sum()  # the part cut off beyond the edges
    return sums / held * scale, held / held.sum(), moved, passed


def _at_nodes(values: Tensor, slopes: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ranked atoms as functions of z: the quantile function, and the slopes along it."""
    z, _ = nodes()
    probability, middle = torch.special.ndtr(z).numpy(), (masses.cumsum(1) - masses / 2).numpy()
    rows = (
        [torch.from_numpy(np.interp(probability, m, v)) for m, v in zip(middle, t.numpy(), strict=True)]
        for t in (values, slopes)
    )
    values, slopes = (_with_last(torch.stack(row), 0.0) for row in rows)
    return values, slopes


def _with_last(t: Tensor, value: float) -> Tensor:
    """A tensor with one more entry at the end of its last dimension."""
    return torch.nn.functional.pad(t, (0, 1), value=value)
