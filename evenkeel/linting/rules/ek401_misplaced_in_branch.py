"""EK401: dropout in a residual branch, but not after its last norm and before its last weight layer.

## What it does
Finds dropouts on a residual branch (the way to a join or a dense block's concatenation that has weights on it, beside
a shortcut) that have a norm of the branch behind them, or none of its weight layers.

## Why it matters
A norm of the same branch meets the shift undiluted; after the join, the shortcut dilutes it. And dropout before
weights shifts less than dropout of what they return, as soon as the weights have a mean: with zero mean both are equal.

## Who disagrees
li2018 wants no dropout before any norm, and flags the recommended place too (EK202): compare the predicted shifts.
chen2019 has dropout before each weight layer of the branch.

## Known limits
A branch that ends with a norm (post-activation, inverted residuals) has no such place. There, dropout is asked for
after that norm, so that no norm of the branch is behind it: that is ours, since only pre-activation blocks of the paper
are known. Stochastic depth drops the branch itself and is exempt; so are branches without running statistics, and
dropout that only acts on a gate.

## References
Kim et al. 2023, abstract and propositions 2 to 4; P6 in its published code, which has it behind the activation.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from evenkeel.graph.branches import Branch
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.queries import norms_behind
from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import caveat, in_words, is_well_placed, kept, move_into
from evenkeel.linting.rule import rule

EXAMPLE = (2, 8)


@rule("EK401", guideline="kim2023")
def misplaced_in_branch(context: Context) -> Iterator[Finding]:
    """The one dropout that a branch keeps, if it is in the wrong place."""
    for branch in context.branches:
        dropout = kept(context, branch)
        if dropout and not is_well_placed(dropout, branch):
            move = move_into(dropout, branch)
            yield Finding.at(
                dropout,
                f"{in_words(dropout)} {_offence(dropout, branch)}.",
                f"Move it to {move.side} {move.target.name}{caveat(branch)}.",
                move,
                norm=_nearest_norm(context, dropout),
            )


def _offence(dropout: Layer, branch: Branch) -> str:
    behind = branch.layers[branch.layers.index(dropout) :]
    norms = [layer for layer in behind if layer.stores]
    if norms:
        return f"comes before the norm {norms[0].name} of the same residual branch"
    return f"comes behind {branch.weights[-1].name}, the last weights of its residual branch"


def _nearest_norm(context: Context, dropout: Layer) -> str | None:
    return next((norm.path for norm in norms_behind(context.graph, dropout, through_weights=True)), None)


def bad() -> nn.Module:
    """Dropout before the branch's last norm."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.linear1 = nn.BatchNorm1d(8), nn.Linear(8, 8)
            self.norm2, self.linear2, self.drop = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.drop(self.linear1(self.norm1(x).relu()))
            return x + self.linear2(self.norm2(y).relu())

    return nn.Sequential(nn.Linear(8, 8), Block(), nn.Linear(8, 2))


def good() -> nn.Module:
    """Dropout behind it, before the last weights."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.linear1 = nn.BatchNorm1d(8), nn.Linear(8, 8)
            self.norm2, self.linear2, self.drop = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear1(self.norm1(x).relu())
            return x + self.linear2(self.drop(self.norm2(y).relu()))

    return nn.Sequential(nn.Linear(8, 8), Block(), nn.Linear(8, 2))
