"""The program `evenkeel`: what each command asks for, does and prints; those of the papers are in cli/papers.py."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from evenkeel.cli import pages, papers
from evenkeel.errors import EvenkeelError, UnpredictedWarning
from evenkeel.io.downloads import SETS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evenkeel.io.datasets import Data
    from evenkeel.linting.settings import Settings

app = typer.Typer(
    help="Dropout and normalization on an even keel.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Target = Annotated[
    str, typer.Argument(help="package.module:callable, torchvision:NAME or timm:NAME.", metavar="TARGET")
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        help=f"{', '.join(SETS)}, folder:PATH or package.module:callable; left out: predicted from --input.",
        metavar="D",
    ),
]
Input = Annotated[str | None, typer.Option("--input", help="Shape of one input, such as 3x224x224.")]
Arg = Annotated[
    list[str] | None, typer.Option("--arg", help="Argument for TARGET, such as num_classes=10; repeatable.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where data sets are; else the variable EVENKEEL_DATA.")
]
Download = Annotated[bool, typer.Option("--download", help="Download a missing data set.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=2, help="Samples a batch, for data sets named here.")]
MaxBatches = Annotated[
    int | None, typer.Option("--max-batches", min=1, help="How many batches to use; all if left out.")
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", help="What training took off images from 0 to 1, such as 0.485,0.456,0.406.", metavar="M"),
]
Std = Annotated[str | None, typer.Option("--std", help="What it then divided them by.", metavar="S")]
Scale = Annotated[
    str | None, typer.Option("--scale", help="What it multiplied them by first: 255 for pixels to 255.", metavar="K")
]
Transform = Annotated[
    str | None,
    typer.Option("--transform", help="package.module:callable, given batches of these.", metavar="T"),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Checkpoint: .safetensors, or a state dict that torch.load reads.")
]
Codes = Annotated[
    list[str] | None, typer.Option(help="Codes, or beginnings such as EK2, with commas between them; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_NEEDS_INPUT = "without --data, --input must give the shape of one input, such as 3x224x224"


class Unsure(Enum):
    """What `evenkeel repair` does with norms that it is not sure of."""

    leave = "leave"
    write = "write"


class Matching(Enum):
    """What `evenkeel repair` keeps of train mode in eval mode."""

    variance = "variance"
    mean = "mean"


class Format(Enum):
    """How findings are printed."""

    text = "text"
    json = "json"
    sarif = "sarif"


app.command()(papers.reproduce)
app.command()(papers.report)
app.command()(pages.compare)


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
    _show(result.to_dict() if as_json else result)


@app.command()
def lint(
    target: Target,
    input_shape: Input = None,
    guideline: Annotated[
        str | None, typer.Option(help="hendrycks2016 (traps), li2018, chen2019 or kim2023; all if left out.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print findings.")] = Format.text,
    select: Codes = None,
    ignore: Codes = None,
    arg: Arg = None,
    weights: Weights = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
    html: pages.Html = None,
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
    from evenkeel.output.files import atomic_write, finite
    from evenkeel.output.rendering import write_page

    pages.require_page(html, weights, output)
    settings = _settings(guideline, select, ignore)
    example = _example(input_shape, "--input must give the shape of one input, such as 3x224x224")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnpredictedWarning)
        findings = findings_of(_model(target, arg, weights), example, settings)
    for warning in caught:
        typer.echo(f"evenkeel: {warning.message}", err=True)
    if form is Format.text:
        text = summary(findings)
    elif form is Format.json:
        text = json.dumps(finite([finding.to_dict() for finding in findings]), indent=2)
    else:
        text = json.dumps(to_sarif(findings, ALL, root=Path.cwd(), version=version("evenkeel")), indent=2)
    if output is None:
        typer.echo(text)
    else:
        with atomic_write(output) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
    if html is not None:
        page = pages.lint_page(findings.page(), target, arg=arg, weights=weights, shape=input_shape)
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
        typer.echo((explanation.explain(code) if code else explanation.overview()).rstrip())


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
        float | None, typer.Option(help="Exit with 1 if the worst folded ratio is above this.")
    ] = None,
    html: pages.Html = None,
    as_json: Json = False,
) -> None:
    """Print, for every norm layer, the variance it meets in eval mode against the one that it stores.

    Without --data both are predicted from weights and statistics, and so is which dropouts cause the difference.

    Images of data sets named here are standardized by the set's own mean and deviation, unless --mean, --std, --scale
    or --transform say what training did to images from 0 to 1.
    """
    if fail_above is not None and not fail_above >= 1:
        raise EvenkeelError(f"--fail-above is a folded ratio, at least 1, not {fail_above}")
    from evenkeel.output.progress import Bar
    from evenkeel.output.rendering import write_page
    from evenkeel.prediction.shift_prediction import predict_shift
    from evenkeel.statistics.shift import variance_shift

    pages.require_page(html, weights)
    preprocessing = {"--mean": mean, "--std": std, "--scale": scale, "--transform": transform}
    model = _model(target, arg, weights)
    if data is None:
        _refuse_unused({"--max-batches": max_batches, "--data-dir": data_dir, **preprocessing})
        report = predict_shift(model, _example(input_shape, _NEEDS_INPUT))
    else:
        batches = _load(data, input_shape, data_dir, download, batch_size, preprocessing).train
        report = variance_shift(model, Bar(batches, "measuring", total=max_batches), max_batches=max_batches)
    if html is not None:
        write_page(
            html, pages.shift_page(report.page(), target, arg=arg, weights=weights, data=data, shape=input_shape)
        )
    _show(report.to_dict() if as_json else report)
    if fail_above is not None and report.worst > fail_above:
        raise typer.Exit(1)


@app.command()
def repair(
    target: Target,
    weights: Annotated[
        Path, typer.Option(help="Checkpoint to repair: .safetensors, or a state dict that torch.load reads.")
    ],
    out: Annotated[Path, typer.Option(help="Where to write the repaired checkpoint.")],
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
    other_data: Annotated[
        bool, typer.Option("--other-data", help="Repair by data that are not those of training, too.")
    ] = False,
    unsure: Annotated[
        Unsure, typer.Option(help="What to do with norms of which it is not sure that new statistics are better.")
    ] = Unsure.leave,
    html: pages.Html = None,
    as_json: Json = False,
) -> None:
    """Re-estimate a checkpoint's norm statistics with dropout off, and print the shift before and after.

    Without --data they are corrected by what is predicted from weights and statistics: for a checkpoint whose
    statistics are those of its training, and have not been repaired before.

    Images are preprocessed as by shift. Data that are not those of training are refused, unless by --other-data, but
    not with --match mean or --relative, which take out dropout's part alone. Where it matters, let --held-out decide.
    """
    from rich.console import Group

    from evenkeel.cli.repairing import corrected, reestimated
    from evenkeel.io.checkpoints import Checkpoint
    from evenkeel.output.files import atomic_write, require_folder
    from evenkeel.output.rendering import render

    require_folder(out)
    pages.require_page(html, out, weights)
    checkpoint = Checkpoint.read(weights)
    model = _model(target, arg, None)
    checkpoint.apply_(model)
    preprocessing = {"--mean": mean, "--std": std, "--scale": scale, "--transform": transform}
    judging = None
    if held_out is not None:
        found = _load(held_out, input_shape, data_dir, download, batch_size, preprocessing)
        judging = found.train if found.test is None else found.test
    if data is None:
        unused = {"--max-batches": max_batches, "--tolerance": tolerance, "--prior": prior}
        unused |= {"--relative": relative or None}
        _refuse_unused(unused if held_out else {**unused, "--data-dir": data_dir, **preprocessing})
        shown, result = corrected(
            model, _example(input_shape, _NEEDS_INPUT), judging, unsure=unsure.value, match=match and match.value
        )
    else:
        given = _load(data, input_shape, data_dir, download, batch_size, preprocessing)
        options = {
            "match": match and match.value,
            "relative": relative,
            "max_batches": max_batches,
            "tolerance": tolerance,
            "prior": _prior(prior),
            "unsure": unsure.value,
        }
        shown, result = reestimated(model, given, options, judging, other_data=other_data)
    if html is None:
        checkpoint.write(out, model)
    else:
        page = pages.repair_page(shown.page, target, arg=arg, weights=weights, out=out, data=data, shape=input_shape)
        with atomic_write(html) as temporary:  # both files, or neither
            temporary.write_text(render(page), encoding="utf-8")
            checkpoint.write(out, model)
    _show({"out": str(out), **result} if as_json else Group(shown, f"written: {out}"))


def _prior(text: str | None) -> float | Literal["auto"]:
    if text is None or text == "auto":
        return text or 0
    try:
        return float(text)
    except ValueError:
        raise EvenkeelError(f"--prior is a number of samples, or auto, not {text!r}") from None


def _model(target: str, arg: list[str] | None, weights: Path | None) -> nn.Module:
    """The model that TARGET names, with the weights of a checkpoint if there is one."""
    from evenkeel.io.checkpoints import Checkpoint
    from evenkeel.io.targets import load_target, parse_arguments

    model = load_target(target, parse_arguments(arg or []))
    if weights is not None:
        Checkpoint.read(weights).apply_(model)
    return model


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


def _example(input_shape: str | None, missing: str) -> Tensor:
    """One input of the shape asked for; `missing` is the error if there is none."""
    import torch

    from evenkeel.io.targets import parse_shape

    if input_shape is None:
        raise EvenkeelError(missing)
    return torch.zeros(1, *parse_shape(input_shape))


def _refuse_unused(options: dict[str, Any]) -> None:
    """Refuse options that say how to use data where there are none."""
    for name, value in options.items():
        if value is not None:
            raise EvenkeelError(f"{name} says how to use data, and there is no --data")


def _load(
    name: str,
    input_shape: str | None,
    data_dir: Path | None,
    download: bool,
    batch_size: int,
    preprocessing: dict[str, str | None],
) -> Data:
    from evenkeel.io.datasets import load_data
    from evenkeel.io.preprocessing import parse_preprocessing
    from evenkeel.io.targets import parse_shape

    return load_data(
        name,
        data_dir=data_dir,
        shape=None if input_shape is None else parse_shape(input_shape),
        batch_size=batch_size,
        download=download,
        preprocessing=parse_preprocessing(*preprocessing.values()),
    )


def _show(result: Any) -> None:
    """Print plain data as JSON, anything else as rich does."""
    from rich.console import Console

    from evenkeel.output.files import finite

    if isinstance(result, dict):
        typer.echo(json.dumps(finite(result), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(result)


def main() -> NoReturn:
    """Run the program: exit code 0 done, 1 findings or a failed run, 2 bad input with one line on standard error."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own errors; older ones are click's
        if usage is None and not isinstance(error, EvenkeelError):
            raise
        message = usage() if usage else str(error)
        typer.echo(f"evenkeel: {' '.join(message.split())}", err=True)
        code = 2
    sys.exit(code)
