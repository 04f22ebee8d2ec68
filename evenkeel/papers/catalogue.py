"""Catalogue: the papers, and their experiments by name."""

from __future__ import annotations

from evenkeel.errors import EvenkeelError
from evenkeel.papers import chen2019, hendrycks2016, kim2023, li2018
from evenkeel.papers.lab.experiments import Experiment, Paper

ALL: tuple[Paper, ...] = (hendrycks2016.PAPER, li2018.PAPER, chen2019.PAPER, kim2023.PAPER)


def find(target: str) -> list[tuple[Paper, Experiment]]:
    """The experiments that PAPER or PAPER/EXPERIMENT names.

    Raises:
        EvenkeelError: there is no such paper or experiment.

    >>> [experiment.name for _, experiment in find("hendrycks2016/signal")]
    ['signal']
    """
    name, _, wanted = target.partition("/")
    papers = {paper.name: paper for paper in ALL}
    if name not in papers:
        raise EvenkeelError(f"there is no paper {name!r}: choose from {', '.join(papers)}")
    experiments = {experiment.name: experiment for experiment in papers[name].experiments}
    if wanted and wanted not in experiments:
        raise EvenkeelError(f"{name} has no experiment {wanted!r}: choose from {', '.join(experiments)}")
    return [(papers[name], experiment) for experiment in experiments.values() if wanted in ("", experiment.name)]
