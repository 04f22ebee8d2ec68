"""The page of the field report, written from its rows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks.field.catalogue import DOMAINS, TITLES
from benchmarks.field.plot import draw
from benchmarks.field.rows import judge_, read_rows, read_verdicts
from benchmarks.zoo import Row
from evenkeel.output.files import atomic_write

GUIDELINES = ("li2018", "kim2023")
SHIFTED = 0.95  # a lowest ratio below it is counted as a shift
LISTED = 3  # layers named in a cell

INTRODUCTION = """\
# The field: who trains with dropout before norms

What evenkeel says of models as their libraries build them, domain by domain. `python -m benchmarks.field` measures it,
and `python -m benchmarks.field --page docs/field.md` writes this page from
[`results/field.json`](../results/field.json). What to install is in
[`requirements-field.txt`](../benchmarks/requirements-field.txt).

How to read it:

- **Weights are initial.** Ratios rank models and layers; they say nothing of a trained checkpoint, which is mostly
  nearer to 1. Trained weights have a table of their own.
- **Rate**: the drop rates that the library uses if nobody chooses one. "0; .5 here" is 0 by default, and was switched
  on for this table.
- **Order**: i input, W weights, N norm with running statistics (or any other norm, such as LayerNorm), A activation,
  D dropout, P pool or sum, + join, c concatenation, x gate, ? not understood, o output; `[W N]x2` is `W N W N`, and
  letters follow the order of execution. Of long models, "…" stands before the ways from dropouts to norms.
- **Predicted, measured**: the variance at a norm in eval mode over the one stored in training, at the norm where it is
  farthest from 1. Stored is what passes over random data with dropout on give; predicted is `predict_shift`, from
  weights and statistics alone; measured is `variance_shift`, on the same data with dropout off. A "?" marks a
  prediction that names norms that it is not sure of. Maps are noise with as much power in every octave, as
  photographs have about; all else is white, while `predict_shift` takes inputs to be smooth: behind pooling the two
  differ for that, too. Batches are of up to 32 samples; norms that see few values of one read below 1 without any
  dropout.
- **Trained**: the same of trained weights, where there are any: predicted / measured. All their norms are listed below.
- **Traps** are hendrycks2016's rules. EK102 reads the statistics, so it repeats the shift. chen2019 is left out: nearly
  every network has findings.
