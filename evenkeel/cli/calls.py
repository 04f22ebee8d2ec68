"""Call: the options that a command was given, and the next command with those of them that it takes."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Any

import typer

# They say what becomes of a result: no other command wants them.
_OF_ITS_OWN = {"out", "html", "output", "json", "format", "diff", "write", "fail-above"}
# They say how to use data: without data they are refused.
USES_OF_DATA = ("max-batches", "forward", "data-dir", "mean", "std", "scale", "transform", "tolerance", "prior")
_ABOUT_DATA = {*USES_OF_DATA, "download", "batch-size", "other-data", "relative"}


class Call:
    """One call of a command, as the command line gave it.

    Args:
        context: typer's, of the command.

    Attributes:
        given: what was given and is not as without it, by the names of options without dashes, and of arguments.
        has_page: whether it writes a page.
    """

    def __init__(self, context: typer.Context) -> None:
        self._commands: Any = context.find_root().command
        self._context = context
        self.has_page = context.params.get("html") is not None
        named = {_name(parameter): parameter for parameter in context.command.params}
        found = {name: context.params.get(parameter.name or "") for name, parameter in named.items()}
        self.given: dict[str, Any] = {
            name: value
            for name, value in found.items()
            if value not in (None, [], ()) and value != named[name].get_default(context) and name not in _OF_ITS_OWN
        }

    def path(self, name: str) -> Path | None:
        """The file that an option names, if it was given."""
        return self.given.get(name)

    def text(self, name: str) -> str:
        """What was given for an option or an argument, as text; nothing if it was not."""
        return "" if name not in self.given else str(self.given[name])

    def then(self, command: str, **changes: Any) -> str:
        """Another command, to be copied, with what this one was given, as far as the other takes it.

        Args:
            command: its name.
            changes: options that are others, by name, with _ for -; None for one that is not given.
        """
        other = self._commands.get_command(self._context, command)
        values = self.given | {name.replace("_", "-"): value for name, value in changes.items()}
        if values.get("data") is None:
            values = {name: value for name, value in values.items() if name not in _ABOUT_DATA or name in changes}
        words = ["evenkeel", command]
        for parameter in other.params:
            words += _written(parameter, values.get(_name(parameter)))
        return shlex.join(words)


def _name(parameter: Any) -> str:
    """The name of an option without its dashes, or of an argument."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return max(parameter.opts, key=len).lstrip("-")


def _written(parameter: Any, value: Any) -> list[str]:
    """An option or argument with its value, as words."""
    if value is None or value is False:
        return []
    texts = [
        str(one.value if isinstance(one, Enum) else one) for one in (value if isinstance(value, list) else [value])
    ]
    if parameter.param_type_name == "argument":
        return texts
    option = f"--{_name(parameter)}"
    return [option] if value is True else [word for text in texts for word in (option, text)]
