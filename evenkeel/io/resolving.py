"""From a dotted name on the command line to the Python object."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from evenkeel.errors import EvenkeelError, raised, similar


def resolve(target: str) -> Any:
    """The object that `package.module:name` names.

    Args:
        target: the name; dots after the colon are followed. Modules are also found in the current directory, which
            stays importable, as under `python -m`.

    Raises:
        EvenkeelError: no such module, nothing of that name in it, or importing it raised; in one line.

    >>> resolve("os.path:join").__name__
    'join'
    """
    module_name, _, name = target.partition(":")
    value = _import_module(target, module_name)
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            advice = similar(part, dir(value)) or "name something that is defined there"
            owner = getattr(value, "__name__", f"an object of type {type(value).__name__}")
            raise EvenkeelError(f"{target!r}: {owner} has no {part!r}: {advice}") from error
        except Exception as error:  # of a module that imports its parts when they are asked for
            raise EvenkeelError(f"{target!r} {raised(error)}: fix that first") from error
    return value


def _import_module(target: str, name: str) -> Any:
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise EvenkeelError(
            f"{target!r}: {name!r} is no name of a module: write package.module:callable, without .py or slashes"
        )
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            where = "neither here nor installed: run in the folder that holds it, or install it"
            raise EvenkeelError(f"{target!r}: no module {error.name!r}, {where}") from error
        raise EvenkeelError(f"{target!r}: importing {name!r} {raised(error)}: fix that first") from error
