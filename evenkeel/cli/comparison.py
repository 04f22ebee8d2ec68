"""Two reports side by side, as read from JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError, brief
from evenkeel.output.page import Chart, Grid, Mark, Node, Page, tone_of
from evenkeel.output.ratios import ratio_text

_ABOUT = "The variance that a norm meets in eval mode over the one that it stores, in both reports: 1 is even."
_LISTED = 3  # names of a note
_ALIKE = 1.005  # folded ratio of two ratios that are the same
Ratios = dict[str, float]


def compared(a: Path, b: Path) -> Page:
    """The page of two reports.

    Args:
        a: a file of JSON, as `evenkeel shift --json`, `repair --json` or `lint --format json` prints.
        b: another one of the same kind.

    Raises:
        EvenkeelError: a file is not there, no such JSON, or of another kind than the other.
    """
    first, second = _read(a), _read(b)
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    if isinstance(first, list) and isinstance(second, list):
        return _findings(first, second, names)
    if isinstance(first, list) or isinstance(second, list):
        raise EvenkeelError(f"one of {a} and {b} holds findings and the other norms: name two of one kind")
    page = _shifts(_ratios(first, a), _ratios(second, b), names)
    return _drawn(page, _network(first, a), _network(second, b), names)


def _read(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = brief(error) if isinstance(error, OSError) else "it is not JSON"
        raise EvenkeelError(f"{path} is no report: {reason}; write one by `evenkeel shift ... --json`") from error
    if not isinstance(found, (dict, list)):
        raise _unknown(path)
    return found


def _unknown(path: Path) -> EvenkeelError:
    return EvenkeelError(
        f"{path} is no report: it must be of `evenkeel shift --json`, `repair --json` or `lint --format json`"
    )


def _ratios(report: Mapping[str, Any], path: Path) -> Ratios:
    """The shift of every norm in a report; of a repair, what it leaves."""
    try:
        if "shift" in report.get("after", {}):
            return _ratios(report["after"]["shift"], path)
        if "shift" in report.get("before", {}):
            written = {row["path"]: row["ratio"] for row in report["rows"]}
            before = _ratios(report["before"]["shift"], path)
            return {name: ratio / (written.get(name) or 1.0) for name, ratio in before.items()}
        return {row["path"]: math.inf if row["ratio"] is None else float(row["ratio"]) for row in report["rows"]}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _unknown(path) from None


def _network(report: Mapping[str, Any], path: Path) -> Node | None:
    """The outline of a report's model; None of a report that has none, as those of older versions."""
    for inner in (report.get("after", {}), report.get("before", {})):
        if "shift" in inner:
            return _network(inner["shift"], path)
    try:
        return Node.from_dict(report["network"]) if "network" in report else None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _unknown(path) from None


def _drawn(page: Page, first: Node | None, second: Node | None, names: tuple[str, str]) -> Page:
    """The page with the network of the second report, or else of the first, and a word on how far they differ."""
    network = second or first
    if network is None:
        return replace(page, notes=[*page.notes, f"{names[0]} and {names[1]} hold no network: none is drawn"])
    if first is None or second is None:
        whose, without = names if second is None else names[::-1]
        return replace(
            page, network=network, notes=[*page.notes, f"{without} holds no network: that of {whose} is drawn"]
        )
    own, other = ({leaf.name: leaf.letter for leaf in node.leaves} for node in (second, first))
    alone = [[name for name in one if one[name] != two.get(name)] for one, two in ((own, other), (other, own))]
    notes = [
        f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} in {name}'s network alone{drawn}"
        for missing, name, drawn in zip(alone, names[::-1], ("", ", and not drawn"), strict=True)
        if missing
    ]
    about = f"{names[1]}'s network is drawn, with {names[0]}'s shift before the arrow and {names[1]}'s behind it"
    return replace(page, network=network, notes=[*page.notes, about, *notes])


def _listed(names: list[str]) -> str:
    """The first few names, and how many more."""
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _shifts(first: Ratios, second: Ratios, names: tuple[str, str]) -> Page:
    paths = [*first, *(path for path in second if path not in first)]
    both = [path for path in paths if path in first and path in second]
    if not both:
        raise EvenkeelError(f"{names[0]} and {names[1]} have no norm in common: they are of different models")
    rows = [(path, _cell(first, path), _cell(second, path), _change(first, second, path)) for path in paths]
    marks = tuple(Mark(path, (first.get(path), second.get(path))) for path in paths)
    worst = [max((_folded(ratio) for ratio in ratios.values()), default=1.0) for ratios in (first, second)]
    alone = [[path for path in one if path not in two] for one, two in ((first, second), (second, first))]
    missing = [
        f"{_listed(found)} {'is' if len(found) == 1 else 'are'} in {name} alone"
        for found, name in zip(alone, names, strict=True)
        if found
    ]
    return Page(
        "comparison",
        _verdict(first, second, both, worst, names),
        tone_of(worst[1]),
        f"{names[0]} and {names[1]}",
        {f"worst in {name}, off by": ratio_text(size) for name, size in zip(names, worst, strict=True)},
        [Chart("The shift of every norm, in execution order", _ABOUT, names, marks)],
        ratios={path: ratio for path, ratio in second.items() if not math.isnan(ratio)},
        former={path: ratio for path, ratio in first.items() if not math.isnan(ratio)},
        grids=[Grid("All norms", ("norm", *names, "nearer to 1"), rows, ("norm", "nearer to 1"))],
        notes=missing,
    )


def _verdict(first: Ratios, second: Ratios, both: list[str], worst: list[float], names: tuple[str, str]) -> str:
    changes = [_change(first, second, path) for path in both]
    better, worse = changes.count("yes"), changes.count("no")
    return (
        f"In {names[1]}, {better} of {len(both)} norms are nearer to even than in {names[0]}, and {worse} are farther "
        f"from it; the worst is off by {ratio_text(worst[1])} in place of {ratio_text(worst[0])}."
    )


def _cell(ratios: Ratios, path: str) -> str:
    return f"{ratios[path]:.3f}" if path in ratios else ""


def _change(first: Ratios, second: Ratios, path: str) -> str:
    if path not in first or path not in second:
        return ""
    one, other = _folded(first[path]), _folded(second[path])
    if one == other or max(one, other) / min(one, other) <= _ALIKE:
        return "same"
    return "yes" if other < one else "no"


def _folded(ratio: float) -> float:
    return max(ratio, 1 / ratio) if 0 < ratio < math.inf else math.inf


def _findings(first: list[Any], second: list[Any], names: tuple[str, str]) -> Page:
    try:
        known = [{(f["code"], f["path"]): f["message"] for f in findings} for findings in (first, second)]
    except (KeyError, TypeError):
        raise _unknown(Path(names[0])) from None
    keys = list(dict.fromkeys([*known[0], *known[1]]))
    rows = [
        (code, path, *("yes" if (code, path) in own else "" for own in known), known[1].get((code, path), ""))
        for code, path in keys
    ]
    gone, new = len(known[0].keys() - known[1].keys()), len(known[1].keys() - known[0].keys())
    both = len(keys) - gone - new
    columns = ("code", "layer", *names, "finding")
    verdict = f"From {names[0]} to {names[1]}: {gone} findings are gone, {new} are new, {both} stayed."
    facts = {name: f"{len(own)}" for name, own in zip(names, known, strict=True)}
    tone = "off" if new else "slight" if both else "even"
    subject = f"{names[0]} and {names[1]}"
    return Page("comparison", verdict, tone, subject, facts, grids=[Grid("All findings", columns, rows, columns)])
