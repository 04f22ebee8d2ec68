"""The program `evenkeel`: what each command asks for, does and prints; those of the papers are in cli/papers.py."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from evenkeel.cli import fixing, pages, papers, parts
from evenkeel.cli.inputs import (
    LINT_NEEDS_INPUT,
    NEEDS_INPUT,
    DataOptions,
    load_example,
    load_function,
    load_model,
    load_weighted,
    moved,
    parse_prior,
    refuse_unused,
    trained,
)
from evenkeel.cli.options import (
    Arg,
    BatchSize,
    Codes,
    DataDir,
    DataName,
    Device,
    Download,
    Example,
    Format,
    Forward,
    GuidelineName,
    Input,
    Json,
    Key,
    Matching,
    MaxBatches,
    Mean,
    Scale,
    Std,
    Target,
    Transform,
    Unsure,
    Weights,
)
from evenkeel.cli.showing import show
from evenkeel.cli.wording import for_command_line
from evenkeel.errors import EvenkeelError, UnpredictedWarning, brief, is_out_of_memory

if TYPE_CHECKING:
    from evenkeel.linting.settings import Settings

app = typer.Typer(
    help="Dropout and normalization on an even keel.",
    add_completion=False,
    rich_markup_mode="markdown",  # rich's own would take [tool.evenkeel] for a style, and swallow it
    pretty_exceptions_enable=False,
)

app.command()(papers.reproduce)
app.command()(papers.report)
app.command()(fixing.fix)
app.command()(pages.compare)
app.command("reestimate-part")(parts.reestimate_part)
app.command()(parts.merge)


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Dropout and normalization on an even keel."""
    if show_version:
        typer.echo(f"evenkeel {version('evenkeel')} (torch {version('torch')})")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    seeds: Annotated[int, typer.Option(min=1, help="How many nets to train.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,000 training images.")] = 15,
    as_json: Json = False,
) -> None:
    """Run the main job on embedded real images: train, measure the shift, repair, score. A minute on a CPU."""
    from evenkeel.demo import run_demo

    result = run_demo(seeds=seeds, epochs=epochs)
    show(result.to_dict() if as_json else result)


