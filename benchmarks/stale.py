"""Why statistics go stale: nets whose weights, data or averages changed, as found, after torch's update_bn, after ours.

    python -m benchmarks.stale [--parts digits cifar10 fused] [--seeds 3] [--data-dir DIR] [--page PAGE]

One net a seed is trained without dropout, one with; all else is done to these. CIFAR-10 is read from --data-dir (or
EVENKEEL_DATA). All three verdicts are on the same test images, and both repairs read the same batches: those that who
meets this has, so of the other domain, two at a time, or sorted by class. Figures go to results/stale.json, and the
tables into the page.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import evenkeel as ek
from benchmarks.measuring import run_parts
from benchmarks.pages import put_into
from evenkeel.io.datasets import load_data
from evenkeel.model.evaluation import evaluate
from evenkeel.model.norms import norms_of

Batches = list[tuple[Tensor, Tensor]]
RESULTS, PAGE = Path("results/stale.json"), Path("docs/why-statistics-go-stale.md")
PRUNING = Path("docs/after-pruning.md")
SIZE = 100  # images in a batch
_AVERAGED = 4  # epochs whose weights are averaged
SLOW = 0.001  # the momentum that keeps most of the initial statistics
TREATMENTS: dict[str, Callable[[nn.Module, Batches], Any]] = {
    "as found": lambda model, batches: None,
    "torch update_bn": lambda model, batches: update_bn(batches, model),
    "ek.reestimate_": lambda model, batches: ek.reestimate_(model, batches, unsure="write"),
}


@dataclass(frozen=True)
class Task:
    """A data set, the first images of it to train on, the widths of the net's convolutions, and for how long."""

    data: str
    images: int
    widths: tuple[int, ...]
    epochs: int
    p: float

    def load(self, data_dir: Path | None) -> tuple[Batches, Batches]:
        data = load_data(self.data, data_dir=data_dir, batch_size=SIZE)
        training = [batch for batch, _ in zip(data.train, range(self.images // SIZE), strict=False)]
        return training, list(data.test or ())


TASKS = {
    "digits": Task("digits", 1000, (1, 32, 32, 64), 15, 0.3),
    "cifar10": Task("cifar10", 4000, (3, 16, 32, 64), 8, 0.3),
}


def build(widths: Iterable[int], p: float = 0.0) -> nn.Sequential:
    """A plain net: convolution, norm, ReLU, dropout, halved in height and width but for the last one."""
    pairs = [*pairwise(widths)]
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairs, 1):
        pool = nn.MaxPool2d(2) if place < len(pairs) else nn.AdaptiveAvgPool2d(1)
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.Dropout(p), pool] if p else [pool]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(pairs[-1][1], 10))


@dataclass
class Trained:
    """One training: the net, averages of its weights, and its statistics at a small momentum.

    Attributes:
        net: as trained.
        forgotten: an exponential average of the parameters, whose buffers are those that it was built with.
        ema: the same average with the net's last buffers, as torch's AveragedModel has it.
        swa: the mean of the weights after each of the last epochs, likewise.
        slow: the net with statistics that followed training at the momentum SLOW.
    """

    net: nn.Sequential
    forgotten: nn.Sequential
    ema: AveragedModel
    swa: AveragedModel
    slow: nn.Sequential


def fit(net: nn.Module, batches: Batches, epochs: int) -> Iterator[float]:
    """Train by SGD at a one-cycle rate that ends high enough for averages; yields how many epochs are over."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * math.ceil(len(images) / SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, final_div_factor=10)
    net.train()
    for epoch in range(epochs):
        parts = torch.randperm(len(images)).split(SIZE)
        for number, chosen in enumerate(parts, 1):
            optimizer.zero_grad()
            F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
            yield epoch + number / len(parts)


def train(net: nn.Sequential, batches: Batches, epochs: int) -> Trained:
    """Train a net, and keep averages of its weights, and its statistics at another momentum."""
    ema, swa = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.98)), AveragedModel(net)
    forgotten, slow = copy.deepcopy(net), copy.deepcopy(net)
    before = _stored(net)
    for passed in fit(net, batches, epochs):
        ema.update_parameters(net)
        _follow(slow, net, before)
        before = _stored(net)
        if passed == int(passed) and passed > epochs - _AVERAGED:
            swa.update_parameters(net)
    for copied, source in ((slow, net), (forgotten, ema.module)):
        for own, theirs in zip(copied.parameters(), source.parameters(), strict=True):
            own.data.copy_(theirs.data)
    return Trained(net, forgotten, ema, swa, slow)


def _stored(net: nn.Module) -> list[Tensor]:
    return [buffer.clone() for norm in norms_of(net).values() for buffer in _statistics(norm)]


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_var  # type: ignore[return-value]


def _follow(slow: nn.Module, net: nn.Module, before: list[Tensor]) -> None:
    """Move the statistics of `slow` as its momentum would have in the step just made: training does not read them."""
    places = iter(before)
    for own, theirs in zip(norms_of(slow).values(), norms_of(net).values(), strict=True):
        for mine, now in zip(_statistics(own), _statistics(theirs), strict=True):
            of_batch = torch.lerp(now, next(places), 1 - 1 / theirs.momentum)  # type: ignore[operator]
            mine.lerp_(of_batch, SLOW)
        own.momentum, own.num_batches_tracked = SLOW, theirs.num_batches_tracked.clone()  # type: ignore[union-attr]


@torch.no_grad()  # a mask's product with a gradient cannot be copied
def pruned(net: nn.Sequential) -> nn.Sequential:
    """Half of the filters of every convolution masked, those of the smallest L1 norm."""
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            prune.ln_structured(layer, "weight", amount=0.5, n=1, dim=0)
    return net


def quantized(net: nn.Sequential, bits: int) -> nn.Sequential:
    """The convolutions' weights rounded, filter by filter, to the symmetric grid that is nearest in squares."""
    most = 2 ** (bits - 1) - 1
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.data.flatten(1)
            largest = weight.abs().amax(1, keepdim=True) / most
            grids = [largest * part / 40 for part in range(8, 41)]
            rounded = torch.stack([(weight / step).round().clamp(-most, most) * step for step in grids])
            best = (rounded - weight).square().sum(2).argmin(0)
            layer.weight.data.copy_(rounded[best, torch.arange(len(weight))].view_as(layer.weight))
    return net


