"""The shift predicted without data against the one measured, and checkpoints corrected without data.

    python -m benchmarks.prediction [--seeds 3] [--data-dir DIR] [--nets FOLDER] [--parts "MLP, digits" speed]

Nets are trained with dropout right before norms (a) or before weight layers (b), at three rates; each is trained once
and kept in --nets. MNIST and CIFAR-10 are read from --data-dir (or EVENKEEL_DATA).
"""

from __future__ import annotations

import argparse
import copy
import math
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

import evenkeel as ek
from benchmarks.measuring import Part, run_parts, seconds
from benchmarks.nets import Batches, Net, add_options
from benchmarks.placements import FAMILIES, PLACES, RATES, net_of
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.model.evaluation import evaluate

GOALS = {"MLP": 0.05, "plain CNN": 0.05, "residual net": 0.10, "DenseNet": 0.10}
_MEASURED = 24  # batches that the shift is measured on


def departures(report: ek.ShiftReport) -> dict[str, float]:
    """Log ratios of eval to running variance, by norm."""
    return {row.path: math.log(row.ratio) for row in report}


def score(model: nn.Module, test: Batches) -> dict[str, float]:
    found = evaluate(model, test)
    return {name: getattr(found, name) for name in ("error", "log_loss")}


def judge(net: Net, seed: int, training: Batches, test: Batches, options: argparse.Namespace) -> dict[str, Any]:
    """One net: its shift measured and predicted, and its scores as trained, corrected and re-estimated."""
    trained, some = net.trained(seed, options.data_dir, options.nets), training[:_MEASURED]
    example = torch.zeros(1, *training[0][0].shape[1:])
    measured, predicted = departures(ek.variance_shift(trained, some)), departures(ek.predict_shift(trained, example))
    ek.correct_(corrected := copy.deepcopy(trained), example)
    ek.reestimate_(reestimated := copy.deepcopy(trained), training, tolerance=0.01)
    after = departures(ek.variance_shift(corrected, some))
    return {
        "measured": list(measured.values()),
        "predicted": list(predicted.values()),
        "corrected": list(after.values()),
        "error": median(abs(predicted[path] - measured[path]) for path in measured),
        "shift": median(map(abs, measured.values())),
        "left": median(map(abs, after.values())),
        "as trained": score(trained, test),
        "without data": score(corrected, test),
        "with data": score(reestimated, test),
    }


def run_family(family: str, options: argparse.Namespace) -> dict[str, Any]:
    """The nets of one family, by place and rate of dropout: a judgement a seed."""
    training, test = net_of(family, "a", 0.0).load(options.data_dir)
    found: dict[str, Any] = {}
    for place in PLACES:
        for p in RATES:
            net = net_of(family, place, p)
            runs = [judge(net, seed, training, test, options) for seed in range(options.seeds)]
            found[f"({place}) {p:g}"] = runs
            print_runs(f"{family}, ({place}) {p:g}", runs, GOALS[family.split(",", maxsplit=1)[0]])
    return found


def part_of(family: str) -> Part:
    part = partial(run_family, family)
    part.__doc__ = (
        f"{family}: median over norms of |log ratio| as it is, how far the prediction is off, and what correct_ leaves;"
        "\ntest error % and log loss as trained / corrected without data / re-estimated with data. Means over seeds."
    )
    return part


def print_runs(name: str, runs: list[dict[str, Any]], goal: float) -> None:
    """One line: means over seeds."""
    shift, error, left = (fmean(run[key] for run in runs) for key in ("shift", "error", "left"))
    cells = [f"shift {shift:.3f}", f"predicted to {error:.3f}{'' if error <= goal else ' (missed)'}"]
    cells.append(f"left {left:.3f}, 1/{shift / left:.1f}{'' if left <= shift / 5 else ' (missed)'}")
    for figure, factor, digits in (("error", 100, 2), ("log_loss", 1, 3)):
        means = (
            fmean(factor * run[key][figure] for run in runs) for key in ("as trained", "without data", "with data")
        )
        cells.append(f"{figure} {' / '.join(f'{mean:.{digits}f}' for mean in means)}")
    print(f"{name:32} {'  '.join(cells)}", flush=True)


def run_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that predict_shift takes, beside a busy process too, and the peak of memory, each in its own process."""
    figures: dict[str, Any] = {}
    for name, (pixels, _) in TIMED.items():
        first, again, before, peak = timed_alone(name)
        with busy_process():
            _, beside, *_ = timed_alone(name)
        figures[name] = {"pixels": pixels, "seconds first": first, "seconds": again, "seconds beside": beside}
        figures[name] |= {"MiB": peak, "MiB before": before}
        times = f"{again:.2f} s, the first time in a process {first:.2f} s, beside a busy one {beside:.2f} s"
        print(f"{name}, {pixels} px: {times}; {peak:.0f} MiB at the peak, {before:.0f} of them before", flush=True)
    return figures


def timed_alone(name: str) -> list[float]:
    """What `time_one` prints, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prediction", "--one", name]
    return [float(x) for x in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


@contextmanager
def busy_process() -> Generator[None]:
    """Have another process compute meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def bottlenecks(widths: tuple[int, ...], depths: tuple[int, ...], stem: Sequence[nn.Module]) -> nn.Sequential:
    """A pre-activation bottleneck net with dropout of type (a), as deep as ResNet-50."""
    layers, inputs = list(stem), widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(inputs, width, stride))
            inputs = 4 * width
    return nn.Sequential(
        *layers, nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)
    )


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, width, 1, bias=False)),
            *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, stride, 1, bias=False)),
            *(nn.Dropout(0.3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4 * width, 1, bias=False)),
        )
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.branch(x)


TIMED: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "pre-activation bottlenecks, 50 layers": (
        32,
        lambda: bottlenecks((16, 32, 64), (5, 6, 5), [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]),
    ),
    "the same, as wide as ResNet-50": (
        224,
        lambda: bottlenecks(
            (64, 128, 256, 512), (3, 4, 6, 3), [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
        ),
    ),
    "DenseNet-121": (224, lambda: import_torchvision().models.densenet121(drop_rate=0.2)),
}


def time_one(name: str) -> None:
    """Print seconds of a first and a second predict_shift, and the peak of memory before them and after, in MiB."""
    import resource

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    pixels, build = TIMED[name]
    net = build()
    with torch.no_grad():
        net(torch.randn(8, 3, pixels, pixels))
    before = peak()
    first, again = (seconds(lambda: ek.predict_shift(net, torch.zeros(1, 3, pixels, pixels))) for _ in range(2))
    print(first, again, before, peak())


def main() -> None:
    torch.set_num_threads(2)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--one", choices=TIMED, help=argparse.SUPPRESS)
    if name := parser.parse_known_args()[0].one:
        time_one(name)
    else:
        parts = {family: part_of(family) for family in FAMILIES} | {"speed": run_speed}
        run_parts(parser, parts, Path("results/prediction.json"))


if __name__ == "__main__":
    main()
