"""Edits: changes to a model's layers as data; `fix` is what applies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from evenkeel.graph.layer_graph import Layer

Side = Literal["before", "after"]


@dataclass(frozen=True, eq=False)
class Insert:
    """Run a new module on what a layer reads, or on what it returns.

    Attributes:
        module: the new module.
        target: the layer.
        side: "before": on its (first) input; "after": on its output.
        safe: whether the module returns what it reads in eval mode, as dropout does.

    >>> import torch, evenkeel as ek
    >>> graph = ek.trace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.ones(1, 2))
    >>> print(Insert(nn.Dropout(0.2), graph["1"]))
    insert Dropout(p=0.2) before 1
    """

    module: nn.Module
    target: Layer
    side: Side = "before"
    safe: bool = True

    def __str__(self) -> str:
        return f"insert {described(self.module)} {self.side} {self.target.label}"


@dataclass(frozen=True, eq=False)
class Remove:
    """Take a layer out: what it reads is what its readers read then.

    Attributes:
        layer: the layer, such as a dropout, that in eval mode returns what it reads.
        safe: whether that is so.
        given: a dropout that must move for this one to be superfluous, if any.
    """

    layer: Layer
    safe: bool = True
    given: Layer | None = None

    def __str__(self) -> str:
        return f"remove {self.layer.name}"


@dataclass(frozen=True, eq=False)
class Move:
    """Take a dropout out, and put one of its kind and rate elsewhere.

    Attributes:
        layer: the dropout.
        target: the layer that it is to act on.
        side: "before": on its (first) input; "after": on its output.
        safe: whether it may be made without asking.
    """

    layer: Layer
    target: Layer
    side: Side = "before"
    safe: bool = True

    def __str__(self) -> str:
        return f"move {self.layer.name} to {self.side} {self.target.label}"


@dataclass(frozen=True, eq=False)
class Swap:
    """Put another module in a dropout's place.

    Attributes:
        layer: the dropout.
        module: the other module.
        safe: whether it may be made without asking: it is no guess, and in eval mode the layer returns what it did.
    """

    layer: Layer
    module: nn.Module
    safe: bool = True

    def __str__(self) -> str:
        return f"swap {self.layer.name} for {described(self.module)}"


@dataclass(frozen=True)
class Correct:
    """Correct the running statistics, by `correct_`."""

    safe = False

    def __str__(self) -> str:
        return "correct the running statistics"


@dataclass(frozen=True)
class Initialize:
    """Draw the weights anew, by `init_`."""

    safe = False

    def __str__(self) -> str:
        return "draw the weights anew by init_"


Edit = Insert | Remove | Move | Swap | Correct | Initialize


def described(module: nn.Module) -> str:
    """A module in a word, for messages.

    >>> described(nn.Dropout(0.5, inplace=True)), described(nn.Identity())
    ('Dropout(p=0.5)', 'Identity')
    """
    found = ((name, getattr(module, name, None)) for name in ("beta", "p"))
    details = [f"({name}={value:g})" for name, value in found if isinstance(value, (int, float))]
    return "".join([type(module).__name__, *details[:1]])
