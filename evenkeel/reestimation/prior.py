"""Prior: how much the statistics found in the model count beside what is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from evenkeel.errors import BatchError, EvenkeelError
from evenkeel.model.norms import Norm
from evenkeel.statistics.distributed import Ranks
from evenkeel.statistics.population import Population

FEW = 16  # samples that old statistics count for where nothing tells the errors of new ones (Schneider et al. 2020)
Weight = float | Mapping[str, float] | Sequence[float] | Literal["auto"]


class Prior:
    """Blends what norms are fed with the statistics found in them, as if these came from so many samples more.

    With "auto" each norm's new statistics are moved towards the old ones by `error^2 / distance^2`, at most all the
    way: the errors are those of the new means and log variances, the distances those from the old ones, both root mean
    squares over channels (the positive-part estimator of James and Stein, with the variance between batches). Few
    batches do not know their own error well: of k the squared error of `error^2`, relative, is 2 / (k - 1), and it
    counts twice that more, (k + 3) / (k - 1) times, since what a norm stores by chance shifts all norms behind it. Few
    data that tell nothing new leave a norm as it is, and many replace what it stores. Where there is nothing between
    which statistics could differ, as in one sample, whose positions are too much alike to tell, the old ones count for
    16 samples.

    Args:
        norms: by path, as found.
        weight: how many samples the statistics found count for: one number, one a norm (by path, or in the norms'
            order), or "auto"; infinite keeps what a norm stores.
        ranks: the first rank's statistics count for all.

    Raises:
        EvenkeelError: the weight is none of these.

    >>> norm = torch.nn.BatchNorm1d(1)
    >>> from evenkeel.statistics.population import Statistics
    >>> new = Population()
    >>> new.add([(1, Statistics(100, torch.tensor([2.0]), torch.tensor([1.0])))])
    >>> new.merge()
    >>> Prior({"bn": norm}, 100).blended("bn", new, samples=100).mean
    tensor([1.], dtype=torch.float64)
    """

    def __init__(self, norms: Mapping[str, Norm], weight: Weight, ranks: Ranks | None = None) -> None:
        self._weights = None if weight == "auto" else _by_path(norms, weight)
        self.is_used = self._weights is None or any(self._weights.values())
        self._found: dict[str, Tensor] = {}
        if self.is_used:
            for path, norm in norms.items():
                found = torch.stack([norm.running_mean, norm.running_var]).double()  # type: ignore[list-item]
                self._found[path] = (ranks or Ranks()).first(found)

    def blended(self, path: str, population: Population, samples: float) -> Population:
        """The population that a norm is to store: what was measured, from so many samples, and what was found."""
        if not self.is_used:
            return population
        if not samples:
            raise BatchError("prior= needs the number of samples, and no tensor in the batches has it: pass samples=")
        mean, variance = self._found[path].to(population.mean)
        count = self.samples_of(path, population, samples) / samples * population.count
        if not count or not (mean.isfinite() & variance.isfinite() & (variance >= 0)).all():
            return population
        return population.joined(count, mean, variance)

    def share_of_new(self, path: str, population: Population, samples: float) -> float:
        """How much of what a norm is to store is new, 0 to 1."""
        return samples / (samples + self.samples_of(path, population, samples)) if self.is_used and samples else 1.0

    def keeps(self, path: str) -> bool:
        """Whether a norm is to store what it stores, whatever is measured."""
        return self._weights is not None and self._weights[path] == math.inf

    def samples_of(self, path: str, population: Population, samples: float) -> float:
        """How many samples the statistics found in a norm count for."""
        if self._weights is not None:
            return self._weights[path]
        closed = population.copy()  # while a pass runs, what it brought is not yet counted in the errors
        closed.close()
        if closed.parts < 2:
            return FEW
        part = closed.chance(*self._found[path]) * (closed.parts + 3) / (closed.parts - 1)
        part = min(part, 1 - 1e-9)
        return samples * part / (1 - part)


def _by_path(norms: Mapping[str, Norm], weight: Weight) -> dict[str, float]:
    """The number for every norm."""
    rule = "a number of samples, at least 0, one for every norm, or 'auto'"
    if isinstance(weight, Mapping):
        if unknown := [path for path in weight if path not in norms]:
            raise EvenkeelError(f"prior names {unknown[0]!r}, which is no norm that can be re-estimated")
        found = {path: weight.get(path, 0.0) for path in norms}
    elif isinstance(weight, Sequence) and not isinstance(weight, str):
        if len(weight) != len(norms):
            raise EvenkeelError(f"prior has {len(weight)} numbers for {len(norms)} norms: {', '.join(norms)}")
        found = dict(zip(norms, weight, strict=True))
    else:
        found = dict.fromkeys(norms, weight)
    if wrong := [n for n in found.values() if not isinstance(n, Real) or not float(n) >= 0]:
        raise EvenkeelError(f"prior must be {rule}, not {wrong[0]!r}")
    return {path: float(n) for path, n in found.items()}
