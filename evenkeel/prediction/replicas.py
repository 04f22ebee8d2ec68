"""Replicas: random inputs, each sent through a model three times at once, and the moments of every channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evenkeel.statistics.pairs import Match

COUNT = 3  # of each input: one replica without noise, as in eval mode, and two as in train mode, each with its masks
_LEAST = 0.01  # of a stored variance, left for the signal at least; of the signal without noise, passed on beside noise
_MOVING_AVERAGE_ERROR = 0.02  # relative standard error of what a norm stores
_STRENGTH = 0.5  # of the variance that the inputs' signals have: how far from it that of the data may be
_DEVIATION = 0.3  # of channels' shares of noise, and of their damping, around those of all together: what is expected
_SILENT = 1e-8  # of a variance: less counts as none
_CHANNELS, _PLACES = 64, 8  # at most, along each further dimension, of which a signal's energies are taken


@dataclass(frozen=True)
class Channels:
    """The moments of a signal's channels, over inputs, positions and masks; all of shape (channels,), in float64.

    Attributes:
        train_mean, train_var: of the replicas in train mode.
        eval_mean, eval_var: of the replica without noise.
        covariance: of two train replicas of one input: the variance of what their masks leave of the signal.
        crossed: covariance of a train replica and the one without noise.
    """

    train_mean: Tensor
    train_var: Tensor
    eval_mean: Tensor
    eval_var: Tensor
    covariance: Tensor
    crossed: Tensor

    @property
    def noise(self) -> Tensor:
        """Variance of what two train replicas of one input do not share."""
        return self.train_var - self.covariance

    @property
    def ratio(self) -> float:
        """The variance that a norm reads in eval mode over that in train mode, each averaged over channels."""
        evaluated, trained = float(self.eval_var.mean()), float(self.train_var.mean())
        return evaluated / trained if trained else (math.inf if evaluated else 1.0)

    @property
    def slope(self) -> Tensor:
        """How strongly the train replicas follow the one without noise; 1 where it does not vary, or does not lead."""
        leads = (self.eval_var > 0) & (self.crossed > 0)
        return torch.where(leads, self.crossed / self.eval_var.clamp_min(1e-300), 1.0)

    def matched(self, match: Match, eps: float) -> tuple[Tensor, Tensor]:
        """The mean and variance that a norm is to store, so that eval mode keeps what is matched; see `reestimate_`."""
        if match == "variance":
            return self.eval_mean, self.eval_var
        return self.eval_mean, ((self.train_var + eps) / self.slope**2 - eps).clamp_min(0)


@dataclass(frozen=True)
class Energies:
    """What a signal's replicas share and do not, averaged over its elements.

    Attributes:
        noise: variance of what two train replicas of one input do not share.
        shared: variance of what they share.
        noise_free: variance of the replica without noise.
        second: mean square of the train replicas.
    """

    noise: float
    shared: float
    noise_free: float
    second: float


def row_dim(x: Tensor, samples: int) -> int | None:
    """The dimension along which replicas lie one after the other; None if none does.

    >>> row_dim(torch.zeros(5, 12, 7), samples=4)
    1
    """
    return next((dim for dim, size in enumerate(x.shape) if size and size % (COUNT * samples) == 0), None)


def noise_free_rows(x: Tensor, samples: int) -> Tensor | None:
    """A view of the replica without noise; None if the tensor holds no replicas."""
    dim = row_dim(x, samples)
    return None if dim is None else x.narrow(dim, 0, x.shape[dim] // COUNT)


def dropped(x: Tensor, p: float) -> Tensor:
    """Replicas after dropout, the one without noise as it was; `F.dropout` takes four times as long on a CPU.

    Args:
        x: shape (replicas x samples, ...).
        p: drop probability; rounded to a multiple of 2^-16.

    >>> noise_free, first, second = dropped(torch.ones(3, 99), 0.5)
    >>> noise_free.unique(), first.unique(), bool((first == second).all())
    (tensor([1.]), tensor([0., 2.]), False)
    """
    out, rows = torch.empty_like(x), len(x) // COUNT
    out[:rows].copy_(x[:rows])
    noisy = x[rows:]
    bits = torch.empty(noisy.numel() // 4 + 1, dtype=torch.int64, device=x.device).random_(-(1 << 63), None)
    kept = bits.view(torch.int16)[: noisy.numel()].view(noisy.shape) >= round(p * (1 << 16)) - (1 << 15)
    torch.mul(noisy, kept, out=out[rows:])
    out[rows:].div_(1 - p)
    return out


def channels_of(x: Tensor) -> Channels:
    """The moments of a signal of shape (replicas x samples, channels, ...).

    >>> found = channels_of(torch.tensor([[1.0], [3.0], [2.0], [4.0], [0.0], [6.0]]))
    >>> float(found.eval_var), float(found.covariance), float(found.train_var)
    (1.0, 3.0, 5.0)
    """
    mean, products = _moments_of(x.float() if x.dtype.itemsize < 4 else x)
    (noise_free, first, second), (noise_free_mean, *train_means) = products.double().unbind(1), mean.double().unbind(1)
    return Channels(
        train_mean=(train_means[0] + train_means[1]) / 2,
        train_var=(first[:, 1] + second[:, 2]) / 2,
        eval_mean=noise_free_mean,
        eval_var=noise_free[:, 0],
        covariance=first[:, 2],
        crossed=(noise_free[:, 1] + noise_free[:, 2]) / 2,
    )


def _moments_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every channel's mean in each replica, and the covariances of replicas: (channels, 3) and (channels, 3, 3)."""
    parts = x.unflatten(0, (COUNT, -1))
    if x.dim() == 2:  # channels lie side by side: brought to the front, they would be gathered one by one
        mean = parts.mean(1)
        centered = parts - mean[:, None]
        pairs = [[(one * other).mean(0) for other in centered] for one in centered]
        return mean.T, torch.stack([torch.stack(row) for row in pairs]).movedim(2, 0)
    parts = parts.movedim(2, 0).flatten(2)  # channels, replicas, values
    mean = parts.mean(2, keepdim=True)
    centered = parts - mean if parts.data_ptr() == x.data_ptr() else parts.sub_(mean)  # fresh memory is slow to get
    return mean.squeeze(2), torch.bmm(centered, centered.mT) / parts.shape[2]