def aligned(one: nn.Sequential, other: nn.Sequential, images: Tensor) -> nn.Sequential:
    """The other net with its units in the order in which their activations correlate most with those of the first."""
    from scipy.optimize import linear_sum_assignment

    one, moved, order = copy.deepcopy(one).eval(), copy.deepcopy(other).eval(), None
    for place, layer in enumerate(moved):
        if order is not None and isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.data = layer.weight.data[:, order]
        if isinstance(layer, nn.Conv2d):
            alike = _units(one[: place + 3], images).T @ _units(moved[: place + 3], images)
            order = torch.as_tensor(linear_sum_assignment(alike.numpy(), maximize=True)[1])
            for tensor in (layer.weight, *moved[place + 1].parameters(), *_statistics(moved[place + 1])):
                tensor.data = tensor.data[order]
    return moved


def _units(net: nn.Module, images: Tensor) -> Tensor:
    """What every unit of a net in eval mode gives at every place, standardized; shape (places, units)."""
    with torch.no_grad():
        found = net(images).movedim(1, -1).flatten(0, -2)
    return (found - found.mean(0)) / (found.std(0) + 1e-6)


def between(one: nn.Sequential, other: nn.Sequential) -> nn.Sequential:
    """The net whose weights and statistics are the means of those of two."""
    net, theirs = copy.deepcopy(one), other.state_dict()
    net.load_state_dict({name: (value + theirs[name]) / 2 for name, value in net.state_dict().items()})
    return net


def in_train_mode(net: nn.Sequential, batches: Batches, rate: float = 0.0) -> nn.Sequential:
    """The net after some more steps of training, at this rate."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    net.train()
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net


def shifted(batches: Batches, seed: int) -> Batches:
    """Another camera: half of the contrast, brighter by .8 deviations, noise of .3."""
    noise = torch.Generator().manual_seed(seed)
    return [(0.5 * x + 0.8 + 0.3 * torch.randn(x.shape, generator=noise), y) for x, y in batches]


def regrouped(batches: Batches, size: int, *, by_class: bool = False, count: int | None = None) -> Batches:
    """The same images in batches of another size, perhaps sorted by class."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.argsort(labels, stable=True) if by_class else torch.arange(len(labels))
    return [(images[chosen], labels[chosen]) for chosen in order[:count].split(size)]


def cases(
    trained: Trained, dropped: Trained, other: Trained, batches: Batches, test: Batches, seed: int
) -> Iterator[tuple[str, nn.Module, Batches, Batches]]:
    """Every reason: its name, the net that it left, the batches at hand for a repair, and the test."""

    def net() -> nn.Sequential:
        return copy.deepcopy(trained.net)

    pairs, by_class = regrouped(batches, 2, count=600), regrouped(batches, 20, by_class=True)
    yield "none: as trained", net(), batches, test
    yield "dropout before the norms", dropped.net, batches, test
    yield "exponential average, buffers forgotten", trained.forgotten, batches, test
    yield "exponential average, the last buffers", trained.ema, batches, test
    yield "stochastic weight averaging", trained.swa, batches, test
    found = aligned(trained.net, other.net, torch.cat([x for x, _ in batches[:3]]))
    yield "two nets, aligned and averaged", between(trained.net, found), batches, test
    yield "half of the filters pruned", pruned(net()), batches, test
    yield "weights of 4 bits", quantized(net(), 4), batches, test
    yield "weights of 2 bits", quantized(net(), 2), batches, test
    yield "trained on two images at a time", in_train_mode(net(), pairs, 1e-3), pairs, test
    yield "another domain", net(), shifted(batches, seed), shifted(test, seed + 1000)
    yield "statistics of data sorted by class", in_train_mode(net(), by_class), by_class, test
    yield f"momentum {SLOW:g}, few updates", trained.slow, batches, test


