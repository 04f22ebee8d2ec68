"""Drawings: figures written as SVG and PNG, small, and the same each time."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenkeel.output.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG: dict[Any, Any] = {
    "svg.hashsalt": "evenkeel",  # the same names each time
    "svg.fonttype": "none",  # letters, not outlines
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own; a viewer without it takes another one
}


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as SVG and as PNG, both whole or neither; the same figure gives the same files.

    Raises:
        EvenkeelError: a file cannot be written.
    """
    path = Path(path)
    with (
        atomic_write(path.with_name(f"{path.name}.svg")) as vector,
        atomic_write(path.with_name(f"{path.name}.png")) as pixels,
    ):
        vector.write_text(to_svg(figure), encoding="utf-8")
        figure.savefig(pixels, format="png", dpi=110)
        _reduce(pixels)


def to_svg(figure: Figure) -> str:
    """A figure as SVG; the same figure gives the same text."""
    from matplotlib import rc_context

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out anew by every drawing, it would move a little each time
    drawn = io.StringIO()
    with rc_context(_SVG):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return _shortened(drawn.getvalue())


def _shortened(svg: str) -> str:
    r"""The same with every polygon in steps of a tenth of a point, which halves the file and cannot be seen.

    >>> _shortened('<path d="M 1.234567 2 \nL 3.512345 -4.999999 \nz\n"/><text>0.125</text>')
    '<path d="M1.2 2l2.3 -7z"/><text>0.125</text>'
    """
    return re.sub(r' d="([MLz\d\s.-]*)"', lambda path: f' d="{_relative(path[1])}"', svg)


def _relative(path: str) -> str:
    words, last = list[str](), (0, 0)
    for command, x, y in re.findall(r"([MLz])(?: (\S+) (\S+))?", path):
        if command == "z":
            words.append("z")
            continue
        place = round(10 * float(x)), round(10 * float(y))  # whole tenths, so that steps do not drift
        step = place if command == "M" else (place[0] - last[0], place[1] - last[1])
        words.append(f"{'M' if command == 'M' else 'l'}{step[0] / 10:g} {step[1] / 10:g}")
        last = place
    return "".join(words)


def _reduce(png: Path) -> None:
    """Keep 256 colours, which a plot does with, for a third of the size."""
    from PIL import Image  # matplotlib depends on it

    with Image.open(png) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)  # others lose colours of few pixels
        few.save(png, "PNG", optimize=True)
