"""Operations: edits of a graph's layers as operations on a model's modules, carried out on a copy."""

from __future__ import annotations

import copy
import inspect
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.graph.kinds import PRODUCTS, Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.init.initialization import init_
from evenkeel.linting.dropout_module import dropout_like
from evenkeel.linting.edits import Correct, Edit, Initialize, Insert, Move, Remove, Side, Swap
from evenkeel.model.hooks import attach_, free_name
from evenkeel.prediction.correction import correct_
from evenkeel.rewriting.source_edits import Change, RewriteError, changed_sources, method_of, rewrite_

Action = Literal["remove", "replace", "before", "after"]

_PASSING = (Kind.DROPOUT, Kind.PASS, Kind.GATE)


class EditError(EvenkeelError):
    """An edit cannot be carried out; the message is the reason, as a clause."""


@dataclass(frozen=True)
class Replace:
    """Put another module in a module's place, wherever the model holds it."""

    paths: tuple[str, ...]
    module: nn.Module


@dataclass(frozen=True)
class Attach:
    """Run a new child before or after a module."""

    path: str
    module: nn.Module
    side: Side


@dataclass(frozen=True)
class Rewrite:
    """Change one call in a method of a module: see `Change`.

    Attributes:
        path: of the module whose method makes the call.
        file, line: where.
        target: what is called: a function, or the path of a module.
        action: what to do with the call.
        module: the new child that this needs, if any.
        end: where the call ends, if known.
    """

    path: str
    file: str
    line: int
    target: Any
    action: Action
    module: nn.Module | None = None
    end: tuple[int, int] | None = None


@dataclass(frozen=True)
class Whole:
    """Call a verb on the whole model."""

    edit: Correct | Initialize


Operation = Replace | Attach | Rewrite | Whole


