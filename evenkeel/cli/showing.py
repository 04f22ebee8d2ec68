"""How commands print what they found."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from evenkeel.cli.wording import for_command_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from evenkeel.output.cells import Cells


def show(result: Any) -> None:
    """Print plain data as JSON, a report as its table, anything else as rich does."""
    from evenkeel.output.files import finite
    from evenkeel.output.tables import FittedTable, Report

    if isinstance(result, dict):
        typer.echo(json.dumps(for_command_line(finite(result)), indent=2))
        return
    console().print(FittedTable(worded(result._cells())) if isinstance(result, Report) else result)


def show_steps(steps: Sequence[tuple[str, str]], page: Path | None = None) -> None:
    """Print the page that was written, if any, and what to do next, each with its command, to be copied."""
    if page is not None:
        typer.echo(f"written: {page}")
    if steps:
        typer.echo("\n".join(["", *(f"{what}:\n    {command}" for what, command in steps)]))


def worded(cells: Cells) -> Cells:
    """What a table shows, in the command line's words."""
    plain: Any = tuple(cells)
    return type(cells)(*for_command_line(plain))


def console(width: int = 120) -> Console:
    """Where tables are printed: as wide as the terminal, or as COLUMNS says, or else of so many letters."""
    from rich.console import Console

    is_known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=None if is_known else width)
