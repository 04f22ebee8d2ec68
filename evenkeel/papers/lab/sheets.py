"""Sheets: panels laid out by the levels of factors, dressed, with one legend, and what is drawn on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab.results import Record, Results
from evenkeel.papers.lab.specs import Factors, arm_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panels = list[tuple[Axes, Factors]]  # with what selects the runs that belong there

FactorNames = str | tuple[str, ...] | None  # a factor, or several together, each of whose levels has its own place

_POINTS = 8
# Okabe and Ito's colours, distinct for the colour-blind too; without yellow, which is faint on white
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LETTER = 0.06  # its width in inches
_TURNED: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
_DASHES = ("-", "--", ":", "-.")


def factors(names: FactorNames) -> tuple[str, ...]:
    """The factors named, as a tuple."""
    return (names,) if isinstance(names, str) else names or ()


@dataclass(frozen=True)
class Runs:
    """Runs to choose from.

    >>> content = {"seed": 0, "scale": "quick", "figures": {}, "history": []}
    >>> arms = [{"place": "none", "p": 0.0}, {"place": "a", "p": 0.5}, {"place": "b", "p": 0.5}]
    >>> runs = Runs(Results(Record.of(content | {"factors": factors}) for factors in arms), {"place": "none"})
    >>> runs.levels("place")
    {'place = a': {'place': 'a'}, 'place = b': {'place': 'b'}}
    >>> runs.where({"place": "a"}).arms(), runs.of({"place": "b"}, {"p": 0.0}).arms()
    (['none-0', 'a-0.5'], ['none-0'])
    """

    results: Results
    baseline: Factors = field(default_factory=dict[str, Any])

    def levels(self, names: FactorNames) -> dict[str, Factors]:
        """What selects each level, by what it is called, in order of appearance; without a factor, what selects all."""
        met = [{name: run.factors[name] for name in factors(names)} for run in self.results]
        own = [level for level in met if not level.items() & self.baseline.items()]
        return {", ".join(f"{name} = {arm_name({name: level[name]})}" for name in level): level for level in own or met}

    def where(self, *cells: Factors) -> Results:
        """The runs there, those of the baseline too, whatever a cell says of its factors."""
        cell = {name: value for part in cells for name, value in part.items()}
        rest = {name: value for name, value in cell.items() if name not in self.baseline}
        there = (cell, {**rest, **self.baseline}) if self.baseline else (cell,)
        return Results(run for run in self.results if any(part.items() <= run.factors.items() for part in there))

    def of(self, *cells: Factors) -> Results:
        """The runs there, refused if they are more than seeds of one arm."""
        if len((found := self.where(*cells)).arms()) > 1:
            mixed = ", ".join(name for name in found[0].factors if len(found.levels(name)) > 1)
            arms = " and ".join(found.arms()[:2])
            raise EvenkeelError(f"the plot would mix {arms}: give {mixed} a place in it, or choose by results.where")
        return found

    def require_keys(self, named: Mapping[str, str], keys_of: Callable[[Record], Iterable[str]]) -> None:
        """Refuse to plot nothing."""
        if not self.results:
            raise EvenkeelError("there are no runs, so nothing to plot: run the experiment first")
        there = dict.fromkeys(key for run in self.results for key in keys_of(run))
        for key in named.values():
            if key not in there:
                raise EvenkeelError(f"no run has {key} to plot: runs have {', '.join(there) or 'nothing'}")

    def require_factors(self, named: Iterable[FactorNames]) -> None:
        """Refuse factors that runs do not have."""
        there = dict.fromkeys(factor for run in self.results for factor in run.factors)
        for factor in (factor for names in named for factor in factors(names)):
            if not all(factor in run.factors for run in self.results):
                raise EvenkeelError(f"not every run has the factor {factor}: runs have {', '.join(there) or 'none'}")


# The sheet: panels, labels, legend.


def lay_out(
    runs: Runs,
    rows: FactorNames,
    columns: FactorNames,
    others: tuple[FactorNames, ...] = (),
    *,
    labels: tuple[str, str],
    title: str,
    width: float = 2.3,
) -> tuple[Figure, Panels]:
    """A figure with a panel for each level of the row and column factors."""
    runs.require_factors((rows, columns, *others))
    down, across = runs.levels(rows), runs.levels(columns)
    size = max(5.5, width * len(across) + 0.4), max(3.0, 1.7 * len(down) + 0.9)
    figure = _figure_class()(figsize=size, layout="constrained")
    grid = figure.subplots(len(down), len(across), sharex="col", sharey="row", squeeze=False)
    cells = [{**row, **column} for row, column in product(down.values(), across.values())]
    sheet: Panels = list(zip(grid.flat, cells, strict=True))
    for (axes, cell), name in zip(sheet, _titles(down, across, width), strict=True):
        axes.set_title(name, fontsize=_POINTS)
        _dress(axes, empty=not runs.where(cell))
    for axes in grid[-1]:
        axes.set_xlabel(labels[0], fontsize=_POINTS)
    for axes in grid[:, 0]:
        axes.set_ylabel(labels[1], fontsize=_POINTS)
    if title:
        figure.suptitle(title, fontsize=_POINTS + 1)
    return figure, sheet


def _titles(down: Iterable[str], across: Iterable[str], width: float) -> list[str]:
    r"""Of all panels: all in two lines if one would be too long for a panel of this width, in inches.

    >>> _titles(["p = 0.1", "p = 0.5"], ["net = wrn"], 2.3), _titles(["p = 0.1"], ["net = wrn"], 1)
    (['p = 0.1, net = wrn', 'p = 0.5, net = wrn'], ['p = 0.1\nnet = wrn'])
    """
    pairs = [[name for name in pair if name] for pair in product(down, across)]
    fits = all(_LETTER * len(", ".join(pair)) < width for pair in pairs)
    return [(", " if fits else "\n").join(pair) for pair in pairs]


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvenkeelError('plots need matplotlib: pip install "evenkeel[plots]"') from error
    return Figure


def _dress(axes: Axes, empty: bool) -> None:
    axes.tick_params(which="both", labelsize=_POINTS)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    if empty:
        axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center", color="0.5", fontsize=_POINTS)


def finish(
    figure: Figure, sheet: Panels, handles: Sequence[Any], *, log: bool = False, integer: bool = False
) -> Figure:
    """Set the scales once all data are drawn, and the one legend."""
    from matplotlib.ticker import MaxNLocator

    for axes, _ in sheet:
        if integer:
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        if log:
            axes.set_yscale("log")
            _write_out(axes)
    if handles:
        wide = sum(_LETTER * len(str(handle.get_label())) + 0.45 for handle in handles)  # in inches, in one line
        columns = math.ceil(len(handles) / math.ceil(wide / figure.get_figwidth()))
        place = "outside lower center"
        figure.legend(handles=handles, loc=place, ncols=columns, fontsize=_POINTS, frameon=False)
    return figure


def _write_out(axes: Axes) -> None:
    """Ticks such as 2 and 0.5 instead of powers of ten, where the scale spans few decades."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    if low > 1e-3 and high < 1e4:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if high / low < 10 else NullFormatter())


