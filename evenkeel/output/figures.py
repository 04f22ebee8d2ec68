"""Figures: pictures of matplotlib's as files, in the format that the file's name asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evenkeel.errors import EvenkeelError
from evenkeel.output.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure whole or not at all; without a suffix, as PNG.

    Raises:
        EvenkeelError: the format is unknown, or the file cannot be written.
    """
    file_format = Path(path).suffix.lstrip(".") or "png"
    if file_format not in (known := figure.canvas.get_supported_filetypes()):
        raise EvenkeelError(f"{path} has an unknown format: end its name in one of .{', .'.join(sorted(known))}")
    with atomic_write(Path(path)) as temporary:
        figure.savefig(temporary, format=file_format)
