"""Signal: the moments of one tensor of a model whose weights are random, as maps over its elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evenkeel.signals.marginals import Marginal, gaussian, latent_correlation

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Signal:
    """Moments of a signal x over random weights, inputs and dropout masks.

    Moments are maps: tensors of the signal's shape, in which every dimension along which they do not vary has size 1.

    Attributes:
        shape: of the signal.
        second: E x^2.
        position: E x x' of two positions of one sample, in the same channel of one network.
        sample: E x x' of two samples, in the same channel of one network.
        mean: E x.
        marginal: the law of one element, in units of the root of the mean of `second`.
        flow: a unit at every element of the model's inputs, multiplied by the expected squared derivative of each
            layer on its way, by level; its derivative is the second moment of gradients. Shape (levels, *map).
        radial: the same for the logarithm of the sample's mean square: activations that are no multiple of ReLU
            multiply a change of a sample's strength by another factor than other changes. Shape (levels,).
        local: the `flow` since the latest weight layer, norm, join or opaque call; shape (levels,).
        known: whether everything that it is computed from is understood.
    """

    shape: tuple[int, ...]
    second: Tensor
    position: Tensor
    sample: Tensor
    mean: Tensor
    marginal: Marginal
    flow: Tensor
    radial: Tensor
    local: Tensor
    known: bool = True

    @cached_property
    def power(self) -> float:
        """Mean of E x^2 over all elements."""
        return float(self.second.mean())

    @property
    def size(self) -> int:
        """How many elements one sample has."""
        return math.prod(self.shape[1:] if len(self.shape) > 1 else self.shape)

    @property
    def correlation(self) -> float:
        """Mean correlation of the normal variables behind two positions of one sample."""
        return float(self.latent_correlation(self.position, same_mask=self.marginal.channelwise).mean())

    @property
    def total_flow(self) -> Tensor:
        """What reaches all elements of units at the model's inputs: by the flow, and by changes of strength."""
        flow = self.flow.sum() / max(self.flow[0].numel(), 1)
        return math.prod(self.shape) * (flow + self.power * (self.radial @ self.marginal.levels) / 4)

    def latent_correlation(self, common: Tensor, *, same_mask: bool = False) -> Tensor:
        """The correlation of the normal variables behind two elements of which E x x' is known."""
        if self.marginal.normal:
            return (common - self.mean**2) / (self.second - self.mean**2).clamp_min(1e-300)
        return latent_correlation(self.marginal, common / self.second.clamp_min(1e-300), same_mask)

    def mapped(self, change: Function, shape: tuple[int, ...], **changes: Any) -> Signal:
        """The signal with a function applied to each of its maps."""
        maps = {
            name: squeeze_constant(change(getattr(self, name))) for name in ("second", "position", "sample", "mean")
        }
        return replace(self, shape=shape, flow=by_level(change, self.flow), **(maps | changes))

    @property
    def varies(self) -> bool:
        """Whether any map varies."""
        maps = (self.second, self.position, self.sample, self.mean, self.flow[0])
        return any(t.numel() > 1 for t in maps)

    def averaged(self, keep: int | None = None) -> Signal:
        """The signal with each map averaged over all dimensions but the one to keep."""

        def mean(t: Tensor) -> Tensor:
            return t.mean([dim for dim in range(t.dim()) if dim != keep], keepdim=True)

        return self.mapped(mean, self.shape)

    def flow_over(self, masses: Tensor) -> Tensor:
        """The flow of all levels, divided anew among levels of these masses."""
        total = self.flow.sum(0)
        return masses.view(-1, *(1,) * total.dim()) * total

    def aligned(self, dims: int) -> Signal:
        """The signal with so many dimensions, new ones of size 1 in front."""
        missing = dims - len(self.shape)
        if missing <= 0:
            return self
        ones = (1,) * missing
        return self.mapped(lambda t: t.reshape(*ones, *t.shape), (*ones, *self.shape))

    def broadcast_to(self, shape: tuple[int, ...]) -> Signal:
        """The signal broadcast to a shape; positions that are copies of one are equal."""
        x = self.aligned(len(shape))
        alone = len(shape) > 2 and math.prod(x.shape[2:]) == 1 < math.prod(shape[2:])
        return replace(x, position=x.second) if alone else x

    def scaled(self, factor: float) -> Signal:
        """The signal times a number."""
        second, position, sample, flow, local = (
            t * factor**2 for t in (self.second, self.position, self.sample, self.flow, self.local)
        )
        sign, law = math.copysign(1, factor), self.marginal
        law = replace(law, values=sign * law.values, mean=sign * law.mean)
        mean = self.mean * factor
        return replace(
            self, second=second, position=position, sample=sample, mean=mean, flow=flow, local=local, marginal=law
        )

    def added(self, value: Tensor) -> Signal:
        """The signal plus a map of constants."""
        second, position, sample = (
            t + 2 * self.mean * value + value**2 for t in (self.second, self.position, self.sample)
        )
        mean, law = self.mean + value, self.marginal
        if law.normal:
            law = gaussian(law.levels, law.masses, ratio(mean, second))
        else:
            law, _ = law.mapped(law.values * math.sqrt(self.power) + float(value.mean()))
        return replace(self, second=second, position=position, sample=sample, mean=mean, marginal=law)

    def after_unknown(self, shape: tuple[int, ...]) -> Signal:
        """The signal after an operation that is not understood: of second moment 1/2, the paper's default."""
        half, law = constant(0.5, shape), gaussian()
        flow = 0.5 * (self.flow.sum() / self.flow[0].numel()).reshape((1,) * (len(shape) + 1))
        return Signal(
            shape, half, half / 2, half / 2, half * 0, law, flow, 0 * law.masses, 0.5 * law.masses, known=False
        )


