"""Columns share a line: figures are whole, words fold between words and at dots, and what goes is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.output.cells import Cells, fitted
from evenkeel.output.tables import FittedTable, plain

NAME = "features.denseblock3.denselayer12.norm1"
CELLS = Cells(
    ("norm", "running var", "eval var", "eval/train", "because of"),
    [(NAME, "0.8251", "0.6932", "0.840", f"x0.85 dropout; caused by {NAME} p=0.2 53 % and 1 more")],
    ["worst x1.19"],
    ("norm", "because of"),
    ("eval var", "running var"),
)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_paths_fold_at_dots_and_words_between_words(width):
    text = plain(FittedTable(CELLS), width)
    assert all(len(line) <= width for line in text.splitlines())
    for part in ("denseblock3.", "denselayer12.", "norm1", "dropout;", "caused", "p=0.2", "0.840"):
        assert part in text, "no part of a path and no word is cut in two"
    assert (NAME in text) is (width >= 120)


def test_figures_go_in_order_as_the_line_gets_short_and_that_is_said():
    shown = {width: fitted(CELLS, width)[0] for width in (200, 80, 50)}
    assert shown[200] == CELLS._replace(columns=list(CELLS.columns), rows=[list(CELLS.rows[0])])
    assert "eval var" not in shown[80].columns and "running var" in shown[80].columns
    assert shown[50].columns == ["norm", "eval/train", "because of"]
    assert shown[50].caption[-1] == (
        "left out for want of width: eval var, running var (to_dict() and save_html() hold them)"
    )


def test_a_spare_column_that_the_table_has_not_is_not_said_to_be_gone():
    assert "slope" not in fitted(CELLS._replace(spare=("slope", "eval var")), 50)[0].caption[-1]


def test_two_columns_of_one_heading_stay_two():
    twice = Cells(("norm", "after", "after"), [("a", "1", "2")], [], ("norm",))
    assert plain(FittedTable(twice)).splitlines()[2].split() == ["a", "1", "2"]


@given(
    st.lists(st.tuples(*[st.text("ab.c d", max_size=30)] * 2, *[st.text("0123.", max_size=9)] * 2), max_size=4),
    st.integers(12, 130),
)
def test_no_letter_is_lost_at_any_width(rows, width):
    cells = Cells(("a", "b", "c", "d"), rows, [], ("a", "b"), ("c", "d"))
    found, widths = fitted(cells, width)
    kept = [cells.columns.index(heading) for heading in found.columns]
    for row, folded in zip(rows, found.rows, strict=True):
        for place, text in zip(kept, folded, strict=True):
            assert "".join(text.split()) == "".join(row[place].split())
    if width >= 40:
        assert sum(widths) + 3 * (len(widths) - 1) <= width
