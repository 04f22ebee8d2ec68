"""One model's row: its order, findings, repair, and the shift of its norms, predicted and measured."""

from __future__ import annotations

import copy
import math
import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import evenkeel as ek
from benchmarks.field.catalogue import find
from benchmarks.field.model import FieldModel
from benchmarks.zoo import OutOfTimeError, Row
from evenkeel.graph.queries import norms_behind
from evenkeel.io.checkpoints import Checkpoint
from evenkeel.linting.context import Context
from evenkeel.linting.findings import joined
from evenkeel.linting.linter import examine, wanted
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.norms import norms_of
from evenkeel.model.restoring import restored

GUIDELINES: tuple[ek.Guideline, ...] = ("hendrycks2016", "li2018", "kim2023")
BATCHES = 4  # of random data, twice as many of small ones: the spread over batches is a few percent of a ratio
SAMPLES, ELEMENTS = 32, 1 << 20  # of a batch, as far as the net takes it: of few, train mode stores too little
UPDATES = 1000  # that norms are said to have had: a plain mean holds nothing of the initial statistics
LONG = 160  # characters of a picture that is still read
PATIENCE = 120  # seconds a step


def measure_named(name: str, checkpoints: Path | None) -> Row:
    """The row of the model of that name: what another process is asked for."""
    return measure(find(name), checkpoints)


def measure(model: FieldModel, checkpoints: Path | None) -> Row:
    """The row of one model; a step that fails or takes too long is said in it, and never raises."""
    row: Row = {"model": model.name, "library": model.library, "rate": model.rate}
    start = time.perf_counter()
    row |= {"version": model.version, "anew": bool(model.anew)}
    torch.manual_seed(0)
    built = attempt(row, "built", model.build)
    if built is not None:
        net, example = built
        graph = attempt(row, "read", lambda: ek.trace(net, example))
        if graph is not None:
            row |= read(graph)
            fill_(row, model, graph, checkpoints)
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def fill_(row: Row, model: FieldModel, graph: ek.LayerGraph, checkpoints: Path | None) -> None:
    """Take the steps that need a graph, and write into the row what each returns, if it returns anything."""
    net = graph.model
    assert net is not None
    data = batches_like(net, graph.example)
    steps: dict[str, Callable[[], Row | list[Row] | None]] = {
        "settled": lambda: settle_(net, data),
        "findings": lambda: findings(net, graph, model.anew),
        "fix": lambda: fixes(net, graph, row.get("findings", [])),
        "measured": lambda: None if "not settled" in row else ratios(ek.variance_shift(net, data, forward=run)),
        "predicted": lambda: ratios(ek.predict_shift(net, graph)),
        "trained": lambda: trained(model, checkpoints),
    }
    for name, step in steps.items():
        found = attempt(row, name, step)
        if found is not None:
            row[name] = found


