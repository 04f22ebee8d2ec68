"""Layer and LayerGraph: a model as the call sites of one forward pass, in execution order."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any, cast

import torch
from torch import nn

from evenkeel.errors import TraceError
from evenkeel.graph.kinds import ARGUMENTS, Kind
from evenkeel.graph.randomness import Law
from evenkeel.model.flags import frozen_in
from evenkeel.model.sharding import own_parameter

RATES = ("p", "drop_prob", "drop_rate", "beta", "dropout")  # attributes of modules that hold a drop rate


@dataclass(frozen=True, eq=False)
class Layer:
    """One call site of a model: a module called twice is two layers, which share `module`.

    Attributes:
        name: unique in its graph, such as "layer1.0.bn2", "layer1.0.relu#2" or "layer1.0.add".
        kind: what it does to its input.
        path: qualified name of the innermost module that made the call ("" is the model itself).
        module: the module whose work the call is; None for a function called in a container's forward.
        inputs: the layers that produced the signals it reads.
        function: torch's name of the function called, such as "conv2d"; "" for inputs and outputs.
        call: the function itself, where one was called.
        args, kwargs: the call's arguments, every signal replaced by the layer that produced it.
        shape: shape of the (first) tensor that it returns.
        p: drop probability in training, of a dropout or of one inside an OPAQUE call (attention, recurrent layers);
            None if there is none or the rate is not known.
        scaled: whether a dropout divides what it keeps by the share that it keeps.
        noise: the law of the random tensor that a signal is multiplied by, or that is added to it, if there is one.
        file, line: where the model's source makes the call.
        caller: path of the module whose forward makes the call, of the module or of the function.
        frozen: whether it is in eval mode in a model in train mode.
        end: line and column (in bytes) where the call ends there, from Python 3.11 on.
        users: the layers that read it.

    >>> import torch, evenkeel as ek
    >>> layer = ek.trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)), torch.ones(2, 4))["1"]
    >>> layer, layer.inputs, layer.shape
    (Layer('1', DROPOUT, p=0.3), (Layer('0', WEIGHT),), (2, 4))
    """

    name: str
    kind: Kind
    path: str
    module: nn.Module | None = None
    inputs: tuple[Layer, ...] = ()
    function: str = ""
    call: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    shape: tuple[int, ...] = ()
    p: float | None = None
    scaled: bool = True
    noise: Law | None = None
    file: str | None = None
    line: int | None = None
    end: tuple[int, int] | None = None
    caller: str = ""
    frozen: bool = False
    users: tuple[Layer, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """The call's arguments by name, as far as its signature is known."""
        return dict(zip(ARGUMENTS.get(self.function, ()), self.args, strict=False)) | self.kwargs

    @property
    def constants(self) -> tuple[Any, ...]:
        """The values among the arguments that are no signals, those in tuples and lists included."""
        return tuple(_constants((self.args, tuple(self.kwargs.values()))))

    @property
    def site(self) -> tuple[object, ...]:
        """What the layer shares with others that the same call in the source makes, and with itself in another pass."""
        return self.caller, self.file, self.line, self.end, self.function, self.module

    @property
    def drops(self) -> bool:
        """Whether it is a dropout that drops in training."""
        return self.kind is Kind.DROPOUT and self.p != 0

    @property
    def drops_samples(self) -> bool:
        """Whether it is a dropout that drops whole samples, as stochastic depth does."""
        masks = [c for c in self.constants if isinstance(c, torch.Size)]
        return self.kind is Kind.DROPOUT and any(len(mask) > 1 and math.prod(mask[1:]) == 1 for mask in masks)

    @property
    def stores(self) -> bool:
        """Whether it is a norm that stores running statistics in training."""
        statistics = getattr(self.module, "running_var", self.arguments.get("running_var"))
        return self.kind is Kind.NORM and statistics is not None and not self.frozen

    @property
    def where(self) -> str | None:
        """Source file and line of the call, such as "densenet.py:87", if a source line made it."""
        return None if self.file is None else f"{PurePath(self.file).name}:{self.line}"

    @property
    def label(self) -> str:
        """Name and place, such as "layer1.0.drop (densenet.py:87)": how messages and tables call it."""
        return self.name if self.where is None else f"{self.name} ({self.where})"

    def __repr__(self) -> str:
        rate = "" if self.p is None else f", p={self.p:g}"
        where = "" if self.where is None else f", {self.where}"
        return f"Layer({self.name!r}, {self.kind.name}{rate}{where})"