class EditPlan:
    """How the edits of one round are carried out together, since a shared module is edited at all its calls or at none.

    Args:
        model: the model that the graph was read from.
        graph: its graph.
        edits: all edits of the round.

    Attributes:
        rates: how many dropouts of each rate there are to be afterwards.
    """

    def __init__(self, model: nn.Module, graph: LayerGraph, edits: Iterable[Edit]) -> None:
        self.model = model
        self.graph = graph
        self.paths: dict[nn.Module, list[str]] = defaultdict(list)
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths[module].append(path)
        self.gone: set[Layer] = set()
        self.inserted: set[tuple[Layer, Side]] = set()
        self.rates = Counter(_rate(layer) for layer in graph if layer.drops)
        self._sites: dict[object, list[Layer]] = defaultdict(list)
        for layer in graph:
            self._sites[layer.site].append(layer)
        self._allowed: set[tuple[str, Change]] = set()  # changes that the source allows, by the caller's path
        for edit in edits:
            if isinstance(edit, (Remove, Move, Swap)):
                self.gone.add(edit.layer)
            if isinstance(edit, (Insert, Move)):
                self.inserted.add((edit.target, edit.side))
                self.rates[_rate(edit.layer if isinstance(edit, Move) else edit.module)] += 1
            if isinstance(edit, Swap):
                self.rates[_rate(edit.module)] += 1
        self.rates.subtract(_rate(layer) for layer in self.gone if layer.drops)

    def holds(self, graph: LayerGraph) -> bool:
        """Whether a graph has as many dropouts of each rate as there are to be; source may call new children, too."""
        return +self.rates == Counter(_rate(layer) for layer in graph if layer.drops)

    def operations(self, edit: Edit) -> list[Operation]:
        """What carries out an edit.

        Raises:
            EditError: no operation does.
        """
        if isinstance(edit, (Correct, Initialize)):
            return [Whole(edit)]
        if isinstance(edit, Remove):
            if edit.given and edit.given not in self.gone:
                raise EditError(f"{edit.given.name}, which is to take its place, stays where it is")
            return [self._take_out(edit.layer, None)]
        if isinstance(edit, Swap):
            return [self._take_out(edit.layer, edit.module)]
        if isinstance(edit, Insert):
            return [self._put(edit.module, edit.target, edit.side)]
        signal = edit.target.inputs[0] if edit.side == "before" else edit.target
        module = dropout_like(edit.layer, shape=signal.shape)
        if module is None:
            raise EditError(f"there is no module for what {edit.layer.name} does")
        return [self._take_out(edit.layer, None), self._put(module, edit.target, edit.side)]

    def _take_out(self, layer: Layer, new: nn.Module | None) -> Operation:
        """Take a layer out, or put a module in its place."""
        action = "replace" if new else "remove"
        if layer.module is not None:
            if inside := [x for x in self.graph if x.path.startswith(f"{layer.path}.") and x.kind is not Kind.PASS]:
                raise EditError(f"{inside[0].name} is inside {layer.path}, and would be removed with it")
            if self.gone.issuperset(self._calls(layer)):
                return Replace(tuple(self.paths[layer.module]), new or nn.Identity())
            return self._rewrite(layer, action, new)
        if layer.path and not any(True for _ in self._module(layer.path).parameters()) and self._only_drops(layer.path):
            return Replace(tuple(self.paths[self._module(layer.path)]), new or nn.Identity())
        return self._rewrite(layer, action, new)

    def _put(self, module: nn.Module, layer: Layer, side: Side) -> Operation:
        """Run a module on what a layer reads or returns."""
        several = len(set(layer.inputs)) > 1 or (layer.module is not None and not _takes_one(layer.module))
        if side == "before" and several:
            raise EditError(f"{layer.name} takes several arguments, and it is not clear which is the signal")
        if layer.module is not None and self.inserted.issuperset((call, side) for call in self._calls(layer)):
            return Attach(self.paths[layer.module][0], module, side)
        return self._rewrite(layer, side, module)

    def _rewrite(self, layer: Layer, action: Action, new: nn.Module | None) -> Rewrite:
        """Rewrite the method that makes the call."""
        caller = self._module(layer.caller)
        owner = f"{type(caller).__name__} ({layer.caller or 'the model'})"
        if layer.file is None or layer.line is None:
            raise EditError(f"no source line is known for {layer.name}")
        if method_of(caller, layer.file, layer.line) is None:
            raise EditError(f"{layer.where} is in no method of {owner}, which makes the call")
        rest = [x for x in self._sites[layer.site] if not self._is_edited(x, action)]
        if rest:
            raise EditError(f"{layer.where} also makes {rest[0].name}, which is to stay as it is")
        change = Change(layer.file, layer.line, layer.module or layer.call, action, "new", layer.end)
        if (layer.caller, change) not in self._allowed:  # asked now, while it is known whose edit it is
            with _source_edited():
                changed_sources(caller, [change])
            self._allowed.add((layer.caller, change))
        target = layer.call if layer.module is None else self.paths[layer.module][0]
        return Rewrite(layer.caller, layer.file, layer.line, target, action, new, layer.end)

    def _is_edited(self, layer: Layer, action: Action) -> bool:
        return layer in self.gone if action in ("remove", "replace") else (layer, action) in self.inserted

    def _calls(self, layer: Layer) -> list[Layer]:
        """All calls of the layer's module."""
        return [other for other in self.graph if other.module is layer.module]

    def _module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def _only_drops(self, path: str) -> bool:
        """Whether all that a module does is drop, all of which is to be removed."""
        inside = [layer for layer in self.graph if layer.path == path or layer.path.startswith(f"{path}.")]
        passing = all(layer.kind in _PASSING and layer.function not in PRODUCTS for layer in inside)
        return passing and all(not layer.drops or layer in self.gone for layer in inside)


def _rate(noise: Layer | nn.Module) -> float | None:
    """The drop rate of a layer or of a module, or of the dropout in it."""
    if isinstance(noise, Layer):
        return None if noise.p is None else round(noise.p, 6)
    rates = (getattr(module, "p", None) for module in noise.modules())
    return next((round(p, 6) for p in rates if isinstance(p, (int, float))), None)


