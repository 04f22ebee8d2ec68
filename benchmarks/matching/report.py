"""Tables, paired tests and a plot of the scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.matching.treatments import CHOSEN, EACH, ENSEMBLE, NAMES
from benchmarks.pages import put_into
from evenkeel.output.files import atomic_write

Rows = dict[str, dict[str, list[float]]]  # of a family: scores by treatment, by row
PAIRS = (
    ("mean", "as trained"),
    ("variance", "as trained"),
    ("default", "as trained"),
    ("mean", "variance"),
    ("mean", ENSEMBLE),
    ("mean behind ReLU", "mean"),
    (EACH, CHOSEN),
)
SHOWN = ("variance", "mean", CHOSEN, ENSEMBLE)  # in a page
COLORS = {
    "variance": "#d55e00",
    "mean": "#0072b2",
    "mean behind ReLU": "#56b4e9",
    CHOSEN: "#009e73",
    EACH: "#e69f00",
    ENSEMBLE: "#000000",
}


def families(results: dict[str, Any]) -> Iterator[tuple[str, list[str], Rows]]:
    """Every family: its name, the names of its scores, and its rows."""
    for name, found in results.items():
        if isinstance(found, dict) and "scores" in found and len(found) > 1:
            yield name, found["scores"], {row: scores for row, scores in found.items() if row != "scores"}


def arms(rows: Rows) -> dict[str, list[dict[str, list[float]]]]:
    """The rows without their seeds: of each place and rate of dropout, the scores seed by seed."""
    found: dict[str, list[dict[str, list[float]]]] = {}
    for row, scores in rows.items():
        found.setdefault(row.rsplit(" seed ", maxsplit=1)[0], []).append(scores)
    return found


def show(results: dict[str, Any]) -> str:
    """The tables of all families in Markdown, with paired tests."""
    parts: list[str] = []
    for name, scores, rows in families(results):
        seeds = max(map(len, arms(rows).values()))
        parts += [f"\n**{name}**: {' / '.join(scores)}; means over {seeds} seeds\n", table(rows), ""]
        parts += [tested(scores, rows), ""]
    return "\n".join([*parts, *claims(results)])


def table(rows: Rows) -> str:
    """Means over seeds by place and rate of dropout; a star where mean and variance differ at 5 %, by paired t."""
    lines = [f"| dropout | {' | '.join(NAMES)} |", "|---" * (len(NAMES) + 1) + "|"]
    for arm, runs in arms(rows).items():
        cells = [f"{arm}{'*' if p_paired(runs, 'mean', 'variance') < 0.05 else ''}"]
        cells += [" / ".join(f"{mean_of(runs, name, i):.3g}" for i in range(len(runs[0][name]))) for name in NAMES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_of(runs: list[dict[str, list[float]]], treatment: str, score: int = 0) -> float:
    return fmean(run[treatment][score] for run in runs)


def p_paired(runs: list[dict[str, list[float]]], one: str, other: str) -> float:
    """The p-value of a paired t-test over seeds of the first score; 1 where there is nothing to test."""
    from scipy.stats import ttest_rel

    first, second = ([run[name][0] for run in runs] for name in (one, other))
    differences = {a - b for a, b in zip(first, second, strict=True)}
    return float(ttest_rel(first, second).pvalue) if len(differences) > 1 else 1.0


def tested(scores: list[str], rows: Rows) -> str:
    """Pairs of treatments over all rows of a family: the median of ratios, in how many rows lower, sign test."""
    from scipy.stats import binomtest

    lines: list[str] = []
    for one, other in PAIRS:
        cells: list[str] = []
        for i, score in enumerate(scores):
            pairs = [(run[one][i], run[other][i]) for run in rows.values()]
            lower, higher = (sum(sign * a < sign * b for a, b in pairs) for sign in (1, -1))
            p = binomtest(lower, lower + higher).pvalue if lower + higher else 1.0
            ratio = geometric([(a, b) for a, b in pairs if a > 0 and b > 0])
            cells.append(f"{score} x{ratio:.3f}, lower in {lower}, higher in {higher} (p {p:.2g})")
        lines.append(f"{one} against {other}: {'; '.join(cells)}")
    return "\n".join(lines)


def geometric(pairs: list[tuple[float, float]]) -> float:
    """Geometric mean of ratios; 1 of none."""
    return math.exp(fmean(math.log(a / b) for a, b in pairs)) if pairs else 1.0


def claims(results: dict[str, Any]) -> list[str]:
    """Rows, of means over seeds, in which what is asked of the repairs does not hold."""
    bounds = (("mean", ENSEMBLE, 1.10), ("default", "as trained", 1.05))
    lines: list[str] = []
    for name, scores, rows in families(results):
        groups = arms(rows)
        if scores[0] == "squared error":
            for one, other, most in bounds:
                ratios = {arm: mean_of(runs, one) / mean_of(runs, other) for arm, runs in groups.items()}
                above = [f"{arm} (x{ratio:.3f})" for arm, ratio in ratios.items() if ratio > most]
                lines.append(f"{name}: {one} above {most:g} x {other}: {', '.join(above) or 'in no row'}")
        else:
            chosen, today = (fmean(run[which][0] for run in rows.values()) for which in (CHOSEN, "variance"))
            lines.append(f"{name}: {scores[0]} {chosen:.2f} by held-out choice, {today:.2f} by matching the variance")
    return lines


def summary(results: dict[str, Any]) -> str:
    """A line a family, in Markdown: what each treatment leaves of the first score, over that as trained.

    Geometric means over places and rates of dropout of means over seeds, and the row where it does the most harm.
    """
    lines = [f"| nets | score | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, scores, rows in families(results):
        cells = [name, scores[0].removesuffix(" %")]
        for treatment in SHOWN:
            pairs = [(mean_of(runs, treatment), mean_of(runs, "as trained")) for runs in arms(rows).values()]
            pairs = [(after, before) for after, before in pairs if after > 0 and before > 0]
            cells.append(f"x{geometric(pairs):.2f}, up to x{max(after / before for after, before in pairs):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(results: dict[str, Any], path: Path) -> None:
    """Put the summary into a page, between its marks."""
    put_into(path, {"trained nets": summary(results) + "\n"})


def draw(results: dict[str, Any], path: Path) -> None:
    """By family and treatment, the first score over that as trained: a mark for each place and rate of dropout."""
    from matplotlib.figure import Figure

    from evenkeel.papers.lab.drawings import to_svg

    found = list(families(results))
    figure = Figure(figsize=(8, 1 + 0.75 * max(len(found), 2)), layout="constrained")
    axes: Any = figure.subplots()
    step = 0.8 / len(COLORS)
    for number, (_, _, rows) in enumerate(found):
        for place, (treatment, color) in enumerate(COLORS.items()):
            for arm, runs in arms(rows).items():
                before, after = mean_of(runs, "as trained"), mean_of(runs, treatment)
                size = {"0.1": 8, "0.3": 20, "0.5": 40}[arm.split()[-1]]
                height = number + (place - (len(COLORS) - 1) / 2) * step
                if before > 0 and after > 0:
                    axes.scatter([after / before], [height], size, color, alpha=0.6, linewidths=0)
    for treatment, color in COLORS.items():
        axes.scatter([], [], 20, color, label=treatment, linewidths=0)
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3], "0.4 0.6 0.8 1 1.25 1.5 2 3".split())
    axes.minorticks_off()
    axes.set_yticks(range(len(found)), [f"{name}\n{scores[0]}" for name, scores, _ in found])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("over that as trained; small, middle and large marks: p = .1, .3, .5")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    with atomic_write(path) as temporary:
        temporary.write_text(to_svg(figure), encoding="utf-8")
