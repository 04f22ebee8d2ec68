"""Plots of results: what is drawn is read back from the figures, and must be what the records say."""

import math
import re
import runpy
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
from drawn import NETS, PLACED, layered, legend, lines, panels, record, results_of, shifts, trained
from matplotlib.colors import to_hex, to_rgb

import evenkeel as ek
from evenkeel.papers.lab import drawings, plots, sheets
from evenkeel.papers.lab.results import Results
from evenkeel.papers.lab.specs import arm_name, grid


def errors(factors, seed):
    return {"error": factors["p"] / 10 + seed / 100, "adjusted": factors["p"] / 20 + seed / 200}


def scored(arms=PLACED, make=errors, **options):
    return results_of(arms, lambda *run: {"figures": make(*run)}, **options)


def heights(axes):
    """Of bars, by their middle and colour."""
    return {
        (round(bar.get_x() + bar.get_width() / 2, 3), to_hex(bar.get_facecolor())): bar.get_height()
        for bar in axes.patches
    }


def marks(axes, label):
    points = (line.get_xydata() for line in axes.get_lines() if line.get_label() == label)
    return [(round(x, 3), y) for line in points for x, y in line.tolist()]


# Profiles


def test_a_profile_is_the_mean_over_seeds_panel_by_panel():
    figure = plots.profiles(layered(), keys="folded", panels="net", rows="place", lines="p", log=False)
    found = panels(figure)
    assert list(found) == [f"place = {place}, net = {net}" for place in "ab" for net in NETS]
    for title, axes in found.items():
        net = title.split()[-1]
        drawn = lines(axes)
        assert len(drawn) == 2
        for (_, _, series), p in zip(drawn, (0.1, 0.5), strict=True):
            seeds = [shifts({"net": net, "p": p}, seed) for seed in range(3)]
            assert series == {x: pytest.approx(mean(values)) for x, values in enumerate(zip(*seeds, strict=True), 1)}
            assert len(series) == (4 if net == "thin" else 6)


def test_the_band_of_a_profile_is_the_range_of_the_seeds():
    figure = plots.profiles(layered(grid(net=("thin",), p=(0.5,))), keys="folded")
    (band,) = figure.axes[0].collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    for layer in range(4):
        values = [shifts({"net": "thin", "p": 0.5}, seed)[layer] for seed in range(3)]
        assert {(layer + 1, min(values)), (layer + 1, max(values))} <= corners
    assert not plots.profiles(layered(grid(net=("thin",), p=(0.5,)), seeds=1), keys="folded").axes[0].collections


def test_a_profile_has_a_line_at_one():
    for axes in plots.profiles(layered(), keys="folded", panels="net", rows="place", lines="p").axes:
        assert [list(line.get_ydata()) for line in axes.get_lines() if list(line.get_xdata()) == [0, 1]] == [[1, 1]]
        assert axes.get_yscale() == "log"


def test_what_is_no_number_leaves_a_gap():
    lists = {0: [1.0, None, 3.0], 1: [3.0, None, None]}
    results = Results(record({"p": 0.5}, seed, {"folded": values}) for seed, values in lists.items())
    ((_, _, series),) = lines(plots.profiles(results, keys="folded").axes[0])
    assert series[1] == 2 and math.isnan(series[2]) and series[3] == 3


@pytest.mark.parametrize("nothing", [None, [None, None], []], ids=["number", "list", "empty"])
@pytest.mark.parametrize("log", [True, False])
def test_runs_that_all_diverged_draw_empty_panels(nothing, log, tmp_path):
    figure = plots.profiles(Results([record({"p": 0.5}, 0, {"folded": nothing})]), keys="folded", log=log)
    drawings.save(figure, tmp_path / "empty")
    assert not any(map(math.isfinite, (y for _, _, series in lines(figure.axes[0]) for y in series.values())))


# Sweeps


def swept():
    def found(factors, seed):
        return {"mean": [-0.02, 0.0, 0.02], "pre": [factors["p"] + seed] * 3, "post": [1.0, 2.0, 3.0]}

    return scored(grid(p=(0.1, 0.5)), found)


def test_a_sweep_is_the_mean_over_seeds_at_the_places_of_another_list():
    keys = {"before": "pre", "behind": "post"}
    figure = plots.sweeps(swept(), x="mean", keys=keys, panels="p", xlabel="mean of weights", ylabel="Delta")
    assert [axes.get_xlabel() for axes in figure.axes] == ["mean of weights"] * 2
    for axes, p in zip(figure.axes, (0.1, 0.5), strict=True):
        before, behind = (series for _, _, series in lines(axes))
        assert before == {place: pytest.approx(p + 1) for place in (-0.02, 0.0, 0.02)}
        assert behind == {-0.02: 1.0, 0.0: 2.0, 0.02: 3.0}
    assert list(legend(figure)) == ["before", "behind"]


