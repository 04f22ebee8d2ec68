"""EK302: a weight layer without an IC layer before it.

## What it does
Finds weight layers, but for those that read the model's input, that do not read a norm followed by dropout, directly
or through reshaping and pools.

## Why it matters
An IC layer (norm, then dropout at a small rate) standardizes what the weights read and makes it less dependent:
dropout multiplies the correlation of two inputs by keep, their mutual information by keep^2, in training.

## Who disagrees
li2018: the dropout of every IC layer but the last reaches the norm of the next, and the shifts multiply. kim2023: all
but the last IC layer of a branch break its rule.

## Known limits
Whether the first layer and the head should have one is open: here the first has none, the head has.
The fix needs `unsafe=True`: it changes what the model computes, adds keys to its state_dict, and takes out other
dropout since the weights before. Layers that read sequences with features last are edited by hand.

## References
Chen et al. 2019, abstract; the order ReLU, IC, weight and p = 0.05 as those who rebuilt its residual units report.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenkeel.graph.kinds import CONVOLUTIONS, Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.queries import source_of
from evenkeel.layers.ic import IC
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Edit, Insert, Remove
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule

EXAMPLE = (2, 4)
_RATE = 0.05
_LAST = 3  # spatial dimensions that a norm takes


@rule("EK302", guideline="chen2019")
def weight_without_ic(context: Context) -> Iterator[Finding]:
    """Weight layers that do not read an IC layer."""
    dropouts = set(context.dropouts)
    for weight in context.graph.of(Kind.WEIGHT):
        behind = context.graph.upstream(weight, until=Kind.WEIGHT)
        inner = any(layer.kind is Kind.WEIGHT for layer in behind)
        source = source_of(weight, _passes)
        dropout = source if source and source.drops else None
        before = source_of(dropout, _passes) if dropout else source
        normed = before is not None and before.kind is Kind.NORM
        if inner and not (normed and dropout) and weight.function != "embedding":
            missing, place = ("dropout", f"Dropout({_RATE})") if normed else ("norm", "evenkeel.IC")
            others = [] if normed else [layer for layer in behind if layer in dropouts]
            yield Finding.at(
                weight,
                f"the weights read no IC layer: there is no {missing} right before them.",
                f"Put {place} before them{f', in place of {others[-1].name}' if others else ''}.",
                *_edits(weight, others, normed=normed),
            )


def _passes(layer: Layer) -> bool:
    return layer.kind in (Kind.PASS, Kind.POOL)


def _edits(weight: Layer, others: list[Layer], *, normed: bool) -> tuple[Edit, ...]:
    """An IC layer in place of other dropout since the weight layers before, as far as there is one for the shape."""
    shape = weight.inputs[0].shape
    if normed:
        return (Insert(nn.Dropout(_RATE), weight),)
    dims = len(shape) - 2
    channels_first = dims == 0 or weight.function in CONVOLUTIONS
    if not channels_first or not 0 <= dims <= _LAST:
        return ()
    return (*map(Remove, others), Insert(IC(shape[1], _RATE, dims), weight, safe=False))


def bad() -> nn.Module:
    """No norm, no dropout."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def good() -> nn.Module:
    """An IC layer before the weights."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), IC(8, ndim=0), nn.Linear(8, 2))
