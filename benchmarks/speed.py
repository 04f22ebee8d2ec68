"""What every verb costs: time over a bare forward pass, with one thread and two, cold and warm; and how time grows.

    python -m benchmarks.speed [--parts verbs growth before] [--models MODEL ...] [--verbs VERB ...] [--threads 1 2]
        [--rounds 5] [--before FOLDER] [--page docs/speed.md]

Every figure comes from a process of its own: the first call there is cold, the others take turns with the bare
forward pass in eval mode of the same input, and ratios are medians over these rounds. Verbs that read data are given
batches, all others an example of two samples. Memory is what the process holds at its peak beyond what it held after
a bare pass. Growth: seconds of a chain of linear layers, norms, ReLUs and dropouts as one number of it grows, and the
exponent that fits them. Before: the same verbs of another evenkeel, such as an older checkout, each verb's processes
taking turns with those of this one. --page puts the tables of all that the results hold into a page.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import evenkeel as ek
from benchmarks.architectures import Transformer, bare, densenet121, mlp, resnet18, resnet50
from benchmarks.measuring import run_parts, seconds, show, spread
from benchmarks.pages import put_into

RESULTS, PAGE = Path("results/speed.json"), Path("docs/speed.md")
PAIRS = 3  # of processes, in a comparison
SHORT, LEAST = 20, 3  # seconds that a cold call takes at most where it is repeated, and rounds that are wanted


class Model(NamedTuple):
    """A model, the shape of a sample, and how many samples and batches verbs that read data are given."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: int
    batches: int


MODELS = {
    "MLP 3 x 256": Model(mlp, (784,), 128, 40),
    "ResNet-18, 32 px": Model(resnet18, (3, 32, 32), 128, 8),
    "ResNet-50, 224 px": Model(resnet50, (3, 224, 224), 16, 4),
    "DenseNet-121, 224 px": Model(densenet121, (3, 224, 224), 16, 4),
    "transformer, 12 blocks with batch norm": Model(Transformer, (3, 32, 32), 64, 8),
}
Run = Callable[[nn.Module, Tensor, Sequence[Tensor]], object]
OF_GRAPH: dict[str, Run] = {
    "trace": lambda model, example, _: ek.trace(model, example),
    "lint": lambda model, example, _: ek.lint(model, example),
    "fix": lambda model, example, _: ek.fix(model, example, guideline="li2018"),
    "init_": lambda model, example, _: ek.init_(model, example),
    "predict_shift": lambda model, example, _: ek.predict_shift(model, example),
    "correct_": lambda model, example, _: ek.correct_(model, example).undo(),
    "check_signals": lambda model, example, _: ek.check_signals(model, example),
}
OF_DATA: dict[str, Run] = {
    "variance_shift": lambda model, _, batches: ek.variance_shift(model, batches),
    "reestimate_": lambda model, _, batches: ek.reestimate_(model, batches).undo(),
    "reestimate_, match='mean'": lambda model, _, batches: ek.reestimate_(model, batches, match="mean").undo(),
}
VERBS = OF_GRAPH | OF_DATA
GROWING = ("trace", "lint", "init_", "predict_shift", "correct_", "check_signals", "reestimate_")
DEPTHS, WIDTHS, SIZES = (20, 50, 100, 200, 400), (32, 64, 128, 256, 512), (8, 32, 128, 512)  # layers of a kind; samples
AXES = {
    "layers": [(depth, 32, 16) for depth in DEPTHS],
    "width": [(20, width, 16) for width in WIDTHS],
    "batch": [(20, 64, size) for size in SIZES],
}