- **fix**: what `fix` mends of the findings of that guideline.
- *Italics*: the block is written anew from its published order, at the place named, smaller than the original.
"""


def write_page(page: Path, out: Path, verdicts: Path) -> None:
    """Write the page and its picture, which lies beside the rows."""
    rows = read_rows(out)
    judge_(rows, read_verdicts(verdicts))
    draw(rows, out.with_suffix(".svg"))
    with atomic_write(page) as temporary:
        temporary.write_text(page_of(rows), encoding="utf-8")


def page_of(rows: dict[str, Row]) -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION, *summary(rows), "![The ratio of every norm](pictures/field.svg)\n", *of_trained(rows)]
    for domain, models in DOMAINS.items():
        of_domain = [rows[model.name] for model in models if model.name in rows]
        if of_domain:
            parts += [f"## {TITLES[domain]}\n", overview(of_domain), found_where(of_domain), *not_mended(of_domain)]
    return "\n".join([*parts, *not_done(rows)]).rstrip("\n") + "\n"


def table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heads = list(columns)
    cells = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(escaped(cell) for cell in line)} |\n" for line in cells)


def escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


# What holds for all


def summary(rows: dict[str, Row]) -> list[str]:
    """Counts over all models."""
    read = [row for row in rows.values() if "order" in row]
    drops = [row for row in read if row["dropouts"]]
    linted = [row for row in read if "findings" in row]
    active, still = ([row for row in linted if bool(row["dropouts"]) is drop] for drop in (True, False))
    by_code = Counter(code for row in read for code in {f["code"] for f in row.get("findings", [])})
    lines = [
        f"- {len(rows)} models of {len({row['library'] for row in rows.values()})} libraries, "
        f"{sum(not row['anew'] for row in rows.values())} as installed and "
        f"{sum(row['anew'] for row in rows.values())} written anew; {len(drops)} drop at the rates of this page.",
        f"- {len(linted)} could be linted. Of the {len(active)} of these that drop, {count(active, 'li2018')} have "
        f"findings of li2018 and {count(active, 'kim2023')} of kim2023; of the {len(still)} that drop nothing, "
        f"{sum(map(bool, map(placed, still)))} have any of the two.",
        f"- Models with a finding, by rule: {', '.join(f'{code} {n}' for code, n in sorted(by_code.items()))}.",
        *shifts(read),
        *precision(rows),
    ]
    return ["## In short\n", "\n".join(lines) + "\n"]


def placed(row: Row) -> list[Row]:
    """The findings of the guidelines on placement."""
    return [f for f in row.get("findings", []) if f["guideline"] in GUIDELINES]


def count(rows: list[Row], guideline: str) -> int:
    return sum(any(f["guideline"] == guideline for f in row.get("findings", [])) for row in rows)


def shifts(rows: list[Row]) -> list[str]:
    """How many models with dropout before norms are shifted, and how near predictions are to what is measured."""
    measured = [row for row in rows if "measured" in row and count([row], "li2018")]
    low = [row for row in measured if lowest(row["measured"]) < SHIFTED]
    pairs = [
        (row["predicted"]["ratios"][path], ratio)
        for row in measured
        if "predicted" in row
        for path, ratio in row["measured"]["ratios"].items()
        if path in row["predicted"]["ratios"] and abs(ratio - 1) > 1 - SHIFTED
    ]
    near = [max(p, m) / min(p, m) for p, m in pairs if p and m and p > 0 < m]
    return [
        f"- {len(low)} of the {len(measured)} models measured that have findings of li2018 have a norm below "
        f"{SHIFTED:g}, {sum(lowest(row['measured']) < 0.5 for row in low)} have one below .5.",
        *(
            [
                f"- At the {len(near)} norms measured as off by more than 5 %, the prediction differs from the "
                f"measurement by a factor of {median(near):.2f} in the median, and by more than 1.25 at "
                f"{sum(factor > 1.25 for factor in near)}."
            ]
            if near
            else []
        ),
    ]


def lowest(shift: Row) -> float:
    return min((ratio for ratio in shift["ratios"].values() if ratio is not None), default=1.0)


def farthest(shift: Row) -> float | None:
    """The ratio that is farthest from 1 by its logarithm; None if one is no number."""
    ratios = list(shift["ratios"].values())
    return None if None in ratios else max(ratios, key=lambda r: max(r, 1 / r) if r > 0 else math.inf, default=1.0)


def precision(rows: dict[str, Row]) -> list[str]:
    """How many findings were judged, and what of them."""
    verdicts = Counter(finding["verdict"] for row in rows.values() for finding in row.get("findings", []))
    total = sum(verdicts.values())
    judged = verdicts["right"] + verdicts["wrong"]
    share = f": {100 * verdicts['right'] / judged:.0f} % of those judged" if judged else ""
    return [
        f"- Of {total} findings, {verdicts['right']} were judged right, {verdicts['wrong']} wrong{share}; "
        f"{verdicts['unread']} are not judged. They were judged once, by the order and the layer that they name, not "
        "by reading every library's source again. Right means that the rule says what it is meant to say of that "
        "layer, not that the model is worse for it; of EK102, that its factor is within 1.5 of what is measured there."
    ]


def of_trained(rows: dict[str, Row]) -> list[str]:
    """What there is of trained weights."""
    lines = [
        (name, ratios_of(row["trained"].get("predicted")), ratios_of(row["trained"].get("measured")))
        for name, row in rows.items()
        if "trained" in row
    ]
    if not lines:
        return []
    text = "Predicted of the weights as published; measured after passes over the same data with dropout on.\n"
    return ["## Trained weights\n", text, table(("model", "predicted, by norm", "measured, by norm"), lines)]


def ratios_of(shift: Row | None) -> str:
    return "" if shift is None else " ".join(figure(ratio) for ratio in shift["ratios"].values())


# A domain's tables


def overview(rows: list[Row]) -> str:
    columns = (
        "model",
        "library",
        "rate",
        "order",
        "li2018",
        "kim2023",
        "traps",
        "predicted",
        "measured",
        "trained",
        "fix",
    )
    return table(columns, [cells(row) for row in rows])


def cells(row: Row) -> list[str]:
    name = f"*{row['model']}*" if row["anew"] else row["model"]
    library = f"{row['library']}, {row['version']}" if row["anew"] else f"{row['library']} {row['version']}"
    order = f"`{row['order']}`" if "order" in row else "not read"
    codes = [code_counts(row, guideline) for guideline in (*GUIDELINES, "hendrycks2016")]
    return [
        name,
        library,
        row["rate"] or ", ".join(row.get("dropouts", ())).replace("0.", "."),
        order,
        *codes,
        shift_cell(row, "predicted"),
        shift_cell(row, "measured"),
        trained_cell(row),
        mended(row),
    ]


def code_counts(row: Row, guideline: str) -> str:
    if "findings" not in row:
        return "not read"
    codes = Counter(f["code"] for f in row["findings"] if f["guideline"] == guideline)
    return ", ".join(f"{code} {n}" for code, n in codes.items()) or "-"


def shift_cell(row: Row, name: str) -> str:
    if name not in row:
        return "not " + name
    return figure(farthest(row[name])) + (" ?" if row[name]["unsure"] else "")


def trained_cell(row: Row) -> str:
    """The ratios of trained weights that are farthest from 1: predicted, measured."""
    shifts = row.get("trained", {})
    return " / ".join(figure(farthest(shifts[name])) for name in ("predicted", "measured") if name in shifts)


def figure(ratio: float | None) -> str:
    return "?" if ratio is None else f"{ratio:.2f}"


def mended(row: Row) -> str:
    fixes = row.get("fix", {})
    found = [
        f"{g}: {fixes[g]['fixed']} of {fixes[g]['fixed'] + len(fixes[g]['left'])}" for g in fixes if g in GUIDELINES
    ]
    return "; ".join([*found, *(f"{key[4:]}: not run" for key in fixes if key.startswith("not "))]) or "-"


def found_where(rows: list[Row]) -> str:
    """Every finding on placement once a place in the source, with the layers that are made there."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        for finding in placed(row):
            groups.setdefault((row["model"], finding["code"], finding["where"]), []).append(finding)
    lines = [
        (model, code, where or "-", layers(found), read_as(found)) for (model, code, where), found in groups.items()
    ]
    if not lines:
        return "No findings on placement.\n"
    head = "<details><summary>Findings on placement, by source line</summary>\n"
    return f"{head}\n{table(('model', 'rule', 'where', 'layers', 'read as'), lines)}\n</details>\n"


