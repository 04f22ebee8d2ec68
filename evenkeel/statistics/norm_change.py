"""NormChange: what writing new statistics did to one norm layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from evenkeel.model.buffers import Held
from evenkeel.model.norms import Norm
from evenkeel.statistics.pairs import Pairs

_STATISTICS = ("running_mean", "running_var")
_CHANCE = 0.25  # of a squared distance: below, it is more than twice its standard error


@dataclass(frozen=True)
class Paired:
    """What the same data with noise on and off say of a norm, averaged over channels.

    Attributes:
        slope: k, by how much what arrives with noise on follows what arrives with noise off; see `reestimate_`.
        dropout: dropout's part of the shift: variance with noise off over that with noise on.
        data: the rest: variance with noise on over that which training left, 1 where the data are those of training;
            NaN where there were none.
    """

    slope: float
    dropout: float
    data: float = math.nan

    @classmethod
    def of(cls, pairs: Pairs) -> Paired:
        """Of the pairs of a norm's inputs."""
        off, on, left = (float(values.mean()) for values in (pairs.off.variance, pairs.on.variance, pairs.left[1]))
        return cls(float(pairs.slope.value.mean()), off / on if on else math.nan, on / left if left else math.nan)


@dataclass(frozen=True)
class NormChange:
    """What was done to one norm layer.

    Attributes:
        path: the norm's path in the model.
        before, after: its running variance, averaged over channels.
        moved: the largest move of a channel's running mean, in standard deviations as stored before, eps included.
        standard_error: of `after`, relative to it, or, if there is one, of `paired.slope`; NaN where it is not known.
        chance: how much of the squared distance between the statistics measured and those found, of means in deviations
            and of log variances, is to be expected of so few data by chance, 0 to 1; 0 where it is not known.
        paired: what noise on and off say on the same data; None where variances were matched.

    >>> NormChange("bn1", before=2.0, after=1.0, moved=0.0).ratio
    0.5
    """

    path: str
    before: float
    after: float
    moved: float
    standard_error: float = math.nan
    chance: float = 0.0
    paired: Paired | None = None

    @classmethod
    def of(
        cls,
        path: str,
        norm: Norm,
        held: Held,
        standard_error: float = math.nan,
        chance: float = 0.0,
        paired: Paired | None = None,
    ) -> NormChange:
        """The change of a norm whose buffers were written; `held` has what they were before."""
        now = {name: getattr(norm, name) for name in _STATISTICS}
        before = {name: held.buffers.get((norm, name), value) for name, value in now.items()}
        return cls.between(path, norm.eps, before, now, standard_error, chance, paired)

    @classmethod
    def between(
        cls,
        path: str,
        eps: float,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        standard_error: float = math.nan,
        chance: float = 0.0,
        paired: Paired | None = None,
    ) -> NormChange:
        """The change from some statistics of a norm to others, by buffer."""
        (old_mean, mean), (old_var, var) = (
            [t.detach().double().cpu() for t in (before[name], after[name])] for name in _STATISTICS
        )
        moved = float(((mean - old_mean).abs() / (old_var.clamp_min(0) + eps).sqrt()).max())
        return cls(path, float(old_var.mean()), float(var.mean()), moved, standard_error, chance, paired)

    @property
    def ratio(self) -> float:
        """The new variance over the old one."""
        return self.after / self.before if self.before else math.nan

    @property
    def is_within_error(self) -> bool:
        """Whether the statistics differ by less than two standard errors: too few data to tell them apart."""
        return self.chance > _CHANCE

    def to_dict(self) -> dict[str, Any]:
        """The row as plain numbers and strings."""
        return asdict(self) | {"ratio": self.ratio}
