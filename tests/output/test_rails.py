"""Rails: whatever skips a row has a line from where it leaves to where it arrives, and nowhere else."""

from hypothesis import given
from hypothesis import strategies as st

from evenkeel.output.rails import rails_of

EDGES = st.sets(st.tuples(st.integers(-1, 7), st.integers(0, 8)).filter(lambda edge: edge[0] < edge[1]), max_size=12)


@given(EDGES)
def test_rows_that_follow_are_joined_and_others_by_rails(edges):
    rows = rails_of(edges, 8)
    for row in range(-1, 8):
        assert rows[row].down == rows[row + 1].up == ((row, row + 1) in edges)
    for row, lines in rows.items():
        assert any(rail.arrives for rail in lines.rails) == any(b == row and a < row - 1 for a, b in edges)
        assert any(rail.leaves for rail in lines.rails) == any(a == row and b > row + 1 for a, b in edges)


@given(EDGES)
def test_a_line_that_goes_down_comes_from_above_one_row_further(edges):
    rows = rails_of(edges, 8)
    for row in range(-1, 8):
        above = {rail.column for rail in rows[row].rails if rail.down}
        assert above == {rail.column for rail in rows[row + 1].rails if rail.up}


def test_many_shortcuts_share_the_last_column():
    edges = {(a, b) for a in range(-1, 8) for b in range(a + 1, 9)}
    assert {rail.column for row in rails_of(edges, 8).values() for rail in row.rails} == {0, 1, 2}
