"""Forecast: what signals and gradients will be once weights are drawn, worked out when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.signals.marginals import Sum
from evenkeel.signals.propagation import MeanSquares, predict_mean_squares
from evenkeel.signals.signal import Signal
from evenkeel.signals.snapshot import snapshot
from evenkeel.signals.weights import Weights


@dataclass(frozen=True)
class Forecast:
    """What propagation will say of a model as it is now, even if it is asked once the model has been trained on.

    Attributes:
        graph: a snapshot of the graph.
        squares: the mean square of each weight layer's weights, by name.
    """

    graph: LayerGraph
    squares: Mapping[str, float]

    @classmethod
    def of(
        cls, graph: LayerGraph, calls: Mapping[Layer, Weights | None], variances: Mapping[nn.Parameter, float]
    ) -> Forecast:
        """Remember a model whose weights have these variances, or their present mean squares.

        Args:
            graph: the graph.
            calls: its weight layers, each with its weights.
            variances: of the parameters that were drawn.
        """
        squares = {
            layer.name: variances.get(w.parameter) or float(w.parameter.detach().double().square().mean())
            for layer, w in calls.items()
            if w is not None
        }
        return cls(snapshot(graph), squares)

    def mean_squares(self) -> dict[str, MeanSquares]:
        """Mean squares at every weight layer, by name."""
        found, _ = predict_mean_squares(self.graph, choose=self._square)
        return {layer.name: squares for layer, squares in found.items()}

    def _square(self, layer: Layer, weights: Weights, x: Signal, reached: Sum) -> float:
        return self.squares[layer.name]
