"""Replicas: random inputs, each sent through a model three times at once, and what they tell of every channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COUNT = 3  # of each input: one replica without noise, as in eval mode, and two as in train mode, each with its masks
_LEAST_SIGNAL = 0.01  # of a stored variance: what is left for the signal at least
_STALE = 0.02  # relative standard error of a moving average over batches
_STRENGTH = 0.5  # of the variance that the inputs' signals have: how far from it that of the data may be
_SILENT = 1e-8  # of a stored variance: a channel that varies less in the replicas tells nothing
_SPREAD = 0.3  # of channels' shares of noise, and of their damping, around those of all together: what is expected
_PLACES = 8  # along each further dimension of a signal, of which its energies are taken


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


@dataclass(frozen=True)
class Energies:
    """What a signal's replicas share and do not, averaged over its elements.

    Attributes:
        noise: variance of what two train replicas of one input do not share.
        shared: variance of what they share.
        calm: variance of the replica without noise.
        second: mean square of the train replicas.
    """

    noise: float
    shared: float
    calm: float
    second: float


def row_dim(x: Tensor, samples: int) -> int | None:
    """The dimension along which replicas lie one after the other; None if none does.

    >>> row_dim(torch.zeros(5, 12, 7), samples=4)
    1
    """
    return next((dim for dim, size in enumerate(x.shape) if size and size % (COUNT * samples) == 0), None)


def calm_rows(x: Tensor, samples: int) -> Tensor | None:
    """A view of the replica without noise; None if the tensor holds no replicas."""
    dim = row_dim(x, samples)
    return None if dim is None else x.narrow(dim, 0, x.shape[dim] // COUNT)


def channels_of(x: Tensor) -> Channels:
    """The moments of a signal of shape (replicas x samples, channels, ...).

    >>> found = channels_of(torch.tensor([[1.0], [3.0], [2.0], [4.0], [0.0], [6.0]]))
    >>> float(found.eval_var), float(found.covariance), float(found.train_var)
    (1.0, 3.0, 5.0)
    """
    parts = x.unflatten(0, (COUNT, -1)).movedim(2, 0).flatten(2)  # channels, replicas, values
    parts = parts.float() if x.dtype.itemsize < 4 else parts
    mean = parts.mean(2, keepdim=True)
    centered = parts - mean
    products = torch.bmm(centered, centered.mT).double() / parts.shape[2]
    (calm, first, second), (calm_mean, *train_means) = products.unbind(1), mean.squeeze(2).double().unbind(1)
    return Channels(
        train_mean=(train_means[0] + train_means[1]) / 2,
        train_var=(first[:, 1] + second[:, 2]) / 2,
        eval_mean=calm_mean,
        eval_var=calm[:, 0],
        covariance=first[:, 2],
        crossed=(calm[:, 1] + calm[:, 2]) / 2,
    )


def match_(x: Tensor, mean: Tensor, variance: Tensor) -> Channels:
    """Give a signal, in place, the moments that training stored, and return the moments that it then has.

    What random inputs make of a signal is right in its noise, which comes from weights and norms, but not in its
    strength, which depends on how the data's features correlate. What is stored tells that: with N the noise,
    `Var_shared = variance - N`. What replicas share is scaled to it, and with it the replica without noise:
    `Var_eval = (variance - N) Var_calm / Var_shared`, more than `variance` where noise has damped the signal.

    Args:
        x: the signal, shape (replicas x samples, channels, ...).
        mean: what training stored, per channel.
        variance: likewise.

    Returns:
        The moments; `covariance` below 0 where the noise is larger than all the variance stored.
    """
    found = channels_of(x)
    calm, *trains = x.chunk(COUNT)
    mean, variance = (t.to(found.train_mean, copy=True) for t in (mean, variance))  # what is stored may be written to
    certain = 1 / math.sqrt(len(calm) * math.sqrt(x[0, 0].numel()))  # relative error; neighbours tell much the same
    noise, shared = _noise(found, variance, certain), _shared(found, certain)
    signal = _signal(variance, noise, shared, certain)
    silent = found.eval_var <= _SILENT * variance  # nothing in the inputs excites the channel, as the data did
    signal = torch.where(silent, torch.maximum(variance - noise, _LEAST_SIGNAL * variance), signal)
    eval_var = torch.where(silent, signal, signal * _ratio(found.eval_var, shared))
    gain = _ratio(eval_var, found.eval_var).sqrt().masked_fill(silent, 0)
    # A train replica is a multiple of the one without noise, and a rest: noise, and what of the signal is no multiple.
    alike = _ratio(found.crossed**2, found.eval_var * shared).clamp(0, 1) * signal.masked_fill(silent, 0)
    slope = _ratio(found.crossed, found.eval_var)
    rest = found.train_var - slope**2 * found.eval_var
    stretch = _ratio(variance - alike, rest).sqrt().masked_fill((rest <= _SILENT * variance) | silent, 0)
    along_calm = _ratio(alike, found.eval_var).sqrt() - stretch * slope
    eval_mean = mean + found.eval_mean - found.train_mean

    def along(t: Tensor) -> Tensor:
        return t.to(x.dtype).view(1, -1, *(1,) * (x.dim() - 2))

    for part in trains:
        offset = mean - stretch * found.train_mean - along_calm * found.eval_mean
        part.mul_(along(stretch)).addcmul_(calm, along(along_calm)).add_(along(offset))
    calm.mul_(along(gain)).add_(along(eval_mean - gain * found.eval_mean))
    if silent.any():
        excitement = torch.randn_like(calm) * along((signal * silent).sqrt())
        for part in (calm, *trains):
            part.add_(excitement)
    return Channels(mean, variance, eval_mean, eval_var, variance - noise, (alike * eval_var).sqrt())


def _noise(found: Channels, variance: Tensor, certain: float) -> Tensor:
    """Variance of the noise: what the channel shows, drawn to the share that it has in all channels together."""
    expected = variance * _ratio(found.noise.sum(), variance.sum())
    return _drawn(found.noise.clamp_min(0), expected, _SPREAD * expected, math.sqrt(2) * certain * expected)


def _shared(found: Channels, certain: float) -> Tensor:
    """Variance of what train replicas share: what the channel shows, drawn to the damping that all channels show.

    Theirs is drawn to no damping, in turn: beside much noise even all channels together tell little.
    """
    calm, error = found.eval_var.sum(), certain * found.train_var
    together = _drawn(found.covariance.sum(), calm, _SPREAD * calm, error.sum() / math.sqrt(len(error)))
    expected = found.eval_var * _ratio(together, calm)
    return _drawn(found.covariance, expected, _SPREAD * expected, error).clamp_min(0)


def _signal(variance: Tensor, noise: Tensor, shared: Tensor, certain: float) -> Tensor:
    """Variance of the data's signal: what the noise leaves of what is stored, drawn to that of the inputs' signal.

    Where the noise is nearly all that is stored, the difference tells less than random inputs do.
    """
    left, error = variance - noise, (_STALE + math.sqrt(2) * certain) * noise
    signal = _drawn(left, shared, _STRENGTH * torch.maximum(shared, left), error)
    return torch.maximum(signal, _LEAST_SIGNAL * variance)


def _drawn(found: Tensor, expected: Tensor, spread: Tensor, error: Tensor) -> Tensor:
    """The mean of what is found, and its error, and what is expected, and its spread, each by its precision."""
    weight = spread**2 / (spread**2 + error**2).clamp_min(1e-300)
    return weight * found + (1 - weight) * expected


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    return x.clamp_min(0) / y.clamp_min(1e-300)


def energies_of(x: Tensor, samples: int) -> Energies | None:
    """What is shared in a signal of any layout, and what is not, from some of its places; None without replicas."""
    dim = row_dim(x, samples)
    if dim is None or not x.is_floating_point():
        return None
    thinned = [
        slice(None, None, max(size // _PLACES, 1) if d > 1 and d != dim else 1) for d, size in enumerate(x.shape)
    ]
    parts = x[tuple(thinned)].movedim(dim, 0).unflatten(0, (COUNT, -1)).float()
    mean = parts.mean([d for d in range(1, parts.dim()) if d != 2], keepdim=True)  # of channels
    flat = (parts - mean).flatten(1)
    products = (flat @ flat.T / max(flat.shape[1], 1)).tolist()
    total, shared = (products[1][1] + products[2][2]) / 2, products[1][2]
    return Energies(total - shared, max(shared, 0.0), products[0][0], total + float(mean[1:].square().mean()))
