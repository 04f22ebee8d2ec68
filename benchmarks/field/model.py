"""FieldModel: one model of the field, how it is built, and where its order of layers comes from."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, Any]  # a model in train mode, and an example


@dataclass(frozen=True)
class FieldModel:
    """One model of the field.

    Attributes:
        name: unique in the report.
        library: the package on PyPI, or the repository, that it is of.
        rate: the drop rates that it has if nobody chooses one; nothing if they are those that its graph shows.
        build: makes it at these rates, small where the library lets one choose.
        anew: of a block that is written anew from its published order: commit, file and lines where that stands.
        requires: the module to import; nothing if the block is written anew.
        trained: makes it with trained weights, from the folder that the user gives, with data to measure it on.
    """

    name: str
    library: str
    rate: str
    build: Callable[[], Built]
    anew: str = ""
    requires: str = ""
    trained: Callable[[Path | None], tuple[nn.Module, list[Any]]] | None = None

    @property
    def missing(self) -> bool:
        """Whether its library is not installed."""
        return bool(self.requires) and importlib.util.find_spec(self.requires) is None

    @property
    def version(self) -> str:
        """The installed library's version, or where the order was read."""
        return self.anew or importlib.metadata.version(self.library)


class Residual(nn.Module):
    """A branch added to its input, or to what `shortcut` makes of that; `after` acts on the sum."""

    def __init__(self, *branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.shortcut = shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.branch(x) + self.shortcut(x))


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def swapped(*layers: nn.Module) -> nn.Sequential:
    """Layers that take channels second, in a model that has them last."""
    return nn.Sequential(Apply(_transpose), *layers, Apply(_transpose))


def _transpose(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2)


def dense(inputs: int, *sizes: int, order: str = "WNAD", p: float) -> nn.Sequential:
    """Linear blocks in an order such as "WNAD", one a size."""
    before, _, behind = order.partition("W")
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [layer_of(letter, inputs, p) for letter in before]
        layers += [nn.Linear(inputs, size), *(layer_of(letter, size, p) for letter in behind)]
        inputs = size
    return nn.Sequential(*layers)


def layer_of(letter: str, width: int, p: float) -> nn.Module:
    """The layer that a letter of an order stands for."""
    return {"N": nn.BatchNorm1d(width), "A": nn.ReLU(), "D": nn.Dropout(p)}[letter]
