"""Drawings: what is written is small, whole or not at all, and the same each time."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest
from drawn import NETS, PLACED, layered, results_of
from matplotlib.figure import Figure
from PIL import Image, ImageChops

import evenkeel as ek
from evenkeel.papers.lab import drawings, plots
from evenkeel.papers.lab.specs import grid


def figure_of():
    results = layered(grid(net=NETS, p=(0.1, 0.5)))
    return plots.profiles(results, keys="folded", panels="net", lines="p", title="Shift")


def test_both_files_are_written_and_nothing_else_is_changed(tmp_path):
    before = dict(matplotlib.rcParams)
    drawings.save(figure_of(), str(tmp_path / "shift-0.5"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shift-0.5.png", "shift-0.5.svg"]
    assert (tmp_path / "shift-0.5.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    texts = {text.text for text in ElementTree.parse(tmp_path / "shift-0.5.svg").iter() if text.tag.endswith("text")}
    assert {"Shift", "p = 0.1", "net = thin", "layer"} <= texts  # kept as letters


def test_the_same_figure_gives_the_same_files(tmp_path):
    figure = figure_of()
    for name, drawn in {"first": figure, "second": figure, "anew": figure_of()}.items():
        drawings.save(drawn, tmp_path / name)
    for suffix in (".svg", ".png"):
        assert len({(tmp_path / f"{name}{suffix}").read_bytes() for name in ("first", "second", "anew")}) == 1


def test_colours_of_few_pixels_are_kept(tmp_path):
    rates = tuple(rate / 10 for rate in range(7))
    same = results_of(grid(net=NETS, p=rates), lambda *_: {"figures": {"folded": [1.0, 2.0]}})
    figure = plots.profiles(same, keys="folded", panels="net", lines="p")
    drawings.save(figure, tmp_path / "few")
    figure.savefig(tmp_path / "all.png", dpi=110)
    with Image.open(tmp_path / "few.png") as few, Image.open(tmp_path / "all.png") as every:
        difference = ImageChops.difference(few.convert("RGB"), every.convert("RGB"))
    assert max(most for _, most in difference.getextrema()) <= 2


def test_large_figures_make_small_files(tmp_path):
    def jagged(factors, seed):
        return {"figures": {"folded": [1 + (layer * 7919 * (seed + 1) % 97) / 97 for layer in range(160)]}}

    figure = plots.profiles(results_of(PLACED, jagged), keys="folded", panels="net", rows="place", lines="p")
    drawings.save(figure, tmp_path / "large")
    assert all(path.stat().st_size < 150_000 for path in tmp_path.iterdir())


def test_a_path_in_short_ends_where_it_did():
    svg = drawings._shortened(
        '<path d="M 0 0 \n' + "".join(f"L {x / 30:.6f} {-x / 70:.6f} \n" for x in range(999)) + '"/>'
    )
    steps = [tuple(map(float, step.split())) for step in re.findall(r"l(\S+ [^l\"]+)", svg)]
    assert [sum(axis) for axis in zip(*steps, strict=True)] == pytest.approx([998 / 30, -998 / 70], abs=0.051)
    assert (
        drawings._shortened('<path d="M 0 1.2345 \nC 1.2345 2 3 4 5 6 \n"/>')
        == '<path d="M 0 1.2345 \nC 1.2345 2 3 4 5 6 \n"/>'
    )


@pytest.mark.parametrize("written", [1, 2], ids=["svg", "png"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_what_fails_leaves_nothing(tmp_path, monkeypatch, error, written):
    calls, save = [], Figure.savefig

    def half(self, path, **options):
        calls.append(path)
        save(self, path, **options)
        if len(calls) == written:
            raise error

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(ek.EvenkeelError if isinstance(error, OSError) else KeyboardInterrupt):
        drawings.save(figure_of(), tmp_path / "shift")
    assert list(tmp_path.iterdir()) == [] and len(calls) == written


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(ek.EvenkeelError, match="there is no folder"):
        drawings.save(figure_of(), tmp_path / "gone" / "shift")