def test_a_sweep_without_its_places_is_refused():
    with pytest.raises(ek.EvenkeelError, match="no run has deviation to plot"):
        plots.sweeps(swept(), x="deviation", keys="pre", panels="p")


# Curves


def test_a_curve_is_the_mean_over_seeds_by_epoch():
    figure = plots.curves(trained(), keys="loss", rows="place", columns="net", lines="p", ylabel="loss", log=True)
    assert len(figure.axes) == 4 and figure.axes[0].get_yscale() == "log" and figure.axes[0].get_ylabel() == "loss"
    for axes in figure.axes:
        assert [series for _, _, series in lines(axes)] == [{e: pytest.approx(2 / e) for e in range(1, 6)}] * 2


def test_modes_are_told_by_dashes_and_an_error_is_shown_as_accuracy():
    keys = {"train": "error", "eval": "loss"}
    where = {"columns": "net", "rows": "place", "lines": "p"}
    figure = plots.curves(trained(), keys=keys, **where, transform=plots.accuracy)
    drawn = lines(figure.axes[0])
    assert [dash for _, dash, _ in drawn] == ["-", "--"] * 2
    assert drawn[2][2] == {e: pytest.approx(100 * (1 - 0.5 / e)) for e in range(1, 6)}
    assert list(legend(figure)) == ["p = 0.1", "p = 0.5", "train", "eval"]


def test_short_histories_and_those_with_gaps_are_drawn_as_far_as_they_go(tmp_path):
    def some(_factors, seed):
        whole = [{"epoch": e + 1, "loss": float(seed + e)} for e in range(4)]
        return [whole, whole[:2], [*whole[:1], {"epoch": 2, "loss": None}, {"epoch": 3}]][seed]

    figure = plots.curves(trained(grid(p=(0.5,)), some), keys="loss", transform=lambda loss: 2 * loss)
    ((_, _, series),) = lines(figure.axes[0])
    assert series == {1: 2.0, 2: 3.0, 3: 4.0, 4: 6.0}
    drawings.save(figure, tmp_path / "short")


# Densities


def test_densities_are_those_of_the_first_seed_by_layer_the_deeper_the_darker():
    def found(_factors, seed):
        return {"z": {layer: {"edges": [0.0, 1.0, 3.0], "density": [float(seed), 0.25]} for layer in ("5", "10", "15")}}

    results = Results(reversed(list(scored(grid(keep=(1.0, 0.5), init=("he", "ours", "x")), found))))
    figure = plots.densities(results, key="z", rows="keep", columns="init", xlim=(-1, 4), log=True)
    assert len(figure.axes) == 6 and list(legend(figure)) == ["layer 5", "layer 10", "layer 15"]
    for axes in figure.axes:
        steps = [patch.get_data() for patch in axes.patches]
        assert [(list(step.values), list(step.edges)) for step in steps] == [([0.0, 0.25], [0.0, 1.0, 3.0])] * 3
        assert [to_hex(patch.get_edgecolor()) for patch in axes.patches] == list(legend(figure).values())
        assert axes.get_xlim() == (-1, 4) and axes.get_yscale() == "log"
    brightness = [sum(to_rgb(colour)) for colour in legend(figure).values()]
    assert brightness == sorted(brightness, reverse=True)


def test_densities_that_are_not_finite_are_left_out():
    layers = {"5": {"edges": [0, 1], "density": [1.0]}, "10": {"edges": [None, None], "density": [0.0]}}
    results = Results([record({"init": "he"}, 0, {"z": layers}), record({"init": "ours"}, 0, {"z": None})])
    he, ours = plots.densities(results, key="z", columns="init").axes
    assert len(he.patches) == 1 and not ours.patches


# Bars


def test_bars_are_means_with_deviations_group_by_group():
    keys = {"as trained": "error", "adjusted": "adjusted"}
    figure = plots.bars(scored(), keys=keys, groups="net", panels="place", rows="p")
    assert list(panels(figure)) == [f"p = {p}, place = {place}" for p in (0.1, 0.5) for place in "ab"]
    first, second = legend(figure).values()
    for title, axes in panels(figure).items():
        p = float(re.match(r"p = (\S+),", title)[1])
        assert heights(axes) == {
            (x + side, colour): pytest.approx(100 * mean(errors({"p": p}, seed)[key] for seed in range(3)))
            for x in (0, 1)
            for side, colour, key in ((-0.2, first, "error"), (0.2, second, "adjusted"))
        }
        ends = [bar.get_segments()[0][:, 1].tolist() for bar in axes.collections]
        spread = 100 * stdev(errors({"p": p}, seed)["error"] for seed in range(3))
        assert (ends[0][1] - ends[0][0]) / 2 == pytest.approx(spread) and len(ends) == 4
        assert axes.get_ylim()[0] == 0
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == list(NETS)


