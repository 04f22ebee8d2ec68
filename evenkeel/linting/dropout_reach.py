"""DropoutReach: the dropouts whose noise reaches norms, and what takes them behind all norms, as li2018 asks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.queries import has_weights, norms_behind, on_parameters
from evenkeel.layers.uout import Uout
from evenkeel.linting.dropout_module import dropout_like
from evenkeel.linting.edits import Edit, Insert, Move, Remove


@dataclass(frozen=True)
class DropoutReach:
    """A dropout whose noise reaches norms with running statistics.

    Attributes:
        dropout: the dropout, or a call with one inside (attention, recurrent layers).
        norms: the first norms that its noise reaches.
        direct: whether it reaches one without a weight layer in between.
        must_stay: whether there is no weight layer behind all norms.
        on_parameter: whether it acts on a parameter, such as weights or a gate, not on a signal.
        edits: what takes it behind all norms; none where that cannot be.
    """

    dropout: Layer
    norms: tuple[Layer, ...]
    direct: bool
    must_stay: bool = False
    on_parameter: bool = False
    edits: tuple[Edit, ...] = ()

    @property
    def advice(self) -> str:
        """What to do, as an imperative."""
        if self.dropout.kind is Kind.OPAQUE or self.on_parameter:
            whose = "the parameter" if self.on_parameter else self.dropout.function
            instead = "" if self.must_stay else ", and drop out behind the last norm instead"
            return f"Set the rate of the dropout {'on' if self.on_parameter else 'in'} {whose} to 0{instead}."
        targets = [edit.target.name for edit in self.edits if isinstance(edit, (Move, Insert))]
        if targets:
            return f"Move it behind the last norm, to before {' and '.join(targets)}."
        return "Remove it: there is, or will be, a dropout behind the last norm."


def reaches_of(graph: LayerGraph, dropouts: Iterable[Layer]) -> tuple[DropoutReach, ...]:
    """The dropouts whose noise reaches norms, except Uout, which is made for that place.

    The first one that feeds the last weight layers behind all norms is moved before these, one a head, where no dropout
    is yet; the others are removed. What is inside a call, or on a parameter, stays where it is.
    """
    noisy = [layer for layer in dropouts if not isinstance(layer.module, Uout)]
    harmless = {layer for layer in noisy if not norms_behind(graph, layer, through_weights=True)}
    taken = {
        weight
        for layer in harmless
        for weight in filter(has_weights, graph.downstream(layer, until=(Kind.WEIGHT, Kind.NORM)))
    }
    before, parametric = _last_weights(graph), on_parameters(graph)
    found: list[DropoutReach] = []
    mover: Layer | None = None  # the last dropout that is moved before a head
    for dropout in noisy:
        if dropout in harmless:
            continue
        hidden, on_parameter = dropout.kind is Kind.OPAQUE, dropout in parametric
        direct = () if hidden else norms_behind(graph, dropout)  # in such a call, weights or products come behind it
        norms = direct or norms_behind(graph, dropout, through_weights=True)
        heads = [head for head, feeding in before.items() if dropout in feeding]
        reach = DropoutReach(dropout, norms, bool(direct), not heads, on_parameter)
        if not hidden and not on_parameter:
            free = [head for head in heads if head not in taken]
            taken.update(free)
            mover = dropout if free else mover
            reach = replace(reach, edits=_edits(dropout, heads, free, mover))
        found.append(reach)
    return tuple(found)


def _last_weights(graph: LayerGraph) -> dict[Layer, set[Layer]]:
    """The weight layers that come last, if they are behind all norms, each with what its signal comes from."""
    found: dict[Layer, set[Layer]] = {}
    for weight in reversed(list(filter(has_weights, graph))):
        if not any(weight in feeding for feeding in found.values()):
            found[weight] = {*graph.upstream(weight)}
    return {head: feeding for head, feeding in reversed(found.items()) if not norms_behind(graph, head)}


def _edits(dropout: Layer, heads: Collection[Layer], free: list[Layer], mover: Layer | None) -> tuple[Edit, ...]:
    if not heads:
        return ()
    if not free:
        return (Remove(dropout, given=mover),)
    inserts: list[Edit] = []
    for head in free[1:]:
        module = dropout_like(dropout, shape=head.inputs[0].shape)
        inserts += [Insert(module, head)] if module else []
    return (Move(dropout, free[0]), *inserts)