def pooled(calls: Sequence[Channels]) -> Channels:
    """The moments of the inputs of several calls together."""
    if len(calls) == 1:
        return calls[0]
    train_mean, eval_mean = (torch.stack([getattr(c, n) for c in calls]).mean(0) for n in ("train_mean", "eval_mean"))
    apart = [(c.train_mean - train_mean, c.eval_mean - eval_mean) for c in calls]
    terms = [
        (c.train_var + t**2, c.eval_var + e**2, c.covariance + t**2, c.crossed + t * e)
        for c, (t, e) in zip(calls, apart, strict=True)
    ]
    train_var, eval_var, covariance, crossed = (torch.stack(term).mean(0) for term in zip(*terms, strict=True))
    return Channels(train_mean, train_var, eval_mean, eval_var, covariance, crossed)


def match_(x: Tensor, mean: Tensor, variance: Tensor, found: Channels | None = None) -> tuple[Channels, Tensor]:
    """Give a signal, in place, the moments that training stored, and return the moments that it then has.

    What random inputs make of a signal is right in its noise, which comes from weights and norms, but not in its
    strength, which depends on how the data's features correlate. With N the noise, what replicas share must have the
    variance V - N, V being stored. It and the replica without noise are scaled by the same factor:
    `Var_eval = (V - N) noise_free / shared`, where noise_free and shared are the variances that the random inputs
    gave. That is more than V where noise has damped the signal.

    Args:
        x: the signal, shape (replicas x samples, channels, ...).
        mean: what training stored, per channel.
        variance: likewise.
        found: the signal's moments, where they are known.

    Returns:
        The moments, and of each channel whether the noise is more than all that is stored.
    """
    found, (mean, variance) = found or channels_of(x), (t.double().clone() for t in (mean, variance))
    error = _error(x)
    noise, shared = _noise(found, variance, error), _shared(found, error)
    signal = _signal(variance, noise, shared, error)
    silent = found.eval_var <= _SILENT * variance  # the random inputs do not vary the channel, as the data did
    eval_var = torch.where(silent, signal, signal * found.eval_var / shared.clamp_min(1e-300))
    eval_mean = mean + _shift(found, variance, error)
    _rescale_(x, found, Channels(mean, variance, eval_mean, eval_var, signal, found.crossed), silent)
    crossed = (_alike(found, signal, silent) * eval_var).sqrt()
    return Channels(mean, variance, eval_mean, eval_var, signal, crossed), noise > variance


