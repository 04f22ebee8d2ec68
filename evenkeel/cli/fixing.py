"""The command `evenkeel fix`: what one guideline asks for, as a patch of the user's source, or in words."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from evenkeel.cli import completion
from evenkeel.cli.inputs import LINT_NEEDS_INPUT, codes_in, load_example, load_weighted
from evenkeel.cli.options import Arg, Codes, Device, Example, Input, Json, Key, Target, Weights
from evenkeel.cli.wording import for_command_line
from evenkeel.errors import count_text

if TYPE_CHECKING:
    from evenkeel.linting.rule import Guideline
    from evenkeel.rewriting.fix_report import FixReport, FixRow
    from evenkeel.rewriting.patches import Patch


def fix(
    target: Target,
    guideline: Annotated[
        str,
        typer.Option(
            help="Whose findings: hendrycks2016, li2018, chen2019 or kim2023.", autocompletion=completion.guidelines
        ),
    ],
    input_shape: Input = None,
    example: Example = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Print a patch of the model's source, for `git apply` or `patch -p1`.")
    ] = False,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Also edits that change what the model computes in eval mode.")
    ] = False,
    select: Codes = None,
    ignore: Codes = None,
    arg: Arg = None,
    weights: Weights = None,
    key: Key = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Show what a guideline asks to be changed. Nothing is written: --diff prints a patch, to be applied by you.

    Without --diff, a table: what `ek.fix` does in a copy of the model, which computes the same bits in eval mode.

    With --diff, a patch of the files that the model's classes are in, and, in lines that begin with #, in words, what
    no patch can do: of layers that an installed package's code calls, such as those in nn.Sequential, or of a class
    of which only some instances are to change. Exit code 1 if findings are left to be done by hand.
    """
    from evenkeel.linting.linter import wanted

    settings = wanted(guideline, codes_in(select), codes_in(ignore))
    model = load_weighted(target, arg, weights, key, device)
    called_with = load_example(model, input_shape, example, LINT_NEEDS_INPUT)
    if diff:
        from evenkeel.rewriting.patches import patch_of

        patch = patch_of(model, called_with, settings, unsafe=unsafe)
        typer.echo(_as_json(patch) if as_json else _as_text(patch, guideline), nl=False)
        left = len(patch.left)
    else:
        from evenkeel.errors import UnappliedWarning
        from evenkeel.rewriting.fixer import fix as fixed

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnappliedWarning)  # the report says it
            made: Any = fixed(
                model,
                called_with,
                guideline=cast("Guideline", guideline),
                unsafe=unsafe,
                select=settings.select,
                ignore=settings.ignore,
            )
        report: FixReport = made.evenkeel_fix
        typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else for_command_line(str(report)))
        left = len(report.left)
    if left:
        raise typer.Exit(1)


def _as_text(patch: Patch, guideline: str) -> str:
    done = len(patch.rows) - len(patch.left)
    count = count_text(len(patch.rows), "finding")
    lines = [f"# {guideline}: {count}, {done} in this patch, {len(patch.left)} in words"]
    alike: dict[str, list[FixRow]] = {}
    for row in patch.left:
        alike.setdefault(_reason(row), []).append(row)
    for reason, rows in alike.items():
        if len(rows) == 1:
            lines += [f"# by hand: {rows[0]}"]
        else:
            lines += [f"# by hand, {len(rows)} findings, since {reason}:", *(f"#   {row.asked}" for row in rows)]
    return for_command_line("\n".join(lines)) + "\n" + patch.text


def _reason(row: FixRow) -> str:
    """Why a finding is left, without the layer's own name, so that it reads alike for several."""
    return re.sub(rf"\bfor {re.escape(row.path)}(?=,|$)", "for it", row.reason)


def _as_json(patch: Patch) -> str:
    from dataclasses import asdict

    return json.dumps({"patch": patch.text, "rows": [asdict(row) for row in patch.rows]}, indent=2) + "\n"