def fused(widths: Iterable[int], p: float, bits: int) -> nn.Sequential:
    """The plain net with convolutions fused with their norms for training with rounded weights, by torch.ao."""
    net, most = build(widths, p), 2 ** (bits - 1)
    weight = quantization.FakeQuantize.with_args(
        observer=quantization.MovingAveragePerChannelMinMaxObserver,
        quant_min=-most,
        quant_max=most - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    places = [place for place, layer in enumerate(net) if isinstance(layer, nn.Conv2d)]
    net = quantization.fuse_modules_qat(net, [[f"{place + i}" for i in range(3)] for place in places])
    for place in places:
        net[place].qconfig = quantization.QConfig(activation=quantization.default_fused_act_fake_quant, weight=weight)
    return quantization.prepare_qat(net)  # pyright: ignore[reportDeprecated]


def repaired_twice(model: nn.Module, batches: Batches) -> None:
    """As docs/after-pruning.md has it: without rounding, then ranges anew, then with rounding."""
    model.apply(quantization.disable_fake_quant)
    ek.reestimate_(model, batches)
    model.apply(quantization.enable_fake_quant)
    for module in model.modules():
        if isinstance(module, quantization.ObserverBase):
            module.reset_min_max_vals()  # type: ignore[operator]
    model.eval()
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    ek.reestimate_(model, batches)


def fused_scores(options: argparse.Namespace) -> dict[str, Any]:
    """digits, 1,000 images: convolutions fused with norms, dropout behind them, trained with rounded weights"""
    task, table = TASKS["digits"], dict[str, Any]()
    training, test = task.load(options.data_dir)
    for bits in (8, 4, 3):
        row = table.setdefault(f"weights of {bits} bits, dropout {task.p:g}", {})
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            net = fused(task.widths, task.p, bits)
            deque(fit(net, training, task.epochs), maxlen=0)
            for name, treat in (TREATMENTS | {"in two steps": repaired_twice}).items():
                treat(model := copy.deepcopy(net), training)
                score = evaluate(model, test)
                row.setdefault(name, []).append({"accuracy": 1 - (score.error or 0.0), "log_loss": score.loss})
            print(bits, seed, *(f"{runs[-1]['accuracy']:.3f}" for runs in row.values()), flush=True)
    return table


def scores_of(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy and log loss by reason and treatment, seed by seed."""
    training, test = task.load(options.data_dir)
    runs: dict[float, list[Trained]] = {p: [] for p in (0.0, task.p)}
    for p, trained in runs.items():
        for seed in range(options.seeds + (options.seeds == 1 and not p)):
            torch.manual_seed(seed)
            trained.append(train(build(task.widths, p), training, task.epochs))
            print(f"trained {task.data}, p={p}, seed {seed}", flush=True)
    table: dict[str, Any] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        one, other = runs[0.0][seed], runs[0.0][(seed + 1) % len(runs[0.0])]
        for reason, net, batches, held_out in cases(one, runs[task.p][seed], other, training[:20], test[:20], seed):
            row = table.setdefault(reason, {name: [] for name in TREATMENTS})
            for treatment, treat in TREATMENTS.items():
                treat(model := copy.deepcopy(net), batches)
                score = evaluate(model, held_out)
                row[treatment].append({"accuracy": 1 - (score.error or 0.0), "log_loss": score.loss})
            print(reason, *(f"{row[t][-1]['accuracy']:.3f}" for t in TREATMENTS), flush=True)
    return table


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the page, in Markdown, by data set."""
    return {f"stale {name}": _table(results[name]) for name in (*TASKS, "fused") if name in results}


def _table(rows: dict[str, Any]) -> str:
    names = [*next(iter(rows.values()))]
    head = ["reason", *(f"{name}: accuracy %, log loss" for name in names)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(names)]
    for reason, found in rows.items():
        best = max(fmean(s["accuracy"] for s in runs) for runs in found.values())
        cells = [_cell(runs, best) for runs in found.values()]
        lines.append(f"| {reason} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(runs: list[dict[str, float]], best: float) -> str:
    accuracies, losses = ([run[name] for run in runs] for name in ("accuracy", "log_loss"))
    deviation = stdev(accuracies) if len(runs) > 1 else 0.0
    words = f"{100 * fmean(accuracies):.1f} ± {100 * deviation:.1f}"
    words = f"**{words}**" if fmean(accuracies) >= best else words
    return f"{words}, {fmean(losses):.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("EVENKEEL_DATA"))
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--pruning", type=Path, default=PRUNING, help="the page for the table of fused layers")
    parts = {name: _part(task) for name, task in TASKS.items()} | {"fused": fused_scores}
    options = run_parts(parser, parts, RESULTS)
    found = tables(json.loads(options.out.read_text()))
    print("\n".join(found.values()))
    for name, table in found.items():
        put_into(options.pruning if name == "stale fused" else options.page, {name: table})


def _part(task: Task) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def part(options: argparse.Namespace) -> dict[str, Any]:
        return scores_of(task, options)

    part.__doc__ = f"{task.data}, {task.images} images"
    return part


if __name__ == "__main__":
    main()
