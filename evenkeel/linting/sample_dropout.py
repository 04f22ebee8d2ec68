"""Stochastic depth: dropout of whole samples, which no rule on placement covers, and the shift that it makes."""

from __future__ import annotations

import math

from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.queries import norms_behind
from evenkeel.linting.context import Context


def stochastic_depth(context: Context) -> list[str]:
    """What stochastic depth does to norms, in one line; none where it reaches none.

    A mask of whole samples adds `p / (1 - p) E f^2` to the variance that the next norm stores, f being the branch.
    """
    layers = [layer for layer in context.graph if layer.drops and layer.drops_samples]
    layers = [layer for layer in layers if norms_behind(context.graph, layer, through_weights=True)]
    if not layers:
        return []
    rates = sorted(layer.p for layer in layers if layer.p is not None)
    ends = list(dict.fromkeys(f"{rate:g}" for rate in (*rates[:1], *rates[-1:]))) or ["?"]
    between = f"p={' to '.join(ends)}"
    what = layers[0].label if len(layers) == 1 else f"{len(layers)} layers from {layers[0].label} on"
    return [f"stochastic depth {between} ({what}) is exempt from rules on placement; {_shift(context, layers)}."]


def _shift(context: Context, layers: list[Layer]) -> str:
    """Where it is predicted to shift a norm most, and by how much."""
    if context.prediction is None:
        return "its shift is not predicted"
    made = dict[str, tuple[float, float]]()
    for path, shares in context.prediction.causes.items():
        share, ratio = sum(shares.get(layer, 0.0) for layer in _same(shares, layers)), context.shift(path)
        if share and ratio:
            made[path] = abs(share * math.log(ratio)), share
    if not made:
        return "its shift cannot be predicted: measure it by variance_shift"
    path = max(made, key=made.__getitem__)
    return f"predicted eval/train {context.shift(path):.2f} at {path}, {made[path][1]:.0%} of it due to this"


def _same(shares: dict[Layer, float], layers: list[Layer]) -> list[Layer]:
    """Those that a prediction, which records a graph of its own, shares with the ones given."""
    names = {layer.name for layer in layers}
    return [layer for layer in shares if layer.name in names]