def as_trained(build: Callable[[], nn.Module], example: Tensor) -> nn.Module:
    """A model whose norms have seen a batch in train mode, as verbs that read statistics expect."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        model.train()(torch.randn(8, *example.shape[1:]))
    return model


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_verb(name: str, verb: str, rounds: int) -> dict[str, Any]:
    """Seconds of a verb's first call, of a bare pass and of the calls that take turns with it; memory in MiB."""
    found = MODELS[name]
    example = torch.randn(2, *found.shape)
    model = as_trained(found.build, example)
    data = [torch.randn(found.samples, *found.shape) for _ in range(found.batches)] if verb in OF_DATA else [example]
    pass_by = partial(bare, model, data)
    pass_by()
    before = peak()
    run = partial(VERBS[verb], model, example, data)
    first = seconds(run)
    held = peak() - before
    turns = [(seconds(pass_by), seconds(run)) for _ in range(rounds if first < SHORT else LEAST)]
    passes, runs = zip(*turns, strict=True)
    return {
        "bare": median(passes),
        "cold": first,
        "seconds": median(runs),
        "ratio": spread([one / other for other, one in turns]),
        "cold ratio": first / median(passes),
        "MiB": held,
    }


def chain(layers: int, width: int) -> nn.Sequential:
    blocks = ((nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1)) for _ in range(layers))
    return nn.Sequential(*(layer for block in blocks for layer in block))


def time_growth(verb: str, axis: str, rounds: int) -> dict[str, Any]:
    """Least seconds of a verb at every place of an axis, and the exponent that fits them."""
    found = list[float]()
    for layers, width, size in AXES[axis]:
        data = [torch.randn(size, width) for _ in range(4)]
        model = as_trained(partial(chain, layers, width), data[0])
        run = partial(VERBS[verb], model, data[0], data)
        run()
        found.append(min(seconds(run) for _ in range(rounds)))
    places = {"layers": DEPTHS, "width": WIDTHS, "batch": SIZES}[axis]
    return {"seconds": found, "exponent": exponent_of(places, found)}


def exponent_of(places: Sequence[float], times: Sequence[float]) -> float:
    """The slope of log time over log size, by least squares.

    >>> round(exponent_of([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    x, y = (torch.tensor([math.log(value) for value in values], dtype=torch.float64) for values in (places, times))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def measured(options: argparse.Namespace, threads: int, *what: str, package: Path | None = None) -> dict[str, Any]:
    """What a process of its own with so many threads finds, of this evenkeel or of the one in a folder."""
    first = "" if package is None else f"sys.path.insert(0, {str(package)!r}); import evenkeel; del sys.path[0]; "
    begin = f"import runpy, sys; {first}runpy.run_module('benchmarks.speed', run_name='__main__')"
    command = [sys.executable, "-c", begin, "--rounds", str(options.rounds), "--one", str(threads), *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def run_verbs(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Time over a bare forward pass of the same input: warm (middle half), cold; peak memory."""
    for name, threads in product(options.models, options.threads):
        rows = {}
        for verb in options.verbs:
            rows[verb] = figure = measured(options, threads, "verb", name, verb)
            print(f"  {name}, {threads} threads: {verb:26} {_said(figure)}", flush=True)
        known = json.loads(options.out.read_text()).get("verbs", {}) if options.out.exists() else {}
        key = f"{name}; {threads} threads"
        yield key, known.get(key, {}) | rows


def _said(figure: dict[str, Any]) -> str:
    if "error" in figure:
        return str(figure["error"])
    times = f"x{show(figure['ratio'], '.1f')}, cold x{figure['cold ratio']:.1f}"
    return f"{times}; {figure['seconds']:.2f} s, cold {figure['cold']:.2f} s; {figure['MiB']:.0f} MiB"


