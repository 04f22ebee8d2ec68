"""The README's picture: every norm of a small network on real digits, before and after a repair.

python -m benchmarks.pictures [--picture docs/pictures/repair.svg]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import evenkeel as ek
from evenkeel.demo import build_net
from evenkeel.io.datasets import Data, load_data
from evenkeel.model.evaluation import evaluate
from evenkeel.output.files import atomic_write, require_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = Path("docs/pictures/repair.svg")
_BEFORE, _AFTER = "#c2410c", "#0f766e"


def trained(digits: Data) -> nn.Module:
    """The network of docs/start.md: a residual CNN with dropout before each block's last norm."""
    torch.manual_seed(0)
    model = build_net(p=0.5, widths=(16, 16, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(10):
        for images, labels in digits.train:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model


def error(model: nn.Module, digits: Data) -> float:
    found = evaluate(model, digits.test or ()).error
    assert found is not None
    return found


def draw(before: ek.ShiftReport, after: ek.ShiftReport, errors: tuple[float, float]) -> Figure:
    """Eval over stored variance of every norm, before and after, with the test errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(before))
    ratios = [[row.ratio for row in report] for report in (before, after)]
    axes.axhline(1, color="#64748b", linewidth=1)
    axes.vlines(places, *ratios, color="#cbd5e1", linewidth=2, zorder=1)
    shown = zip(ratios, (_BEFORE, _AFTER), "os", ("as trained", "repaired"), errors, strict=True)
    for values, colour, marker, name, wrong in shown:
        axes.plot(places, values, marker, color=colour, label=f"{name}: test error {wrong:.1%}", zorder=2)
    axes.set_yscale("log")
    axes.set_yticks([0.4, 0.6, 1, 1.5], ["x0.4", "x0.6", "x1", "x1.5"])
    axes.minorticks_off()
    names = [f"{row.path}\n(behind dropout)" if is_behind(row) else row.path for row in before]
    axes.set_xticks(places, names, fontsize=7)
    axes.set_ylabel("variance in eval mode\nover variance stored")
    axes.set_title("Batch norms of a network trained with dropout 0.5 (digits)", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0.0, 0.98))
    axes.set_ylim(0.35, 2.6)
    return figure


def is_behind(row: ek.ShiftRow) -> bool:
    """Whether a dropout stands right before a norm."""
    return row.path.endswith("norm2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    from evenkeel.papers.lab.drawings import to_svg

    require_folder(options.picture)
    digits = load_data("digits", batch_size=50)
    model = trained(digits)
    before, first = ek.variance_shift(model, digits.train), error(model, digits)
    ek.reestimate_(model, digits.train)
    after, second = ek.variance_shift(model, digits.train), error(model, digits)
    with atomic_write(options.picture) as temporary:
        temporary.write_text(to_svg(draw(before, after, (first, second))), encoding="utf-8")
    print(f"worst x{before.worst:.2f} to x{after.worst:.2f}, test error {first:.1%} to {second:.1%}: {options.picture}")


if __name__ == "__main__":
    main()
