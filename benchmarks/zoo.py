"""What ek.trace makes of models in use: all classification models of torchvision, all of timm, and some beyond vision.

    python -m benchmarks.zoo [--library torchvision|timm|beyond|all] [--only PATTERN] [--resume]
        [--out results/zoo.json]

Every model is built with its initializers skipped and its drop rates, where the constructor takes them, switched on,
and traced at its own input size with a batch of 2. The figures are: traced or why not, seconds of ek.trace, layers per
kind, the OPAQUE functions, dropouts with a rate above 0, and, of norms with running statistics, the OPAQUE layers
between a dropout and the norm. --resume keeps the models that --out has, and takes up those that it lacks or that
failed. Models above 1e9 parameters are traced on the meta device, where they need no memory.

The libraries beyond vision ask for another torch if they are installed as they are; this leaves torch alone:

    pip install --no-deps --target beyond torch_geometric braindecode scvi-tools     # and what they then miss
    PYTHONPATH=beyond python -m benchmarks.zoo --library beyond

braindecode imports torchaudio, which without the compiled libraries in its lib/ goes with any torch.

A library that is not installed is skipped and named.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import logging
import multiprocessing
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import evenkeel as ek
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.model.norms import has_running_statistics
from evenkeel.output.files import atomic_write

Row = dict[str, Any]
LARGE = 1_000_000_000  # parameters
MEMORY = 16 * 2**30  # bytes of address space a process
PATIENCE = 60  # seconds a model
BATCH = 50  # models between two times that what there is is saved


class SkipInitializers(TorchFunctionMode):
    """Leave large tensors as they are where an initializer would fill or scale them."""

    SKIPPED = frozenset(
        "normal_ uniform_ kaiming_normal_ kaiming_uniform_ orthogonal_ erfinv_ clamp_ mul_ add_ div_".split()
    )

    def __enter__(self) -> Any:
        # torch draws truncated normals until all lie between the bounds, which no draw that is skipped will do
        self.patch = patch.object(nn.init, "_no_grad_trunc_normal_", lambda tensor, *args, **kwargs: tensor)
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patch.stop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.SKIPPED:
            filled = args[0] if args else kwargs["tensor"]
            if filled.numel() > 2**14:
                return filled
        return func(*args, **kwargs)


class OutOfTimeError(BaseException):
    """Not an Exception, so that nobody but this file handles it."""


# Builders: the model of that name on the default device, and its example


def torchvision_model(name: str) -> tuple[nn.Module, Any]:
    models = import_torchvision().models
    options: dict[str, Any] = {"drop_rate": 0.1} if name.startswith("densenet") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # warns if not told
    model = models.get_model(name, weights=None, **options)
    default = next(iter(models.get_model_weights(name))).transforms().crop_size[0]
    size = getattr(model, "image_size", default)
    return model, torch.zeros(2, 3, size, size)


def timm_model(name: str) -> tuple[nn.Module, Any]:
    import timm

    model = first_accepted(
        lambda **rates: timm.create_model(name, **rates),
        {"drop_rate": 0.1, "drop_path_rate": 0.1},
        {"drop_rate": 0.1},
        {"drop_path_rate": 0.1},
        {},
    )
    return model, torch.zeros(2, *model.default_cfg["input_size"])


def first_accepted(build: Callable[..., nn.Module], *choices: dict[str, float]) -> nn.Module:
    for rates in choices[:-1]:
        try:
            return build(**rates)
        except (TypeError, AssertionError):
            continue
    return build(**choices[-1])


def beyond_model(name: str) -> tuple[nn.Module, Any]:
    package, kind = name.split(".")
    return {"torch_geometric": graph_net, "braindecode": eeg_net, "scvi": cell_net}[package](kind)


def graph_net(kind: str) -> tuple[nn.Module, Any]:
    nets = importlib.import_module("torch_geometric.nn")
    nodes, edges = torch.zeros(20, 16), torch.randint(20, (2, 60))
    if kind == "MLP":
        return nets.MLP([16, 32, 32, 4], dropout=0.5, norm="batch_norm"), nodes
    return getattr(nets, kind)(16, 32, num_layers=3, out_channels=4, dropout=0.5, norm="batch_norm"), (nodes, edges)


def eeg_net(kind: str) -> tuple[nn.Module, Any]:
    models = importlib.import_module("braindecode.models")
    length, rate = (3000, 100) if kind == "USleep" else (1000, 250)
    model = getattr(models, kind)(n_chans=22, n_outputs=4, n_times=length, sfreq=rate)
    return model, torch.zeros(2, 22, length)


def cell_net(kind: str) -> tuple[nn.Module, Any]:
    nets = importlib.import_module("scvi.nn")
    if kind == "FCLayers":
        return nets.FCLayers(50, 10, n_cat_list=[3], n_layers=3, dropout_rate=0.1), (
            torch.zeros(8, 50),
            torch.zeros(8, 1, dtype=torch.long),
        )
    return nets.Encoder(50, 10, n_layers=2, dropout_rate=0.1), torch.zeros(8, 50)


BUILDERS = {"torchvision": torchvision_model, "timm": timm_model, "beyond": beyond_model}
BEYOND = {
    "torch_geometric": "MLP GraphSAGE GIN GCN GAT EdgeCNN",
    "braindecode": """
        EEGNet ShallowFBCSPNet Deep4Net EEGConformer EEGInceptionERP EEGInceptionMI EEGITNet ATCNet EEGTCNet EEGNeX
        TIDNet FBCNet CTNet SincShallowNet BDTCN TSception IFNet MSVTNet AttentionBaseNet FBMSNet FBLightConvNet
        HybridNet EEGSimpleConv SPARCNet ContraWR EEGMiner SCCNet SleepStagerChambon2018 DeepSleepNet USleep""",
    "scvi": "FCLayers Encoder",
}


def names_of(library: str) -> list[str]:
    """Targets of a library, such as "timm:resnet50"."""
    if library == "torchvision":
        models = import_torchvision().models
        names = models.list_models(module=models)
    elif library == "timm":
        names = importlib.import_module("timm").list_models()
    else:
        names = []
        for package, kinds in BEYOND.items():
            if importlib.util.find_spec(package) is None:
                print(f"skipped: {package} is not installed")
            else:
                names += [f"{package}.{kind}" for kind in kinds.split()]
    return [f"{library}:{name}" for name in names]


# One model


def prepare_process() -> None:
    import resource

    import_torchvision()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, run_out_of_time)
    warnings.simplefilter("ignore")
    logging.disable()


def run_out_of_time(*_: Any) -> None:
    raise OutOfTimeError(f"not done after {PATIENCE} s")


def measure(target: str) -> Row:
    """One model's row; never an exception, whatever the model does."""
    row: Row = {"model": target}
    with failing_into(row):
        row["step"] = "build"
        model, example, row["parameters"] = build_model(target)
        row["step"] = "trace"
        start = time.perf_counter()
        graph = ek.trace(model, example)
        row["seconds"] = round(time.perf_counter() - start, 3)
        row["step"] = "read"
        row |= read_graph(graph)
    return row