def as_trained(x: Tensor, mean: Tensor, variance: Tensor, *, mean_matched: bool = False) -> tuple[Tensor, Tensor]:
    """The mean and variance that training stored of a signal, from those that a repaired norm stores.

    `V = Var_eval shared / noise_free + N`: as for `match_`, the other way round; or `V = v' k^2` where means were
    matched.
    """
    found, error, mean, variance = channels_of(x), _error(x), mean.double(), variance.double()
    if mean_matched:
        return mean - _shift(found, variance, error), variance * found.slope**2
    noise, shared = _noise(found, variance, error), _shared(found, error)
    silent = found.eval_var <= _SILENT * variance
    trained = variance * torch.where(silent, 1.0, shared / found.eval_var.clamp_min(1e-300)) + noise
    return mean - _shift(found, trained, error), trained


def _rescale_(x: Tensor, found: Channels, wanted: Channels, silent: Tensor) -> None:
    """Give replicas the moments wanted, in place.

    Half the sum of the train replicas is a multiple of the noise-free one, plus a rest; half their difference is noise
    alone. Each of these three is scaled by itself.
    """
    alike, noise = _alike(found, wanted.covariance, silent), wanted.noise.clamp_min(0)
    slope = _ratio(found.crossed, found.eval_var)
    rest = found.covariance + found.noise / 2 - slope**2 * found.eval_var
    rest_scale = _ratio((wanted.covariance - alike).masked_fill(silent, 0) + noise / 2, rest).sqrt()
    noise_scale = _ratio(noise, found.noise).sqrt()
    noise_free_scale = _ratio(wanted.eval_var, found.eval_var).sqrt().masked_fill(silent, 0)
    along_noise_free = _ratio(alike, found.eval_var).sqrt() - rest_scale * slope
    wide = x.float() if x.dtype.itemsize < 4 else x
    noise_free, first, second = wide.chunk(COUNT)

    def along(t: Tensor) -> Tensor:
        return t.to(wide.dtype).view(1, -1, *(1,) * (x.dim() - 2))

    common = (first + second).mul_(along(rest_scale / 2)).addcmul_(noise_free, along(along_noise_free))
    common += along(wanted.train_mean - rest_scale * found.train_mean - along_noise_free * found.eval_mean)
    difference = (first - second).mul_(along(noise_scale / 2))
    noise_free.mul_(along(noise_free_scale)).add_(along(wanted.eval_mean - noise_free_scale * found.eval_mean))
    if silent.any():
        variation = torch.randn_like(noise_free) * along((wanted.covariance * silent).sqrt())
        common += variation
        noise_free += variation
    torch.add(common, difference, out=first)
    torch.sub(common, difference, out=second)
    if wide is not x:
        x.copy_(wide)


def _alike(found: Channels, signal: Tensor, silent: Tensor) -> Tensor:
    """Variance of what of the signal in train mode is a multiple of the one without noise."""
    squared = _ratio(found.crossed.clamp_min(0) ** 2, found.eval_var * found.covariance).clamp(
        0, 1
    )  # their correlation's square
    return squared * signal.masked_fill(silent, 0)


def _error(x: Tensor) -> float:
    """The relative standard error of a channel's variance in a signal, in which neighbours are alike."""
    return 1 / math.sqrt(len(x) / COUNT * math.sqrt(x[0, 0].numel()))


