"""EK402: more than one dropout in a residual branch.

## What it does
Finds, on a residual branch with norms, every dropout but one. The one that stays is the first in the recommended
place, or else the last.

## Why it matters
Each multiplies the shift by its own factor.

## Who disagrees
chen2019 has one before each weight layer, at the small rate of .05. li2018 wants none.

## Known limits
As for EK401.

## References
Kim et al. 2023, abstract: one dropout in each residual branch.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from evenkeel.linting.context import Context
from evenkeel.linting.edits import Remove
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import dropouts_on, in_words, kept
from evenkeel.linting.rule import rule

EXAMPLE = (2, 8)


@rule("EK402", guideline="kim2023")
def several_in_branch(context: Context) -> Iterator[Finding]:
    """Dropouts of a branch beside the one that stays."""
    for branch in context.branches:
        stays = kept(context, branch)
        for dropout in dropouts_on(context, branch):
            if stays and dropout is not stays:
                yield Finding.at(
                    dropout,
                    f"{in_words(dropout)} is one of several in its residual branch.",
                    f"Remove it, and keep {stays.name}.",
                    Remove(dropout),
                )


def bad() -> nn.Module:
    """Dropout before each weight layer."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.linear1, self.drop1 = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.3)
            self.norm2, self.linear2, self.drop2 = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear1(self.drop1(self.norm1(x).relu()))
            return x + self.linear2(self.drop2(self.norm2(y).relu()))

    return nn.Sequential(nn.Linear(8, 8), Block(), nn.Linear(8, 2))


def good() -> nn.Module:
    """Dropout before the last one only."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.linear1 = nn.BatchNorm1d(8), nn.Linear(8, 8)
            self.norm2, self.linear2, self.drop2 = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear1(self.norm1(x).relu())
            return x + self.linear2(self.drop2(self.norm2(y).relu()))

    return nn.Sequential(nn.Linear(8, 8), Block(), nn.Linear(8, 2))
