"""Queries that several features make of a graph: norms behind a layer, dropouts before a norm, global pools."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from evenkeel.graph.kinds import AVERAGES, BATCH_NORMS, PARTS, PRODUCTS, RECURRENT, REORDERINGS, Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph, Until


def feeding(graph: LayerGraph, norm: nn.Module, until: Until = Kind.NORM) -> tuple[Layer, ...]:
    """The dropouts and other noise that act on a norm's input: upstream of its calls, back to the norms before."""
    calls = [layer for layer in graph.of(Kind.NORM) if layer.module is norm]
    found = [layer for one in calls for layer in graph.upstream(one, until=until)]
    noisy = (layer for layer in found if layer.p or layer.kind is Kind.NOISE or (layer.drops and layer.p is None))
    return tuple(dict.fromkeys(noisy))


def chunked(layer: Layer) -> Layer | None:
    """What a layer's input is some samples of, cut out of the batch, as in ghost batch norm; None if it is whole."""
    return cut_from(layer.inputs[0]) if layer.inputs else None


def cut_from(part: Layer) -> Layer | None:
    """What a layer returns some samples of, and all of each; None if it is no such part."""
    if part.kind is not Kind.PASS or part.function not in PARTS:
        return None
    (source, *_) = part.inputs
    same = part.shape[1:] == source.shape[1:] and len(part.shape) == len(source.shape)
    return source if same and part.shape[0] <= source.shape[0] else None


def on_parameters(graph: LayerGraph) -> frozenset[Layer]:
    """The layers that read parameters alone, as dropout on weights does."""
    inputs = graph.of(Kind.INPUT)
    return frozenset(graph).difference(inputs, *(graph.downstream(given) for given in inputs))


def stays_on(layer: Layer) -> bool:
    """Whether a layer of a graph recorded in eval mode is noise there, too."""
    if layer.kind is Kind.OPAQUE:
        return layer.function == "scaled_dot_product_attention" and bool(layer.p)
    by_mask = "drop" not in layer.function and layer.module is None
    training = layer.arguments.get("training", layer.kwargs.get("train"))  # torch.dropout's word
    return layer.kind is Kind.NOISE or (layer.drops and (by_mask or training is True))


def right_before(graph: LayerGraph, norm: nn.Module) -> tuple[Layer, ...]:
    """The dropouts that act on a norm's input with no weight layer in between, but those that drop nothing."""
    calls = [layer for layer in graph.of(Kind.NORM) if layer.module is norm]
    found = [x for one in calls for x in graph.upstream(one, until=lambda x: x.kind is Kind.NORM or mixes(x))]
    return tuple(dict.fromkeys(x for x in found if x.drops or (x.p and x.kind is Kind.GATE)))


def norms_behind(graph: LayerGraph, layer: Layer, *, through_weights: bool = False) -> tuple[Layer, ...]:
    """The next norms with running statistics that a layer's output reaches, in execution order.

    Args:
        graph: the graph.
        layer: where to begin.
        through_weights: whether to look behind weight layers and products of two signals, too.
    """

    def ends(behind: Layer) -> bool:
        return behind.stores or (mixes(behind) and not through_weights)

    return tuple(behind for behind in graph.downstream(layer, until=ends) if behind.stores)


def mixes(layer: Layer) -> bool:
    """Whether a layer sums over features: a weight layer, or a product of two signals, such as attention's."""
    return layer.kind is Kind.WEIGHT or layer.function in PRODUCTS


def has_weights(layer: Layer) -> bool:
    """Whether a layer has weights, and dropout can stand before it: a weight layer, or a recurrent one, not packed."""
    packed = any(source.function in REORDERINGS for source in layer.inputs)
    return layer.kind is Kind.WEIGHT or (layer.function in RECURRENT and not packed)


def rescaling_between(graph: LayerGraph, layer: Layer, norm: Layer) -> Layer | None:
    """The first norm without stored statistics on a way from a layer to a norm: it rescales each sample by itself."""
    rescaling = {x for x in graph.of(Kind.NORM) if x.function not in BATCH_NORMS}
    if rescaling:  # most graphs have none
        rescaling.intersection_update(graph.upstream(norm))
    behind = graph.downstream(layer, until=lambda x: x is norm) if rescaling else ()
    return next((x for x in behind if x in rescaling), None)


def source_of(layer: Layer, passing: Callable[[Layer], bool] = lambda layer: layer.kind is Kind.PASS) -> Layer | None:
    """What a layer reads, behind layers that only pass it on; None for inputs and layers that read several signals."""
    sources = dict.fromkeys(layer.inputs)
    while len(sources) == 1:
        (source,) = sources
        if not passing(source):
            return source
        sources = dict.fromkeys(source.inputs)
    return None


def is_global_average(layer: Layer | None) -> bool:
    """Whether a layer averages each channel over all positions."""
    if layer is None or layer.kind is not Kind.POOL or layer.function not in AVERAGES:
        return False
    (source, *_) = layer.inputs
    return len(source.shape) > 2 and layer.shape[:2] == source.shape[:2] and all(size == 1 for size in layer.shape[2:])
