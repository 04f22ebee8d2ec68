"""The tables of claims: three a paper in README.md, all of them in docs/papers/claims.md.

python -m benchmarks.claims [--results results]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.pages import put_into
from evenkeel.papers.catalogue import ALL, find
from evenkeel.papers.lab.report import ExperimentReport, read_reports, to_markdown

README, PAGE = Path("README.md"), Path("docs/papers/claims.md")


def reports(results: Path = Path("results")) -> list[ExperimentReport]:
    return read_reports(results, [pair for paper in ALL for pair in find(paper.name)])


def tables(found: list[ExperimentReport]) -> dict[Path, dict[str, str]]:
    """What each page holds, by name; links lead from the page to the records."""
    whole = to_markdown(found).replace("](results/", "](../../results/")
    return {README: {"headlines": to_markdown(found, headlines=True)}, PAGE: {"claims": whole}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    for page, texts in tables(reports(parser.parse_args().results)).items():
        put_into(page, texts)
        print(f"written: {page}")


if __name__ == "__main__":
    main()