def layers(found: list[Row]) -> str:
    paths = [f"`{finding['path']}`" for finding in found]
    return ", ".join(paths[:LISTED]) + (f" and {len(paths) - LISTED} more" if len(paths) > LISTED else "")


def read_as(found: list[Row]) -> str:
    verdicts = Counter(finding["verdict"] for finding in found)
    return next(iter(verdicts)) if len(verdicts) == 1 else ", ".join(f"{n} {v}" for v, n in verdicts.items())


def not_mended(rows: list[Row]) -> list[str]:
    """The findings that `fix` leaves, by reason."""
    lines: list[str] = []
    for row in rows:
        for guideline, result in row.get("fix", {}).items():
            if guideline.startswith("not "):
                lines.append(f"- {row['model']}, {guideline[4:]}: {result}")
                continue
            reasons = Counter((left[:5], left.split(": ", 1)[1]) for left in result["left"])
            lines += [f"- {row['model']}, {code} {n}x: {plain(why)}" for (code, why), n in reasons.items()]
    return ["Left by `fix`:\n", "\n".join(lines) + "\n"] if lines else []


def plain(text: str) -> str:
    """A reason in one line."""
    return re.sub(r"\s+", " ", text)


def not_done(rows: dict[str, Row]) -> list[str]:
    """What could not be done, by model, and which models were not run."""
    steps = ("built", "read", "settled", "findings", "fix", "predicted", "measured", "trained")
    lines = [
        f"- {name}: not {step}: {row[f'not {step}']}"
        for name, row in rows.items()
        for step in steps
        if f"not {step}" in row
    ]
    absent = [model.name for models in DOMAINS.values() for model in models if model.name not in rows]
    lines += [f"- not run, or not installed: {', '.join(absent)}"] if absent else []
    return ["## Not done\n", "\n".join(lines) + "\n"] if lines else []
