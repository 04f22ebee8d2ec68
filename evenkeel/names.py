"""From a dotted name on the command line to the Python object."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError, brief


def resolve(target: str) -> Any:
    """The object that `package.module:name` names.

    Args:
        target: the name; dots after the colon are followed. Modules are also found in the current directory, which
            stays importable, as under `python -m`.

    Returns:
        The object.

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
            raise EvenkeelError(f"{target!r} {raised(error)}: mend that first") from error
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
        raise EvenkeelError(f"{target!r}: importing {name!r} {raised(error)}: mend that first") from error


def raised(error: BaseException) -> str:
    """That an error was raised, in one line, and where, if that is known and not in this package.

    >>> raised(ValueError("no luck"))
    'raised ValueError: no luck'
    """
    here = os.path.join(os.path.dirname(__file__), "")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((here, "<"))]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"raised {brief(error)}{where}"


def similar(name: str, known: Iterable[str]) -> str:
    """A question for the names that come closest; empty if none does.

    >>> similar("resnet81", ["resnet18", "vgg"])
    'did you mean resnet18?'
    """
    matches = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(matches)}?" if matches else ""
