"""Sheets of panels: what their places, titles, colours and legends are, read back from figures."""

import re

import pytest
from drawn import NETS, PLACED, layered, legend, lines, panels, record, trained
from matplotlib.colors import to_hex

from evenkeel.papers.lab import drawings, plots, sheets
from evenkeel.papers.lab.results import Results
from evenkeel.papers.lab.specs import grid

LAYERED = [{"net": net, "place": "none", "p": 0.0} for net in NETS] + list(PLACED)


# Panels


def test_several_factors_together_make_rows():
    figure = plots.profiles(layered(), keys="folded", rows=("net", "place"), lines="p")
    assert list(panels(figure)) == [f"net = {net}, place = {place}" for net in NETS for place in "ab"]


def test_long_titles_are_broken_in_all_panels():
    arms = grid(net=("a_net_of_a_long_name", "net"), place=("behind_all_norms", "a"), p=(0.5,))
    titles = panels(plots.profiles(layered(arms), keys="folded", panels="net", rows="place"))
    assert all(re.fullmatch(r"place = \S+\nnet = \S+", title) for title in titles)


def test_panels_that_have_no_runs_say_so():
    results = Results(row for row in layered() if row.factors["net"] == "thin" or row.factors["place"] == "a")
    figure = plots.profiles(results, keys="folded", panels="net", rows="place", lines="p")
    said = {title: [text.get_text() for text in axes.texts] for title, axes in panels(figure).items()}
    assert [title for title, texts in said.items() if texts] == ["place = b, net = wide"]
    assert said["place = b, net = wide"] == ["no runs"]


def test_a_baseline_stands_at_every_level_of_its_factor():
    figure = plots.profiles(
        layered(LAYERED), keys="folded", panels="net", rows="place", lines="p", baseline={"place": "none"}
    )
    assert len(figure.axes) == 4 and not any("none" in title for title in panels(figure))
    assert [len(lines(axes)) for axes in figure.axes] == [3] * 4 and next(iter(legend(figure))) == "p = 0"
    assert all(set(lines(axes)[0][2].values()) == {1} for axes in figure.axes)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_any_range_is_drawn_without_a_warning(scale, tmp_path):
    results = Results([record({"p": 0.5}, 0, {"folded": [scale, 0.0, 2 * scale], "flat": [scale] * 3})])
    for log in (True, False):
        drawings.save(plots.profiles(results, keys={"one": "folded", "two": "flat"}, log=log), tmp_path / "any")


# Colours and dashes


def test_a_level_has_one_colour_in_all_panels_and_in_the_one_legend():
    figure = plots.profiles(layered(), keys="folded", panels="net", rows="place", lines="p")
    colours = [[colour for colour, _, _ in lines(axes)] for axes in figure.axes]
    assert all(found == colours[0] for found in colours) and len(set(colours[0])) == 2
    assert legend(figure) == {"p = 0.1": to_hex(colours[0][0]), "p = 0.5": to_hex(colours[0][1])}


def test_a_level_keeps_its_colour_where_others_have_no_runs():
    results = Results(row for row in layered() if row.factors["p"] == 0.5 or row.factors["net"] == "thin")
    figure = plots.profiles(results, keys="folded", panels="net", rows="place", lines="p")
    thin, wide = (lines(axes) for axes in figure.axes[:2])
    assert len(thin) == 2 and [colour for colour, _, _ in wide] == [thin[1][0]]


def test_more_levels_than_colours_have_colours_of_their_own():
    rates = tuple(rate / 20 for rate in range(12))
    figure = plots.profiles(layered(grid(net=("thin",), p=rates)), keys="folded", lines="p")
    assert len(set(legend(figure).values())) == 12


def test_several_lists_have_their_own_dashes():
    results = layered(grid(net=("thin",), p=(0.1, 0.5)))
    figure = plots.profiles(results, keys={"shift": "folded", "backward": "half"}, lines="p")
    drawn = lines(figure.axes[0])
    assert [(colour, dash) for colour, dash, _ in drawn] == [(c, d) for c in sheets._PALETTE[:2] for d in ("-", "--")]
    assert list(legend(figure)) == ["p = 0.1", "p = 0.5", "shift", "backward"]


def test_without_levels_each_key_has_its_colour():
    figure = plots.curves(trained(grid(p=(0.5,))), keys={"train": "error", "eval": "loss"})
    assert [colour for colour, _, _ in lines(figure.axes[0])] == list(sheets._PALETTE[:2])
    assert list(legend(figure).values()) == [colour.lower() for colour in sheets._PALETTE[:2]]


def test_a_run_that_diverged_at_once_is_seen():
    def one(_factors, _seed):
        return [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": None}]

    (line,) = plots.curves(trained(grid(p=(0.5,)), one), keys="loss", log=True).axes[0].get_lines()
    assert line.get_marker() == "."
