"""Modules made of a function, for networks of one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.graph.layer_graph import Layer
from evenkeel.signals.weights import Weights, weights_of


class Made(nn.Module):
    """A module that runs a function of itself, with its layers as attributes, and its input."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Calls(Made):
    """The same, with parameters of the shapes given."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__(run, **{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})


def read(module: nn.Module, x: Tensor) -> tuple[Layer, Weights | None]:
    """The one weight layer of a module, and its weights."""
    (layer,) = ek.trace(module, x).of(ek.Kind.WEIGHT)
    return layer, weights_of(layer)
