"""Rate setters: the places in a model's source that change a drop rate after the model is built, such as a schedule."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath

from torch import nn

from evenkeel.graph.layer_graph import RATES, Layer, LayerGraph


@dataclass(frozen=True)
class RateSetter:
    """A method that sets an attribute which holds a drop rate.

    Attributes:
        method: its name.
        attribute: such as "p".
        own: whether it sets the attribute of the module whose method it is, not of others.
        file, line: where.
    """

    method: str
    attribute: str
    own: bool
    file: str
    line: int

    @property
    def label(self) -> str:
        """Name and place, such as "set_rate (net.py:30)"."""
        return f"{self.method} ({PurePath(self.file).name}:{self.line})"


def setters_of(graph: LayerGraph) -> dict[Layer, RateSetter]:
    """The dropouts whose rate a module around them, or their own, can set after it is built, each with the first."""
    assert graph.model is not None
    modules = dict(graph.model.named_modules())
    found: dict[Layer, RateSetter] = {}
    for layer in graph:
        if layer.p is None:
            continue
        names = layer.path.split(".") if layer.path else []
        for depth in range(len(names), -1, -1):
            owner = ".".join(names[:depth])
            module, inner = modules.get(owner), owner == layer.path
            for setter in _setters_in(type(module)) if module is not None else ():
                rate = getattr(modules[layer.path], setter.attribute, None)
                if isinstance(rate, (int, float)) and (inner or not setter.own):
                    found.setdefault(layer, setter)
    return found


@lru_cache(maxsize=512)
def _setters_in(cls: type) -> tuple[RateSetter, ...]:
    """The rate setters that a class has, those of its bases included; none of torch's, and none that is not shown."""
    return tuple(
        setter
        for base in cls.__mro__
        if issubclass(base, nn.Module) and not base.__module__.startswith("torch.")
        for setter in _read(base)
    )


def _read(cls: type) -> Iterator[RateSetter]:
    try:
        lines, first = inspect.getsourcelines(cls)
        tree, file = ast.parse(textwrap.dedent("".join(lines))), inspect.getfile(cls)
    except (OSError, TypeError, SyntaxError):  # no source, as of what was typed in
        return
    methods = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for method in methods:
        if method.name in ("__init__", "__setstate__"):
            continue
        for attribute, own, line in _rates_set(method):
            yield RateSetter(method.name, attribute, own, file, first + line - 1)


def _rates_set(method: ast.AST) -> Iterator[tuple[str, bool, int]]:
    """Every rate that a method sets: the attribute, whether it is the module's own, and the line."""
    for node in ast.walk(method):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, (ast.AugAssign, ast.AnnAssign)) else targets
        for target in targets:
            if isinstance(target, ast.Attribute) and target.attr in RATES:
                yield target.attr, _is_self(target.value), target.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            match node.args:
                case [owner, ast.Constant(value=str(name)), _] if name in RATES:
                    yield name, _is_self(owner), node.lineno
                case _:
                    pass


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