@app.command()
def lint(
    target: Target,
    input_shape: Input = None,
    guideline: GuidelineName = None,
    form: Annotated[Format, typer.Option("--format", help="How to print findings.")] = Format.text,
    select: Codes = None,
    ignore: Codes = None,
    arg: Arg = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
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
        text = json.dumps(to_sarif(findings, ALL, root=Path.cwd(), version=version("evenkeel")), indent=2)
    if output is None:
        typer.echo(text)
    else:
        with atomic_write(output) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
    if html is not None:
        page = pages.lint_page(
            findings.page(), target, {"arg": arg, "input": input_shape, "example": example, "key": key}, weights=weights
        )
        write_page(html, page)
    if findings:
        raise typer.Exit(1)


@app.command()
def explain(
    code: Annotated[str | None, typer.Argument(help="Of the rule, such as EK201; left out: a table of all.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write the pages of all rules into this folder.")] = None,
) -> None:
    """Print a rule's own text, who disagrees with it, and its bad and good example."""
    from evenkeel.linting import explanation

    if write is not None:
        typer.echo(f"written: {len(explanation.write_pages(write))} pages in {write}")
    else:
        text = explanation.explain(code) if code else explanation.overview()
        typer.echo(explanation.without_links(text).rstrip())


@app.command()
def shift(
    target: Target,
    data: DataName = None,
    input_shape: Input = None,
    weights: Weights = None,
    arg: Arg = None,
    data_dir: DataDir = None,
    download: Download = False,
    batch_size: BatchSize = 128,
    max_batches: MaxBatches = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    transform: Transform = None,
    fail_above: Annotated[
        float | None, typer.Option(help="Exit with 1 if a norm is off by more than this factor, up or down.")
    ] = None,
    html: pages.Html = None,
    as_json: Json = False,
    example: Example = None,
    key: Key = None,
    forward: Forward = None,
    device: Device = None,
) -> None:
    """Print, for every norm layer, the variance it meets in eval mode against the one that it stores.

    Without --data both are predicted from weights and statistics. Which dropouts cause the difference is predicted
    in any case.

    Images of data sets named here are standardized by the set's own mean and deviation, unless --mean, --std, --scale
    or --transform say what training did to images from 0 to 1.
    """
    if fail_above is not None and not fail_above >= 1:
        raise EvenkeelError(f"--fail-above is a factor, at least 1, not {fail_above}")
    from evenkeel.cli.shifting import measured
    from evenkeel.output.rendering import write_page
    from evenkeel.prediction.shift_prediction import predict_shift

    pages.require_page(html, weights)
    options = DataOptions(input_shape, data_dir, download, batch_size, mean, std, scale, transform)
    model = load_weighted(target, arg, weights, key, device)
    if data is None:
        unused = {"--max-batches": max_batches, "--forward": forward, "--data-dir": data_dir}
        refuse_unused(unused | options.preprocessing)
        report = predict_shift(model, load_example(model, input_shape, example, NEEDS_INPUT))
    else:
        batches, run = options.load(data).train, load_function("--forward", forward)
        given = None if example is None else load_example(model, None, example, NEEDS_INPUT)
        report = measured(model, batches, max_batches=max_batches, forward=run, example=given)
    if html is not None:
        called = {"arg": arg, "input": input_shape, "example": example, "key": key, "forward": forward}
        called |= options.given
        write_page(html, pages.shift_page(report.page(), target, called, weights=weights, data=data))
    show(report.to_dict() if as_json else report)
    if fail_above is not None and report.worst > fail_above:
        raise typer.Exit(1)


@app.command()
def repair(
    target: Target,
    out: Annotated[Path, typer.Option(help="Where to write the repaired checkpoint.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to repair: .safetensors, or a state dict that torch.load reads; left out where TARGET "
            "makes a trained model, as one that returns torch.load of a whole one: OUT is then its state dict."
        ),
    ] = None,
    data: DataName = None,
    input_shape: Input = None,
    arg: Arg = None,
    data_dir: DataDir = None,
    download: Download = False,
    batch_size: BatchSize = 128,
    max_batches: MaxBatches = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    transform: Transform = None,
    match: Annotated[
        Matching | None,
        typer.Option(
            help="What eval mode keeps of train mode: variances of norms' outputs, or their means over dropout masks. "
            "If left out: what --held-out says, or else the mean for a regression, and the variance."
        ),
    ] = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="With --match variance: take out dropout's part alone, on any data.")
    ] = False,
    tolerance: Annotated[float | None, typer.Option(help="Stop at this relative standard error, such as 0.01.")] = None,
    prior: Annotated[
        str | None, typer.Option(help="How many samples the stored statistics count for; or auto: as their errors say.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(help="Labelled data, named as for --data: nothing is written unless the loss on them gets lower."),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="package.module:callable, called as f(outputs, targets), lower is better: the loss of --held-out."
        ),
    ] = None,
    other_data: Annotated[
        bool, typer.Option("--other-data", help="Repair by data that are not those of training, too.")
    ] = False,
    unsure: Annotated[
        Unsure, typer.Option(help="What to do with norms of which it is not sure that new statistics are better.")
    ] = Unsure.leave,
    html: pages.Html = None,
    as_json: Json = False,
    example: Example = None,
    key: Key = None,
    forward: Forward = None,
    device: Device = None,
) -> None:
    """Re-estimate a checkpoint's norm statistics with dropout off, and print the shift before and after.

    Without --data they are corrected by what is predicted from weights and statistics: for a checkpoint whose
    statistics are those of its training, and have not been repaired before.

    OUT says which norms were repaired, and what training had left there, beside the state dict, for shift, lint and
    repair, and for ek.load_, ek.noisy and ek.undo_; load_state_dict and safetensors load it as before.

    Images are preprocessed as by shift. Data that are not those of training are refused, unless by --other-data, but
    not with --match mean or --relative, which take out dropout's part alone. Where it matters, let --held-out decide.
    """
    from rich.console import Group

    from evenkeel.cli.repairing import Judging, corrected, reestimated
    from evenkeel.io.checkpoints import Checkpoint
    from evenkeel.output.files import atomic_write, is_same_file, require_folder
    from evenkeel.output.rendering import render

    require_folder(out)
    pages.require_page(html, out, weights)
    model = load_model(target, arg)
    checkpoint = Checkpoint.of(trained(model)) if weights is None else Checkpoint.read(weights, key=key)
    checkpoint.apply_(model)
    model = model if device is None else moved(model, device)
    over = weights is not None and is_same_file(out, weights)
    options = DataOptions(input_shape, data_dir, download, batch_size, mean, std, scale, transform)
    judging = None
    if held_out is not None:
        found = options.load(held_out)
        batches = found.train if found.test is None else found.test
        judging = Judging(batches, load_function("--score", score), load_function("--forward", forward))
    elif score is not None:
        raise EvenkeelError("--score says how to judge held-out data, and there is no --held-out")
    how: dict[str, Any] = {"match": match and match.value, "unsure": unsure.value}
    if data is None:
        unused = {"--max-batches": max_batches, "--tolerance": tolerance, "--prior": prior}
        unused |= {"--relative": relative or None}
        unused |= {} if held_out else {"--forward": forward, "--data-dir": data_dir, **options.preprocessing}
        refuse_unused(unused)
        shown, result = corrected(model, load_example(model, input_shape, example, NEEDS_INPUT), judging, **how)
    else:
        how |= {"relative": relative, "max_batches": max_batches, "tolerance": tolerance, "prior": parse_prior(prior)}
        how |= {"forward": load_function("--forward", forward)}
        shown, result = reestimated(model, options.load(data), how, judging, other_data=other_data)
    if html is None:
        checkpoint.write(out, model)
    else:
        called = {"arg": arg, "input": input_shape, "example": example, "key": key, "forward": forward}
        called |= options.given
        facts: dict[str, Any] = {"weights": weights, "out": out, "data": data}
        page = pages.repair_page(shown.page, target, called, **facts, is_plain=checkpoint.is_plain_for(model))
        with atomic_write(html) as temporary:  # both files, or neither
            temporary.write_text(render(page), encoding="utf-8")
            checkpoint.write(out, model)
    where = f"written: {out}, over the checkpoint that was read" if over else f"written: {out}"
    if over and as_json:
        typer.echo(f"evenkeel: {where}", err=True)
    show({"out": str(out), **result} if as_json else Group(shown, where))