@contextmanager
def failing_into(row: Row) -> Generator[None]:
    """Write into a model's row what was raised, or that it took too long, and in which step."""
    gc.collect()  # of the model before
    signal.alarm(PATIENCE)
    try:
        yield
    except (Exception, OutOfTimeError) as error:
        lines = str(error).splitlines() or [""]
        row["error"] = f"{row['step']}: {type(error).__name__}: {lines[0]}"[:300]
    finally:
        signal.alarm(0)
        del row["step"]


def build_model(target: str) -> tuple[nn.Module, Any, int]:
    """Model, example, number of parameters; the meta device tells first whether the model fits."""
    library, name = target.split(":")
    build = BUILDERS[library]
    if library == "timm":
        try:
            with torch.device("meta"):
                model, example = build(name)
            if (parameters := count_parameters(model)) > LARGE:
                return model, example, parameters
        except Exception:  # nothing but a constructor that reads data: the real one will tell
            pass
    with SkipInitializers():
        model, example = build(name)
    return model, example, count_parameters(model)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def read_graph(graph: ek.LayerGraph) -> Row:
    outputs, kinds = graph.of(ek.Kind.OUTPUT), Counter(layer.kind for layer in graph)
    reached = {layer for start in graph.of(ek.Kind.INPUT) for layer in graph.downstream(start)}
    if not reached.issuperset(outputs) or any(not layer.inputs for layer in outputs):
        raise ValueError("the output is not connected to the input")
    row: Row = {"kinds": " ".join(f"{kind.value}{kinds[kind]}" for kind in ek.Kind if kinds[kind])}
    row["dropouts"] = sum(layer.p != 0 for layer in graph.of(ek.Kind.DROPOUT))
    row["opaque"] = Counter(layer.function for layer in graph.of(ek.Kind.OPAQUE))
    norms = [layer for layer in graph.of(ek.Kind.NORM) if layer.module and has_running_statistics(layer.module)]
    if norms:
        row["running"] = len(norms)
        row["between"] = Counter(layer.function for layer in between(graph, norms))
    return row


def between(graph: ek.LayerGraph, norms: Iterable[ek.Layer]) -> set[ek.Layer]:
    """OPAQUE layers on a way from a dropout to one of the norms that has no other norm on it."""
    before = {layer for norm in norms for layer in graph.upstream(norm, until=ek.Kind.NORM)}
    opaque = {layer for layer in before if layer.kind is ek.Kind.OPAQUE}
    return {
        layer
        for layer in opaque
        if layer.p or any(is_noise(source) for source in graph.upstream(layer, until=ek.Kind.NORM))
    }


