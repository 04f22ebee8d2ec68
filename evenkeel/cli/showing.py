"""How commands print what they found."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from evenkeel.cli.wording import for_command_line


def show(result: Any) -> None:
    """Print plain data as JSON, a report as its table, anything else as rich does."""
    from rich.console import Console

    from evenkeel.output.files import finite
    from evenkeel.output.tables import Cells, Report, table

    if isinstance(result, dict):
        typer.echo(json.dumps(for_command_line(finite(result)), indent=2))
        return
    if isinstance(result, Report):
        cells: Any = tuple(result._cells())
        result = table(Cells(*for_command_line(cells)))
    Console(width=None if sys.stdout.isatty() else 120).print(result)
