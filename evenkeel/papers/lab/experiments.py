"""Experiments: a paper's tables and figures as data. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evenkeel.papers.lab.claims import Claim
from evenkeel.papers.lab.results import Results
from evenkeel.papers.lab.specs import Factors, Scale, Selection, Training
from evenkeel.papers.lab.trials import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """One figure of every run, as the table shows it.

    Args:
        heading: of its column, with its unit.
        key: its name among a run's figures.
        factor: what it is multiplied by to be shown, such as 100 for percent.
        digits: behind the decimal point.
    """

    heading: str
    key: str
    factor: float = 1.0
    digits: int = 3


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper: arms, what is done with each, what was published, and what is claimed.

    Args:
        name: how it is asked for.
        source: where in the paper it is.
        about: what is done, in a sentence or two, with what differs from the paper.
        arms: the factors of every arm, by scale.
        seeds: how many runs an arm, by scale.
        measure: what a run finds: figures by name, numbers or lists of numbers.
        training: the training of an arm, by scale and factors; None where nothing is trained.
        columns: what the table shows.
        published: the paper's values of these columns by arm name, in the columns' units.
        claims: what the paper says, as tests on the results.
        selection: which factor is tuned, if any.
        plots: what draws the paper's figures, by name.
    """

    name: str
    source: str
    about: str
    arms: Mapping[Scale, tuple[Factors, ...]]
    seeds: Mapping[Scale, int]
    measure: Callable[[Trial], dict[str, Any]]
    training: Callable[..., Training] | None = None
    columns: tuple[Column, ...] = ()
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    claims: tuple[Claim, ...] = ()
    selection: Selection | None = None
    plots: Mapping[str, Callable[[Results], Figure]] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Paper:
    """A paper, and what of it is run.

    Args:
        name: the key of its reference, such as li2018.
        title: in full.
        authors: as cited.
        url: where it is read.
        experiments: in the paper's order.
        left_out: what else the paper says that could be measured, and that no experiment's claims put to the test.
    """

    name: str
    title: str
    authors: str
    url: str
    experiments: tuple[Experiment, ...]
    left_out: tuple[str, ...] = ()
