"""Edits: changes to a model's layers as data; `fix` is what applies them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from evenkeel.graph import Layer


@dataclass(frozen=True, eq=False)
class Insert:
    """Run a new module on what a layer reads, or on what it returns.

    Attributes:
        module: the new module.
        before: the layer whose (first) input is to pass through it.
        after: the layer whose output is to pass through it; give one of the two.
        safe: whether the module returns what it reads in eval mode, as dropout does.

    >>> import torch, evenkeel as ek
    >>> graph = ek.trace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.ones(1, 2))
    >>> print(Insert(nn.Dropout(0.2), before=graph["1"]))
    insert Dropout(p=0.2) before 1
    """

    module: nn.Module
    before: Layer | None = None
    after: Layer | None = None
    safe: bool = True

    def __str__(self) -> str:
        return f"insert {described(self.module)} {_place(self.before, self.after)}"


@dataclass(frozen=True, eq=False)
class Remove:
    """Take a layer out: what it reads is what its readers read then.

    Attributes:
        layer: the layer, such as a dropout, that in eval mode returns what it reads.
        safe: whether that is so.
    """

    layer: Layer
    safe: bool = True

    def __str__(self) -> str:
        return f"remove {self.layer.name}"


@dataclass(frozen=True, eq=False)
class Move:
    """Take a dropout out, and put one of its kind and rate elsewhere.

    Attributes:
        layer: the dropout.
        before: the layer whose input it is to act on.
        after: the layer whose output it is to act on; give one of the two.
    """

    layer: Layer
    before: Layer | None = None
    after: Layer | None = None
    safe = True

    def __str__(self) -> str:
        return f"move {self.layer.name} to {_place(self.before, self.after)}"


@dataclass(frozen=True, eq=False)
class Swap:
    """Put another module in a dropout's place.

    Attributes:
        layer: the dropout.
        module: the other module.
        safe: whether what the layer returns in eval mode stays as it is.
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

    >>> described(nn.Dropout(0.5, inplace=True))
    'Dropout(p=0.5)'
    """
    p, beta = getattr(module, "p", None), getattr(module, "beta", None)
    detail = f"beta={beta:g}" if isinstance(beta, float) else f"p={p:g}" if isinstance(p, (int, float)) else ""
    return f"{type(module).__name__}({detail})"


def _place(before: Layer | None, after: Layer | None) -> str:
    layer, side = (after, "after") if before is None else (before, "before")
    assert layer is not None
    return f"{side} {layer.name}" + (f" ({layer.where})" if layer.where else "")
