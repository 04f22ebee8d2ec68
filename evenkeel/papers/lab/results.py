"""Results: what runs found, read from their files, by arm and seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from evenkeel.errors import EvenkeelError, brief
from evenkeel.output.tables import Rows
from evenkeel.papers.lab.specs import Factors, Scale, Selection, arm_name


@dataclass(frozen=True)
class Record:
    """What one run found.

    Attributes:
        factors: of its arm.
        seed: of the run.
        scale: smoke, quick, desk or full.
        figures: by name: numbers, lists or dictionaries of them; not a number where nothing finite was found.
        history: figures an epoch.
        content: all that its file holds.
        chosen: where a factor was tuned, what was chosen.
    """

    factors: Factors
    seed: int
    scale: str
    figures: Mapping[str, Any]
    history: list[dict[str, float]]
    content: Mapping[str, Any]
    chosen: Any = None

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a run's file.

        Raises:
            EvenkeelError: it is damaged, or not such a file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls.of(content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvenkeelError(f"{path} is no result of a run ({brief(error)}): remove it and run again") from error

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Record:
        """What a record as JSON holds it says."""
        figures, history = _numbers(content["figures"]), _numbers(content["history"])
        return cls(content["factors"], content["seed"], content["scale"], figures, history, content)

    @property
    def arm(self) -> str:
        """The name of its arm."""
        return arm_name(self.factors)

    @property
    def seconds(self) -> float:
        """Spent on training and measuring."""
        return sum(self.content["seconds"].values())

    @property
    def minutes(self) -> float:
        """Spent on training, over all starts and for whomever it was; not a number where that is not recorded."""
        return self.content.get("seconds", {}).get("training", math.nan) / 60

    @property
    def diverged(self) -> bool:
        """Whether its training ended since the loss was no number any more."""
        return bool(self.history) and not math.isfinite(self.history[-1].get("train_loss", 0.0))


class Results(Rows[Record]):
    """Runs of one experiment at one scale.

    >>> content = {"factors": {"p": 0.5}, "seed": 0, "scale": "quick", "figures": {"error": 0.25}, "history": []}
    >>> results = Results([Record.of(content), Record.of(content | {"seed": 1, "figures": {"error": 0.75}})])
    >>> results.arms(), results.mean("error"), results.where(p=0.1).seeds()
    (['0.5'], 0.5, [])
    """

    def where(self, **factors: Any) -> Results:
        """The runs whose factors have these values; of several, in a tuple, any."""
        wanted = {name: value if isinstance(value, tuple) else (value,) for name, value in factors.items()}
        return Results(
            row for row in self.rows if all(row.factors.get(name) in any_of for name, any_of in wanted.items())
        )

    def levels(self, factor: str) -> list[Any]:
        """The values of a factor, in the order met."""
        return list(dict.fromkeys(row.factors[factor] for row in self.rows if factor in row.factors))

    def arms(self) -> list[str]:
        """The names of the arms, in the order met."""
        return list(dict.fromkeys(row.arm for row in self.rows))

    def by_arm(self) -> dict[str, Results]:
        """The runs of each arm."""
        return {arm: Results(row for row in self.rows if row.arm == arm) for arm in self.arms()}

    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted({row.seed for row in self.rows})

    def values(self, key: str) -> list[float]:
        """A figure of every run."""
        return [row.figures[key] for row in self.rows if key in row.figures]

    def mean(self, key: str) -> float:
        """A figure's mean over all runs; not a number if there is none."""
        return mean(values) if (values := self.values(key)) else math.nan

    def deviation(self, key: str) -> float:
        """A figure's standard deviation over all runs; not a number for fewer than two, or where one is none."""
        values = self.values(key)
        return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan

    def tuned(self, selection: Selection | None) -> Results:
        """Of arms that differ in the tuned factor only, the best; its value goes from `factors` to `chosen`.

        Arms are compared over the seeds that all of them have, so that the best one may be run with more; where there
        is no such seed, nothing is chosen, and the group is left out.
        """
        return self if selection is None else Results(_best(self, selection))


def read_results(folder: Path, arms: Sequence[Factors], scale: Scale) -> Results:
    """The runs of an experiment at one scale that lie in its folder, in the order of its arms.

    Raises:
        EvenkeelError: a file is damaged.
    """
    order = {arm_name(factors): number for number, factors in enumerate(arms)}
    found = (Record.read(path) for path in folder.glob("*.json"))
    kept = [record for record in found if record.scale == scale and record.arm in order]
    return Results(sorted(kept, key=lambda record: (order[record.arm], record.seed)))


def _best(results: Results, selection: Selection) -> Iterator[Record]:
    groups: dict[str, dict[str, list[Record]]] = {}
    for row in results:
        rest = {name: value for name, value in row.factors.items() if name != selection.over}
        groups.setdefault(arm_name(rest), {}).setdefault(row.arm, []).append(row)
    for arms in groups.values():
        shared = set.intersection(*({row.seed for row in rows} for rows in arms.values()))
        if not shared:
            continue  # nothing to compare by

        def cost(rows: list[Record], shared: set[int] = shared) -> float:
            values = [row.figures.get(selection.by, math.nan) for row in rows if row.seed in shared]
            return mean(values) if values and all(map(math.isfinite, values)) else math.inf

        for row in min(arms.values(), key=cost):
            factors = {name: value for name, value in row.factors.items() if name != selection.over}
            yield replace(row, factors=factors, chosen=row.factors[selection.over])


def _numbers(value: Any) -> Any:
    """Plain data with not-a-number where JSON had none."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else value