def carry_out_(model: nn.Module, operations: Sequence[Operation]) -> None:
    """Carry out operations on a model's layers; `recompute_` does those on its values.

    Args:
        model: a copy of the model they were planned for, changed in place.
        operations: all of one round; those that are equal count once.

    Raises:
        EditError: one cannot be carried out; the copy is then of no use.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    changes: dict[str, list[Change]] = defaultdict(list)
    for operation in _distinct(operations):
        if isinstance(operation, Replace):
            _replace_(modules, operation)
        elif isinstance(operation, Attach):
            end = "input" if operation.side == "before" else "output"
            name = f"{end}_{type(operation.module).__name__.lower()}"
            target = modules[operation.path]
            name = attach_(target, _fitted(operation.module, target), operation.side, name)
            target._modules[name].train(model.training)  # type: ignore[union-attr]
        elif isinstance(operation, Rewrite):
            changes[operation.path].append(_change(modules, operation))
    for path, found in changes.items():
        with _source_edited():
            rewrite_(modules[path], found)


@contextmanager
def _source_edited() -> Generator[None]:
    """Where a method's source cannot be changed, an edit cannot be carried out."""
    try:
        yield
    except RewriteError as error:
        raise EditError(str(error)) from error


def recompute_(model: nn.Module, operations: Sequence[Operation], example: Any) -> None:
    """Correct the statistics or draw the weights of a model, where operations ask for it.

    Args:
        model: the copy, its layers as they are to be.
        operations: all of one round.
        example: as for `trace`, or what `trace` made of it.
    """
    for operation in operations:
        if isinstance(operation, Whole):
            (correct_ if isinstance(operation.edit, Correct) else init_)(model, example)


def _distinct(operations: Iterable[Operation]) -> list[Operation]:
    """The operations without those that are there already.

    Raises:
        EditError: two would put different modules in one place.
    """
    found: dict[object, Operation] = {}
    for operation in operations:
        place = _place(operation)
        if place in found and _content(found[place]) != _content(operation):
            raise EditError(f"{_content(found[place])} and {_content(operation)} would be in one place")
        found[place] = operation
    return list(found.values())


def _place(operation: Operation) -> object:
    if isinstance(operation, Replace):
        return operation.paths
    if isinstance(operation, Attach):
        return operation.path, operation.side
    if isinstance(operation, Rewrite):
        return replace(operation, module=None, target=str(operation.target))
    return type(operation.edit)


def _content(operation: Operation) -> str:
    return "" if isinstance(operation, Whole) else repr(operation.module)


def _takes_one(module: nn.Module) -> bool:
    """Whether a module's forward asks for one argument only, so that its first is the signal."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) == 2  # self and the signal


def _fitted(module: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of a module, on the device and in the dtype of another one."""
    tensors = (t for t in (*like.parameters(), *like.buffers()) if t.is_floating_point())
    first = next(tensors, None)
    return copy.deepcopy(module) if first is None else copy.deepcopy(module).to(first.device, first.dtype)


def _replace_(modules: dict[str, nn.Module], operation: Replace) -> None:
    old = modules[operation.paths[0]]
    new = copy.deepcopy(operation.module).train(old.training)
    for name, kept in vars(old).items():  # hooks of the user's
        if "hooks" in name and isinstance(kept, dict):
            vars(new)[name].update(kept)
    for path in operation.paths:
        parent, _, name = path.rpartition(".")
        held = modules[parent]._modules
        if not path or held.get(name) not in (old, new):  # the parent itself may be held at several paths
            raise EditError(f"{path or 'the model'} is no child that can be replaced")
        held[name] = new


def _change(modules: dict[str, nn.Module], operation: Rewrite) -> Change:
    """The change to a method, its new child registered."""
    container, child = modules[operation.path], ""
    if operation.module is not None:
        label = getattr(operation.target, "__name__", str(operation.target).rpartition(".")[2]).strip("_")
        child = free_name(container, label if "drop" in label else f"{label}_dropout")
        container.add_module(child, _fitted(operation.module, container).train(container.training))
    target = modules[operation.target] if isinstance(operation.target, str) else operation.target
    return Change(operation.file, operation.line, target, operation.action, child, operation.end)
