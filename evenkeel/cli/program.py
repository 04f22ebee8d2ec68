"""The program `evenkeel`: what each command asks for, does and prints; those of the papers are in cli/papers.py."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from evenkeel.cli import completion, fixing, linting, pages, papers, parts
from evenkeel.cli.calls import Call
from evenkeel.cli.inputs import (
    NEEDS_INPUT,
    DataOptions,
    is_trained,
    load_example,
    load_function,
    load_model,
    load_weighted,
    moved,
    parse_prior,
    refuse_unused,
    require_name,
    trained,
)
from evenkeel.cli.judging import judging_by
from evenkeel.cli.options import (
    Arg,
    BatchSize,
    DataDir,
    DataName,
    Device,
    Download,
    Example,
    Forward,
    Input,
    Json,
    Key,
    Match,
    MaxBatches,
    Mean,
    References,
    Scale,
    Shares,
    Std,
    Target,
    ToRepair,
    Transform,
    Unsure,
    Weights,
)
from evenkeel.cli.showing import show, show_steps
from evenkeel.cli.wording import for_command_line
from evenkeel.errors import EvenkeelError, brief, is_out_of_memory

if TYPE_CHECKING:
    pass

_INSTEAD = {
    ("lint", "--json"): "lint prints JSON by --format json",
    ("lint", "--data"): "lint needs no data, but the shape of one input, by --input or --example",
    ("fix", "--data"): "fix needs no data, but the shape of one input, by --input or --example",
    ("lint", "--fail-above"): "lint exits with 1 if there are findings; shift has --fail-above",
    ("fix", "--out"): "fix writes nothing: --diff prints a patch, for `git apply`",
}

app = typer.Typer(
    help="Dropout and normalization on an even keel.",
    rich_markup_mode="markdown",  # rich's own would take [tool.evenkeel] for a style, and swallow it
    pretty_exceptions_enable=False,
)


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


def demo(
    seeds: Annotated[int, typer.Option(min=1, help="How many nets to train.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,000 training images.")] = 15,
    as_json: Json = False,
) -> None:
    """Run the main job on embedded real images: train, measure the shift, repair, score. A minute on a CPU."""
    from evenkeel.demo import run_demo

    result = run_demo(seeds=seeds, epochs=epochs)
    show(result.to_dict() if as_json else result)


def shift(
    context: typer.Context,
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
    from evenkeel.cli.shifting import inputs_in, measured
    from evenkeel.output.page import tone_of
    from evenkeel.output.rendering import write_page
    from evenkeel.prediction.shift_prediction import predict_shift

    pages.require_page(html, weights)
    options = DataOptions(input_shape, data_dir, download, batch_size, mean, std, scale, transform)
    model = load_weighted(target, arg, weights, key, device)
    inputs: list[str] = []
    if data is None:
        unused = {"--max-batches": max_batches, "--forward": forward, "--data-dir": data_dir}
        refuse_unused(unused | options.preprocessing)
        report = predict_shift(model, load_example(model, input_shape, example, NEEDS_INPUT))
    else:
        batches, run = options.load(data).train, load_function("--forward", forward)
        given = None if example is None else load_example(model, None, example, NEEDS_INPUT)
        report = measured(model, batches, max_batches=max_batches, forward=run, example=given)
        inputs = inputs_in(batches, run)
    is_even = tone_of(report.worst) == "even"
    steps = pages.next_steps(Call(context), is_even=is_even, is_trained=is_trained(model), inputs=inputs)
    if html is not None:
        write_page(html, pages.completed(report.page(), Call(context), steps))
    show(report.to_dict() if as_json else report)
    if not as_json:
        show_steps([] if is_even else steps, html)
    if fail_above is not None and report.worst > fail_above:
        raise typer.Exit(1)


def repair(
    context: typer.Context,
    target: Target,
    out: Annotated[Path, typer.Option(help="Where to write the repaired checkpoint.")],
    weights: ToRepair = None,
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
    match: Match = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="With --match variance: take out dropout's part alone, on any data.")
    ] = False,
    tolerance: Annotated[float | None, typer.Option(help="Stop at this relative standard error, such as 0.01.")] = None,
    prior: Annotated[
        str | None, typer.Option(help="How many samples the stored statistics count for; or auto: as their errors say.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Labelled data, named as for --data: nothing is written unless the loss on them gets lower.",
            autocompletion=completion.data_sets,
        ),
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
    reference: References = None,
    share: Shares = None,
) -> None:
    """Give a checkpoint right norm statistics: of nets with dropout, averaged, merged, pruned, rounded, on other data.

    They are re-estimated from --data with dropout off, and the shift is printed before and after. Where weights were
    changed after training, or the data are of another domain, --other-data allows it, and --prior blends old and new.

    Without --data they are corrected by what is predicted from weights and statistics: for a checkpoint whose
    statistics are those of its training, and have not been repaired before. With --reference, once for each network
    that a merged checkpoint is made of, weights and biases are matched, too.

    OUT says which norms were repaired, and what training had left there, beside the state dict, for shift, lint and
    repair, and for ek.load_, ek.noisy and ek.undo_; load_state_dict and safetensors load it as before.

    Images are preprocessed as by shift. Data that are not those of training are refused, unless by --other-data, but
    not with --match mean or --relative, which take out dropout's part alone. Where it matters, let --held-out decide.
    """
    from evenkeel.cli.repairing import corrected, reestimated
    from evenkeel.io.checkpoints import Checkpoint
    from evenkeel.output.files import atomic_write, is_same_file, require_folder
    from evenkeel.output.rendering import render

    require_name("--out", out)
    require_folder(out)
    pages.require_page(html, out, weights)
    model = load_model(target, arg)
    checkpoint = Checkpoint.of(trained(model)) if weights is None else Checkpoint.read(weights, key=key)
    checkpoint.apply_(model)
    model = model if device is None else moved(model, device)
    over = weights is not None and is_same_file(out, weights)
    options = DataOptions(input_shape, data_dir, download, batch_size, mean, std, scale, transform)
    judging = judging_by(options, held_out, score, forward)
    how: dict[str, Any]
    if reference or share:
        from evenkeel.cli.merging import matched, require_reference_data

        of_norms = {"--match": match, "--relative": relative or None, "--tolerance": tolerance, "--prior": prior}
        require_reference_data(reference, data, of_norms)
        points = [load_weighted(target, arg, path, key, device) for path in reference or ()]
        how = {"weights": share, "max_batches": max_batches, "forward": load_function("--forward", forward)}
        shown, result = matched(model, points, options.load(data or ""), how, judging)
    elif data is None:
        unused = {"--max-batches": max_batches, "--tolerance": tolerance, "--prior": prior}
        unused |= {"--relative": relative or None}
        unused |= {} if held_out else {"--forward": forward, "--data-dir": data_dir, **options.preprocessing}
        refuse_unused(unused)
        how = {"match": match and match.value, "unsure": unsure.value}
        shown, result = corrected(model, load_example(model, input_shape, example, NEEDS_INPUT), judging, **how)
    else:
        how = {"match": match and match.value, "unsure": unsure.value, "forward": load_function("--forward", forward)}
        how |= {"relative": relative, "max_batches": max_batches, "tolerance": tolerance, "prior": parse_prior(prior)}
        shown, result = reestimated(model, options.load(data), how, judging, other_data=other_data)
    steps = pages.steps_of_repair(Call(context), out, is_plain=checkpoint.is_plain_for(model))
    if html is None:
        checkpoint.write(out, model, weights=bool(reference))
    else:
        page = pages.completed(shown.page, Call(context), steps, written=str(out))
        with atomic_write(html) as temporary:  # both files, or neither
            temporary.write_text(render(page), encoding="utf-8")
            checkpoint.write(out, model, weights=bool(reference))
    where = f"written: {out}, over the checkpoint that was read" if over else f"written: {out}"
    if over and as_json:
        typer.echo(f"evenkeel: {where}", err=True)
    show({"out": str(out), **result} if as_json else shown)
    if not as_json:
        show_steps(steps, html)
        typer.echo(f"\n{where}")


for command in (
    *(
        shift,
        repair,
        parts.reestimate_part,
        parts.merge,
        linting.lint,
        fixing.fix,
        linting.explain,
        pages.compare,
        demo,
    ),
    *(papers.reproduce, papers.report),
):
    app.command()(command)


def _advice(error: Exception) -> str:
    """Where to read on after a usage error, or the option that does what another one is thought to do."""
    context = getattr(error, "ctx", None)
    if context is None or context.info_name is None or context.parent is None:
        return "`evenkeel --help` lists the commands"
    instead = _INSTEAD.get((context.info_name, getattr(error, "option_name", "")))
    return instead or f"`evenkeel {context.info_name} --help` lists what it takes"


def main() -> NoReturn:
    """Run the program: exit code 0 done, 1 findings or a failed run, 2 bad input with one line on standard error."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own errors; older ones are click's
        if usage is not None:
            said = for_command_line(usage()).rstrip(".")
            message = f"{said}{'' if said.endswith('?') else ':'} {_advice(error)}"
        elif isinstance(error, EvenkeelError):
            message = for_command_line(str(error))
        elif is_out_of_memory(error):
            message = f"{brief(error)}: ask for smaller sizes by --input, or a smaller --batch-size"
        else:
            raise
        typer.echo(f"evenkeel: {' '.join(message.split())}", err=True)
        code = 2
    sys.exit(code)
