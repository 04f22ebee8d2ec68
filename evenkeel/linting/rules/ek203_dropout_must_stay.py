"""EK203: dropout before a norm that cannot be moved behind all norms.

## What it does
Finds dropouts that reach a norm with running statistics in a model without a weight layer behind its last norm, such
as a feature extractor or a projection head that ends with a norm. There, it suggests Uout.

## Why it matters
The shift is that of EK201 and EK202, but dropout cannot be moved behind all norms. Uout multiplies by 1 + r, r uniform
between -beta and beta, whose shift, `3 / (3 + beta^2)` for inputs of mean 0, is .997 for beta = .1.

## Who disagrees
kim2023 and chen2019 keep dropout, and choose its place.

## Known limits
Much of Uout's smaller shift is weaker noise: beta = .1 is as noisy as dropout of rate .0033.

## References
Li et al. 2018, section 5, equation 15 and table 6.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenkeel.graph.kinds import Kind
from evenkeel.layers.uout import Uout
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Swap
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import in_words
from evenkeel.linting.rule import rule

EXAMPLE = (2, 4)


@rule("EK203", guideline="li2018")
def dropout_must_stay(context: Context) -> Iterator[Finding]:
    """Dropouts before norms, with no weight layer behind the last norm."""
    for reach in context.reaches:
        if reach.must_stay:
            dropout, norm = reach.dropout, reach.norms[0]
            fixed = dropout.kind is Kind.OPAQUE or reach.on_parameter
            yield Finding.at(
                dropout,
                f"{in_words(dropout)} reaches the norm {norm.name}, and no weight layer comes behind the last norm.",
                reach.advice if fixed else "Replace it by Uout.",
                *(() if fixed else (Swap(dropout, Uout()),)),
                norm=norm.path,
            )


def bad() -> nn.Module:
    """A projection head that ends with a norm."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))


def good() -> nn.Module:
    """The same with Uout."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Uout(0.1), nn.Linear(8, 8), nn.BatchNorm1d(8))
