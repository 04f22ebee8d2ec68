"""NormChange: what writing new statistics did to one norm layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from evenkeel.model.buffers import Held
from evenkeel.model.norms import Norm


@dataclass(frozen=True)
class NormChange:
    """What was done to one norm layer.

    Attributes:
        path: the norm's path in the model.
        before, after: its running variance, averaged over channels.
        moved: the largest move of a channel's running mean, in standard deviations as stored before, eps included.
        standard_error: of `after`, relative to it; NaN where it is not known.
        chance: how much of the squared distance between the statistics measured and those found, of means in deviations
            and of log variances, is to be expected of so few data by chance, 0 to 1; 0 where it is not known.

    >>> NormChange("bn1", before=2.0, after=1.0, moved=0.0).ratio
    0.5
    """

    path: str
    before: float
    after: float
    moved: float
    standard_error: float = math.nan
    chance: float = 0.0

    @classmethod
    def of(cls, path: str, norm: Norm, held: Held, standard_error: float = math.nan, chance: float = 0.0) -> NormChange:
        """The change of a norm whose buffers were written; `held` has what they were before."""
        (old_mean, mean), (old_var, var) = (
            [t.detach().double() for t in (held.buffers.get((norm, name), getattr(norm, name)), getattr(norm, name))]
            for name in ("running_mean", "running_var")
        )
        moved = float(((mean - old_mean).abs() / (old_var.clamp_min(0) + norm.eps).sqrt()).max())
        return cls(path, float(old_var.mean()), float(var.mean()), moved, standard_error, chance)

    @property
    def ratio(self) -> float:
        """The new variance over the old one."""
        return self.after / self.before if self.before else math.nan

    def to_dict(self) -> dict[str, Any]:
        """The row as plain numbers and strings."""
        return asdict(self) | {"ratio": self.ratio}
