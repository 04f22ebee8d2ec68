"""The picture of the field report: the ratio of every norm of every model."""

from __future__ import annotations

from pathlib import Path

from benchmarks.field.catalogue import DOMAINS, TITLES
from benchmarks.zoo import Row
from evenkeel.output.files import atomic_write
from evenkeel.papers.lab.drawings import to_svg

COLORS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3")
EVEN = 0.005  # ratios this near to 1 are left out: most norms of large models, which no dropout reaches


def draw(rows: dict[str, Row], path: Path) -> None:
    """One line a model with an uneven norm: measured as dots, predicted as short strokes; the most uneven above."""
    from matplotlib.figure import Figure

    domain_of = {model.name: domain for domain, models in DOMAINS.items() for model in models}
    shown = [
        (name, dots, strokes)
        for name, row in rows.items()
        if any(dots := uneven(row, "measured")) | any(strokes := uneven(row, "predicted"))
    ]
    shown.sort(key=lambda line: (list(DOMAINS).index(domain_of[line[0]]), min(*line[1], *line[2], 1.0)), reverse=True)
    figure = Figure(figsize=(8, 1 + 0.16 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for height, (name, dots, strokes) in enumerate(shown):
        color = COLORS[list(DOMAINS).index(domain_of[name])]
        axes.scatter(strokes, [height] * len(strokes), s=22, marker="|", color=color, linewidths=0.8)
        axes.scatter(dots, [height] * len(dots), s=7, color=color, alpha=0.7, linewidths=0)
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [name for name, _, _ in shown], fontsize=6)
    axes.set_ylim(-1, len(shown))
    axes.set_xscale("log")
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(
        "variance in eval mode over variance stored in training: measured (dot), predicted (stroke)", fontsize=7
    )
    handles = [
        axes.scatter([], [], s=16, color=color, label=TITLES[d]) for d, color in zip(DOMAINS, COLORS, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        temporary.write_text(to_svg(figure), encoding="utf-8")


def uneven(row: Row, name: str) -> list[float]:
    """The ratios that are not 1."""
    ratios = row.get(name, {}).get("ratios", {}).values()
    return [ratio for ratio in ratios if ratio and abs(ratio - 1) > EVEN]
