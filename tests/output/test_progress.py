"""The bar passes everything through, and shows only on a terminal."""

import pytest
import torch
from torch.utils.data import DataLoader

from evenkeel.output.progress import Bar


def test_items_and_length_pass_through():
    loader = DataLoader(torch.arange(10), batch_size=4)
    assert len(Bar(loader, "")) == 3
    assert [batch.tolist() for batch in Bar(loader, "")] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(Bar((i for i in range(3)), "")) == [0, 1, 2]
    with pytest.raises(TypeError):
        len(Bar((i for i in range(3)), ""))


def test_nothing_shows_without_a_terminal(capsys):
    list(Bar(range(3), "work"))
    assert capsys.readouterr() == ("", "")


def test_it_shows_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's switch for taking standard error for a terminal
    list(Bar(range(3), "work"))
    out, err = capsys.readouterr()
    assert out == "" and "work" in err


def test_errors_of_the_iterable_pass_through():
    def broken():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(Bar(broken(), "work"))
