"""The kind of a call: by its function, and by which of its operands are signals, constants or noise."""

from __future__ import annotations

from evenkeel.graph.kinds import ADDING, AFFINE, GREATER, LESS, PRODUCTS, REPLACING, Kind, kind_of_function
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.randomness import Law


def kind_of_call(name: str, signals: tuple[Layer, ...], values: int, operands: int, factor: Law | None) -> Kind:
    """The kind of one call.

    Args:
        name: the function's.
        signals: the layers that made those of its operands that are signals.
        values: how many of these are floating-point tensors.
        operands: how many tensors it is given in all.
        factor: the law of the noise that it is given; None without.

    >>> kind_of_call("add", (), values=1, operands=2, factor=None)
    <Kind.JOIN: '+'>
    """
    kind = kind_of_function(name)
    if name in PRODUCTS:
        return Kind.WEIGHT if len(signals) == 1 and operands > 1 else Kind.GATE if values > 1 else Kind.OPAQUE
    if factor is not None:
        return _kind_of_noise(name, factor)
    if (kind in (Kind.JOIN, Kind.GATE) or name in AFFINE) and len(signals) == 1:
        return Kind.PASS  # a constant added or multiplied
    if kind is Kind.ACTIVATION and values > 1:  # one signal to the power of the other
        return Kind.OPAQUE
    return kind


def _kind_of_noise(name: str, factor: Law) -> Kind:
    """The kind of a call that is given noise: it multiplies a signal, is beside it or added, or takes its place."""
    kind = kind_of_function(name)
    if kind is Kind.GATE or name in REPLACING:
        return Kind.DROPOUT if factor.is_dropout else Kind.NOISE
    if kind in (Kind.JOIN, Kind.CONCAT) or name in ADDING | LESS | GREATER:  # to compare with noise is to draw
        return Kind.NOISE
    return Kind.OPAQUE
