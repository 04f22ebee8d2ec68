"""Reports: what was published beside what was found, and what the claims come to, as text, Markdown, plots and HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evenkeel.errors import EvenkeelError
from evenkeel.output.tables import Cells, table
from evenkeel.papers.lab import drawings
from evenkeel.papers.lab.claims import Verdict
from evenkeel.papers.lab.experiments import Column, Experiment, Paper
from evenkeel.papers.lab.results import Results, read_results
from evenkeel.papers.lab.specs import SCALES, Scale

if TYPE_CHECKING:
    from rich.console import Group

_PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class ExperimentReport:
    """What one experiment found at one scale.

    Attributes:
        paper: whose it is.
        experiment: which.
        scale: smoke, quick, desk or full.
        results: its runs, all of them.
    """

    paper: Paper
    experiment: Experiment
    scale: Scale
    results: Results

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
        return ["arm", "seeds", *chosen, *found]

    @property
    def rows(self) -> list[list[str]]:
        """One row an arm: its seeds, what was tuned, and each figure, published and found."""
        return [self._row(arm, runs) for arm, runs in self.tuned.by_arm().items()]

    def _row(self, arm: str, runs: Results) -> list[str]:
        chosen = [f"{runs[0].chosen:g}"] if self.experiment.selection else []
        cells = [
            cell for column in self.experiment.columns for cell in (*self._published(arm, column), _found(runs, column))
        ]
        return [arm, str(len(runs)), *chosen, *cells]

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

        found = table(Cells(self.headings, self.rows, [], words=("arm",)))
        claims = [
            (verdict.claim.text, verdict.claim.published, verdict.ours, verdict.holds) for verdict in self.verdicts
        ]
        judged = table(Cells(CLAIMS, claims, [], words=CLAIMS))
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
    """What lies in a folder of results, by experiment and scale.

    Raises:
        EvenkeelError: there are no results, or a file is damaged.
    """
    reports = [
        ExperimentReport(paper, experiment, scale, results)
        for paper, experiment in experiments
        for scale in SCALES
        if (results := read_results(out / paper.name / experiment.name, experiment.arms[scale], scale))
    ]
    if not reports:
        raise EvenkeelError(f"there are no results in {out}: make some by `evenkeel reproduce`, or name their folder")
    return reports


def to_markdown(reports: Sequence[ExperimentReport]) -> str:
    """The claims of all reports as one table."""
    rows = [("claim", "published", "ours", "scale", "seeds", "holds"), ("---",) * 6]
    for report in reports:
        where = f"{report.paper.name} {report.experiment.source}"
        rows += [
            (f"{where}: {v.claim.text}", v.claim.published, v.ours, report.scale, f"{v.seeds or 1}", v.holds)
            for v in report.verdicts
        ]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in rows)


def to_html(reports: Sequence[ExperimentReport]) -> str:
    """One page that needs nothing else: tables, plots, published beside ours.

    Raises:
        EvenkeelError: jinja2 or matplotlib is missing.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise EvenkeelError('an HTML page needs jinja2: pip install "evenkeel[report,plots]"') from error
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _PAGE.read_text(encoding="utf-8")
    )
    drawn = [
        [_inline(drawings.to_svg(draw(report.tuned))) for draw in report.experiment.plots.values()]
        for report in reports
    ]
    return template.render(reports=list(zip(reports, drawn, strict=True)))


def _inline(svg: str) -> str:
    """A drawing without what only a file of its own begins with."""
    return svg[svg.index("<svg") :]


def _found(runs: Results, column: Column) -> str:
    mean, deviation = runs.mean(column.key) * column.factor, runs.deviation(column.key) * column.factor
    if not runs.values(column.key):
        return ""
    shown = f"{mean:.{column.digits}f}" if abs(mean) < 1e4 and (mean == 0 or abs(mean) >= 1e-3) else f"{mean:.3g}"
    return shown if math.isnan(deviation) else f"{shown} ± {deviation:.2g}"
