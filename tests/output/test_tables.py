"""Tables as plain text: what a cell holds is what is printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from evenkeel.output.tables import Cells, FittedTable, grouped, plain


def lines(rows, caption=(), words=("name",), width=110):
    return plain(FittedTable(Cells(["name", "value"], rows, caption, words=words)), width).splitlines()


def test_words_stand_left_and_figures_right():
    assert lines([["a", "1.5"], ["long name", "-100"]]) == [
        "name        value",
        "─────────────────",
        "a             1.5",
        "long name    -100",
    ]


def test_the_caption_stands_below_line_by_line():
    assert [line.strip() for line in lines([["a", "1"]], ["first", "second [one]"])[-2:]] == ["first", "second [one]"]


@pytest.mark.parametrize("cell", ["[red]x[/red]", "[0]", ":smile:", "a[b", "\\[bold]"])
def test_cells_are_no_markup(cell):
    assert lines([[cell, "1"]])[2].split("   ")[0] == cell


def test_words_that_are_too_long_are_folded_not_cut():
    name = "layer1." * 12 + "end"
    text = lines([[name, "1.00"]], width=40)
    assert all(len(line) <= 40 for line in text)
    assert "".join(line.split()[0] for line in text[2:]) == name
    assert any(line.endswith("1.00") for line in text)


@given(
    st.lists(
        st.tuples(st.text("abc.xyz0", min_size=1, max_size=20), st.floats(-1e6, 1e6).map("{:.3g}".format)), max_size=5
    )
)
def test_every_cell_is_printed_once_and_in_order(rows):
    text = lines([list(row) for row in rows])
    assert [tuple(line.split()) for line in text[2:]] == rows
    assert all(line == line.rstrip() for line in text)


def test_a_layer_whose_name_is_a_number_is_no_count():
    assert grouped({"1": "frozen", "3": "frozen", "bn": "old"}) == ["layer 1 and 1 more: frozen", "bn: old"]


def test_anything_that_rich_prints_is_plain():
    assert plain(Text("red", style="bold red")) == "red"
    assert plain(Text("x" * 30), width=10) == "\n".join(["x" * 10] * 3)