def palette(count: int) -> list[Any]:
    """So many colours: the palette's, or as many steps of viridis where there are not enough."""
    return list(_PALETTE[:count]) if count <= len(_PALETTE) else _steps("viridis", 0.0, 0.9, count)


def shades(names: Iterable[str]) -> dict[str, Any]:
    """A blue for each name, from light to dark in the order met."""
    names = list(dict.fromkeys(names))
    return dict(zip(names, _steps("Blues", 0.4, 1.0, len(names)), strict=True))


def _steps(colormap: str, low: float, high: float, count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps[colormap](low + (high - low) * step / max(1, count - 1)) for step in range(count)]


# Lines.


def styles(levels: Mapping[str, Factors], named: Mapping[str, str]) -> dict[tuple[str, str], tuple[Any, str]]:
    """Colour and dashes of each level and key; colours are the keys' where there are no levels."""
    dashes, coloured = dict(zip(named, cycle(_DASHES))), list(levels if any(levels) else named)
    colours = dict(zip(coloured, palette(len(coloured)), strict=True))
    return {(level, key): (colours[level or key], dashes[key]) for level, key in product(levels, named)}


def line_keys(runs: Runs, lines: FactorNames, named: Mapping[str, str]) -> list[Any]:
    """The legend's: colours for levels, dashes for keys; none for what there is one of."""
    drawn, first = styles(runs.levels(lines), named), next(iter(named))
    levels = [line_key(colour, label=level) for (level, key), (colour, _) in drawn.items() if level and key == first]
    keys = {key: line_key("0.3" if levels else colour, dash, label=key) for (_, key), (colour, dash) in drawn.items()}
    return levels + [line for key, line in keys.items() if key]


