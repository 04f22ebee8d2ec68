"""How benchmarks measure and keep: contestants interleaved in one run, ratios with their spread, part by part."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from evenkeel.output.files import atomic_write

Figures = dict[str, dict[str, float]]
Part = Callable[[argparse.Namespace], Any]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(contestants: Mapping[str, Callable[[], object]], rounds: int) -> Figures:
    """Time over the first contestant's in the same round: median and range of the middle half."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            time_taken = seconds(run)
            if number:  # the first round pays what is only paid once in a process
                taken[name].append(time_taken)
    base = next(iter(taken.values()))
    return {name: spread([a / b for a, b in zip(times, base, strict=True)]) for name, times in taken.items()} | {
        "seconds": {name: median(times) for name, times in taken.items()}
    }


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median(values), "low": low, "high": high}


def show(figure: Mapping[str, float], form: str = ".2f") -> str:
    return f"{figure['median']:{form}} ({figure['low']:{form}} to {figure['high']:{form}})"


def run_parts(parser: argparse.ArgumentParser, parts: Mapping[str, Part], out: Path) -> argparse.Namespace:
    """Run the parts asked for, and replace their figures in the file of results as soon as each is done.

    A part returns its figures, or yields them row by row, each of which is kept when it is done. Returns the options.
    """
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="what to run; the rest is kept")
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    for name in options.parts:
        print(f"\n{parts[name].__doc__}", flush=True)
        found = parts[name](options)
        for one in found if isinstance(found, Iterator) else [found]:
            known = json.loads(options.out.read_text()) if options.out.exists() else {}
            versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
            figures = known.get(name, {}) | dict([one]) if isinstance(found, Iterator) else one
            with atomic_write(options.out) as temporary:
                temporary.write_text(json.dumps(known | versions | {name: figures}, indent=1) + "\n")
    return options
