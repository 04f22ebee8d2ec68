"""One neuron behind a norm: training's average over masks, and what eval mode gives as trained and repaired each way.

    python -m benchmarks.one_neuron [--page docs/matching.md] [--plot docs/pictures/matching.svg]

Prints the table, puts it into the page, and draws it. The neuron reads w.x of mean 0 and variance 1; dropout of .5 adds
as much, nearly normal, and the norm is right behind it or behind a ReLU, too. All of it is `evenkeel.theory.matching`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pages import put_into
from evenkeel.output.files import atomic_write
from evenkeel.theory.li2018 import dropout_noise
from evenkeel.theory.matching import Stored, mean_matched, slope_through

PAGE, PLOT = Path("docs/matching.md"), Path("docs/pictures/matching.svg")
P = 0.5
NOISE = float(dropout_noise(P))  # beside a signal of mean 0 and variance 1
GRID = torch.linspace(-8, 8, 16001, dtype=torch.float64)  # of the signal, in its standard deviations
DENSITY = torch.softmax(-(GRID**2) / 2, 0)
STYLES = {"as trained": ("#0072b2", "--"), "variance matched": ("#d55e00", "-."), "mean matched": ("#009e73", ":")}


@dataclass(frozen=True)
class Case:
    """A place of the norm.

    Attributes:
        name: the place.
        f: what is between dropout and norm.
        average: E f(s + n) over the noise n, by s.
        train: mean and variance that training stores.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    average: Callable[[Tensor], Tensor]
    train: Stored

    def stored(self) -> dict[str, Stored]:
        """What the norm stores as trained, and after each repair."""
        values = self.f(GRID)
        mean = float(DENSITY @ values)
        k = float(slope_through(self.f, noise=NOISE))
        matched = mean_matched(k, mean=self.train.mean, variance=self.train.variance, eval_mean=mean, eps=0.0)
        variances = Stored(mean, float(DENSITY @ (values - mean) ** 2))
        return dict(zip(STYLES, (self.train, variances, matched), strict=True))

    def target(self) -> Tensor:
        """What training gives on average over masks, by s."""
        return normalized(self.average(GRID), self.train)

    def outputs(self) -> dict[str, Tensor]:
        """What eval mode gives, by s."""
        return {name: normalized(self.f(GRID), stored) for name, stored in self.stored().items()}


def normalized(x: Tensor, stored: Stored) -> Tensor:
    return (x - stored.mean) / stored.variance**0.5


def rectified_average(s: Tensor) -> Tensor:
    """E relu(s + n)."""
    z = s / NOISE**0.5
    return s * torch.special.ndtr(z) + NOISE**0.5 * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


TOTAL = 1 + NOISE
CASES = (
    Case("right behind dropout", torch.clone, torch.clone, Stored(0.0, TOTAL)),
    Case(
        "behind dropout and ReLU",
        torch.relu,
        rectified_average,
        Stored(math.sqrt(TOTAL / (2 * math.pi)), TOTAL * (0.5 - 0.5 / math.pi)),
    ),
)


def figures(case: Case) -> dict[str, tuple[float, float]]:
    """Variance of the norm's output over data in eval mode, and its root mean square distance from the average."""
    target = case.target()
    found = dict[str, tuple[float, float]]()
    for name, output in case.outputs().items():
        mean, gap = DENSITY @ output, DENSITY @ (output - target) ** 2
        found[name] = float(DENSITY @ (output - mean) ** 2), float(gap) ** 0.5
    return found


def table() -> str:
    """The table of the page, in Markdown."""
    rows = [
        "| norm | " + " | ".join(f"{name}: variance, distance" for name in STYLES) + " |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        cells = (f"{variance:.2f}, {distance:.2f}" for variance, distance in figures(case).values())
        rows.append(f"| {case.name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def draw(path: Path) -> None:
    """By the signal: the average over masks in training, and the output in eval mode."""
    from matplotlib.figure import Figure

    from evenkeel.papers.lab.drawings import to_svg

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    shown = slice(5000, 11001, 100)  # -3 to 3
    for axes, case in zip(panels, CASES, strict=True):
        axes.plot(GRID[shown], case.target()[shown], color="#999999", lw=5, label="training, averaged over masks")
        for name, output in case.outputs().items():
            color, dashes = STYLES[name]
            axes.plot(GRID[shown], output[shown], color=color, ls=dashes, lw=2, label=f"eval mode, {name}")
        axes.set_title(f"norm {case.name}", fontsize="medium")
        axes.set_xlabel("signal, in standard deviations")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("output of the norm")
    panels[0].legend(frameon=False, fontsize="small", loc="upper left")
    panels[0].set_ylim(-3.1, 4.6)
    with atomic_write(path) as temporary:
        temporary.write_text(to_svg(figure), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    print(table())
    put_into(options.page, {"one neuron": table()})
    draw(options.plot)


if __name__ == "__main__":
    main()
