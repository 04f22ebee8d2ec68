"""Plots: results laid out as the papers' figures are; they are drawn from records alone, so they can be drawn anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from statistics import mean
from typing import TYPE_CHECKING, Any

from evenkeel.papers.lab import sheets
from evenkeel.papers.lab.results import Record, Results
from evenkeel.papers.lab.specs import Factors, arm_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = Mapping[float, float]  # y by x, of one run
Reader = Callable[[Record, str], Series]


def accuracy(error: float) -> float:
    """An error as accuracy in percent, to be given to `curves` as `transform`.

    >>> accuracy(0.25)
    75.0
    """
    return 100 * (1 - error)


def profiles(
    results: Results,
    *,
    keys: str | Mapping[str, str],
    lines: sheets.FactorNames = None,
    panels: sheets.FactorNames = None,
    rows: sheets.FactorNames = None,
    baseline: Factors | None = None,
    xlabel: str = "layer",
    ylabel: str = "",
    log: bool = True,
    title: str = "",
) -> Figure:
    """Draw lists of figures by layer: the mean over seeds, the range of the seeds as a band, and a line at 1.

    Args:
        results: to draw.
        keys: the figure that is a list, or several by what the legend calls them; each has its own dashes.
        lines: the factor whose levels are lines.
        panels: the factor whose levels are columns of panels.
        rows: the factor whose levels are rows of panels.
        baseline: factors of arms, such as those without dropout, that are drawn at every level of these factors.
        xlabel: below the panels; list items are counted from 1.
        ylabel: beside them.
        log: on a logarithmic scale.
        title: above all.

    Returns:
        The figure. A layer where no seed found a number is a gap.

    Source:
        Li et al. 2018, Figure 4; Hendrycks & Gimpel 2016, Figures 1 and 5, as variances.

    Raises:
        EvenkeelError: there are no runs, what is asked for is not in them, or runs of different arms would be averaged.
    """
    named, runs = _by_label(keys), sheets.Runs(results, baseline or {})
    runs.require_keys(named, lambda run: run.figures)
    figure, sheet = sheets.lay_out(runs, rows, panels, (lines,), labels=(xlabel, ylabel), title=title)
    _draw_lines(runs, sheet, named, _by_layer, lines=lines)
    for axes, _ in sheet:
        axes.axhline(1, color="0.4", linewidth=0.6, zorder=1.5)
    return sheets.finish(figure, sheet, sheets.line_keys(runs, lines, named), log=log, integer=True)


def sweeps(
    results: Results,
    *,
    x: str,
    keys: str | Mapping[str, str],
    lines: sheets.FactorNames = None,
    panels: sheets.FactorNames = None,
    rows: sheets.FactorNames = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
) -> Figure:
    """Draw lists of figures over another list: the mean over seeds, and the range of the seeds as a band.

    Args:
        results: to draw.
        x: the figure that is the list of places, the same in all runs.
        keys: the figure that is a list of values there, or several by what the legend calls them, each with its dashes.
        lines: the factor whose levels are lines.
        panels: the factor whose levels are columns of panels.
        rows: the factor whose levels are rows of panels.
        xlabel: below the panels; what x is called if empty.
        ylabel: beside them.
        title: above all.

    Returns:
        The figure.

    Source:
        Kim et al. 2023, Figures 1 and 2.

    Raises:
        EvenkeelError: there are no runs, what is asked for is not in them, or runs of different arms would be averaged.
    """

    def by_place(run: Record, key: str) -> Series:
        return dict(zip(run.figures.get(x, ()), run.figures.get(key, ()), strict=True))

    named, runs = _by_label(keys), sheets.Runs(results)
    runs.require_keys({**named, x: x}, lambda run: run.figures)
    figure, sheet = sheets.lay_out(runs, rows, panels, (lines,), labels=(xlabel or x, ylabel), title=title)
    _draw_lines(runs, sheet, named, by_place, lines=lines)
    return sheets.finish(figure, sheet, sheets.line_keys(runs, lines, named))


def curves(
    results: Results,
    *,
    keys: str | Mapping[str, str],
    lines: sheets.FactorNames = None,
    columns: sheets.FactorNames = None,
    rows: sheets.FactorNames = None,
    baseline: Factors | None = None,
    transform: Callable[[float], float] | None = None,
    xlabel: str = "epoch",
    ylabel: str = "",
    log: bool = False,
    title: str = "",
) -> Figure:
    """Draw the history of trainings: the mean over seeds, and the range of the seeds as a band.

    Args:
        results: to draw.
        keys: the figure of the history, or several by what the legend calls them: the first solid, the next dashed.
        lines: the factor whose levels are lines.
        columns: the factor whose levels are columns of panels.
        rows: the factor whose levels are rows of panels.
        baseline: factors of arms, such as those without dropout, that are drawn at every level of these factors.
        transform: what is drawn instead of a figure, such as `accuracy` of an error.
        xlabel: below the panels.
        ylabel: beside them.
        log: on a logarithmic scale.
        title: above all.

    Returns:
        The figure. A run that ended early or found no number counts as long as it has numbers.

    Source:
        Hendrycks & Gimpel 2016, Figure 2; Li et al. 2018, Figure 5.

    Raises:
        EvenkeelError: there are no runs, what is asked for is not in them, or runs of different arms would be averaged.
    """

    def by_epoch(run: Record, key: str) -> Series:
        found = {entry["epoch"]: entry[key] for entry in run.history if key in entry}
        return found if transform is None else {epoch: transform(value) for epoch, value in found.items()}

    named, runs = _by_label(keys), sheets.Runs(results, baseline or {})
    runs.require_keys(named, lambda run: [key for entry in run.history for key in entry])
    figure, sheet = sheets.lay_out(runs, rows, columns, (lines,), labels=(xlabel, ylabel), title=title)
    _draw_lines(runs, sheet, named, by_epoch, lines=lines)
    return sheets.finish(figure, sheet, sheets.line_keys(runs, lines, named), log=log, integer=True)


def densities(
    results: Results,
    *,
    key: str,
    columns: sheets.FactorNames = None,
    rows: sheets.FactorNames = None,
    baseline: Factors | None = None,
    xlabel: str = "value",
    ylabel: str = "density",
    log: bool = False,
    xlim: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Draw histograms by layer as outlines, the deeper the darker, of the first seed.

    Args:
        results: to draw.
        key: the figure: by layer, `edges` of bins, and `density` in them.
        columns: the factor whose levels are columns of panels.
        rows: the factor whose levels are rows of panels.
        baseline: factors of arms, such as those without dropout, that are drawn at every level of these factors.
        xlabel: below the panels.
        ylabel: beside them.
        log: densities on a logarithmic scale.
        xlim: the values in sight; all if None.
        title: above all.

    Returns:
        The figure. A layer that is not finite is left out.

    Source:
        Hendrycks & Gimpel 2016, Figures 1 and 5.

    Raises:
        EvenkeelError: there are no runs, what is asked for is not in them, or runs of different arms would be mixed.
    """
    runs = sheets.Runs(results, baseline or {})
    runs.require_keys({key: key}, lambda run: run.figures)
    figure, sheet = sheets.lay_out(runs, rows, columns, labels=(xlabel, ylabel), title=title)
    shades = sheets.shades([layer for run in results for layer in _by_name(run, key)])
    for axes, panel in sheet:
        for run in sorted(runs.of(panel), key=lambda run: run.seed)[:1]:
            for layer, histogram in _by_name(run, key).items():
                if all(map(math.isfinite, (*histogram["edges"], *histogram["density"]))):
                    axes.stairs(histogram["density"], histogram["edges"], color=shades[layer], linewidth=1)
        axes.set_xlim(xlim)
    handles = [sheets.line_key(shade, label=f"layer {layer}") for layer, shade in shades.items()]
    return sheets.finish(figure, sheet, handles, log=log)