def run_before(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Seconds of a verb in another evenkeel and in this one, whose processes take turns."""
    if options.before is None:
        print("  not run: it needs --before FOLDER, a checkout of the evenkeel to compare with")
        return
    for name, threads in product(options.models, options.threads):
        rows = {}
        for verb in options.verbs:
            pairs = [
                [measured(options, threads, "verb", name, verb, package=package) for package in (options.before, None)]
                for _ in range(PAIRS)
            ]
            if any("error" in figure for pair in pairs for figure in pair):
                continue
            rows[verb] = {
                kind: {
                    "before": median(before[kind] for before, _ in pairs),
                    "now": median(now[kind] for _, now in pairs),
                    "ratio": spread([before[kind] / now[kind] for before, now in pairs]),
                }
                for kind in ("seconds", "cold")
            }
            print(f"  {name}, {threads} threads: {verb:26} {_compared(rows[verb])}", flush=True)
        known = json.loads(options.out.read_text()).get("before", {}) if options.out.exists() else {}
        key = f"{name}; {threads} threads"
        yield key, known.get(key, {}) | rows


def _compared(row: dict[str, Any]) -> str:
    """Warm seconds before and now; how many times as fast."""
    warm = row["seconds"]
    return f"{warm['before']:.3g} to {warm['now']:.3g} s, x{warm['ratio']['median']:.3g}"


def run_growth(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Seconds as a net grows in layers, width or batch, one thread; and the exponent fitted."""
    for verb in options.verbs:
        if verb not in GROWING:
            continue
        found = {axis: measured(options, 1, "growth", verb, axis) for axis in AXES}
        for axis, figure in found.items():
            times = " ".join(f"{one:.3f}" for one in figure.get("seconds", []))
            print(f"  {verb:16} {axis:8} {times}  {figure.get('exponent', figure.get('error'))}", flush=True)
        yield verb, found


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the page, in Markdown, by their marks."""
    makers = {"verbs": _verbs, "growth": _growth, "before": _before}
    return {name: "\n".join(table(results.get(name, {}))) + "\n" for name, table in makers.items()}


Rows = Mapping[str, Mapping[str, Any]]


def _verbs(results: Rows) -> list[str]:
    """A line a network and verb, a column a number of threads."""
    threads = sorted({_parted(key)[1] for key in results})
    lines = list[list[str]]()
    for name in dict.fromkeys(_parted(key)[0] for key in results):
        found = [results.get(f"{name}; {number} threads", {}) for number in threads]
        passes = [next((row["bare"] for row in one.values() if "bare" in row), math.nan) for one in found]
        lines.append([f"**{name}**", "bare pass", *(f"{one:.3g} s" for one in passes)])
        verbs = [verb for verb in VERBS if any(verb in one for one in found)]
        lines += [["", f"`{verb}`", *(_cell(one.get(verb, {})) for one in found)] for verb in verbs]
    heads = [f"{number} thread{'s' if number > 1 else ''}" for number in threads]
    return _table(["network", "verb", *heads], lines)


def _growth(results: Rows) -> list[str]:
    lines = list[list[str]]()
    for verb, found in results.items():
        exponents = (found[axis].get("exponent") for axis in AXES)
        lines.append([f"`{verb}`", *("failed" if one is None else f"{one:.2f}" for one in exponents)])
    return _table(["exponent of", *AXES], lines)


def _before(results: Rows) -> list[str]:
    lines = list[list[str]]()
    for name, rows in results.items():
        for verb in (verb for verb in VERBS if verb in rows):
            warm = rows[verb]["seconds"]
            times = f"{warm['before']:.3g}", f"{warm['now']:.3g}", f"x{show(warm['ratio'], '.2f')}"
            lines.append([name, f"`{verb}`", *times])
    return _table(["network", "verb", "before, s", "now, s", "times as fast (middle half)"], lines)


def _parted(key: str) -> tuple[str, int]:
    """The name of a network and the number of threads."""
    name, _, threads = key.rpartition("; ")
    return name, int(threads.split()[0])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _cell(row: dict[str, Any]) -> str:
    """Warm seconds and ratio, cold seconds, memory."""
    if "ratio" not in row:
        return "failed" if row else ""
    return f"{row['seconds']:.3g} s, x{row['ratio']['median']:.3g}; cold {row['cold']:.3g} s; {row['MiB']:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="checkout of the evenkeel to compare with")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the tables of all results into this page")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    known = parser.parse_known_args()[0]
    if known.one:
        threads, kind, *what = known.one
        torch.set_num_threads(int(threads))
        measure = time_verb if kind == "verb" else time_growth
        print(json.dumps(measure(what[0], what[1], known.rounds)))
        return
    options = run_parts(parser, {"verbs": run_verbs, "growth": run_growth, "before": run_before}, RESULTS)
    if options.page is not None:
        put_into(options.page, tables(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
