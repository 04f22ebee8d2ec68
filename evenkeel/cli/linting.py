"""The commands `evenkeel lint` and `evenkeel explain`."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli import completion, pages
from evenkeel.cli.calls import Call
from evenkeel.cli.inputs import LINT_NEEDS_INPUT, codes_in, load_example, load_weighted
from evenkeel.cli.options import Arg, Codes, Device, Example, Format, GuidelineName, Input, Key, Target, Weights
from evenkeel.cli.showing import show_steps
from evenkeel.cli.wording import for_command_line
from evenkeel.errors import EvenkeelError, UnpredictedWarning

if TYPE_CHECKING:
    from evenkeel.linting.settings import Settings


def lint(
    context: typer.Context,
    target: Target,
    input_shape: Input = None,
    guideline: GuidelineName = None,
    form: Annotated[Format, typer.Option("--format", help="How to print findings.")] = Format.text,
    select: Codes = None,
    ignore: Codes = None,
    arg: Arg = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead; - is standard output.")] = None,
    html: pages.Html = None,
    example: Example = None,
    key: Key = None,
    device: Device = None,
) -> None:
    """Find what breaks the guidelines on where dropout belongs. Exit code 1 if there are findings.

    By chen2019 nearly every network has some: in continuous integration, ask for a guideline.

    The section [tool.evenkeel] of pyproject.toml may hold guideline, select, ignore and per-path-ignores; options
    given here come first. A source line with the comment `# evenkeel: ignore[EK201]` is left alone.
    """
    from evenkeel.linting.findings import summary
    from evenkeel.linting.linter import findings_of
    from evenkeel.linting.rules import ALL
    from evenkeel.linting.sarif import to_sarif
    from evenkeel.output.files import atomic_write, finite, is_same_file, require_folder
    from evenkeel.output.rendering import write_page

    pages.require_page(html, weights, output)
    output = None if output == Path("-") else output  # as other programs do
    if output is not None:
        require_folder(output)
        if weights is not None and is_same_file(output, weights):
            raise EvenkeelError(f"--output {output} is the checkpoint's own file: name another")
    settings = _settings(guideline, select, ignore)
    model = load_weighted(target, arg, weights, key, device)
    called_with = load_example(model, input_shape, example, LINT_NEEDS_INPUT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnpredictedWarning)
        findings = findings_of(model, called_with, settings)
    for warning in caught:
        typer.echo(f"evenkeel: {for_command_line(str(warning.message))}", err=True)
    if form is Format.text:
        text = for_command_line(summary(findings))
    elif form is Format.json:
        text = json.dumps(for_command_line(finite([finding.to_dict() for finding in findings])), indent=2)
    else:
        log = to_sarif(findings, ALL, root=Path.cwd(), version=version("evenkeel"))
        text = json.dumps(for_command_line(log), indent=2)
    call, guideline = Call(context), guideline or settings.guideline
    steps = pages.steps_of_lint(call, list(dict.fromkeys(finding.code for finding in findings)), guideline)
    if output is None:
        typer.echo(text)
    else:
        with atomic_write(output) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
    if html is not None:
        write_page(html, pages.completed(findings.page(), call, steps))
    if form is Format.text and output is None and sys.stdout.isatty():  # programs that read findings get them alone
        show_steps(steps if findings else [], html)
    if findings:
        raise typer.Exit(1)


def explain(
    code: Annotated[
        str | None,
        typer.Argument(help="Of the rule, such as EK201; left out: a table of all.", autocompletion=completion.codes),
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Write the pages of all rules into this folder.")] = None,
) -> None:
    """Print a rule's own text, who disagrees with it, and its bad and good example."""
    from evenkeel.linting import explanation

    if write is not None:
        typer.echo(f"written: {len(explanation.write_pages(write))} pages in {write}")
    else:
        text = explanation.explain(code) if code else explanation.overview()
        typer.echo(explanation.without_links(text).rstrip())


def _settings(guideline: str | None, select: list[str] | None, ignore: list[str] | None) -> Settings:
    """What pyproject.toml asks for, and the command line, which comes first; what either ignores is ignored."""
    from evenkeel.linting.linter import wanted
    from evenkeel.linting.rule import GUIDELINES
    from evenkeel.linting.rules import ALL
    from evenkeel.linting.settings import read_settings

    found = read_settings(Path.cwd(), known=[rule.code for rule in ALL], guidelines=GUIDELINES)
    asked = wanted(guideline, codes_in(select), codes_in(ignore))
    return replace(
        found,
        guideline=asked.guideline or found.guideline,
        select=asked.select or found.select,
        ignore=(*found.ignore, *asked.ignore),
    )