def _settings(guideline: str | None, select: list[str] | None, ignore: list[str] | None) -> Settings:
    """What pyproject.toml asks for, and the command line, which comes first; what either ignores is ignored."""
    from evenkeel.linting.linter import wanted
    from evenkeel.linting.rule import GUIDELINES
    from evenkeel.linting.rules import ALL
    from evenkeel.linting.settings import read_settings

    found = read_settings(Path.cwd(), known=[rule.code for rule in ALL], guidelines=GUIDELINES)
    asked = wanted(guideline, _codes(select), _codes(ignore))
    return replace(
        found,
        guideline=asked.guideline or found.guideline,
        select=asked.select or found.select,
        ignore=(*found.ignore, *asked.ignore),
    )


def _codes(options: list[str] | None) -> list[str]:
    return [code for option in options or [] for code in option.split(",")]


def main() -> NoReturn:
    """Run the program: exit code 0 done, 1 findings or a failed run, 2 bad input with one line on standard error."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own errors; older ones are click's
        if usage is not None:
            message = usage()
        elif isinstance(error, EvenkeelError):
            message = for_command_line(str(error))
        elif is_out_of_memory(error):
            message = f"{brief(error)}: ask for smaller sizes by --input, or a smaller --batch-size"
        else:
            raise
        typer.echo(f"evenkeel: {' '.join(message.split())}", err=True)
        code = 2
    sys.exit(code)
