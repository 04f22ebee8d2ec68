"""Placement: where kim2023 wants a dropout in a residual branch."""

from __future__ import annotations

from evenkeel.errors import EvenkeelError
from evenkeel.graph.branches import Branch, innermost
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Move
from evenkeel.signals.activations import activation_of, is_homogeneous


def dropouts_on(context: Context, branch: Branch) -> tuple[Layer, ...]:
    """The dropouts of a branch, but for those on a smaller branch inside it; none if it has no norm to be shifted."""
    found = [layer for layer in branch.layers if layer in context.dropouts] if branch.norms else []
    return tuple(layer for layer in found if innermost(context.branches, layer) is branch)


def kept(context: Context, branch: Branch) -> Layer | None:
    """The one dropout that kim2023 leaves a branch: the first in the right place, or else the last."""
    found = dropouts_on(context, branch)
    return next((layer for layer in found if is_well_placed(layer, branch)), found[-1] if found else None)


def is_well_placed(dropout: Layer, branch: Branch) -> bool:
    """Whether a dropout is where `move_into` would put it, or as good: no norm behind it, and weights, if there are."""
    behind = branch.layers[branch.layers.index(dropout) :]
    weights = any(layer.kind is Kind.WEIGHT for layer in behind)
    return not any(layer.stores for layer in behind) and (weights or not branch.is_pre_activation)


def move_into(dropout: Layer, branch: Branch) -> Move:
    """Move a dropout to where kim2023 has it in a branch: before the last weight layer, with no norm behind it.

    In a branch that ends with a norm (post-activation) that is right after this norm.
    """
    if branch.norms and not branch.is_pre_activation:
        return Move(dropout, branch.norms[-1], "after")
    return Move(dropout, branch.weights[-1])


def caveat(branch: Branch) -> str:
    """In words, on which side of the last activation `move_into` puts a dropout, where that makes a difference."""
    if not branch.is_pre_activation:
        return ""
    last = branch.layers.index(branch.norms[-1])
    activations = [layer for layer in branch.layers[last:] if layer.kind is Kind.ACTIVATION]
    if not activations or _commutes(activations[-1]):
        return ""
    return f", behind {activations[-1].name} (dropout does not commute with {activations[-1].function})"


def _commutes(activation: Layer) -> bool:
    """Whether dropout before the activation is dropout after it, as with ReLU."""
    try:
        return is_homogeneous(activation_of(activation))
    except (EvenkeelError, LookupError, RuntimeError, TypeError, ValueError):
        return False


def in_words(dropout: Layer) -> str:
    """A dropout in words.

    >>> in_words(Layer("drop", Kind.DROPOUT, "drop", function="dropout2d", p=0.5))
    'dropout2d p=0.5'
    """
    if dropout.kind is Kind.OPAQUE:
        return f"the dropout p={dropout.p:g} in {dropout.function}"
    function = dropout.function if "drop" in dropout.function else type(dropout.module).__name__
    law = dropout.noise
    by = "a mask" if law is None or law.mean is None or law.peak is not None else "noise"
    name = function if dropout.module is not None or "drop" in function else f"dropout by {by}"
    return f"{name} p={'?' if dropout.p is None else f'{dropout.p:g}'}"
