"""EK404: head dropout after global average pooling.

## What it does
Finds dropouts that act on what a global average pool returns, with no residual block behind them.

## Why it matters
Dropping single positions before the pool makes the pooled value less noisy than dropping the pooled value: by a factor
of sum x^2 / (sum x)^2 over a channel's positions x, between 1 / S and 1 for S positions.

## Who disagrees
li2018 asks for dropout behind the last norm, and is content with both places.

## Known limits
The noise before the pool is that much weaker, so the rate has to be tuned anew. Dropout of whole channels before the
pool would be dropout after it, so single positions are dropped there. Behind hidden layers of the head it is left
alone, and so are means over tokens and other signals with channels last. Where the pool has other readers than the
dropout, it is edited by hand.

## References
Kim et al. 2023, abstract: dropout before global average pooling makes outputs more stable; H4 in its published code.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenkeel.graph.kinds import CHANNEL_DROPOUT
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.queries import is_global_average, source_of
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Edit, Insert, Move, Remove
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import in_words
from evenkeel.linting.rule import rule

EXAMPLE = (2, 3, 8, 8)


@rule("EK404", guideline="kim2023")
def head_dropout_after_pool(context: Context) -> Iterator[Finding]:
    """Dropouts of what a global average pool returns."""
    joins = {branch.join for branch in context.branches}
    for dropout in context.dropouts:
        pool = source_of(dropout)
        if not pool or not is_global_average(pool):
            continue
        if dropout not in context.gating and joins.isdisjoint(context.graph.downstream(dropout)):
            yield Finding.at(
                dropout,
                f"{in_words(dropout)} acts on what the global average pool {pool.name} returns.",
                "Move it before the pool, and tune its rate anew: the same rate is weaker there.",
                *_edits(dropout, pool),
            )


def _edits(dropout: Layer, pool: Layer) -> tuple[Edit, ...]:
    """Move a dropout before a pool that nothing else reads, and let it drop single positions there."""
    layer = dropout
    while layer is not pool:
        (layer,) = set(layer.inputs)
        if len(layer.users) > 1:
            return ()
    if dropout.function not in CHANNEL_DROPOUT or dropout.p is None:
        return (Move(dropout, pool),)
    return (Remove(dropout), Insert(nn.Dropout(dropout.p), pool))


def bad() -> nn.Module:
    """Pool, dropout, classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, 2),
    )


def good() -> nn.Module:
    """Dropout, pool, classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
