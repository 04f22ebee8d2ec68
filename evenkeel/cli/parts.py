"""The commands `evenkeel reestimate-part` and `evenkeel merge`."""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenkeel.cli.inputs import DataOptions, load_function, load_model, load_weighted, moved, parse_prior, refuse_unused
from evenkeel.cli.options import (
    Arg,
    BatchSize,
    DataDir,
    Device,
    Download,
    Forward,
    Input,
    Json,
    Key,
    MaxBatches,
    Mean,
    Scale,
    Std,
    Target,
    Transform,
    Unsure,
)
from evenkeel.cli.showing import show
from evenkeel.errors import EvenkeelError, StretchWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from evenkeel.parts.parts import Part

_Weights = Annotated[
    Path, typer.Option("--weights", help="Checkpoint, the same for all parts and rounds: as training left it.")
]
_PROBE = 16  # batches


def reestimate_part(
    target: Target,
    weights: _Weights,
    data: Annotated[
        str,
        typer.Option("--data", help="This part: folder:PATH, package.module:callable, a named set.", metavar="D"),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the part.")],
    name: Annotated[str | None, typer.Option(help="Of the part, in reports; OUT's name if left out.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="What norms store meanwhile: what merge --next wrote, in a later round.")
    ] = None,
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
    key: Key = None,
    forward: Forward = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure one site's or shard's data, where data cannot be brought together; merge makes the statistics of all.

    Dropout is off meanwhile. The part holds sums by channel and no samples. Parts merge to the same bits in any order,
    and wherever between two batches the data were cut.
    """
    from evenkeel.output.files import require_folder
    from evenkeel.parts.part_measuring import measure_part
    from evenkeel.parts.parts import load_start

    require_folder(out)
    _refuse_same(out, [weights, start])
    begin = None if start is None else load_start(start)
    options = DataOptions(input_shape, data_dir, download, batch_size, mean, std, scale, transform)
    model = load_weighted(target, arg, weights, key, device)
    part = measure_part(
        model,
        options.load(data).train,
        name=out.name if name is None else name,
        start=begin,
        forward=load_function("--forward", forward),
        max_batches=max_batches,
        progress=True,
    )
    part.save(out)
    found = {"out": str(out), "name": part.name, "round": part.start.round + 1, "norms": len(part.sums)}
    found |= {"batches": part.batches, "samples": part.samples, "untouched": dict(part.untouched)}
    others = _others(model, part) if begin is None else ""
    found |= {"other_data": others}
    if as_json:
        show(found)
        return
    for path, reason in part.untouched.items():
        typer.echo(f"{path}: {reason}")
    if others:
        typer.echo(f"{others}. Where sites differ, all parts together tell; otherwise see --mean, --std and --scale")
    typer.echo(
        f"written: {out}: round {part.start.round + 1}, {len(part.sums)} norms, {part.samples} samples in "
        f"{part.batches} batches"
    )


def merge(
    target: Target,
    parts: Annotated[list[Path], typer.Argument(help="What reestimate-part wrote, in any order.", metavar="PART")],
    weights: _Weights,
    out: Annotated[Path, typer.Option(help="Where to write the repaired checkpoint.")],
    following: Annotated[
        Path | None, typer.Option("--next", help="Where to write what reestimate-part --start reads in another round.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Samples that show how later norms change with earlier ones, such as any part's: the first "
            f"{_PROBE} batches, or --max-batches.",
            metavar="D",
        ),
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="How many samples the stored statistics count for; or auto: as their errors say.")
    ] = None,
    other_data: Annotated[
        bool, typer.Option("--other-data", help="Merge parts of data that are not those of training, too.")
    ] = False,
    unsure: Annotated[
        Unsure, typer.Option(help="What to do with norms of which it is not sure that new statistics are better.")
    ] = Unsure.leave,
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
    key: Key = None,
    forward: Forward = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Repair a checkpoint by parts that reestimate-part measured, and say how far off each norm may still be.

    Networks whose weights were merged are for repair --reference.

    What is off by more than 1 % takes another round: reestimate-part with --start NEXT on every part, and merge. Exit
    code 1 if it is; OUT is written all the same.
    """
    from evenkeel.cli.repairing import CHECK
    from evenkeel.io.checkpoints import Checkpoint
    from evenkeel.output.files import atomic_write, is_same_file, require_folder
    from evenkeel.parts.part_merging import merge_parts_
    from evenkeel.shift.shift_causes import OTHERS

    for path in (out, following):
        if path is not None:
            require_folder(path)
            _refuse_same(path, parts)
    if following is not None:
        _refuse_same(following, [weights, out])
    options = DataOptions(input_shape, data_dir, download, batch_size, mean, std, scale, transform)
    if data is None:
        unused = {"--max-batches": max_batches, "--forward": forward, "--data-dir": data_dir, **options.preprocessing}
        refuse_unused(unused)
    model = load_model(target, arg)
    checkpoint = Checkpoint.read(weights, key=key)
    checkpoint.apply_(model)
    model = model if device is None else moved(model, device)
    probe = None if data is None else _first(options.load(data).train, max_batches or _PROBE)
    run = load_function("--forward", forward)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StretchWarning)  # it is in the notes
        done = merge_parts_(model, parts, probe, forward=run, prior=parse_prior(prior), unsure=unsure.value)
    if done.other_data and not other_data:
        (path, how), *_ = done.other_data.items()
        raise EvenkeelError(f"nothing is written: norm {path} {how}: {OTHERS}: {CHECK}")
    if following is None:
        checkpoint.write(out, model)
    else:
        with atomic_write(following) as temporary:  # both files, or neither
            done.start.save(temporary)
            checkpoint.write(out, model)
    written = [f"written: {out}{', over the checkpoint that was read' if is_same_file(out, weights) else ''}"]
    written += [] if following is None else [f"written: {following}, for reestimate-part --start"]
    show({"out": str(out), **done.to_dict()} if as_json else done)
    if not as_json:
        for line in written:
            typer.echo(line)
    if not done.is_settled:
        raise typer.Exit(1)


def _others(model: nn.Module, part: Part) -> str:
    """What says that a part is of other data than those of training, if anything does."""
    from evenkeel.model.norms import norms_of
    from evenkeel.shift.shift_causes import OTHERS, other_than_stored

    path, sums = next(iter(part.sums.items()))
    how = other_than_stored(norms_of(model)[path], sums.population())
    return f"norm {path} {how}: {OTHERS}" if how else ""


def _first(batches: Iterable[Any], count: int) -> list[Any]:
    """The first batches, or all if there are no more."""
    return list(islice(batches, count))


def _refuse_same(path: Path, others: Sequence[Path | None]) -> None:
    """Refuse to write a file over another that is read.

    Raises:
        EvenkeelError: it is one of them.
    """
    from evenkeel.output.files import is_same_file

    for other in others:
        if other is not None and is_same_file(path, other):
            raise EvenkeelError(f"{path} is a file that is read, {other}: name another")
