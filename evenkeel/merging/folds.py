"""Fold: the scale and shift of a unit's output that give it the mean and deviation asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evenkeel.model.buffers import write_
from evenkeel.statistics.population import Population

NOTHING = 1e-6  # of a mean, or of what is asked for: a smaller deviation is none, in single precision


class Target(NamedTuple):
    """What units have, or are to have: mean and standard deviation, shape (units,), float64, on the CPU."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, population: Population) -> Target:
        """What a population has."""
        return cls(population.mean.cpu(), population.variance.cpu().sqrt())

    @classmethod
    def between(cls, populations: Sequence[Population], shares: Sequence[float]) -> Target:
        """What interpolating populations gives: means and deviations weighted by shares."""
        found = [cls.of(population) for population in populations]
        means, deviations = (torch.stack(values) for values in zip(*found, strict=True))
        weights = torch.tensor(shares, dtype=torch.float64)[:, None]
        return cls((weights * means).sum(0), (weights * deviations).sum(0))


class Fold(NamedTuple):
    """What is to be done to each unit's output y: `scale * y + shift`, both of shape (units,), float64."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def to(cls, target: Target, population: Population, *, has_bias: bool) -> Fold:
        """What gives units a target's mean and deviation; without a bias the deviation alone.

        Units that do not vary keep their scale.
        """
        (mean, deviation), live = Target.of(population), is_live(population, target)
        scale = torch.where(live, target.deviation / deviation, 1.0)
        return cls(scale, target.mean - scale * mean if has_bias else torch.zeros_like(mean))

    def after(self, other: Fold) -> Fold:
        """Both in one: the other first."""
        return Fold(self.scale * other.scale, self.scale * other.shift + self.shift)


def is_live(population: Population, target: Target) -> Tensor:
    """Which units vary by more than rounding makes them, boolean."""
    mean, deviation = Target.of(population)
    return deviation > NOTHING * torch.maximum(mean.abs(), target.deviation)


def write_weights_(values: Mapping[nn.Parameter, Tensor]) -> None:
    """Write parameters in place; no autocast that is entered goes on with casts of what they were."""
    for parameter, value in values.items():
        write_(parameter, value)
    torch.clear_autocast_cache()
