"""Claims: what a paper says, as a comparison that results can decide; and the outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Literal, NamedTuple

from evenkeel.papers.lab.results import Record, Results
from evenkeel.papers.lab.specs import Factors, arm_name

LEVEL = 0.05
OURS = "not in the paper"  # what is published of a claim of our own


class Difference(NamedTuple):
    """What a pair of figures differ by.

    Attributes:
        value: above 0 where the claim holds.
        seed: of both figures.
        arm: of the higher one.
    """

    value: float
    seed: int
    arm: str


Differences = Mapping[str, Sequence[Difference]]  # by group


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper as a one-sided paired test.

    Args:
        text: the sentence, in our words.
        published: what the paper shows for it.
        differences: of the results, the difference of each pair, by group, such as the network; above 0 where the
            claim holds.
        unit: of the differences, or of what the ratio is of where logarithms are compared.
        factor: what differences are multiplied by to be shown in that unit.
        exact: whether it is a statement on numbers that chance has no part in, and so holds if every pair says so.
        headline: whether it is one of the three that stand for the paper.
    """

    text: str
    published: str
    differences: Callable[[Results], Differences]
    unit: str = "points"
    factor: float = 100.0
    exact: bool = False
    headline: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether the paper does not make it."""
        return self.published == OURS

    def judge(self, results: Results) -> Verdict:
        """Put the claim to the test.

        The test is Student's t against a mean of 0, one-sided, on one number a seed: the mean difference over the arms
        that all seeds have (over all arms, if there are none such), since arms of one seed are not independent. If one
        of them is not finite, such as of a training that diverged, it is the sign test.
        """
        groups = {name: list(found) for name, found in self.differences(results).items() if len(found)}
        pairs = [difference for found in groups.values() for difference in found]
        against = [name for name, found in groups.items() if not sum(difference.value for difference in found) > 0]
        seeds = [] if self.exact else _by_seed(pairs)
        return Verdict(self, [difference.value for difference in pairs], against, len(seeds), _p_value(seeds))


@dataclass(frozen=True)
class Verdict:
    """What results say to a claim.

    Attributes:
        claim: in question.
        pairs: the differences, above 0 where the claim holds.
        against: the groups whose mean difference is not above 0.
        seeds: how many the test is on.
        p_value: how often pairs without any difference would look like this or better; not a number for a single one.
    """

    claim: Claim
    pairs: list[float]
    against: list[str]
    seeds: int
    p_value: float

    @property
    def holds(self) -> Literal["yes", "no", "undecided", "not run"]:
        """Yes if the mean difference is above 0, and further than chance would have it one time in twenty."""
        if not self.pairs:
            return "not run"
        if self.claim.exact:
            return "yes" if all(value > 0 for value in self.pairs) else "no"
        if not _center(self.pairs) > 0:
            return "no"
        return "yes" if self.p_value < LEVEL else "undecided"

    @property
    def ours(self) -> str:
        """The finding in one line."""
        if not self.pairs:
            return "-"
        favour, center = sum(value > 0 for value in self.pairs), _center(self.pairs)
        is_ratio = getattr(self.claim.differences, "log", False)
        size = f"x{math.exp(center):.3g}" if is_ratio else f"{center * self.claim.factor:+.3g}"
        text = f"{favour} of {len(self.pairs)} pairs"
        if not self.claim.exact:
            text = f"{size} {self.claim.unit}".rstrip() + f", {text}"
        if not math.isnan(self.p_value):
            text += f", p = {self.p_value:.2g} over {self.seeds} seeds"
        named = [name for name in self.against if name]
        return text + (f"; not for {', '.join(named)}" if named and favour else "")


@dataclass(frozen=True)
class Within:
    """Differences of two figures of the same run.

    Args:
        higher: the figure that the claim says is higher.
        lower: the one that is lower.
        by: factors that make a group; the pairs in it are those of the other factors and of the seeds.
        where: which runs.
        log: compare logarithms, that is, ratios.
    """

    higher: str
    lower: str
    by: tuple[str, ...] = ()
    where: Factors = field(default_factory=dict[str, Any])
    log: bool = False

    def __call__(self, results: Results) -> Differences:
        """One difference a run."""
        runs = results.where(**self.where)
        pairs = (
            (row, _difference(_figure(row, self.higher), _figure(row, self.lower), self.log))
            for row in runs
            if _has(row, self.higher, self.lower)
        )
        return _grouped(pairs, self.by)


@dataclass(frozen=True)
class Between:
    """Differences of one figure between two arms, by seed.

    Args:
        key: the figure.
        higher: the factors of the arm where the claim says that the figure is higher.
        lower: those where it is lower; all other factors, and the seed, are the same.
        by: factors that make a group.
        where: which runs.
        log: compare logarithms, that is, ratios.
    """

    key: str
    higher: Factors
    lower: Factors
    by: tuple[str, ...] = ()
    where: Factors = field(default_factory=dict[str, Any])
    log: bool = False

    def __call__(self, results: Results) -> Differences:
        """One difference a pair of runs."""
        runs = results.where(**self.where)
        lower = {self._rest(row): row for row in runs.where(**self.lower)}
        pairs = (
            (row, _difference(_figure(row, self.key), _figure(lower[rest], self.key), self.log))
            for row in runs.where(**self.higher)
            if (rest := self._rest(row)) in lower and _has(row, self.key) and _has(lower[rest], self.key)
        )
        return _grouped(pairs, self.by)

    def _rest(self, row: Record) -> tuple[str, int]:
        return arm_name({name: value for name, value in row.factors.items() if name not in self.higher}), row.seed


@dataclass(frozen=True)
class Equal:
    """How far within a tolerance figures are from published values.

    Args:
        key: the figure.
        values: what it should be, by arm.
        tolerance: by how much it may differ, such as half of the last digit printed.
    """

    key: str
    values: Mapping[str, float]
    tolerance: float

    def __call__(self, results: Results) -> Differences:
        """The tolerance less the distance, of every run with a published value."""
        runs = (row for row in results if row.arm in self.values)
        found: dict[str, list[Difference]] = {}
        for row in runs:
            left = self.tolerance - abs(row.figures[self.key] - self.values[row.arm])
            found.setdefault(row.arm, []).append(Difference(left, row.seed, row.arm))
        return found


def _has(row: Record, *keys: str) -> bool:
    """Whether a run was asked for these figures: one that is older than a figure was not."""
    return row.diverged or all(key in row.figures for key in keys)


def _figure(row: Record, key: str) -> float:
    return row.figures.get(key, math.nan)  # a training that diverged has scores only


def _difference(higher: float, lower: float, log: bool) -> float:
    """Their difference; infinite where only one of them is a number."""
    if log:
        higher, lower = (math.log(value) if value > 0 else math.nan for value in (higher, lower))
    if math.isfinite(higher) and math.isfinite(lower):
        return higher - lower
    return (math.isfinite(lower) - math.isfinite(higher)) * math.inf  # not a number where neither is one


def _grouped(differences: Iterable[tuple[Record, float]], by: tuple[str, ...]) -> Differences:
    groups: dict[str, list[Difference]] = {}
    for row, difference in differences:
        if not math.isnan(difference):
            groups.setdefault(arm_name({name: row.factors[name] for name in by}), []).append(
                Difference(difference, row.seed, row.arm)
            )
    return groups


def _by_seed(pairs: Sequence[Difference]) -> list[float]:
    """The mean difference of each seed, over the arms that all seeds have."""
    seeds: dict[str, set[int]] = {}
    for pair in pairs:
        seeds.setdefault(pair.arm, set()).add(pair.seed)
    everywhere = set[int]().union(*seeds.values())
    shared = [arm for arm, found in seeds.items() if found == everywhere] or list(seeds)
    found = {seed: [pair.value for pair in pairs if pair.seed == seed and pair.arm in shared] for seed in everywhere}
    return [_center(values) for _, values in sorted(found.items())]


def _center(pairs: Sequence[float]) -> float:
    """The mean, or the median where some pairs are infinite."""
    return mean(pairs) if all(map(math.isfinite, pairs)) else sorted(pairs)[(len(pairs) - 1) // 2]


def _p_value(pairs: Sequence[float]) -> float:
    from scipy import stats

    if len(pairs) < 2:
        return math.nan
    if all(map(math.isfinite, pairs)) and len(set(pairs)) > 1:
        test: Any = stats.ttest_1samp(pairs, 0, alternative="greater")
        return float(test.pvalue)
    return float(stats.binomtest(sum(value > 0 for value in pairs), len(pairs), alternative="greater").pvalue)
