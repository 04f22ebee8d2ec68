"""The commands `evenkeel reproduce` and `evenkeel report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli import completion
from evenkeel.cli.inputs import require_name
from evenkeel.cli.showing import console
from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab.specs import Accelerator, EngineName, Precision, Scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenkeel.papers.lab.trials import Run, Workplace


def reproduce(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="PAPER, such as li2018, or PAPER/EXPERIMENT, such as li2018/shift.",
            metavar="PAPER",
            autocompletion=completion.experiments,
        ),
    ],
    scale: Annotated[
        Scale, typer.Option(help="smoke: seconds; quick: small nets; desk: 9 % error; full: the paper's.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for results; another one for each scale.")] = Path("results"),
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where data sets are; else the variable EVENKEEL_DATA.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download missing data sets.")] = False,
    engine: Annotated[
        EngineName, typer.Option(help="local: all cores or GPUs here; ray: the cluster that RAY_ADDRESS names.")
    ] = "local",
    resume: Annotated[bool, typer.Option("--resume", help="Skip finished runs, and continue those begun.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Run nothing: show how far each experiment is, and the time left.")
    ] = False,
    arms: Annotated[str, typer.Option(help="Only arms of such names, as in 'wrn-*'.")] = "*",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds, instead of the experiment's number.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; one a GPU, or else one a core, if left out.")
    ] = None,
    accelerator: Annotated[Accelerator, typer.Option(help="auto is cuda where there is one.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Devices for each run, by DistributedDataParallel.")] = 1,
    precision: Annotated[
        Precision | None,
        typer.Option(help="As lightning-fabric names it; 32-true, at desk scale bf16-mixed if it can be."),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Train what torch.compile makes of a net.")] = False,
    channels_last: Annotated[
        bool | None,
        typer.Option("--channels-last/--no-channels-last", help="Keep images channels last; so at desk scale."),
    ] = None,
) -> None:
    """Run a paper's experiments, and print what was published beside what was found.

    Writes OUT/PAPER/EXPERIMENT/ARM-SEED.json for every run, plots beside them, and trained nets under OUT/trained,
    which may be removed once all is done. What an earlier call wrote is replaced run by run, once each is complete.
    Exit code 1 if a run failed, or if none was begun since folder, engine or data are not there.
    """
    from evenkeel.papers.catalogue import find
    from evenkeel.papers.lab.hardware import hardware_at
    from evenkeel.papers.lab.report import read_reports
    from evenkeel.papers.lab.runner import NotReadyError, make, runs_of
    from evenkeel.papers.lab.trials import Workplace

    experiments = [pair for target in targets for pair in find(target)]
    chosen = None if seeds is None else range(seeds)
    runs = [run for pair in experiments for run in runs_of(*pair, scale, arms=arms, seeds=chosen)]
    hardware = hardware_at(scale, accelerator, devices, precision, compile=compiled, channels_last=channels_last)
    if scale == "desk" and precision is None and hardware.precision == "32-true":
        typer.echo("evenkeel: bfloat16 is not faster on this processor: nets are trained in float32", err=True)
    workplace = Workplace(out, data_dir, download, hardware)
    if status:
        _show_status(runs, workplace)
        return
    try:
        summary = make(runs, workplace, engine=engine, workers=workers, resume=resume)
    except NotReadyError as error:
        for line in error.lines:
            typer.echo(f"evenkeel: {line}", err=True)
        raise typer.Exit(1) from error
    screen = console(160)
    there = summary.made or summary.skipped
    reports = [report for report in read_reports(out, experiments) if report.scale == scale] if there else []
    for report in reports:
        screen.print(report)
    for name, error in summary.failed.items():
        typer.echo(f"evenkeel: {name}: {error}", err=True)
    for report in reports:
        try:
            report.write_plots(out)
        except EvenkeelError as error:  # such as that nothing was found that could be drawn
            typer.echo(f"evenkeel: no plot of {report.experiment.name}: {error}", err=True)
    typer.echo(f"{summary.made} runs made, {summary.skipped} skipped, {len(summary.failed)} failed: {out}")
    if summary.failed:
        raise typer.Exit(1)


def _show_status(runs: Sequence[Run], workplace: Workplace) -> None:
    from evenkeel.papers.lab.status import status

    for line in status(runs, workplace):
        typer.echo(str(line))


def report(
    results: Annotated[Path, typer.Argument(help="Folder that `evenkeel reproduce` wrote to.", metavar="RESULTS")],
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with tables and plots.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table of claims as Markdown.")] = None,
) -> None:
    """Show what runs have found: published beside ours, and which claims hold."""
    from evenkeel.output.files import atomic_write, require_folder
    from evenkeel.papers.catalogue import ALL, find
    from evenkeel.papers.lab.report import coverage, read_reports, to_html, to_markdown

    for option, path in (("--html", html), ("--markdown", markdown)):
        if path is not None:
            require_name(option, path)
            require_folder(path)
    if not results.is_dir():
        raise EvenkeelError(f"there is no folder {results}: name the one that `evenkeel reproduce` wrote to")
    reports = read_reports(results, [pair for paper in ALL for pair in find(paper.name)])
    pages = {html: to_html, markdown: to_markdown}
    for path, write in pages.items():
        if path is not None:
            with atomic_write(path) as temporary:
                temporary.write_text(write(reports), encoding="utf-8")
            typer.echo(f"written: {path}")
    if html is None and markdown is None:
        for found in reports:
            console(160).print(found)
        typer.echo("\n".join(coverage(reports)))