def _noise(found: Channels, variance: Tensor, error: float) -> Tensor:
    """Variance of the noise: what the channel shows, shrunk to the share that it has in all noisy ones together."""
    noise = found.noise.clamp_min(0)
    noisy = noise > _SILENT * found.train_var
    expected = variance * _ratio(noise[noisy].sum(), variance[noisy].sum())
    return _shrunk(noise, math.sqrt(2) * error * (noise * expected).sqrt(), expected, _DEVIATION * expected) * noisy


def _shared(found: Channels, error: float) -> Tensor:
    """Variance of what train replicas share: what the channel shows, shrunk to the damping that all channels show.

    The common damping is itself shrunk towards none: with much noise even all channels together estimate it badly.
    """
    noise_free, noise = found.eval_var, found.noise.clamp_min(0)
    error_of_each = error * (2 * noise_free * noise + noise**2).sqrt()
    whole, error_of_all = noise_free.sum(), error_of_each.square().sum().sqrt()
    common = _shrunk(found.covariance.sum(), error_of_all, whole, _DEVIATION * whole)
    expected = noise_free * _ratio(common, whole)
    return torch.maximum(_shrunk(found.covariance, error_of_each, expected, _DEVIATION * expected), _LEAST * noise_free)


def _signal(variance: Tensor, noise: Tensor, shared: Tensor, error: float) -> Tensor:
    """Variance of the data's signal: what the noise leaves of what is stored, shrunk to that of the inputs' signal.

    Where the noise is nearly all that is stored, random inputs estimate it better than the difference does.
    """
    left, error_of_noise = variance - noise, (_MOVING_AVERAGE_ERROR + math.sqrt(2) * error) * noise
    signal = _shrunk(left, error_of_noise, shared, _STRENGTH * torch.maximum(shared, left))
    return torch.maximum(signal, _LEAST * variance)


def _shift(found: Channels, variance: Tensor, error: float) -> Tensor:
    """By how much the mean without noise is larger, shrunk to 0 by how much channels' means differ by chance."""
    shift = found.eval_mean - found.train_mean
    apart = found.eval_var - 2 * found.crossed + found.covariance + found.noise / 2  # variance between replicas
    chance = error**2 * apart.clamp_min(0)
    squared = _ratio((shift**2 - chance).sum(), variance.sum()) * variance
    return _shrunk(shift, chance.sqrt(), shift * 0, squared.sqrt())


def _shrunk(estimate: Tensor, error: Tensor, expected: Tensor, deviation: Tensor) -> Tensor:
    """Precision-weighted mean of an estimate, with its standard error, and of what is expected, with its deviation."""
    weight = torch.where(error > 0, deviation**2 / (deviation**2 + error**2).clamp_min(1e-300), 1.0)
    return weight * estimate + (1 - weight) * expected


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """X / y where both are above 0, and 0 elsewhere."""
    return torch.where(y > 0, x.clamp_min(0) / y.clamp_min(1e-300), 0.0)


def energies_of(x: Tensor, samples: int) -> Energies | None:
    """What is shared in a signal of any layout, and what is not, from some of its places; None without replicas."""
    dim = row_dim(x, samples)
    if dim is None or not x.is_floating_point():
        return None
    limits = [size if d == dim else _CHANNELS if d == 1 else _PLACES for d, size in enumerate(x.shape)]
    thinned = [slice(None, None, max(math.ceil(size / limit), 1)) for size, limit in zip(x.shape, limits, strict=True)]
    parts = x[tuple(thinned)].movedim(dim, 0).float().contiguous().unflatten(0, (COUNT, -1))
    mean = parts.mean([d for d in range(1, parts.dim()) if d != 2], keepdim=True)  # of channels
    flat = (parts - mean).flatten(1)
    products = (flat @ flat.T / max(flat.shape[1], 1)).tolist()
    total, shared = (products[1][1] + products[2][2]) / 2, products[1][2]
    return Energies(total - shared, max(shared, 0.0), products[0][0], total + float(mean[1:].square().mean()))