def line_key(colour: Any, dash: Any = "-", *, label: str) -> Any:
    """A line's entry in the legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=dash, linewidth=1.2, label=label)


def draw_line(
    axes: Axes, points: list[tuple[float, float, float, float]], colour: Any, dash: str, order: float
) -> None:
    """Draw means as a line and the ranges as a band, from places, least, means and most."""
    if not points:
        return
    places, least, means, most = zip(*points, strict=True)
    lone = sum(map(math.isfinite, means)) == 1  # as after a training that diverged at once: a line would not be seen
    looks: dict[str, Any] = {"linestyle": dash, "linewidth": 1.2 if len(places) < 60 else 0.8}
    axes.plot(places, means, color=colour, marker="." if lone else "", zorder=order, **looks)
    if least != most:
        axes.fill_between(places, least, most, color=colour, alpha=0.2, linewidth=0, zorder=order - 1)


# Bars.


def room(names: Sequence[str], kinds: int) -> tuple[float, bool]:
    """How wide a panel must be, in inches, and whether the names have to be turned to fit."""
    bars, letters = 0.17 * kinds * len(names) + 0.4, (_LETTER * max(map(len, names)) + 0.1) * len(names) + 0.2
    width = max(2.3, bars, min(letters, 3.5))
    return width, letters > width


def name_groups(axes: Axes, names: Sequence[str], turned: bool) -> None:
    """Write what groups of bars are called below them, turned if there is no room otherwise."""
    axes.set_xticks(range(len(names)), names, **_TURNED if turned else {})
    axes.set_xlim(-0.6, len(names) - 0.4)


def draw_bars(
    axes: Axes, places: list[float], found: list[tuple[float, float] | None], thick: float, colour: Any
) -> None:
    """Draw means as bars with their deviations; a cross where a mean is no number, nothing where there is none."""
    shown = [(place, *bar) for place, bar in zip(places, found, strict=True) if bar is not None]
    for place, height, deviation in shown:
        if math.isfinite(height):
            axes.bar(place, height, thick * 0.92, color=colour)
        else:
            foot = axes.get_xaxis_transform()  # so that the mark does not move the scale
            axes.plot(place, 0.04, "x", color="0.3", markersize=4, transform=foot, label="no number in some run")
        if deviation:
            axes.errorbar(place, height, deviation, color="0.2", elinewidth=0.8, capsize=1.5)


def draw_published(axes: Axes, places: list[float], values: list[float | None]) -> None:
    """Draw the paper's values as marks upon the bars."""
    shown = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
    if shown:
        looks: dict[str, Any] = {
            "markersize": 4,
            "markerfacecolor": "white",
            "markeredgecolor": "black",
            "markeredgewidth": 0.8,
        }
        axes.plot(*zip(*shown, strict=True), "D", zorder=4, label="published", **looks)


def patches(colours: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """The bars' entries in the legend; none for those without a text."""
    from matplotlib.patches import Patch

    return [Patch(color=colour, label=text) for colour, text in zip(colours, texts, strict=True) if text]


def marks(sheet: Panels) -> list[Any]:
    """One of each kind of mark drawn upon bars, for the legend."""
    lines = (line for axes, _ in sheet for line in axes.get_lines())
    return list({label: line for line in lines if not (label := str(line.get_label())).startswith("_")}.values())
