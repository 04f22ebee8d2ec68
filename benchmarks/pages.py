"""Tables that benchmarks put into pages, each between two marks: <!-- name --> and <!-- /name -->."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from evenkeel.errors import EvenkeelError
from evenkeel.output.files import atomic_write


def put_into(page: Path, texts: Mapping[str, str]) -> None:
    """Replace what stands between the marks of each name.

    Raises:
        EvenkeelError: the page is missing, or has no place for one of the texts.
    """
    if not page.is_file():
        raise EvenkeelError(f"{page} is missing: there is nothing to write the tables into")
    text = page.read_text(encoding="utf-8")
    for name, put in texts.items():
        place = marks(name)
        if not place.search(text):
            raise EvenkeelError(f"{page} has no place for the tables of {name}: <!-- {name} --> to <!-- /{name} -->")
        text = place.sub(lambda found, put=put: found[1] + put + found[3], text)
    with atomic_write(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def text_in(page: Path, name: str) -> str:
    """What stands between the marks of a name."""
    found = marks(name).search(page.read_text(encoding="utf-8"))
    if found is None:
        raise EvenkeelError(f"{page} has no place for the tables of {name}: <!-- {name} --> to <!-- /{name} -->")
    return found[2]


def marks(name: str) -> re.Pattern[str]:
    """Where a page holds what is put there under a name."""
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)