def bars(
    results: Results,
    *,
    keys: str | Mapping[str, str],
    groups: str | tuple[str, ...],
    beside: sheets.FactorNames = None,
    panels: sheets.FactorNames = None,
    rows: sheets.FactorNames = None,
    baseline: Factors | None = None,
    published: Mapping[str, Mapping[str, float]] | None = None,
    factor: float = 100.0,
    xlabel: str | None = None,
    ylabel: str = "test error (%)",
    title: str = "",
) -> Figure:
    """Draw figures as bars, mean over seeds with their standard deviation, and the paper's as marks upon them.

    Args:
        results: to draw.
        keys: the figure, or several by what the legend calls them, beside each other.
        groups: the factor whose levels are the axis, numbers in their order.
        beside: the factor whose levels are bars beside each other.
        panels: the factor whose levels are columns of panels.
        rows: the factor whose levels are rows of panels.
        baseline: factors of arms, such as those without dropout, that are drawn at every level of these factors.
        published: the paper's values by arm and key, in the unit shown.
        factor: what figures are multiplied by to be shown, such as 100 for percent.
        xlabel: below the panels; the factor's name if None.
        ylabel: beside them.
        title: above all.

    Returns:
        The figure. Where some seed found no number there is a cross and no bar.

    Source:
        Li et al. 2018, Figure 4 and Tables 3, 4 and 6; Hendrycks & Gimpel 2016, Figure 4 and Table 2.

    Raises:
        EvenkeelError: there are no runs, what is asked for is not in them, or runs of different arms would be averaged.
    """
    named, runs = _by_label(keys), sheets.Runs(results, baseline or {})
    runs.require_keys(named, lambda run: run.figures)
    runs.require_factors((groups, beside, panels, rows))
    kinds = list(product(runs.levels(beside).items(), named.items()))
    along = _in_order(runs.levels(groups).values())
    names = [arm_name(group) for group in along]
    width, turned = sheets.room(names, len(kinds))
    labels = "-".join(sheets.factors(groups)) if xlabel is None else xlabel, ylabel
    figure, sheet = sheets.lay_out(runs, rows, panels, labels=labels, title=title, width=width)
    thick, colours = 0.8 / len(kinds), sheets.palette(len(kinds))
    for axes, panel in sheet:
        for number, ((_, level), (_, key)) in enumerate(kinds):
            cells = [runs.of(panel, level, group) for group in along]
            places = [group + (number + 0.5) * thick - 0.4 for group in range(len(cells))]
            sheets.draw_bars(axes, places, [_bar(cell, key, factor) for cell in cells], thick, colours[number])
            sheets.draw_published(axes, places, [_published(cell, key, published or {}) for cell in cells])
        sheets.name_groups(axes, names, turned)
    texts = [", ".join(filter(None, (level, text))) for (level, _), (text, _) in kinds]
    return sheets.finish(figure, sheet, sheets.patches(colours, texts) + sheets.marks(sheet))