def is_noise(layer: ek.Layer) -> bool:
    """Whether a layer is, or has inside, a dropout with a rate that is not 0."""
    return layer.p != 0 if layer.kind is ek.Kind.DROPOUT else bool(layer.p)


# All models


def measure_all(
    targets: list[str],
    rows: dict[str, Row],
    processes: int,
    measure: Callable[[str], Row],
    save: Callable[[dict[str, Row]], None],
) -> None:
    """Fill `rows` and save them, in processes that are renewed now and then.

    A process that dies takes the models in flight with it: each of them is tried once more, alone.
    """
    batches = [targets[i : i + BATCH] for i in range(0, len(targets), BATCH)]
    while batches:
        batch = batches.pop(0)
        lost = run_batch(batch, rows, processes, measure)
        if len(batch) > 1:
            batches += [[target] for target in lost]
        else:
            rows |= {target: {"model": target, "error": "the process died"} for target in lost}
        save(rows)
        print(f"{len(rows)} models, {sum('error' in row for row in rows.values())} failed", flush=True)


def run_batch(batch: list[str], rows: dict[str, Row], processes: int, measure: Callable[[str], Row]) -> list[str]:
    """Measure some models in fresh processes; returns those that were lost when a process died."""
    spawn = multiprocessing.get_context("spawn")
    lost = []
    with ProcessPoolExecutor(min(processes, len(batch)), mp_context=spawn, initializer=prepare_process) as pool:
        futures: dict[Future[Row], str] = {pool.submit(measure, target): target for target in batch}
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    rows[futures[future]] = row = future.result()
                except BrokenProcessPool:
                    lost.append(futures[future])
                else:
                    if "error" in row:
                        print(f"{row['model']}: {row['error']}", flush=True)
    return lost


def totals(rows: dict[str, Row]) -> Row:
    figures: Row = {}
    for library in BUILDERS:
        group = [row for row in rows.values() if row["model"].startswith(f"{library}:")]
        traced = [row for row in group if "error" not in row]
        if not traced:
            continue
        seconds = [row["seconds"] for row in traced]
        opaque = Counter(name for row in traced for name in row["opaque"])
        figures[library] = {
            "models": len(group),
            "traced": len(traced),
            "failed": len(group) - len(traced),
            "median seconds": round(median(seconds), 3),
            "90th percentile seconds": round(quantiles(seconds, n=10)[-1] if len(seconds) > 1 else seconds[0], 3),
            "with a norm with running statistics": sum("running" in row for row in traced),
            "of these, OPAQUE between dropout and norm": [row["model"] for row in traced if row.get("between")],
            "models with an OPAQUE op, by name": dict(opaque.most_common()),
            "slowest": {r["model"]: r["seconds"] for r in sorted(traced, key=lambda r: -r["seconds"])[:5]},
            "traced on meta, too large to build": [r["model"] for r in traced if r["parameters"] > LARGE],
        }
    return figures


def save(rows: dict[str, Row], out: Path | None, figures: Row) -> None:
    """A JSON file with one line per model, below the figures of them all."""
    if out is None:
        return
    head = {"versions": {"torch": torch.__version__, "evenkeel": ek.__version__}, "totals": figures}
    lines = ",\n".join(json.dumps(rows[target]) for target in sorted(rows))
    with atomic_write(out) as temporary:
        text = json.dumps(head, indent=1).removesuffix("\n}")
        temporary.write_text(f'{text},\n "models": [\n{lines}\n]}}\n', encoding="utf-8")


def show(figures: Row) -> None:
    for library, table in figures.items():
        print(f"\n{library}")
        for name, value in table.items():
            items = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
            text = f"{len(items)}: {', '.join(items)}" if isinstance(items, list) else str(items)
            print(f"  {name}: {text}")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of a program that goes through all models."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=[*BUILDERS, "all"], default="all")
    parser.add_argument("--only", metavar="PATTERN", default="", help="a regular expression, searched in LIBRARY:NAME")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    return parser


def run(options: argparse.Namespace, measure: Callable[[str], Row], totals: Callable[[dict[str, Row]], Row]) -> None:
    """Go through the models that the options ask for, and show the figures of them all."""
    import_torchvision()  # for the others too, which import it by the way
    libraries = list(BUILDERS) if options.library == "all" else [options.library]
    rows: dict[str, Row] = {}
    if options.resume and options.out and options.out.exists():
        rows = {row["model"]: row for row in json.loads(options.out.read_text(encoding="utf-8"))["models"]}
    targets = [target for library in libraries for target in names_of(library) if re.search(options.only, target)]
    todo = [t for t in targets if "error" in rows.get(t, {"error": ""})]
    measure_all(todo, rows, options.processes, measure, lambda rows: save(rows, options.out, totals(rows)))
    show(totals(rows))


if __name__ == "__main__":
    run(parser_of(__doc__).parse_args(), measure, totals)
