"""Is a repair worth it? What re-estimation gained, by how far the worst norm was off: from results/prediction.json.

    python -m benchmarks.worth [--page docs/is-it-worth-it.md] [--plot docs/pictures/worth.svg]

Prints the table, puts it into the page, and draws every net. Nothing is trained: `benchmarks.prediction` did that.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages import put_into
from evenkeel.output.files import atomic_write

RESULTS, PAGE, PLOT = Path("results/prediction.json"), Path("docs/is-it-worth-it.md"), Path("docs/pictures/worth.svg")
BANDS = (1.0, 1.1, 1.2, 1.5, 2.0, 3.0, math.inf)  # of the worst norm's folded ratio
KINDS = {"with convolutions": False, "fully connected": True}


@dataclass(frozen=True)
class Outcome:
    """One net that was trained with dropout, and repaired.

    Attributes:
        is_mlp: whether it has no convolutions.
        p: drop rate.
        worst: folded ratio of eval to stored variance at the worst norm.
        gain: points of test error that re-estimation took off.
        gain_without: the same of `correct_`, without data.
        loss_ratio: test log loss as trained over that after re-estimation.
    """

    is_mlp: bool
    p: float
    worst: float
    gain: float
    gain_without: float
    loss_ratio: float


def outcomes(results: dict[str, Any]) -> list[Outcome]:
    """All nets of `benchmarks.prediction`."""
    families = {family: arms for family, arms in results.items() if isinstance(arms, dict) and "(a) 0.5" in arms}
    return [
        outcome(family, float(arm.split()[1]), run)
        for family, arms in families.items()
        for arm, runs in arms.items()
        for run in runs
    ]


def outcome(family: str, p: float, run: dict[str, Any]) -> Outcome:
    before, after, without = (run[name] for name in ("as trained", "with data", "without data"))
    return Outcome(
        family.startswith("MLP"),
        p,
        math.exp(max(map(abs, run["measured"]))),
        100 * (before["error"] - after["error"]),
        100 * (before["error"] - without["error"]),
        before["log_loss"] / after["log_loss"],
    )


def table(found: Iterable[Outcome]) -> str:
    """The table of the page, in Markdown."""
    rows = [
        "| nets | worst norm off by | nets | rates | points of error less: median (range) | without data | log loss |",
        "|---|---|---|---|---|---|---|",
    ]
    found = list(found)
    for kind, is_mlp in KINDS.items():
        for low, high in pairwise(BANDS):
            chosen = [one for one in found if one.is_mlp == is_mlp and low <= one.worst < high]
            if chosen:
                gains, rates = [one.gain for one in chosen], sorted({one.p for one in chosen})
                band = f"x{low:g} to x{high:g}" if high < math.inf else f"x{low:g} and more"
                rows.append(
                    f"| {kind} | {band} | {len(chosen)} | {', '.join(f'{p:g}' for p in rates)} "
                    f"| {median(gains):.1f} ({min(gains):.1f} to {max(gains):.1f}) "
                    f"| {median(one.gain_without for one in chosen):.1f} "
                    f"| x{1 / median(one.loss_ratio for one in chosen):.2f} |"
                )
    return "\n".join(rows) + "\n"


def draw(found: Iterable[Outcome], path: Path) -> None:
    """Every net: how far its worst norm was off, and how many points of error the repair took off."""
    from matplotlib.figure import Figure

    from evenkeel.papers.lab.drawings import to_svg

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    found = list(found)
    for (kind, is_mlp), color, marker in zip(KINDS.items(), ("#0072b2", "#d55e00"), "os", strict=True):
        chosen = [one for one in found if one.is_mlp == is_mlp]
        axes.scatter(
            [c.worst for c in chosen], [c.gain for c in chosen], 18, color, marker=marker, label=kind, alpha=0.7
        )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xticks([1, 1.5, 2, 3, 5, 10], ["x1", "x1.5", "x2", "x3", "x5", "x10"])
    axes.set_yticks([0, 1, 10, 50], ["0", "1", "10", "50"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("eval variance against the stored one, at the worst norm")
    axes.set_ylabel("points of test error less")
    axes.set_ylim(bottom=-0.6)
    axes.legend(frameon=False, loc="lower right")
    with atomic_write(path) as temporary:
        temporary.write_text(to_svg(figure), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    found = outcomes(json.loads(RESULTS.read_text()))
    shown = table(found)
    print(shown)
    put_into(options.page, {"worth": shown})
    draw(found, options.plot)


if __name__ == "__main__":
    main()