# What is drawn, read from records.


def _by_label(keys: str | Mapping[str, str]) -> Mapping[str, str]:
    return {"": keys} if isinstance(keys, str) else keys


def _by_layer(run: Record, key: str) -> Series:
    values = run.figures.get(key)
    return dict(enumerate(values, 1)) if isinstance(values, list) else {}  # no list where training diverged


def _draw_lines(
    runs: sheets.Runs, sheet: sheets.Panels, named: Mapping[str, str], read: Reader, *, lines: sheets.FactorNames
) -> None:
    levels = runs.levels(lines)
    for axes, panel in sheet:
        for rank, ((level, key), (colour, dash)) in enumerate(sheets.styles(levels, named).items()):
            points = _over_seeds(read(run, named[key]) for run in runs.of(panel, levels[level]))
            order = 3 - rank / 100  # the first on top: small shifts before large ones
            sheets.draw_line(axes, points, colour, dash, order)


def _over_seeds(series: Iterable[Series]) -> list[tuple[float, float, float, float]]:
    """Place, least, mean and most of the numbers there; none of them is a number where no run has one.

    >>> _over_seeds([{1: 2.0, 2: math.nan}, {1: 4.0}])
    [(1, 2.0, 3.0, 4.0), (2, nan, nan, nan)]
    """
    found: dict[float, list[float]] = {}
    for values in series:
        for place, value in values.items():
            found.setdefault(place, []).extend([value] if math.isfinite(value) else [])
    return [(place, *_range(at)) for place, at in sorted(found.items())]


def _range(values: list[float]) -> tuple[float, float, float]:
    return (min(values), mean(values), max(values)) if values else (math.nan, math.nan, math.nan)


def _by_name(run: Record, key: str) -> Mapping[str, Any]:
    layers = run.figures.get(key)
    return layers if isinstance(layers, dict) else {}  # none where training diverged


def _in_order(levels: Iterable[Factors]) -> list[Factors]:
    """Numbers as on an axis, all else in the order met.

    >>> _in_order([{"lr": 0.1}, {"lr": 0.01}]), _in_order([{"net": "wrn"}, {"net": "densenet"}])
    ([{'lr': 0.01}, {'lr': 0.1}], [{'net': 'wrn'}, {'net': 'densenet'}])
    """
    levels = list(levels)
    numbers = all(isinstance(value, (int, float)) for level in levels for value in level.values())
    return sorted(levels, key=lambda level: tuple(level.values())) if numbers else levels


def _bar(runs: Results, key: str, factor: float) -> tuple[float, float] | None:
    """Mean and standard deviation as shown; none without runs, and no deviation of what is no number or of one run."""
    if not runs.values(key):
        return None
    deviation = runs.deviation(key)
    return runs.mean(key) * factor, 0.0 if math.isnan(deviation) else deviation * factor


def _published(runs: Results, key: str, published: Mapping[str, Mapping[str, float]]) -> float | None:
    return published.get(runs[0].arm, {}).get(key) if runs else None
