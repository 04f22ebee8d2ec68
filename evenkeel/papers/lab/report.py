"""Reports: what was published beside what was found, and what the claims come to, as text, Markdown, plots and HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import mean
from typing import TYPE_CHECKING

from evenkeel.errors import EvenkeelError
from evenkeel.output.rendering import environment
from evenkeel.output.tables import Cells, FittedTable
from evenkeel.papers.lab import drawings
from evenkeel.papers.lab.claims import Verdict
from evenkeel.papers.lab.experiments import Column, Experiment, Paper
from evenkeel.papers.lab.results import Results, read_results
from evenkeel.papers.lab.specs import SCALES, Scale

if TYPE_CHECKING:
    from rich.console import Group

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class ExperimentReport:
    """What one experiment found at one scale.

    Attributes:
        paper: whose it is.
        experiment: which.
        scale: smoke, quick, desk or full.
        results: its runs, all of them.
        folder: where their records lie, as seen from the folder that the folder of results lies in.
    """

    paper: Paper
    experiment: Experiment
    scale: Scale
    results: Results
    folder: str = ""

    @property
    def tuned(self) -> Results:
        """The runs that count: of a tuned factor, those of its best level."""
        return self.results.tuned(self.experiment.selection)

    @property
    def verdicts(self) -> list[Verdict]:
        """What the claims come to."""
        return [claim.judge(self.tuned) for claim in self.experiment.claims]

    @property
    def heading(self) -> str:
        """Name, place in the paper, scale, and how many runs there are."""
        name = f"{self.paper.name}/{self.experiment.name}"
        return f"{name}: {self.experiment.source}, {self.scale} scale, {len(self.results)} runs"

    @property
    def headings(self) -> list[str]:
        """The headings of the columns of `rows`."""
        found = [f"{column.heading}{suffix}" for column in self.experiment.columns for suffix in self._pair(column)]
        chosen = [self.experiment.selection.over] if self.experiment.selection else []
        return ["arm", "seeds", *chosen, *found, *(["minutes"] if self.experiment.training else [])]

    @property
    def rows(self) -> list[list[str]]:
        """One row an arm: its seeds, what was tuned, each figure, published and found, and a training's minutes."""
        return [self._row(arm, runs) for arm, runs in self.tuned.by_arm().items()]

    def _row(self, arm: str, runs: Results) -> list[str]:
        chosen = [f"{runs[0].chosen:g}"] if self.experiment.selection else []
        cells = [
            cell for column in self.experiment.columns for cell in (*self._published(arm, column), _found(runs, column))
        ]
        return [arm, str(len(runs)), *chosen, *cells, *([_minutes(runs)] if self.experiment.training else [])]

    def _pair(self, column: Column) -> tuple[str, ...]:
        return (", published", ", ours") if self._is_published(column) else ("",)

    def _is_published(self, column: Column) -> bool:
        return any(column.key in figures for figures in self.experiment.published.values())

    def _published(self, arm: str, column: Column) -> list[str]:
        if not self._is_published(column):
            return []
        value = self.experiment.published.get(arm, {}).get(column.key)
        return ["" if value is None else f"{value:.{column.digits}f}"]

    def __rich__(self) -> Group:
        from rich.console import Group

        found = FittedTable(Cells(self.headings, self.rows, [], words=("arm",)))
        claims = [
            (verdict.claim.text, verdict.claim.published, verdict.ours, verdict.holds) for verdict in self.verdicts
        ]
        judged = FittedTable(Cells(CLAIMS, claims, [], words=CLAIMS))
        return Group(f"{self.heading}\n{self.experiment.about}\n", found, "", *([judged, ""] if claims else []))

    def write_plots(self, out: Path) -> list[Path]:
        """Draw the paper's figures, as OUT/PAPER/EXPERIMENT-NAME.svg and .png.

        Raises:
            EvenkeelError: matplotlib is missing, or a file cannot be written.
        """
        paths = [out / self.paper.name / f"{self.experiment.name}-{name}" for name in self.experiment.plots]
        for path, draw in zip(paths, self.experiment.plots.values(), strict=True):
            drawings.save(draw(self.tuned), path)
        return paths


CLAIMS = ("claim", "published", "ours", "holds")


def read_reports(out: Path, experiments: Iterable[tuple[Paper, Experiment]]) -> list[ExperimentReport]:
    """What lies in a folder of results, by experiment and scale; a scale may have a folder of its own in it.

    Raises:
        EvenkeelError: there are no results, or a file is damaged.
    """
    reports = [
        ExperimentReport(paper, experiment, scale, results, PurePath(out.name, *inside, *name).as_posix())
        for paper, experiment in experiments
        for scale in SCALES
        for inside in ((), (scale,))
        for name in [(paper.name, experiment.name)]
        if (results := read_results(out.joinpath(*inside, *name), experiment.arms[scale], scale))
    ]
    if not reports:
        raise EvenkeelError(f"there are no results in {out}: make some by `evenkeel reproduce`, or name their folder")
    return reports


