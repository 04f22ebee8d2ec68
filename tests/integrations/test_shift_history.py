"""ShiftHistory: rows to CSV and back in full, a torn file, the picture and the table."""

import math

import pytest

import evenkeel as ek

ROWS = [
    ek.ShiftRecord(10, 1, "a,b", 2.0, 1.0, 0.5, 2.0, 0.1 + 0.2, 1.0, 0.5, 1.0, 1.0, "0 p=0.5", 'x0.5 dropout "0"\nx'),
    ek.ShiftRecord(10, 1, "bn2", math.inf, 1.0, math.nan, math.inf),
    ek.ShiftRecord(20, 2, "a,b", 1.0, 1.0, 1 / 3, 3.0),
    ek.ShiftRecord(30, 2, why="batch 1 is not finite"),
]


def test_a_file_gives_back_the_same_rows(tmp_path):
    path = tmp_path / "shift.csv"
    path.write_text(ek.ShiftHistory(ROWS).to_csv())
    again = ek.ShiftHistory.read(path)
    assert [repr(row) for row in again] == [repr(row) for row in ROWS]
    assert again.to_csv() == path.read_text()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_of_a_file_that_was_cut_short_the_last_block_is_left_out(tmp_path, cut):
    path = tmp_path / "shift.csv"
    path.write_text(ek.ShiftHistory(ROWS[:3]).to_csv()[:-cut])
    kept = ek.ShiftHistory.read(path)
    assert len(kept) in (2, 0) and all(row.step == 10 for row in kept)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", None])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "other.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ek.EvenkeelError, match=r"no log of|cannot be read"):
        ek.ShiftHistory.read(path)


def test_a_line_that_is_none_is_named(tmp_path):
    path = tmp_path / "shift.csv"
    path.write_text(ek.ShiftHistory(ROWS[2:3]).to_csv() + "x" * 5 + "\n")
    with pytest.raises(ek.EvenkeelError, match="line 3"):
        ek.ShiftHistory.read(path)


def test_what_holds_for_a_step_and_what_was_not_measured():
    history = ek.ShiftHistory(ROWS)
    assert history.steps == (10, 20, 30) and history.worst == {10: math.inf, 20: 3.0, 30: math.inf}
    assert history.notes == ("step 30: not measured: batch 1 is not finite",)
    assert "bn2" in str(history) and "step 30" in str(history)
    assert history.to_dict()["rows"][1]["ratio"] is None


@pytest.mark.slow
def test_the_picture_has_a_line_a_norm(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn, save = [], figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, *a, **b: (drawn.append(self.axes[0]), save(self, *a, **b))
    )
    ek.ShiftHistory(ROWS).plot(tmp_path / "shift.svg")
    many = [ek.ShiftRecord(step, 1, f"bn{n}", ratio=1.0 + n, folded=1.0 + n) for step in (1, 2) for n in range(12)]
    ek.ShiftHistory(many).plot(tmp_path / "many.png")
    assert "<svg" in (tmp_path / "shift.svg").read_text() and (tmp_path / "many.png").read_bytes()[1:4] == b"PNG"
    one, two = drawn
    assert list(one.lines[0].get_xdata()) == [10, 20]
    assert one.get_title() == "1 norms, 2 values not finite"
    assert len(two.lines) == 13 and [t.get_text() for t in two.get_legend().texts] == [f"bn{n}" for n in range(4, 12)]


def test_a_picture_of_nothing_or_of_an_unknown_format_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ek.EvenkeelError, match="nothing was measured"):
        ek.ShiftHistory([]).plot(tmp_path / "shift.svg")
    with pytest.raises(ek.EvenkeelError, match="unknown format"):
        ek.ShiftHistory(ROWS).plot(tmp_path / "shift.csv")
    assert not list(tmp_path.iterdir())
