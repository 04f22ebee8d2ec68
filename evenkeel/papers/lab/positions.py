"""Positions: what dropout at a place in the branches does to the norms that read a branch, and those that do not."""

from __future__ import annotations

from statistics import geometric_mean
from typing import Any

from evenkeel.papers.lab import measures
from evenkeel.papers.lab.trials import Trial


def positions(trial: Trial) -> dict[str, Any]:
    """Scores as trained and adjusted, and the shift of norms inside branches and on the trunk (kim2023).

    Figures: those of `measures.shift` and `measures.adjusted`; `in_branch`, the geometric mean of max(r, 1/r) over the
    norms behind a weight of their branch, and `at_trunk`, over those that read what was added up.
    """
    figures = measures.shift(trial)
    if "folded" not in figures:  # of a training that diverged
        return figures
    inside = [reads_branch(path) for path in figures["paths"]]
    by_place = {
        place: [row for row, is_in in zip(figures["folded"], inside, strict=True) if is_in == where]
        for place, where in (("in_branch", True), ("at_trunk", False))
    }
    return {**figures, **measures.adjusted(trial), **{place: geometric_mean(rows) for place, rows in by_place.items()}}


def reads_branch(path: str) -> bool:
    """Whether a norm of the lab's pre-activation nets comes behind a weight of its branch, by its path.

    >>> reads_branch("stage1.0.branch.norm2"), reads_branch("stage1.0.branch.norm1"), reads_branch("head.norm")
    (True, False, False)
    """
    return ".branch." in path and not path.endswith("1")
