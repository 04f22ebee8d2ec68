"""Charts: what a mark is shown with, where it is, and what the page's script is told of it."""

import json
import math
from itertools import pairwise

import pytest

from evenkeel.output.charts import details_of, drawn_chart
from evenkeel.output.page import Chart, Histogram, Mark


def test_equal_ratios_are_equal_distances_and_a_stem_goes_from_one_to_the_dot():
    marks = tuple(Mark(f"n{place}", (ratio,)) for place, ratio in enumerate((0.25, 0.5, 1.0, 2.0, 4.0)))
    drawn = drawn_chart(Chart("c", "", ("",), marks), 0)
    heights = [mark["dots"][0]["y"] for mark in drawn["marks"]]
    assert all(abs((a - b) - (heights[0] - heights[-1]) / 4) < 0.11 for a, b in pairwise(heights))
    assert drawn["marks"][2]["stem"] is None
    for mark, height in zip(drawn["marks"], heights, strict=True):
        if mark["stem"]:
            top, length = mark["stem"]
            assert top == min(height, heights[2]) and top + length == pytest.approx(max(height, heights[2]))
    assert drawn["start"] in (0, 4) and drawn_chart(Chart("c", "", ("",), ()), 0)["marks"] == []


def test_a_stem_joins_before_and_after_and_what_has_no_place_is_at_an_end():
    chart = Chart(
        "c", "", ("before", "after"), (Mark("a", (0.5, 1.0)), Mark("b", (None, 2.0)), Mark("c", (math.nan, None)))
    )
    joined, alone, lost = drawn_chart(chart, 0, "Net")["marks"]
    assert joined["stem"][1] == pytest.approx(abs(joined["dots"][0]["y"] - joined["dots"][1]["y"]))
    assert len(alone["dots"]) == 1 and alone["stem"] is not None
    assert lost["dots"][0]["y"] == 6 and "unknown" in lost["text"]


def test_a_layer_without_a_path_is_the_model_itself():
    (mark,) = drawn_chart(Chart("c", "", ("",), (Mark("", (1.0,)),)), 0, "Net")["marks"]
    assert mark["text"] == "Net: \N{MULTIPLICATION SIGN}1.00"


def test_the_script_is_told_every_line_share_and_histogram_and_a_text_that_repeats_once():
    histogram = Histogram(0.5, 2.0, (1, 0, 3, 2))
    marks = (
        Mark("a", (0.5,), ("alike", "", "its own"), (("the dropout", 60.0), ("alike", 40.0)), histogram),
        Mark("b", (0.6,), ("alike",), (("the dropout", 100.0),)),
    )
    found = json.loads(details_of([Chart("c", "", ("",), marks)]))
    said = found["texts"]
    (first, second), *_ = found["marks"]
    assert sorted(said) == ["alike", "the dropout"]
    assert first[0] == [said.index("alike"), "its own"]
    assert first[1] == [[said.index("the dropout"), 60.0], [said.index("alike"), 40.0]]
    assert first[2] == ["\N{MULTIPLICATION SIGN}0.50", "\N{MULTIPLICATION SIGN}2.00", 2.0, 1, 0, 3, 2]
    assert second == [[said.index("alike")], [[said.index("the dropout"), 100.0]]]


@pytest.mark.parametrize(("low", "high", "even"), [(0.1, 0.5, 5.7), (2.0, 8.0, -2.0), (1.0, 1.0, 0.0), (0.5, 0.5, 4.0)])
def test_bins_are_on_the_side_of_one_that_their_ratios_are_on(low, high, even):
    mark = Mark("a", (0.5,), channels=Histogram(low, high, (1, 2, 3, 4)[: 4 if low < high else 1]))
    ((_, _, (_, _, place, *counts)),) = json.loads(details_of([Chart("c", "", ("",), (mark,))]))["marks"][0]
    assert place == (even if low < high else float(low < 1))
    edges = [low * (high / low) ** (n / len(counts)) for n in range(len(counts))]
    assert all((edge < 1) == (n < place) for n, edge in enumerate(edges))
