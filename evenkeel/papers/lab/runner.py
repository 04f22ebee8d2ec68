"""The runner: a paper's experiments from their specification to files of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from tempfile import TemporaryFile
from uuid import uuid4

from evenkeel.errors import EvenkeelError
from evenkeel.output.files import write_json
from evenkeel.output.progress import Bar
from evenkeel.papers.lab.engines import require_engine, run_all
from evenkeel.papers.lab.experiments import Experiment, Paper
from evenkeel.papers.lab.results import Record
from evenkeel.papers.lab.specs import SCALES, EngineName, Scale, arm_name
from evenkeel.papers.lab.trials import Run, Workplace


class NotReadyError(EvenkeelError):
    """Runs cannot be made, and none was begun.

    Attributes:
        lines: what is missing, in a line each.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class Summary:
    """What became of the runs asked for.

    Attributes:
        made: how many were made.
        skipped: how many had been made before.
        failed: the errors of the others, by name.
    """

    made: int
    skipped: int
    failed: dict[str, str]


def runs_of(
    paper: Paper, experiment: Experiment, scale: Scale, *, arms: str = "*", seeds: Sequence[int] | None = None
) -> list[Run]:
    """The runs of an experiment.

    Args:
        paper: whose it is.
        experiment: which.
        scale: smoke, quick, desk or full.
        arms: a pattern that names of arms match, such as `wrn-*`.
        seeds: which; as many as the experiment asks for, from 0 on, if None.

    Raises:
        EvenkeelError: no such scale, or no arm matches.
    """
    if scale not in SCALES:
        raise EvenkeelError(f"there is no scale {scale!r}: choose from {', '.join(SCALES)}")
    chosen = [factors for factors in experiment.arms[scale] if fnmatch(arm_name(factors), arms)]
    if not chosen:
        names = ", ".join(map(arm_name, experiment.arms[scale]))
        raise EvenkeelError(f"no arm of {paper.name}/{experiment.name} is like {arms!r}: there are {names}")
    return [
        Run(
            paper=paper.name,
            experiment=experiment.name,
            scale=scale,
            factors=factors,
            seed=seed,
            measure=experiment.measure,
            training=experiment.training(scale, **factors) if experiment.training else None,
        )
        for seed in (range(experiment.seeds[scale]) if seeds is None else seeds)
        for factors in chosen
    ]


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Runs in the order in which they fill a table soonest: by seed, then by net in the order in which nets are listed.

    Specifications list the cheapest net first where the order matters; what is not trained is cheaper than all.
    """
    nets = list(dict.fromkeys(run.training.net.name for run in runs if run.training))
    return sorted(runs, key=lambda run: (run.seed, nets.index(run.training.net.name) if run.training else -1))


def make(
    runs: Sequence[Run],
    workplace: Workplace,
    *,
    engine: EngineName = "local",
    workers: int | None = None,
    resume: bool = False,
) -> Summary:
    """Make runs `in_order`, each one's record as soon as it is there: until then an earlier one stays, as does its net.

    Args:
        runs: which.
        workplace: where and on what.
        engine: `local` or `ray`.
        workers: how many runs at once on this machine; one a GPU, or else one a core, if None.
        resume: skip runs whose record is there and was made by the same specification, and go on with trainings that
            were begun; otherwise all is made anew.

    Returns:
        What became of them; one that fails does not stop the others.

    Raises:
        NotReadyError: the folder cannot be written to, the engine is not installed, or data are missing.
        EvenkeelError: a record cannot be written, the engine cannot be started, or the folder holds such runs of
            another scale, which would be lost.
    """
    for run in runs:
        _refuse_another_scale(run, workplace)
    done = [run for run in runs if resume and is_made(run, workplace)]
    todo = in_order([run for run in runs if run not in done])
    for check in (_before_reading(todo, workplace, engine), _of_data(todo, workplace)):
        if lines := list(dict.fromkeys(check)):
            raise NotReadyError(lines)
    workplace = workplace if resume else replace(workplace, anew=uuid4().hex)
    failed: dict[str, str] = {}
    if todo:
        outcomes = run_all(todo, workplace, engine=engine, workers=workers)
        for run, outcome in Bar(outcomes, "runs", total=len(todo)):
            path = run.path(workplace.out)
            if isinstance(outcome, Exception):
                failed[run.name] = f"{outcome}{'; the earlier record stays' if path.exists() else ''}"
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, outcome)
    return Summary(len(todo) - len(failed), len(done), failed)


def _before_reading(runs: Sequence[Run], workplace: Workplace, engine: EngineName) -> Iterator[str]:
    """What keeps records from being written, or the engine from being started."""
    paths = [run.path(workplace.out) for run in runs]
    trained = [workplace.checkpoints for run in runs if run.training is not None]
    for folder in dict.fromkeys([*trained, *(path.parent for path in paths)]):
        there = folder
        try:
            while not there.exists():
                there = there.parent
            with TemporaryFile(dir=there):
                pass
        except OSError as error:
            yield f"{there} cannot be written to ({error.strerror}): name another folder by --out"
        else:
            inside = [path for path in paths if path.parent == folder]
            yield from (f"{path} is a folder, where a record is to be: remove it" for path in inside if path.is_dir())
    try:
        require_engine(engine)
    except EvenkeelError as error:
        yield str(error)


def _of_data(runs: Sequence[Run], workplace: Workplace) -> Iterator[str]:
    """What keeps data from being read."""
    for source in dict.fromkeys(run.training.source for run in runs if run.training is not None):
        try:
            workplace.images(source)
        except EvenkeelError as error:
            yield str(error)


def _refuse_another_scale(run: Run, workplace: Workplace) -> None:
    record = record_of(run, workplace)
    if record is not None and record.scale != run.scale:
        path = run.path(workplace.out)
        raise EvenkeelError(
            f"{path} is of {record.scale} scale and would be lost: name another folder for {run.scale} scale by --out"
        )


def is_made(run: Run, workplace: Workplace) -> bool:
    """Whether a record lies there that answers to the run as it is specified now."""
    record = record_of(run, workplace)
    return record is not None and run.spec().items() <= record.content.items()


def record_of(run: Run, workplace: Workplace) -> Record | None:
    """The record that lies there; one that is damaged counts for none."""
    path = run.path(workplace.out)
    with suppress(EvenkeelError, OSError):
        return Record.read(path) if path.exists() else None
    return None
