"""A model from the command line: TARGET, its arguments, the shape of its input."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from evenkeel.errors import EvenkeelError, raised, similar
from evenkeel.io.resolving import resolve

# library: the module with its models, the function that makes one, what keeps that from downloading weights
_LIBRARIES: dict[str, tuple[str, str, dict[str, object]]] = {
    "torchvision": ("torchvision.models", "get_model", {"weights": None}),
    "timm": ("timm", "create_model", {"pretrained": False}),
}
_CHECK = "check its arguments (--arg name=value)"


def load_target(target: str, arguments: Mapping[str, object] | None = None) -> nn.Module:
    """Make the model that a TARGET names.

    Args:
        target: `package.module:callable` (a class, a function that returns a module, or a module itself; dotted names
            after the colon are followed), `torchvision:NAME` or `timm:NAME`. Modules are also found in the current
            directory, which stays importable, as under `python -m`.
        arguments: keyword arguments of the callable.

    Returns:
        The model; from torchvision and timm without pretrained weights, unless the arguments ask for them.

    Raises:
        EvenkeelError: nothing of that name, no library of that name, or no model came out of it; in one line.

    >>> load_target("torch.nn:Linear", {"in_features": 2, "out_features": 1})
    Linear(in_features=2, out_features=1, bias=True)
    """
    source, colon, name = target.partition(":")
    if not (source and colon and name):
        raise EvenkeelError(f"{target!r} names no model: write package.module:callable, torchvision:NAME or timm:NAME")
    given = dict(arguments or {})
    model = _from_library(source, name, given) if source in _LIBRARIES else _from_module(target, given)
    if not isinstance(model, nn.Module):
        raise EvenkeelError(f"{target!r} returned {_a(model)}, not a torch.nn.Module: name what makes the model")
    return model


def parse_shape(text: str) -> tuple[int, ...]:
    """Read the shape of one input, without the batch dimension.

    Args:
        text: sizes with an x between them, such as `3x224x224`.

    Raises:
        EvenkeelError: the text is not of that form.

    >>> parse_shape("3x224x224")
    (3, 224, 224)
    """
    sizes = text.split("x")
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise EvenkeelError(f"{text!r} is no shape: write positive sizes with an x between them, such as 3x224x224")
    return tuple(int(size) for size in sizes)


def parse_arguments(items: Iterable[str]) -> dict[str, object]:
    """Read keyword arguments.

    Args:
        items: each `name=value`; a value that is no Python literal stays a string.

    Raises:
        EvenkeelError: an item is not of that form, or a name comes twice.

    >>> parse_arguments(["num_classes=10", "drop_rate=0.2", "act_layer=gelu"])
    {'num_classes': 10, 'drop_rate': 0.2, 'act_layer': 'gelu'}
    """
    arguments: dict[str, object] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (equals and name.isidentifier()):
            raise EvenkeelError(f"{item!r} is no argument: write name=value, such as num_classes=10")
        if name in arguments:
            raise EvenkeelError(f"argument {name!r} is given twice, as {arguments[name]!r} and {value!r}: drop one")
        arguments[name] = _literal(value)
    return arguments


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _from_library(library: str, name: str, arguments: dict[str, object]) -> Any:
    module_name, function, defaults = _LIBRARIES[library]
    module: Any = _import_library(library, module_name)
    try:
        return getattr(module, function)(name, **{**defaults, **arguments})
    except Exception as error:
        known: list[str] = module.list_models()
        if name.partition(".")[0].lower() in known:  # timm's names may end in the tag of their weights
            raise EvenkeelError(f"'{library}:{name}' {raised(error)}: {_CHECK}") from error
        advice = similar(name.lower(), known) or f"{module_name}.list_models() lists {len(known):,}"
        raise EvenkeelError(f"{library} has no model {name!r}: {advice}") from None


def _import_library(library: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise EvenkeelError(f"{library} is not installed: pip install {library}") from error
        advice = f"install the torchvision that matches torch {torch.__version__}"  # timm imports it too
        raise EvenkeelError(f"importing {library} {raised(error)}: {advice}") from error


def _from_module(target: str, arguments: dict[str, object]) -> Any:
    value = resolve(target)
    if isinstance(value, nn.Module):
        if arguments:
            raise EvenkeelError(f"{target!r} is a module already: it takes no arguments, {len(arguments)} were given")
        return value
    if not callable(value):
        raise EvenkeelError(f"{target!r} is {_a(value)}, not a callable: name a class, a function or a module")
    try:
        return value(**arguments)
    except (Exception, SystemExit) as error:
        raise EvenkeelError(f"{target!r} {raised(error)}: {_CHECK}") from error


def _a(value: object) -> str:
    return f"an object of type {type(value).__name__}"
