"""Snapshot: a graph as the model was, whatever is done to the model later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.signals.weights import weights_of


def snapshot(graph: LayerGraph) -> LayerGraph:
    """The graph with copies of all values that its calls were given, but those of weight layers' weights.

    So signals propagate as they do now, if the variances of weights are given (`propagate`).
    """
    copies: dict[Layer, Layer] = {}
    for layer in graph:
        weights = weights_of(layer) if layer.kind is Kind.WEIGHT else None
        copier = _Copier(copies, weights and weights.parameter)
        copies[layer] = replace(
            layer,
            inputs=tuple(copies[source] for source in layer.inputs),
            args=copier.copied(layer.args),
            kwargs=copier.copied(layer.kwargs),
        )
    return LayerGraph(tuple(copies.values()))


class _Copier:
    """Copies what a call was given, its layers replaced by their copies; all but one parameter, and views of it."""

    def __init__(self, layers: Mapping[Layer, Layer], spared: nn.Parameter | None) -> None:
        self.layers = layers
        self.spared = spared

    def copied(self, value: Any) -> Any:
        """A copy of a value in any nesting."""
        if isinstance(value, Layer):
            return self.layers[value]
        if isinstance(value, Tensor):
            return self._copied_tensor(value)
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            items = [self.copied(item) for item in cast("list[Any]", value)]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: self.copied(item) for key, item in cast("dict[Any, Any]", value).items()}
        return value

    def _copied_tensor(self, tensor: Tensor) -> Tensor:
        own = tensor if tensor._base is None else tensor._base
        if own is self.spared or 0 in tensor.stride():  # expanded ones are the graph's own, and much smaller inside
            return tensor
        copy = tensor.detach().clone()
        return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
