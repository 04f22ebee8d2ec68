"""Case studies: published weights of nets that train with dropout and batch norm, and what each repair does to them.

    python -m benchmarks.published NAME ... --folder DIR [--out results/published.json] [--page docs/case-studies.md]
    python -m benchmarks.published --page docs/case-studies.md

The nets are keywords, pitch, thai and speech-quality. Each is built anew with its training-time dropout; its module
says which public files --folder must hold, and where they come from. Each net's figures are written as soon as it is
measured; those of nets that are not named stay as they are. --page writes the tables of the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from pickle import UnpicklingError

from benchmarks.published.catalogue import STUDIES
from benchmarks.published.page import OUT, write_page
from benchmarks.published.repairs import compare
from evenkeel.errors import EvenkeelError, brief
from evenkeel.output.files import write_json


def run(names: list[str], folder: Path, out: Path) -> None:
    """Measure nets, and write their figures beside those of the others."""
    for name in names:
        try:
            task = STUDIES[name].load(folder)
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, UnpicklingError) as error:
            raise EvenkeelError(f"the files of {name} in {folder} are not those expected: {brief(error)}") from error
        known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        known[name] = compare(STUDIES[name], task)
        write_json(out, {name: known[name] for name in STUDIES if name in known})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--folder", type=Path, metavar="DIR", help="the public files, as the nets' modules name them")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables of the page")
    options = parser.parse_args(arguments)
    try:
        if unknown := [name for name in options.names if name not in STUDIES]:
            raise EvenkeelError(f"there is no net {unknown[0]}: choose from {', '.join(STUDIES)}")
        if options.names and options.folder is None:
            raise EvenkeelError("nets are measured on the files in --folder DIR: name it")
        if not options.names and options.page is None:
            raise EvenkeelError(f"nothing to do: name nets to measure, of {', '.join(STUDIES)}, or a --page to write")
        run(options.names, options.folder, options.out)
        if options.page is not None:
            write_page(options.page, options.out)
    except EvenkeelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