def attempt(row: Row, name: str, step: Callable[[], Any]) -> Any:
    """What a step returns; nothing, and in the row under "not ..." the reason, if it raises or takes too long."""
    try:
        with patient(PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return step()
    except (Exception, OutOfTimeError) as error:
        row[f"not {name}"] = reason(error)
        return None


def reason(error: BaseException) -> str:
    """An exception in one line: its type, its first line, and the innermost place in the code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    first = re.sub(r"/\S+/site-packages/", "", (str(error).splitlines() or [""])[0])[:240]
    place = "" if isinstance(error, (ek.EvenkeelError, OutOfTimeError)) else f" ({shortened(frame.filename)})"
    return f"{type(error).__name__}: {first}{place}"


@contextmanager
def patient(seconds: int) -> Generator[None]:
    """Raise OutOfTimeError in what takes longer."""

    def run_out(*_: Any) -> None:
        raise OutOfTimeError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, run_out)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# What the model is


def read(graph: ek.LayerGraph) -> Row:
    """The facts of a graph: how many layers, which rates, and its order as a picture."""
    dropouts = [layer for layer in graph.of(ek.Kind.DROPOUT) if layer.drops]
    recurrent = [layer for layer in graph.of(ek.Kind.OPAQUE) if layer.p]
    rates = Counter(layer.p for layer in (*dropouts, *recurrent))
    return {
        "parameters": sum(p.numel() for p in graph.model.parameters()) if graph.model else 0,
        "layers": len(graph),
        "norms": sum(layer.stores for layer in graph),
        "dropouts": {"?" if p is None else f"{p:g}": n for p, n in sorted(rates.items(), key=lambda r: r[0] or 0)},
        "opaque": dict(Counter(layer.function for layer in graph.of(ek.Kind.OPAQUE))),
        "order": picture(graph),
    }


def picture(graph: ek.LayerGraph) -> str:
    """The graph's order without what only passes on, repeats written once; of a long one, the ways to its norms."""
    letters = [layer.kind.value for layer in graph if layer.kind is not ek.Kind.PASS]
    whole = repeats(letters)
    return whole if len(whole) <= LONG else "… " + ", ".join(ways(graph))


def repeats(letters: list[str]) -> str:
    """Letters as a text, with the longest stretch that is repeated, again and again, written once.

    >>> repeats("i W N A D W N A D W o".split())
    'i [W N A D]x2 W o'
    """
    words = list(letters)
    for size in range(len(words) // 2, 1, -1):
        start = 0
        while start + 2 * size <= len(words):
            unit, times = words[start : start + size], 1
            while words[start + times * size : start + (times + 1) * size] == unit:
                times += 1
            if times > 1 and len(set(unit)) > 1:
                words[start : start + times * size] = [f"[{repeats(unit)}]x{times}"]
            start += 1
    return " ".join(words)


def ways(graph: ek.LayerGraph, most: int = 4) -> list[str]:
    """The shortest ways from dropouts to the norms that they reach, the most frequent first."""
    found: Counter[str] = Counter()
    for dropout in graph.of(ek.Kind.DROPOUT):
        if dropout.drops:
            for norm in norms_behind(graph, dropout, through_weights=True):
                found[shortest(graph, dropout, norm)] += 1
    listed = [f"{way} ({times}x)" for way, times in found.most_common(most)]
    return ([*listed, f"{len(found) - most} more"] if len(found) > most else listed) or ["no dropout reaches a norm"]


def shortest(graph: ek.LayerGraph, start: ek.Layer, end: ek.Layer) -> str:
    """The kinds on the shortest way between two layers."""
    before: dict[ek.Layer, ek.Layer | None] = {start: None}
    queue = [start]
    while end not in before:
        layer = queue.pop(0)
        for user in layer.users:
            if user not in before:
                before[user] = layer
                queue.append(user)
    way, layer = [end], before[end]
    while layer is not None:
        way.append(layer)
        layer = before[layer]
    return " ".join(layer.kind.value for layer in reversed(way) if layer.kind is not ek.Kind.PASS)


# What lint and fix say


def findings(net: nn.Module, graph: ek.LayerGraph, anew: str) -> list[Row]:
    """All findings but chen2019's, which nearly every network has; of a block written anew, where it was published."""
    context = Context(net, graph)
    return [
        {
            "guideline": f.guideline,
            "code": f.code,
            "path": f.path,
            "where": anew or (f"{shortened(f.file)}:{f.line}" if f.file else ""),
            "message": f.message,
            "norm": f.norm,
        }
        for guideline in GUIDELINES
        for f in joined(examine(context, wanted(guideline, (), ())))
    ]


def shortened(file: str) -> str:
    """A file's path below the folder that Python imports it from."""
    roots = [root for root in (str(Path(p).absolute()) for p in sys.path) if file.startswith(f"{root}/")]
    return file[len(max(roots, key=len)) + 1 :] if roots else Path(file).name


def fixes(net: nn.Module, graph: ek.LayerGraph, found: list[Row]) -> Row:
    """What fix makes of the guidelines on placement that have findings: how many are mended, and why not the others."""
    result: Row = {}
    for guideline in GUIDELINES[1:]:
        if any(f["guideline"] == guideline and f["code"] != "EK104" for f in found):
            mended = attempt(result, guideline, lambda guideline=guideline: fixed(net, graph, guideline))
            result |= {guideline: mended} if mended else {}
    return result


def fixed(net: nn.Module, graph: ek.LayerGraph, guideline: ek.Guideline) -> Row:
    report = ek.fix(net, graph, guideline=guideline).evenkeel_fix
    assert isinstance(report, ek.FixReport)
    return {
        "fixed": len(report) - len(report.left),
        "left": [f"{row.code} {row.path}: {row.reason}" for row in report.left],
    }


# The shift of its norms


def batches_like(net: nn.Module, example: Any, seed: int = 0) -> list[Any]:
    """Batches like the example, of more samples if the net takes them, the same for both modes; floats are random."""
    generator = torch.Generator().manual_seed(seed)
    given = tensors(example)
    size = len(given[0]) if given and given[0].dim() else 1
    together = sum(t.numel() for t in given) / max(size, 1)
    wanted = max(size, min(SAMPLES, int(ELEMENTS / max(together, 1))))

    def batch(samples: int) -> Any:
        def drawn(tensor: Tensor) -> Tensor:
            shape = (samples, *tensor.shape[1:]) if tensor.dim() and len(tensor) == size else tensor.shape
            if tensor.is_floating_point():
                return noise(shape, generator)
            rows = torch.randint(size, (samples,), generator=generator)
            return tensor[rows] if shape != tensor.shape else tensor

        return map_tensors(drawn, example)

    if wanted > size and not takes(net, batch(wanted)):
        wanted = size
    return [batch(wanted) for _ in range(BATCHES * max(1, min(SAMPLES // wanted, 2)))]


def takes(net: nn.Module, batch: Any) -> bool:
    """Whether the net runs on a batch; it is restored."""
    with restored(net), torch.no_grad():
        try:
            run(net.train(), batch)
        except Exception:  # whatever it raises, of another size than its own
            return False
    return True


def noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise of variance 1: of maps with as much power in every octave, as in photographs; else white."""
    white = torch.randn(tuple(shape), generator=generator)
    sizes = shape[2:]
    if len(sizes) < 2 or math.prod(sizes) < 2:
        return white
    dims = tuple(range(2, len(shape)))
    squares = [f.square() for f in map(torch.fft.fftfreq, sizes[:-1])] + [torch.fft.rfftfreq(sizes[-1]).square()]
    radius = torch.stack(torch.meshgrid(*squares, indexing="ij")).sum(0).sqrt().clamp_min(1 / max(sizes))
    maps = torch.fft.irfftn(torch.fft.rfftn(white, dim=dims) / radius ** (len(sizes) / 2), s=sizes, dim=dims)
    return maps / maps.std()


def run(net: nn.Module, batch: Any) -> Any:
    """Call a model as `trace` calls it: a tuple is its arguments, a dict its keywords."""
    if isinstance(batch, dict):
        return net(**batch)
    return net(*batch) if isinstance(batch, tuple) else net(batch)


def settle_(net: nn.Module, data: list[Any], passes: int = 1) -> None:
    """Store what long training with dropout on would store: the plain mean over the batches."""
    torch.manual_seed(0)
    norms = norms_of(net).values()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    try:
        with torch.no_grad():
            for batch in data * passes:
                run(net, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(UPDATES)


def ratios(report: ek.ShiftReport) -> Row:
    """Eval over train variance of every norm, and what the report is not sure of."""
    notes = [note for note in report.notes if not any(note.endswith(why) for why in report.unsure.values())]
    return {
        "ratios": {row.path: float(f"{row.ratio:.4g}") for row in report},
        "unsure": dict(report.unsure),
        "notes": notes[:4],
    }


def trained(model: FieldModel, checkpoints: Path | None) -> Row | None:
    """The same of trained weights, where there are any: predicted of the file as it is, measured on the same data."""
    if model.trained is None:
        return of_folder(model, checkpoints)
    net, data = model.trained(checkpoints)
    predicted = ratios(ek.predict_shift(net, data[0][:8]))
    with_noise = copy.deepcopy(net)
    settle_(with_noise, data, passes=3)
    return {"predicted": predicted, "measured": ratios(ek.variance_shift(with_noise, data))}


def of_folder(model: FieldModel, checkpoints: Path | None) -> Row | None:
    """The prediction of a checkpoint in the user's folder whose file is named as the model."""
    files = sorted(checkpoints.glob(f"{model.name}.*")) if checkpoints else []
    if not files:
        return None
    net, example = model.build()
    Checkpoint.read(files[0]).apply_(net)
    return {"predicted": ratios(ek.predict_shift(net, example))}
