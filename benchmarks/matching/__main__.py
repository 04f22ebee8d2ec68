"""What eval mode is to keep, the variance or the mean over dropout masks: held-out scores of nets of many kinds.

    python -m benchmarks.matching [--seeds 5] [--data-dir DIR] [--nets FOLDER] [--parts "MLP, digits" flights]
        [--only PATTERN] [--resume] [--train] [--plot docs/pictures/pareto.svg] [--page docs/matching.md]

Nets are trained with dropout at three rates, and at the places that their family has; each is trained once and kept in
--nets. --only takes rows whose name, such as "MLP, digits: Linear-BN-ReLU-Dropout .5 seed 0", holds the pattern;
--resume leaves those that the file of results has; --train trains the nets and stops there. MNIST and CIFAR-10 are
read from --data-dir (or EVENKEEL_DATA), the tables diamonds and flights from what requirements-matching.txt names.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.matching.nets import FAMILIES
from benchmarks.matching.report import draw, show, write_page
from benchmarks.matching.scores import TASKS
from benchmarks.matching.treatments import judge
from benchmarks.measuring import Part, run_parts
from benchmarks.nets import add_options
from benchmarks.placements import RATES

RESULTS = Path("results/matching.json")


def run_family(name: str, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The nets of one family, row by row: scores by treatment."""
    family = FAMILIES[name]
    known = json.loads(options.out.read_text()).get(name, {}) if options.resume and options.out.exists() else {}
    for seed, arm, p in product(range(min(options.seeds, family.seeds)), family.arms, RATES):
        row = f"{arm} {p:g} seed {seed}"
        if row in known or not re.search(options.only, f"{name}: {row}"):
            continue
        start = time.perf_counter()
        split = family.source(seed, options.data_dir)
        recipe = re.sub(r"[^a-zA-Z0-9]+", "-", f"matching {name} {family.epochs} epochs {row}")
        net = family.trained(arm, p, seed, split, options.nets / f"{recipe}.pt")
        trained = time.perf_counter()
        if not options.train:
            yield "scores", TASKS[family.task].names
            yield row, judge(net, split, TASKS[family.task], seed)
        times = f"{trained - start:.0f} s to train, {time.perf_counter() - trained:.0f} s to score"
        print(f"{name}: {row}: {times}", flush=True)


def part_of(name: str) -> Part:
    part = partial(run_family, name)
    part.__doc__ = f"{name}: {', '.join(TASKS[FAMILIES[name].task].names)}, by treatment"
    return part


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(seeds=5)
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression: rows to run")
    parser.add_argument("--resume", action="store_true", help="leave the rows that are there")
    parser.add_argument("--train", action="store_true", help="only train the nets")
    parser.add_argument("--plot", type=Path, default=Path("docs/pictures/pareto.svg"))
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table of all families into this page")
    options = run_parts(parser, {name: part_of(name) for name in FAMILIES}, RESULTS)
    if not options.train:
        results = json.loads(options.out.read_text())
        print(show({name: results[name] for name in options.parts if name in results}))
        draw(results, options.plot)
        if options.page is not None:
            write_page(results, options.page)


if __name__ == "__main__":
    main()
