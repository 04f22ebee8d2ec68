"""Status: how far runs are that were begun by an earlier call, and how long the rest will take, without running any."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from evenkeel.papers.lab.results import Record
from evenkeel.papers.lab.runner import is_made, record_of
from evenkeel.papers.lab.specs import Training, digest, plain
from evenkeel.papers.lab.training import epochs_done
from evenkeel.papers.lab.trials import Run, Workplace


@dataclass(frozen=True)
class Status:
    """How far some runs are.

    Attributes:
        name: what they are of.
        finished: how many have their record.
        begun: of each training that was begun, epochs done and epochs in all.
        waiting: how many runs were not begun.
        seconds: that the rest will take on one worker, as far as is known.
        unknown: of how many runs that is not known, since no run of such a net is finished.

    >>> print(Status("li2018/shift", 3, ((7, 12),), 2, 5400.0, 0))
    li2018/shift: 3 finished, 1 begun (7 of 12 epochs), 2 waiting; 1.5 h of one worker left
    >>> print(Status("li2018/shift", 0, (), 6, 0.0, 6))
    li2018/shift: 0 finished, 0 begun, 6 waiting; time left unknown: no run of such a net is finished
    """

    name: str
    finished: int
    begun: tuple[tuple[int, int], ...]
    waiting: int
    seconds: float
    unknown: int

    def __str__(self) -> str:
        epochs = ", ".join(f"{done} of {of}" for done, of in self.begun)
        begun = f"{len(self.begun)} begun" + (f" ({epochs} epochs)" if epochs else "")
        return f"{self.name}: {self.finished} finished, {begun}, {self.waiting} waiting; {self._left()}"

    def _left(self) -> str:
        left = self.waiting + len(self.begun)
        if not left:
            return "nothing left"
        if self.unknown == left:
            return "time left unknown: no run of such a net is finished"
        known = f"{_shown(self.seconds)} of one worker left"
        return known + (f", and {self.unknown} of unknown length" if self.unknown else "")


def status(runs: Sequence[Run], workplace: Workplace) -> list[Status]:
    """How far the runs of each experiment are, in the order given.

    A training that experiments share is counted as left in the first of them.
    """
    finished = {run.name: record_of(run, workplace) for run in runs if is_made(run, workplace)}
    rates = _Rates(filter(None, finished.values()))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{run.paper}/{run.experiment}", []).append(run)
    begun = {run.work: _epochs(run, workplace) for run in runs if run.name not in finished}
    trained = {run.work for run in runs if run.name in finished and run.training}
    return [_status(name, group, set(finished), begun, trained, rates) for name, group in groups.items()]


def _epochs(run: Run, workplace: Workplace) -> int:
    if run.training is None:
        return 0
    return epochs_done(workplace.checkpoints, run.training, run.seed, workplace.hardware)


def _status(
    name: str,
    runs: Iterable[Run],
    finished: set[str],
    epochs: Mapping[str, int],
    trained: set[str],
    rates: _Rates,
) -> Status:
    """Of one experiment; the trainings that it takes along are added to those trained."""
    done, begun, waiting, seconds, unknown = 0, list[tuple[int, int]](), 0, 0.0, 0
    for run in runs:
        if run.name in finished:
            done += 1
            continue
        share = 0.0
        if run.training and epochs[run.work]:
            begun.append((epochs[run.work], run.training.recipe.epochs))
            share = epochs[run.work] / run.training.recipe.epochs
        else:
            waiting += 1
        needed = rates.measuring(run) + (0.0 if run.work in trained else (1 - share) * rates.training(run))
        trained |= {run.work} if run.training else set()
        if math.isnan(needed):
            unknown += 1
        else:
            seconds += needed
    return Status(name, done, tuple(begun), waiting, seconds, unknown)


class _Rates:
    """What finished runs took, by net and by experiment; not a number where none is finished."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._training: dict[str, list[float]] = {}
        self._measuring: dict[str, list[float]] = {}
        for record in records:
            content = record.content
            net, experiment = _kind(content["training"]), f"{content['paper']}/{content['experiment']}"
            self._training.setdefault(net, []).append(content["seconds"]["training"])
            self._measuring.setdefault(f"{experiment} {net}", []).append(content["seconds"]["measuring"])

    def training(self, run: Run) -> float:
        return _mean(self._training.get(_kind_of(run.training), [])) if run.training else 0.0

    def measuring(self, run: Run) -> float:
        """Of the same experiment; what other experiments measure takes another time, but little beside a training."""
        net = _kind_of(run.training)
        own = self._measuring.get(f"{run.paper}/{run.experiment} {net}", [])
        others = [found for name, found in self._measuring.items() if name.endswith(net) and run.training]
        return _mean(own or [value for found in others for value in found])


def _kind_of(training: Training | None) -> str:
    return _kind(training and plain(training))


def _kind(training: Mapping[str, Any] | None) -> str:
    """What trainings that take about the same time share: the net but for its noise, images, epochs."""
    if training is None:
        return ""
    net, recipe = training["net"], training["recipe"]
    sizes = {name: value for name, value in net["arguments"].items() if name not in ("places", "noise")}
    return digest(net["name"], sizes, training["source"], recipe["epochs"], recipe["batch"])


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else math.nan


def _shown(seconds: float) -> str:
    """A time in words.

    >>> _shown(40), _shown(5400)
    ('1 min', '1.5 h')
    """
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{math.ceil(seconds / 60)} min"