def test_published_values_stand_on_their_bars_as_they_are():
    published = {"thin-0.1": {"error": 5.0, "adjusted": 4.0}, "wide-0.5": {"error": 7.0}, "gone-0.1": {"error": 1.0}}
    arms = grid(net=NETS, p=(0.1, 0.5))
    figure = plots.bars(
        scored(arms), keys={"a": "error", "b": "adjusted"}, groups="p", panels="net", published=published
    )
    thin, wide = figure.axes
    assert marks(thin, "published") == [(-0.2, 5.0), (0.2, 4.0)]
    assert marks(wide, "published") == [(0.8, 7.0)]
    assert list(legend(figure)) == ["a", "b", "published"]


def test_levels_stand_beside_each_other_and_the_baseline_in_each():
    arms = [{"net": "thin", "place": "none", "p": 0.0}, *grid(net=("thin",), place=("a", "b"), p=(0.5,))]
    published = {arm_name(arms[0]): {"error": 4.9}}
    options = {"keys": "error", "groups": "p", "beside": "place", "baseline": {"place": "none"}}
    figure = plots.bars(scored(arms), **options, published=published)
    assert list(legend(figure)) == ["place = a", "place = b", "published"]
    assert list(heights(figure.axes[0]).values()) == [pytest.approx(x) for x in (1, 6, 1, 6)]
    assert marks(figure.axes[0], "published") == [(-0.2, 4.9), (0.2, 4.9)]


def test_several_factors_together_make_groups():
    figure = plots.bars(scored(), keys="error", groups=("net", "place", "p"), factor=1)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [arm_name(factors) for factors in PLACED]
    assert figure.axes[0].get_xlabel() == "net-place-p" and not figure.legends
    assert list(heights(figure.axes[0]).values()) == [pytest.approx(f["p"] / 10 + 0.01) for f in PLACED]


def test_numbers_stand_in_order_along_the_axis():
    figure = plots.bars(scored([{"p": p} for p in (0.5, 0.01, 0.1)]), keys="error", groups="p")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0.01", "0.1", "0.5"]
    assert list(heights(figure.axes[0]).values()) == [pytest.approx(1 + 10 * p) for p in (0.01, 0.1, 0.5)]


def test_a_cross_stands_for_a_bar_that_has_no_number(tmp_path):
    def diverged(factors, seed):
        return {"error": None if factors["p"] == 0.5 and seed == 1 else 0.1}

    figure = plots.bars(scored(grid(p=(0.1, 0.5)), diverged), keys="error", groups="p")
    assert list(heights(figure.axes[0]).values()) == [pytest.approx(10)]
    assert [x for x, _ in marks(figure.axes[0], "no number in some run")] == [1.0]
    drawings.save(figure, tmp_path / "crossed")


def test_a_single_run_has_no_deviation():
    figure = plots.bars(scored(grid(p=(0.1, 0.5)), seeds=1), keys="error", groups="p")
    assert len(figure.axes[0].patches) == 2 and not figure.axes[0].collections


# All


DRAWN = {
    "profiles": lambda results, **options: plots.profiles(results, keys="folded", **options),
    "curves": lambda results, **options: plots.curves(results, keys="folded", **options),
    "densities": lambda results, **options: plots.densities(results, key="folded", **options),
    "bars": lambda results, **options: plots.bars(results, keys="folded", groups="p", **options),
}


FOLDED = {"figures": {"folded": 1.0}, "history": [{"epoch": 1, "folded": 1.0}]}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_what_is_missing_is_named(draw):
    with pytest.raises(ek.EvenkeelError, match="there are no runs"):
        draw(Results([]))
    with pytest.raises(ek.EvenkeelError, match=r"no run has folded to plot: runs have (nothing|error)$"):
        draw(scored(grid(p=(0.1,)), lambda *_: {"error": 0.1}))
    with pytest.raises(ek.EvenkeelError, match=r"not every run has the factor place: runs have p$"):
        draw(results_of(grid(p=(0.5,)), lambda *_: FOLDED), rows="place")


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_arms_are_not_averaged_as_if_they_were_seeds(draw):
    with pytest.raises(ek.EvenkeelError, match=r"would mix thin-(a-)?0\.5 and wide-(a-)?0\.5: give net a place"):
        draw(results_of(grid(net=NETS, p=(0.5,)), lambda *_: FOLDED))


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_without_matplotlib_it_is_asked_for(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ek.EvenkeelError, match=re.escape('plots need matplotlib: pip install "evenkeel[plots]"')):
        draw(results_of(grid(p=(0.5,)), lambda *_: FOLDED))


@pytest.mark.parametrize("module", [plots, sheets, drawings], ids=["plots", "sheets", "drawings"])
def test_matplotlib_is_imported_where_it_is_used_and_pyplot_never(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    runpy.run_path(module.__file__)
    assert "pyplot" not in Path(module.__file__).read_text()