@dataclass(frozen=True, eq=False, repr=False)
class LayerGraph:
    """The layers of one forward pass, immutable and in execution order; `str()` is its picture.

    Every verb that takes an example takes the graph that `trace` made of it, too: the model is then not traced again.
    A recording shows one path: a branch that the example did not take is not in it.

    Attributes:
        layers: all layers.
        model: the model that it is of, without wrappers such as DistributedDataParallel.
        example: what the model was called with.

    >>> import torch, evenkeel as ek
    >>> graph = ek.trace(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)), torch.ones(2, 4))
    >>> str(graph)
    'i W D N o'
    >>> [layer.name for layer in graph.upstream(graph["2"], until=ek.Kind.WEIGHT)]
    ['1', '0']
    """

    layers: tuple[Layer, ...]
    model: nn.Module | None = None
    example: Any = None
    _state: dict[str, tuple[object, ...]] = field(init=False)  # of the model's modules when it was traced
    _by_name: dict[str, Layer] = field(init=False)
    _position: dict[Layer, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_state", _state_of(self.model) if self.model else {})
        object.__setattr__(self, "_by_name", {layer.name: layer for layer in self.layers})
        object.__setattr__(self, "_position", {layer: i for i, layer in enumerate(self.layers)})
        users: dict[Layer, list[Layer]] = {layer: [] for layer in self.layers}
        for layer in self.layers:
            for source in dict.fromkeys(layer.inputs):
                users[source].append(layer)
        for layer, readers in users.items():
            object.__setattr__(layer, "users", tuple(readers))  # the one field that only the whole graph knows

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> Layer:
        """The layer of that name; KeyError if there is none."""
        return self._by_name[name]

    def __str__(self) -> str:
        return " ".join(layer.kind.value for layer in self.layers)

    def __repr__(self) -> str:
        return f"LayerGraph({len(self)} layers: {self})"

    def require_of(self, model: nn.Module) -> None:
        """Refuse another model than the one traced, or one that has changed since.

        Raises:
            TraceError: it is another model, or modules, drop rates or frozen modules have changed.
        """
        if model is not self.model:
            raise TraceError("the graph was traced from another model: trace this one")
        now = _state_of(model)
        changed = [path for path in {**self._state, **now} if self._state.get(path) != now.get(path)]
        if changed:
            more = f" and {len(changed) - 1} more" if changed[1:] else ""
            raise TraceError(
                f"the graph is out of date: {changed[0] or 'the model'!r}{more} was replaced, frozen, unfrozen or got "
                "another drop rate or parameter after the trace: trace the model again"
            )

    def of(self, *kinds: Kind) -> tuple[Layer, ...]:
        """All layers of these kinds, in execution order."""
        return tuple(layer for layer in self.layers if layer.kind in kinds)

    def upstream(self, layer: Layer, until: Until = ()) -> tuple[Layer, ...]:
        """What the layer's signal comes from, latest first.

        Walks stop at, and include, layers of the kinds in `until`, or those of which it is true.
        """
        return self._walk(layer, "inputs", until)[::-1]

    def downstream(self, layer: Layer, until: Until = ()) -> tuple[Layer, ...]:
        """What the layer's signal goes to, earliest first; `until` is as for `upstream`."""
        return self._walk(layer, "users", until)

    def branch(self, layer: Layer) -> tuple[tuple[Layer, ...], ...]:
        """The branches that meet in a join, one a input: its layers since the fork, in execution order.

        An identity shortcut is the empty branch. For a concat, likewise.

        >>> import torch, evenkeel as ek
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        ...     def forward(self, x):
        ...         return x + self.conv(self.norm(x))
        >>> graph = ek.trace(Residual(), torch.ones(2, 3, 4, 4))
        >>> [[layer.name for layer in branch] for branch in graph.branch(graph["add"])]
        [[], ['norm', 'conv']]
        """
        histories = [{source, *self.upstream(source)} for source in layer.inputs]
        shared = set[Layer].intersection(*histories) if histories else set[Layer]()
        return tuple(self._in_order(history - shared) for history in histories)

    def _walk(self, start: Layer, edge: str, until: Until) -> tuple[Layer, ...]:
        ends = until if callable(until) else partial(_is_of, (until,) if isinstance(until, Kind) else tuple(until))
        seen: set[Layer] = set()
        frontier = list(getattr(start, edge))
        while frontier:
            layer = frontier.pop()
            if layer not in seen:
                seen.add(layer)
                if not ends(layer):
                    frontier.extend(getattr(layer, edge))
        return self._in_order(seen)

    def _in_order(self, layers: Collection[Layer]) -> tuple[Layer, ...]:
        return tuple(sorted(layers, key=self._position.__getitem__))


def _state_of(model: nn.Module) -> dict[str, tuple[object, ...]]:
    """What a graph depends on in each module: which one it is, whether it is frozen, its parameters and drop rate."""
    frozen = frozen_in(model)
    return {
        path: (
            module,
            module in frozen,
            *(id(own_parameter(p)) for p in module._parameters.values()),
            *(getattr(module, r, None) for r in RATES),
        )
        for path, module in model.named_modules()
    }


Until = Kind | Collection[Kind] | Callable[[Layer], bool]


def _is_of(kinds: Collection[Kind], layer: Layer) -> bool:
    return layer.kind in kinds


def _constants(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for item in cast("tuple[Any, ...]", value):
            yield from _constants(item)
    elif not isinstance(value, Layer):
        yield value
