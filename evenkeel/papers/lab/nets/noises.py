"""Noise: a kind of dropout and its amount, as data that makes modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.layers.uout import Uout

_MAKERS: dict[str, Callable[[float], nn.Module]] = {
    "Dropout": nn.Dropout,
    "Dropout2d": nn.Dropout2d,
    "AlphaDropout": nn.AlphaDropout,
    "Uout": Uout,
}


@dataclass(frozen=True)
class Noise:
    """A kind of dropout and its amount: every call makes a fresh module.

    Args:
        kind: "Dropout" (single elements), "Dropout2d" (whole channels), "AlphaDropout" (Klambauer et al. 2017) or
            "Uout" (Li et al. 2018).
        amount: drop rate, 0 to below 1; of Uout, beta, 0 to 1. With 0 the module is there, and does nothing.

    Raises:
        EvenkeelError: the kind is none of these, or the amount out of its range.

    >>> Noise("Dropout", 0.5)(), Noise("Uout", 0.1)()
    (Dropout(p=0.5, inplace=False), Uout(beta=0.1))
    """

    kind: str
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in _MAKERS:
            raise EvenkeelError(f"noise has the kind {self.kind!r}: give one of {', '.join(_MAKERS)}")
        if self.kind == "Uout" and not 0 <= self.amount <= 1:
            raise EvenkeelError(f"noise is Uout of beta {self.amount}: give a beta from 0 to 1, such as 0.1")
        if self.kind != "Uout" and not 0 <= self.amount < 1:
            raise EvenkeelError(
                f"noise is {self.kind} of rate {self.amount}: give the rate to drop, 0 to below 1, which is 1 less "
                "the rate to keep"
            )

    def __call__(self) -> nn.Module:
        """A fresh module, in train mode."""
        return _MAKERS[self.kind](self.amount)
