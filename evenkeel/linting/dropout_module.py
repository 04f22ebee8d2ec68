"""A dropout module of the kind and rate of a dropout in a graph."""

from __future__ import annotations

import copy

from torch import nn

from evenkeel.graph.kinds import MULTIPLYING_DROPOUT, Kind, kind_of_function
from evenkeel.graph.layer_graph import Layer

# What torch has a module for, by the name of the function.
_MODULES: dict[str, type[nn.modules.dropout._DropoutNd]] = {
    "dropout": nn.Dropout,
    "native_dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "dropout3d": nn.Dropout3d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
# How many dimensions a module takes that drops whole channels of a batch.
_DIMENSIONS: dict[type[nn.Module], int] = {nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5}


def dropout_like(layer: Layer, p: float | None = None, shape: tuple[int, ...] | None = None) -> nn.Module | None:
    """A module that does to a signal, not in place, what a dropout does; None if that is not known.

    Args:
        layer: the dropout.
        p: another drop rate.
        shape: of the signal, if another than the dropout's. Where torch's dropout of channels would refuse it,
            elements are dropped: of pooled channels these are the same.

    >>> dropout_like(Layer("drop", Kind.DROPOUT, "drop", function="dropout2d", shape=(2, 3, 4, 4), p=0.5))
    Dropout2d(p=0.5, inplace=False)
    """
    rate = layer.p if p is None else p
    if rate is None or layer.kind is not Kind.DROPOUT:
        return None
    if layer.module is not None and type(layer.module).__module__ != nn.Dropout.__module__:
        return copy.deepcopy(layer.module) if p is None else None
    mask = layer.noise is not None and layer.noise.peak is not None
    by_mask = mask and kind_of_function(layer.function) is Kind.GATE and layer.scaled and layer.shape in layer.constants
    module = nn.Dropout if by_mask else _MODULES.get(layer.function)
    if module is None:
        return None
    dims = len(layer.shape if shape is None else shape)
    if layer.function in MULTIPLYING_DROPOUT and _DIMENSIONS.get(module, dims) != dims:
        module = nn.Dropout
    return module(round(rate, 9))
