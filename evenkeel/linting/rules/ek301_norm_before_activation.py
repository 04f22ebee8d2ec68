"""EK301: norm before the activation rather than before the weights.

## What it does
Finds norms with running statistics whose output reaches an activation before any weight layer.

## Why it matters
A norm before ReLU does not leave the weights a standardized input: ReLU makes it non-negative again. In front of the
weights, norm and dropout together (an IC layer) bring inputs closer to independent.

## Who disagrees
li2018 and kim2023 study networks in the usual order (weight, norm, activation) and keep it.

## Known limits
The fix takes the norm out, and that changes what the model computes and its state_dict: it needs `unsafe=True`, and
the model new training. EK302 puts IC layers before the weights. A norm and its activation in one module are edited by
hand.

## References
Chen et al. 2019, abstract: no norm before ReLU. {weight, norm, ReLU} becomes {ReLU, IC, weight}.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenkeel.graph.kinds import Kind
from evenkeel.layers.ic import IC
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Remove
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule

EXAMPLE = (2, 4)
_ENDS = (Kind.WEIGHT, Kind.NORM, Kind.ACTIVATION)


@rule("EK301", guideline="chen2019")
def norm_before_activation(context: Context) -> Iterator[Finding]:
    """Norms that feed an activation."""
    for norm in context.graph.of(Kind.NORM):
        activations = [x for x in context.graph.downstream(norm, until=_ENDS) if x.kind is Kind.ACTIVATION]
        if norm.stores and activations:
            yield Finding.at(
                norm,
                f"the norm feeds the activation {activations[0].name}, not a weight layer.",
                "Normalize right before the weights, by an IC layer.",
                Remove(norm, safe=False),
            )


def bad() -> nn.Module:
    """Weight, norm, activation."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), IC(8, ndim=0), nn.Linear(8, 2))


def good() -> nn.Module:
    """Activation, IC, weight."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), IC(8, ndim=0), nn.Linear(8, 2))