@dataclass(frozen=True)
class Finding:
    """What a claim comes to at the scale that counts: the largest that decides it; if none does, that of most seeds.

    Attributes:
        report: of that scale.
        verdict: there.
        others: of other scales that come to another verdict, which; of a larger one, with what it shows.
    """

    report: ExperimentReport
    verdict: Verdict
    others: Mapping[Scale, str]

    @property
    def ours(self) -> str:
        """The finding in one line, and where other scales come to something else."""
        return "; ".join([self.verdict.ours, *(f"at {scale} scale: {holds}" for scale, holds in self.others.items())])


def findings(reports: Iterable[ExperimentReport]) -> list[Finding]:
    """What each claim comes to, in the order of the reports."""
    claims: dict[tuple[str, str, str], list[tuple[ExperimentReport, Verdict]]] = {}
    for report in reports:
        for verdict in report.verdicts:
            name = report.paper.name, report.experiment.name, verdict.claim.text
            claims.setdefault(name, []).append((report, verdict))
    return [_finding(found) for found in claims.values()]


def _finding(found: list[tuple[ExperimentReport, Verdict]]) -> Finding:
    run = [pair for pair in found if pair[1].holds != "not run"] or found
    ordered = sorted(run, key=lambda pair: SCALES.index(pair[0].scale))
    decided = [place for place, (_, verdict) in enumerate(ordered) if verdict.holds != "undecided"]
    place = decided[-1] if decided else max(range(len(ordered)), key=lambda place: (ordered[place][1].seeds, place))
    report, verdict = ordered[place]
    others: dict[Scale, str] = {r.scale: v.holds for r, v in ordered[:place] if v.holds != verdict.holds}
    others |= {r.scale: f"{v.holds} ({v.ours})" for r, v in ordered[place + 1 :]}
    return Finding(report, verdict, others)


def coverage(reports: Sequence[ExperimentReport]) -> list[str]:
    """A line a paper: how many claims it makes, and what became of them."""
    found = findings(reports)
    return [_coverage(paper, found) for paper in dict.fromkeys(report.paper.name for report in reports)]


def _coverage(name: str, found: Iterable[Finding]) -> str:
    own = [finding for finding in found if finding.report.paper.name == name]
    paper = next(finding.report.paper for finding in own) if own else None
    encoded = [claim for experiment in paper.experiments for claim in experiment.claims] if paper else []
    of_paper = [finding.verdict for finding in own if not finding.verdict.claim.is_ours]
    theirs, run = sum(not claim.is_ours for claim in encoded), [v for v in of_paper if v.holds != "not run"]
    hold = sum(verdict.holds == "yes" for verdict in run)
    left_out = len(paper.left_out) if paper else 0
    return f"{name}: {theirs + left_out} claims in the paper, {theirs} encoded, {len(run)} run, {hold} hold"


def to_markdown(reports: Sequence[ExperimentReport], *, headlines: bool = False) -> str:
    """The claims of all reports as one table, each with the folder of its records; below it, a line a paper.

    Args:
        reports: of the experiments.
        headlines: only the claims that stand for their papers.
    """
    rows = [("claim", "published", "ours", "scale", "seeds", "records", "holds"), ("---",) * 7]
    rows += [_row(found) for found in findings(reports) if found.verdict.claim.headline or not headlines]
    table = "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in rows)
    lines = [f"{line}." for line in coverage(reports)]
    return f"{table}\n{' '.join(lines) if headlines else (chr(10) * 2).join(lines)}\n"


def _row(found: Finding) -> tuple[str, ...]:
    report, verdict = found.report, found.verdict
    text = f"{report.paper.name} {report.experiment.source}: {verdict.claim.text}"
    records = f"[{len(report.results)} runs]({report.folder})"
    return text, verdict.claim.published, found.ours, report.scale, f"{verdict.seeds or 1}", records, verdict.holds


def to_html(reports: Sequence[ExperimentReport]) -> str:
    """One page that needs nothing else: tables, plots, published beside ours.

    Raises:
        EvenkeelError: jinja2 or matplotlib is missing.
    """
    template = environment(_HERE).get_template("report.html")
    drawn = [
        [_inline(drawings.to_svg(draw(report.tuned))) for draw in report.experiment.plots.values()]
        for report in reports
    ]
    return template.render(reports=list(zip(reports, drawn, strict=True)), coverage=coverage(reports))


def _inline(svg: str) -> str:
    """A drawing without what only a file of its own begins with."""
    return svg[svg.index("<svg") :]


def _minutes(runs: Results) -> str:
    """How long a training took, on average of those of which that is recorded."""
    found = [run.minutes for run in runs if math.isfinite(run.minutes)]
    return f"{mean(found):.1f}" if found else ""


def _found(runs: Results, column: Column) -> str:
    center, deviation = runs.mean(column.key) * column.factor, runs.deviation(column.key) * column.factor
    if not runs.values(column.key):
        return ""
    plain = abs(center) < 1e4 and (center == 0 or abs(center) >= 1e-3)
    shown = f"{center:.{column.digits}f}" if plain else f"{center:.3g}"
    return shown if math.isnan(deviation) else f"{shown} ± {deviation:.2g}"
