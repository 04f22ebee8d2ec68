"""Sixteen MNIST arms: one after the other, by the local engine on all cores, and by Ray on two local nodes.

    python -m benchmarks.sweep [--epochs 4] [--rounds 1] [--data-dir D] [--out results/sweep.json]

Every way trains the same arms to the same bits, which is checked. Prints seconds, and how many times faster than one
after the other each way is; data are read and processes started within the time that counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from evenkeel.output.files import write_json
from evenkeel.papers import hendrycks2016
from evenkeel.papers.lab import trials
from evenkeel.papers.lab.engines import run_all
from evenkeel.papers.lab.hardware import Hardware
from evenkeel.papers.lab.runner import runs_of
from evenkeel.papers.lab.trials import Run, Workplace

NODES = 2  # of Ray, each with half of the cores
GOALS = {"local": 1.8, "ray": 1.6}


def sixteen_arms(epochs: int) -> list[Run]:
    """ReLU and tanh, keep .5 and .3, by four initializations, each for few epochs."""
    runs = runs_of(hendrycks2016.PAPER, hendrycks2016.mnist, "full", seeds=[0])
    kept = [
        run
        for run in runs
        if run.factors["activation"] in ("relu", "tanh") and run.factors["keep"] < 1 and run.factors["lr"] == 1e-3
    ]
    return [
        replace(run, training=replace(run.training, recipe=replace(run.training.recipe, epochs=epochs))) for run in kept
    ]


@contextmanager
def two_nodes():
    """A Ray cluster of two nodes on this machine, named by RAY_ADDRESS."""
    from ray.cluster_utils import Cluster

    cores = max(1, len(os.sched_getaffinity(0)) // NODES)
    cluster = Cluster()
    for _ in range(NODES):
        cluster.add_node(num_cpus=cores, include_dashboard=False)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()


def timed(runs: list[Run], data_dir: Path | None, **options: Any) -> tuple[float, dict[str, float]]:
    """Seconds, and each run's figures."""
    trials._images.cache_clear()  # reading the data counts
    with tempfile.TemporaryDirectory() as folder:
        workplace = Workplace(Path(folder), data_dir, hardware=Hardware(accelerator="cpu"))
        began = time.perf_counter()
        outcomes = list(run_all(runs, workplace, **options))
        seconds = time.perf_counter() - began
    for run, outcome in outcomes:
        if isinstance(outcome, Exception):
            raise SystemExit(f"{run.name}: {outcome}")
    return seconds, {run.name: outcome["figures"] for run, outcome in outcomes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/sweep.json"))
    options = parser.parse_args()
    runs = sixteen_arms(options.epochs)

    def by_ray() -> tuple[float, dict[str, float]]:
        with two_nodes():  # which stand before a sweep begins, as a cluster does
            return timed(runs, options.data_dir, engine="ray")

    ways: dict[str, Callable[[], tuple[float, dict[str, float]]]] = {
        "serial": lambda: timed(runs, options.data_dir, workers=1),
        "local": lambda: timed(runs, options.data_dir),
        "ray": by_ray,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    figures = []
    for _ in range(options.rounds):
        for way, run in ways.items():
            spent, found = run()
            seconds[way].append(spent)
            figures.append(found)
            print(f"{way}: {len(runs)} arms in {spent:.0f} s", flush=True)
    same = all(found == figures[0] for found in figures)
    speed = {
        way: median(serial / spent for serial, spent in zip(seconds["serial"], seconds[way], strict=True))
        for way in GOALS
    }
    for way, goal in GOALS.items():
        print(f"{way}: {speed[way]:.2f} times as fast as one after the other (goal {goal})")
    print(f"the same figures, to the bit: {same}")
    if not same:
        raise SystemExit(1)
    versions = {"torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    write_json(
        options.out, {"versions": versions, "epochs": options.epochs, "seconds": seconds, "speed": speed, "same": same}
    )


if __name__ == "__main__":
    main()