def ratio(mean: Tensor, second: Tensor) -> float:
    """The mean of a signal over the root of its second moment, short of 1."""
    found = float(mean.mean()) / math.sqrt(max(float(second.mean()), 1e-300))
    return max(-0.999, min(found, 0.999))


def constant(value: float, shape: tuple[int, ...]) -> Tensor:
    """A map that has one value everywhere.

    >>> constant(2.0, (3, 4)).shape
    torch.Size([1, 1])
    """
    return torch.full((1,) * len(shape), value, dtype=torch.float64)


def standard(shape: tuple[int, ...]) -> Signal:
    """The signal of a standardized input: independent elements of mean 0 and variance 1."""
    one = constant(1.0, shape)
    flow = torch.ones((1, *one.shape), dtype=torch.float64, requires_grad=True)
    law = gaussian()
    return Signal(shape, one, one * 0, one * 0, one * 0, law, flow, 0 * law.masses, law.masses)


def by_level(change: Callable[..., Tensor], *flows: Tensor) -> Tensor:
    """Apply a function of maps to flows, level by level."""
    if len(flows[0]) == 1:
        result = change(*(flow[0] for flow in flows))[None]
    else:
        try:
            result = torch.vmap(change)(*flows)
        except RuntimeError:  # not every function can be called on all levels at once
            result = torch.stack([change(*levels) for levels in zip(*flows, strict=True)])
    return squeeze_constant(result, first=1)


def squeeze_constant(full: Tensor, first: int = 0) -> Tensor:
    """A map with size 1 in every dimension, from `first` on, along which it does not vary.

    >>> squeeze_constant(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    tensor([[1., 2.]])
    """
    for dim in range(first, full.dim()):
        start = full.narrow(dim, 0, 1)
        if full.shape[dim] == 1:
            continue
        if full.stride(dim) == 0:
            full = start
        elif bool((full.detach() == start.detach()).all()):
            full = full.mean(dim, keepdim=True)  # not the first entry: all of them need the gradient
    return full
