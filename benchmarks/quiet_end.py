"""Dropout's shift, ended within training or repaired afterwards: rates to 0, frozen norms, early and late dropout.

    python -m benchmarks.quiet_end [--scale small] [--seeds 3] [--parts digits cifar desk] [--data-dir DIR]
        [--nets FOLDER] [--page docs/within-training.md] [--picture docs/pictures/shift-log.svg]

Every arm of a seed starts from the same weights and sees the same batches. Dropout stands right before norms, li2018's
type (a). The arms of part "desk" fork late from one PreResNet-20, which the papers' lab trains on all of CIFAR-10 in
half an hour of a core, or finds in --nets. Figures are kept in results/quiet_end.json, seed by seed; the page's tables
are made of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek
from benchmarks.measuring import run_parts
from benchmarks.nets import add_options, desk_images, desk_trained, desk_training
from benchmarks.pages import put_into
from evenkeel.io.datasets import load_data
from evenkeel.model.evaluation import evaluate
from evenkeel.papers.lab.hardware import hardware_at
from evenkeel.papers.lab.images import Images, augment
from evenkeel.papers.lab.images import batches as shuffled
from evenkeel.papers.lab.nets import Noise, build
from evenkeel.papers.lab.specs import Recipe
from evenkeel.papers.lab.training import batches_of
from evenkeel.statistics.pairs import Match

RESULTS = Path("results/quiet_end.json")
LAST = 0.1  # of the steps, that are quiet
HALF = 0.5  # of the steps, with which early dropout ends and late dropout begins
RATES = (0.5, 0.3)
BATCH = 128


@dataclass(frozen=True)
class Scale:
    """Images and net of a part: pixels a side, training images (and as many for the test), epochs, and the net."""

    pixels: int
    images: int
    epochs: int
    net: dict[str, Any]


DIGITS = Scale(8, 1000, 60, {})
CIFAR = {
    "small": Scale(16, 5000, 6, {"depth": 8, "width": 8}),
    "medium": Scale(16, 5000, 16, {"depth": 8, "width": 8}),
}
FORK = 14  # epochs of the desk training, of 16, after which the arms part
MEASURED = 10_000  # images that statistics are measured on there


def net_of(scale: Scale, p: float) -> nn.Module:
    noise = Noise("Dropout", p) if p else None
    if scale is DIGITS:
        drop: Callable[[], list[nn.Module]] = lambda: [nn.Dropout(p)] if p else []  # noqa: E731
        hidden = [[nn.Linear(64 if i == 0 else 128, 128), nn.ReLU(), *drop(), nn.BatchNorm1d(128)] for i in range(3)]
        return nn.Sequential(nn.Flatten(), *(layer for block in hidden for layer in block), nn.Linear(128, 10))
    return build("preresnet", block="basic", places="a" if p else "none", noise=noise, **scale.net)


def data_of(scale: Scale, data_dir: Path | None) -> tuple[list[Tensor], list[Tensor]]:
    """Images and labels, for training and for the test."""
    if scale is DIGITS:
        data = load_data("digits", data_dir=data_dir, batch_size=BATCH)
    else:
        data = load_data("cifar10", data_dir=data_dir, batch_size=BATCH)
    sets = []
    for batches, most in ((data.train, scale.images), (data.test, max(scale.images, 1000))):
        read = list(islice(batches or (), -(-most // BATCH)))
        x, y = (torch.cat([batch[i] for batch in read])[:most] for i in range(2))
        sets.append([F.adaptive_avg_pool2d(x, scale.pixels), y])
    return sets[0], sets[1]


# What an arm does at a step, given the model, the steps in all, and training batches to measure on.
Arm = Callable[[nn.Module, int, list[Tensor]], Callable[[int], None]]


def by_rates(make: Callable[[nn.Module, int], ek.DropoutSchedule]) -> Arm:
    def arm(model: nn.Module, steps: int, _: list[Tensor]) -> Callable[[int], None]:
        schedule = make(model, steps)
        return schedule.step

    return arm


def frozen(
    model: nn.Module, steps: int, batches: list[Tensor], *, quiet: bool = False, match: Match = "variance"
) -> Callable[[int], None]:
    first = steps - last_of(steps)
    schedule = ek.DropoutSchedule.quiet_end(model, steps, steps - first) if quiet else None

    def at(step: int) -> None:
        if schedule is not None:
            schedule.step(step)
        if step == first:
            ek.freeze_norms_(model, batches, match=match)

    return at


def last_of(steps: int) -> int:
    return round(LAST * steps)


def none(model: nn.Module, steps: int, batches: list[Tensor]) -> Callable[[int], None]:
    return lambda step: None


ARMS: dict[str, Arm] = {
    "dropout all along": none,
    "quiet end: rates 0": by_rates(lambda m, steps: ek.DropoutSchedule.quiet_end(m, steps, last_of(steps))),
    "quiet end: norms frozen": frozen,
    "quiet end: norms frozen, means matched": partial(frozen, match="mean"),
    "quiet end: both": partial(frozen, quiet=True),
    "early dropout": by_rates(lambda m, steps: ek.DropoutSchedule.early(m, steps, round(HALF * steps))),
    "early, linear": by_rates(lambda m, steps: ek.DropoutSchedule.early(m, steps, round(HALF * steps), linear=True)),
    "late dropout": by_rates(lambda m, steps: ek.DropoutSchedule.late(m, steps, round(HALF * steps))),
}
NO_DROPOUT = "no dropout"
REPAIRS: dict[Match, str] = {"variance": "repaired by variance", "mean": "repaired by mean"}
REPAIRED = ("dropout all along", "late dropout")
DESK_ARMS = ("dropout all along", "quiet end: rates 0", "quiet end: norms frozen", "quiet end: both")


def arms_of(p: float, chosen: list[str]) -> dict[str, Arm]:
    """The arms at a rate, those chosen."""
    return {name: arm for name, arm in (ARMS if p else {NO_DROPOUT: none}).items() if name in chosen}


def trained(
    scale: Scale,
    p: float,
    arm: Arm,
    seed: int,
    training: list[Tensor],
    log: Callable[[nn.Module], ek.ShiftLog] | None = None,
) -> nn.Module:
    """A net after all steps: SGD with momentum, the learning rate falling to 0 by a cosine."""
    torch.manual_seed(seed)
    model = net_of(scale, p).train()
    x, y = training
    per_epoch = len(x) // BATCH
    steps = per_epoch * scale.epochs
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    at = arm(model, steps, [x[i : i + 512] for i in range(0, len(x), 512)])
    logged = log(model) if log else None
    order, done = torch.Generator().manual_seed(seed), 0
    at(0)
    for _ in range(scale.epochs):
        model.train()
        for chosen in torch.randperm(len(x), generator=order)[: per_epoch * BATCH].view(-1, BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            cosine.step()
            at(done := done + 1)
            if logged is not None:
                logged.step()
    return model


def finished(
    model: nn.Module, recipe: Recipe, arm: Arm, seed: int, images: Images, measured: list[Tensor]
) -> nn.Module:
    """The net after the rest of a training by the lab's recipe, from FORK on; momentum begins anew."""
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    is_bf16 = hardware_at("desk").precision == "bf16-mixed"
    per_epoch = -(-len(images.train.labels) // recipe.batch)
    at = arm(model, recipe.epochs * per_epoch, measured)
    at(done := FORK * per_epoch)
    torch.manual_seed(seed)  # masks
    order, crops = (torch.Generator().manual_seed(seed) for _ in range(2))
    for _ in range(FORK, recipe.epochs):
        model.train()
        for chosen in shuffled(len(images.train.labels), recipe.batch, order):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(done / per_epoch)
            inputs = augment(images.standardize(images.train.images[chosen]), crops)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                loss = F.cross_entropy(model(inputs), images.train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            at(done := done + 1)
    return model


def figures_of(model: nn.Module, training: list[Tensor], test: list[Tensor]) -> dict[str, float]:
    score = evaluate(model, list(zip(*(t.split(512) for t in test), strict=True)))
    shift = ek.variance_shift(model, list(training[0][:1024].split(512)))
    assert score.error is not None and score.log_loss is not None
    return {"error": score.error, "log_loss": score.log_loss, "worst_shift": shift.worst, "median_shift": shift.median}


def rows_of(scale: Scale, named: str, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    training, test = data_of(scale, options.data_dir)
    for p in (0.0, *RATES):
        found: dict[str, list[dict[str, float]]] = {}
        for name, arm in arms_of(p, options.arms).items():
            for seed in range(options.seeds):
                model = trained(scale, p, arm, seed, training)
                for key, figures in judged(model, name, training, test, is_repaired=bool(p) and name in REPAIRED):
                    found.setdefault(key, []).append(figures)
        for name, several in found.items():
            print(f"{named}, p={p:g}, {name}: {shown(several)}", flush=True)
            yield f"{named}, p={p:g}, {name}", several


def judged(
    model: nn.Module, name: str, training: list[Tensor], test: list[Tensor], *, is_repaired: bool
) -> Iterator[tuple[str, dict[str, float]]]:
    """The figures of an arm's net as it is, and of what repairs make of it."""
    yield name, figures_of(model, training, test)
    for match, how in REPAIRS.items() if is_repaired else ():
        repaired = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ek.StretchWarning)  # classifiers
            ek.reestimate_(repaired, list(training[0].split(512)), match=match)
        yield f"{name}, {how}", figures_of(repaired, training, test)


def run_desk(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """CIFAR-10, all images, a PreResNet-20: one net with dropout, which each arm ends in its way, and one without."""
    torch.set_num_threads(1)
    images, p, seed = desk_images(options.data_dir), 0.5, 0
    training, test = (
        [torch.cat(parts) for parts in zip(*batches_of(images, split, MEASURED), strict=True)]
        for split in (images.train, images.test)
    )
    rest = desk_training("a", p)
    rest = replace(rest, recipe=replace(rest.recipe, snapshots=(FORK / rest.recipe.epochs,)))
    forked = desk_trained(rest, seed, images, options.nets)
    measured = list(training[0].split(512))
    for name in DESK_ARMS:
        model = forked.model(images, FORK)
        model = finished(model, rest.recipe, ARMS[name], seed, images, measured)
        for key, figures in judged(model, name, training, test, is_repaired=name in REPAIRED):
            print(f"desk, p={p:g}, {key}: {shown([figures])}", flush=True)
            yield f"desk, p={p:g}, {key}", [figures]
    plain = desk_trained(desk_training("none", 0.0), seed, images, options.nets).model(images)
    yield f"desk, p=0, {NO_DROPOUT}", [figures_of(plain, training, test)]


def run_digits(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Digits of scikit-learn, an MLP."""
    torch.set_num_threads(1)
    yield from rows_of(DIGITS, "digits", options)


def run_cifar(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """CIFAR-10, a PreResNet."""
    torch.set_num_threads(1)
    yield from rows_of(CIFAR[options.scale], options.scale, options)


def shown(several: list[dict[str, float]]) -> str:
    def both(name: str, factor: float, form: str) -> str:
        values = [factor * one[name] for one in several]
        return f"{fmean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")

    cells = both("error", 100, ".2f"), both("log_loss", 1, ".3f"), f"x{fmean(o['worst_shift'] for o in several):.2f}"
    return " | ".join(cells)


def table(rows: dict[str, list[dict[str, float]]], named: str) -> str:
    """A part's table, in Markdown."""
    lines = ["| p | arm | seeds | test error % | log loss | worst norm off by |", "|---|---|---|---|---|---|"]
    order = [NO_DROPOUT, *ARMS]
    keyed = [(key.split(", ", 2), several) for key, several in rows.items() if key.startswith(f"{named}, ")]
    for (_, p, arm), several in sorted(keyed, key=lambda item: (item[0][1], _place(item[0][2], order))):
        lines.append(f"| {p.removeprefix('p=')} | {arm} | {len(several)} | {shown(several)} |")
    return "\n".join(lines) + "\n"


def _place(arm: str, order: list[str]) -> tuple[int, bool]:
    """An arm's place in the table: repairs stand behind what is repaired."""
    name = max((name for name in order if arm.startswith(name)), key=len)
    return order.index(name), arm != name


def draw(path: Path, options: argparse.Namespace) -> None:
    """The shift of every norm over a training on digits with a quiet end, as `ShiftLog` draws it."""
    training, _ = data_of(DIGITS, options.data_dir)
    logs: list[ek.ShiftLog] = []

    def log(model: nn.Module) -> ek.ShiftLog:
        logs.append(ek.ShiftLog(model, training[0].split(512), every=10))
        return logs[0]

    trained(DIGITS, 0.5, ARMS["quiet end: rates 0"], 0, training, log)
    logs[0].history.plot(path)
    print(logs[0].history)


PARTS = {"digits": run_digits, "cifar": run_cifar, "desk": run_desk}
ROWS = {"digits": "digits", "cifar": "small", "desk": "desk"}  # what a part's rows on the page are called


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=CIFAR, default="small")
    add_options(parser)
    parser.add_argument("--arms", nargs="+", choices=[NO_DROPOUT, *ARMS], default=[NO_DROPOUT, *ARMS])
    parser.add_argument("--page", type=Path, help="page to put the tables into")
    parser.add_argument("--picture", type=Path, help="where to draw the shift over a training with a quiet end")
    options = run_parts(parser, PARTS, RESULTS)
    if options.picture:
        draw(options.picture, options)
    if options.page:
        found = json.loads(options.out.read_text())
        put_into(options.page, {part: table(found[part], named) for part, named in ROWS.items() if part in found})


if __name__ == "__main__":
    main()
