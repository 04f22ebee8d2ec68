"""save_figure: a figure as a file, in the format that its name asks for."""

import pytest

from evenkeel.errors import EvenkeelError
from evenkeel.output.figures import save_figure

Figure = pytest.importorskip("matplotlib.figure").Figure


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG"), ("a", b"\x89PNG")])
def test_the_suffix_says_the_format(tmp_path, name, begins):
    save_figure(Figure(figsize=(1, 1)), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_an_unknown_format_writes_nothing(tmp_path):
    with pytest.raises(EvenkeelError, match=r"unknown format: end its name in one of \..*\.png"):
        save_figure(Figure(figsize=(1, 1)), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())
