"""The tables of docs/case-studies.md, from results/published.json."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.pages import put_into
from benchmarks.published.catalogue import STUDIES
from benchmarks.published.repairs import PUBLISHED
from benchmarks.published.study import Figure
from evenkeel.errors import EvenkeelError

OUT, PAGE = Path("results/published.json"), Path("docs/case-studies.md")


def write_page(page: Path, out: Path) -> None:
    """Put the tables of every net between its marks.

    Raises:
        EvenkeelError: the page or the figures are missing, or the page has no place for a net.
    """
    if not out.is_file():
        raise EvenkeelError(f"{out} is missing: there is nothing to write the tables from")
    put_into(page, {name: tables(name, row) for name, row in json.loads(out.read_text(encoding="utf-8")).items()})


def tables(name: str, row: dict[str, Any]) -> str:
    """What evenkeel says of a net, the shift at each norm, and the scores after each repair, in Markdown."""
    findings = ", ".join(f"`{finding}`" for finding in row["findings"]) or "none"
    said = [f"- order of layers: `{row['order']}`", f"- findings of `lint` by Li et al. (2018): {findings}"]
    said += [f"- `correct_` left `{path}`: {why}" for path, why in row["untouched"].items()]
    said += [
        f"- `variance_shift` on these data: {row['other_data'] or 'nothing says that they are not those of training'}"
    ]
    return "\n".join([*said, "", *norm_table(row["norms"]), "", *score_table(name, row), ""])


def norm_table(norms: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| norm | eval / stored variance, as published, on these data | dropout alone | predicted without data |",
        "|---|---|---|---|",
    ]
    for norm in norms:
        ratios = [f"x{norm[kind]:.2f}" if kind in norm else "-" for kind in ("published", "dropout", "predicted")]
        lines.append(f"| `{norm['path']}` | {ratios[0]} | {ratios[1]} | {ratios[2]}{' ?' * ('unsure' in norm)} |")
    return lines


def score_table(name: str, row: dict[str, Any]) -> list[str]:
    """Means over the splits with their range, and in how many a repair is better than what is published."""
    figures = STUDIES[name].figures
    columns = [figure.label + (" (better in)" if figure.better else "") for figure in figures.values()]
    lines = [f"| statistics | {' | '.join(columns)} |", "|---" * (1 + len(figures)) + "|"]
    for repair, scores in row["scores"].items():
        cells = [
            score_cell(figure, scores[key], None if repair == PUBLISHED else row["scores"][PUBLISHED][key])
            for key, figure in figures.items()
        ]
        lines.append(f"| {repair} | {' | '.join(cells)} |")
    return lines


def score_cell(figure: Figure, values: list[float], published: list[float] | None) -> str:
    mean, low, high = (f"{value:.{figure.digits}f}" for value in (fmean(values), min(values), max(values)))
    cell = f"{mean}, {low} to {high}"
    if published is None or not figure.better:
        return cell
    won = sum(figure.better * new > figure.better * old for new, old in zip(values, published, strict=True))
    return f"{cell} ({won} of {len(values)})"
