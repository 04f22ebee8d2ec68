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

from evenkeel.branches import Branch
from evenkeel.edits import Remove
from evenkeel.exposures import norms_behind
from evenkeel.findings import Finding, rule
from evenkeel.graph import Layer
from evenkeel.kinds import Kind
from evenkeel.places import caveat, dropouts_on, is_global_average, label, move_into
from evenkeel.subject import Subject

EXAMPLE = (2, 8)


@rule("EK403", guideline="kim2023")
def dropout_on_trunk(subject: Subject) -> Iterator[Finding]:
    """Dropouts that no shortcut dilutes."""
    full: dict[Layer, Layer | None] = {b.join: None for b in subject.branches if dropouts_on(subject, b)}
    for dropout in subject.dropouts:
        if dropout in subject.gating:
            continue
        branch, place = _branch_of(subject, dropout)
        norms = norms_behind(subject.graph, dropout, through_weights=True)
        if branch and norms:
            free = branch.join not in full
            mover = full.setdefault(branch.join, dropout)
            yield Finding.at(
                dropout,
                f"{label(dropout)} acts {place} {branch.join.name}.",
                f"Move it into the branch{caveat(branch)}." if free else "Remove it: the branch has a dropout.",
                move_into(dropout, branch) if free else Remove(dropout, given=mover),
                norm=norms[0].path,
            )


def _branch_of(subject: Subject, dropout: Layer) -> tuple[Branch | None, str]:
    """The branch whose shortcut or join a dropout belongs to, and how it does."""
    if any(dropout in branch.layers for branch in subject.branches):
        return None, ""
    before = subject.graph.upstream(dropout, until=_ends_trunk)
    behind = subject.graph.downstream(dropout, until=_ends_trunk)
    for branch in subject.branches:
        if dropout in branch.shortcut:
            return branch, "on the shortcut of"
    for branch in reversed(subject.branches):
        if branch.join in before:
            return branch, "on what comes out of"
    for branch in subject.branches:
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
