"""EK403: dropout on the shortcut, or on the trunk between residual blocks.

## What it does
Finds dropouts on a shortcut, and dropouts that act on a join's output or on what a shortcut reads, with a norm still
to come.

## Why it matters
Nothing dilutes their noise: it reaches the norms of all blocks behind, and the shortcuts hand it on.

## Who disagrees
li2018 flags it as any dropout before a norm.

## Known limits
Stochastic depth is exempt, and so is dropout that only acts on a gate. Dropout behind a global average pool belongs
to the head: EK404.

## References
Kim et al. 2023, propositions 3 and 4, on what the identity dilutes; P0 in its published code lies outside the branch.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from evenkeel.graph.branches import Branch
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.queries import is_global_average, norms_behind
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Remove
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import caveat, dropouts_on, in_words, move_into
from evenkeel.linting.rule import rule

EXAMPLE = (2, 8)


@rule("EK403", guideline="kim2023")
def dropout_on_trunk(context: Context) -> Iterator[Finding]:
    """Dropouts that no shortcut dilutes."""
    full: dict[Layer, Layer | None] = {b.join: None for b in context.branches if dropouts_on(context, b)}
    for dropout in context.dropouts:
        if dropout in context.gating:
            continue
        branch, place = _branch_of(context, dropout)
        norms = norms_behind(context.graph, dropout, through_weights=True)
        if branch and norms:
            free = branch.join not in full
            mover = full.setdefault(branch.join, dropout)
            yield Finding.at(
                dropout,
                f"{in_words(dropout)} acts {place} {branch.join.name}.",
                f"Move it into the branch{caveat(branch)}." if free else "Remove it: the branch has a dropout.",
                move_into(dropout, branch) if free else Remove(dropout, given=mover),
                norm=norms[0].path,
            )


def _branch_of(context: Context, dropout: Layer) -> tuple[Branch | None, str]:
    """The branch whose shortcut or join a dropout belongs to, and how it does."""
    if any(dropout in branch.layers for branch in context.branches):
        return None, ""
    before = context.graph.upstream(dropout, until=_ends_trunk)
    behind = context.graph.downstream(dropout, until=_ends_trunk)
    for branch in context.branches:
        if dropout in branch.shortcut:
            return branch, "on the shortcut of"
    for branch in reversed(context.branches):
        if branch.join in before:
            return branch, "on what comes out of"
    for branch in context.branches:
        if branch.join in behind or all(set(behind).intersection(way) for way in (branch.layers, branch.shortcut)):
            return branch, "on the shortcut and the branch of"
    return None, ""


def _ends_trunk(layer: Layer) -> bool:
    return layer.kind in (Kind.WEIGHT, Kind.NORM) or is_global_average(layer)


def bad() -> nn.Module:
    """Dropout of what a block returns."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear, self.drop = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x + self.linear(self.norm(x).relu()))

    return nn.Sequential(nn.Linear(8, 8), Block(), nn.BatchNorm1d(8), nn.Linear(8, 2))


def good() -> nn.Module:
    """Dropout in the branch."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear, self.drop = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(self.drop(self.norm(x).relu()))

    return nn.Sequential(nn.Linear(8, 8), Block(), nn.BatchNorm1d(8), nn.Linear(8, 2))
