"""Merging: two networks aligned and averaged; test error of the end points, of the merged one, and repaired.

    python -m benchmarks.merging [--seeds 3] [--data-dir D] [--nets FOLDER] [--parts ...] [--page docs/after-merging.md]

Two networks of each kind are trained a seed, on the same images, from other initial weights; the units of the second
are put into the order of the first (`benchmarks.aligning`), and the weights averaged half and half. The barrier is by
how much the merged network's test error is above the mean of the two; what a repair removes of it is in percent, beside
what Jordan et al. (ICLR 2023) give for theirs. Digits are scikit-learn's, CIFAR-10 (4,000 images to train on, 2,000 to
test) is read from --data-dir. One core takes seven minutes; use one thread. One pair of PreResNet-20 is trained on
all images by the papers' lab, an hour of a core, or found in --nets, and takes ten minutes more.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import evenkeel as ek
from benchmarks.aligning import Order, aligned, interpolated
from benchmarks.measuring import Part, run_parts
from benchmarks.nets import add_options, desk_trained, desk_training
from benchmarks.pages import put_into
from evenkeel.model.evaluation import evaluate
from evenkeel.papers.lab.images import Images, load_images
from evenkeel.papers.lab.nets import build

RESULTS, PAGE = Path("results/merging.json"), Path("docs/after-merging.md")
MOST = 10_000  # images that a repair reads
PAPER = {"ResNet-18, CIFAR-10": 90, "ResNet-50, ImageNet": 74}  # percent of the barrier removed, abstract


class Residual(nn.Module):
    """x + conv(relu(conv(x))), the last one without what would set its scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.seen = nn.Identity()
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Identity()
        nn.init.normal_(self.two.weight, std=0.5 / (3 * width**0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.two(F.relu(self.seen(self.one(x)))))


class ResidualNet(nn.Module):
    """A stem, three residual blocks on one trunk, a pool and a head; no norm."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, stride=2)
        self.out = nn.Identity()
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(3)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.blocks(self.out(self.stem(x)))).mean((2, 3)))

    @staticmethod
    def orders() -> list[Order]:
        blocks = [f"blocks.{i}" for i in range(3)]
        trunk = Order(
            ["out", *(f"{b}.out" for b in blocks)],
            ["stem", *(f"{b}.two" for b in blocks)],
            [*(f"{b}.one" for b in blocks), "head"],
        )
        return [trunk, *(Order([f"{b}.seen"], [f"{b}.one"], [f"{b}.two"]) for b in blocks)]


class Plain(nn.Sequential):
    """Weight layers one after the other, each but the last with a norm, if any, and ReLU."""

    def orders(self) -> list[Order]:
        layers = [name for name, module in self.named_children() if isinstance(module, (nn.Linear, nn.Conv2d))]
        norms = {str(int(name) - 1): name for name, m in self.named_children() if isinstance(m, nn.BatchNorm2d)}
        made = [[name, *([norms[name]] if name in norms else [])] for name in layers[:-1]]
        return [Order(rows[-1:], rows, [reader]) for rows, reader in zip(made, layers[1:], strict=True)]


def stage_orders(net: nn.Module) -> list[Order]:
    """Of a PreResNet of basic blocks: each stage's trunk, on which its blocks add, and each block's inner units."""
    names = [name for name, _ in net.named_modules() if re.fullmatch(r"stage\d\.\d+", name)]
    stages = [list(group) for _, group in groupby(names, lambda name: name.partition(".")[0])]
    orders: list[Order] = []
    for place, blocks in enumerate(stages):
        following = stages[place + 1][:1] if place + 1 < len(stages) else []
        readers = [*blocks[min(place, 1) :], *following]  # the first block of a later stage reads the trunk before
        norms = [*(f"{b}.branch.norm1" for b in readers), *([] if following else ["head.norm"])]
        first = "stem.conv" if place == 0 else f"{blocks[0]}.shortcut.conv"
        rows = [first, *(f"{b}.branch.conv2" for b in blocks), *norms]
        last = [f"{b}.shortcut.conv" for b in following] or ["head.fc"]
        orders.append(Order(blocks, rows, [*(f"{b}.branch.conv1" for b in readers), *last]))
        for b in (f"{b}.branch" for b in blocks):
            orders.append(Order([f"{b}.norm2"], [f"{b}.conv1", f"{b}.norm2"], [f"{b}.conv2"]))
    return orders


def mlp() -> Plain:
    hidden = [layer for inputs in (64, 256, 256) for layer in (nn.Linear(inputs, 256), nn.ReLU())]
    return Plain(nn.Flatten(), *hidden, nn.Linear(256, 10))


def vgg(*, norms: bool) -> Plain:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 64, 2), (64, 64, 2), (64, 128, 2), (128, 128, 1), (128, 128, 1)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not norms))
        layers += [nn.BatchNorm2d(outputs)] if norms else []
        layers.append(nn.ReLU())
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Plain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        build: makes one.
        data: the set, and how many of its images to train and to test on; None are all.
        epochs: how long.
        rate: the largest learning rate of Adam.
        orders: of a network, the units that share an order.
        pairs: how many there are at most.
    """

    build: Callable[[], Any]
    data: tuple[str, int | None, int | None]
    epochs: int
    rate: float = 1e-3
    orders: Callable[[Any], list[Order]] = lambda net: net.orders()
    pairs: int | None = None


def preresnet() -> nn.Module:
    net = desk_training("none", 0.0).net
    return build(net.name, **net.arguments)


DESK = "PreResNet-20, CIFAR-10"
FAMILIES = {
    "MLP, digits": Family(mlp, ("digits", None, None), 40),
    "residual, digits": Family(ResidualNet, ("digits", None, None), 30),
    "VGG, CIFAR-10": Family(lambda: vgg(norms=False), ("cifar10", 4000, 2000), 8),
    "VGG with batch norm, CIFAR-10": Family(lambda: vgg(norms=True), ("cifar10", 4000, 2000), 8),
    DESK: Family(preresnet, ("cifar10", None, None), 16, orders=stage_orders, pairs=1),
}


def trained(family: Family, images: Images, seed: int, nets: Path) -> Any:
    """One network, by Adam, its rate falling to nothing as a cosine does; or by the papers' lab."""
    if family is FAMILIES[DESK]:
        return desk_trained(desk_training("none", 0.0), seed, images, nets).model(images).eval()
    torch.manual_seed(seed)
    net = family.build()
    x, y = images.standardize(images.train.images), images.train.labels
    is_photo = x.shape[1] == 3
    steps = family.epochs * (len(x) // 128)
    optimizer = torch.optim.Adam(net.parameters(), family.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(family.epochs):
        for chosen in torch.randperm(len(x)).split(128)[: len(x) // 128]:
            batch = x[chosen].flip(3) if is_photo and torch.rand(()) < 0.5 else x[chosen]
            optimizer.zero_grad()
            F.cross_entropy(net(batch), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def merge(family: Family, images: Images, seed: int, nets: Path) -> dict[str, Any]:
    """Errors of one pair of networks, their merger, and its repairs; log losses of these."""
    x, y = images.standardize(images.train.images[:MOST]), images.train.labels[:MOST]
    test = list(zip(images.standardize(images.test.images).split(500), images.test.labels.split(500), strict=True))
    batches = list(x.split(250))
    losses: dict[str, float] = {}

    def error(net: nn.Module, name: str = "") -> float:
        """Test error in percent."""
        found = evaluate(net, test)
        assert found.error is not None and found.log_loss is not None
        losses.update({name: found.log_loss} if name else {})
        return 100 * found.error

    start = time.process_time()
    one, other = (trained(family, images, 10 * seed + place, nets) for place in (0, 1))
    naive = copy.deepcopy(one)
    naive.load_state_dict(interpolated(one.state_dict(), other.state_dict(), 0.5))
    state, correlation = aligned(one, other, family.orders(one), x[:1000])
    other.load_state_dict(state)
    merged = copy.deepcopy(one)
    merged.load_state_dict(interpolated(one.state_dict(), state, 0.5))
    found: dict[str, Any] = {
        "end points": [error(one, "end point"), error(other)],
        "not aligned": error(naive),
        "merged": error(merged, "merged"),
        "correlation": correlation,
        "log loss": losses,
    }
    done = ek.match_(merged, [one, other], batches)
    found["match_"] = error(merged, "match_")
    found["ratios"] = {row.path: row.ratio for row in done}
    found["passes"] = done.passes
    done.undo()
    if done.norms:
        ours, theirs = copy.deepcopy(merged), copy.deepcopy(merged)
        ek.reestimate_(ours, batches)
        found["reestimate_"] = error(ours, "reestimate_")
        update_bn(list(zip(x.split(250), y.split(250), strict=True)), theirs)
        found["update_bn"] = error(theirs.eval(), "update_bn")
    ek.match_(naive, [one, other], batches)
    found["not aligned, match_"] = error(naive)
    found["seconds"] = round(time.process_time() - start)
    return found


def removed(found: Mapping[str, Any], repair: str) -> float:
    """How much of the barrier a repair removes, in percent."""
    ends = sum(found["end points"]) / 2
    barrier = found["merged"] - ends
    return 100 * (found["merged"] - found[repair]) / barrier if barrier > 0 else float("nan")


def run_family(name: str, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    family = FAMILIES[name]
    source, train, test = family.data
    images = load_images(source, train=train, test=test, data_dir=options.data_dir)
    for seed in range(min(options.seeds, family.pairs or options.seeds)):
        found = merge(family, images, seed, options.nets)
        repairs = [repair for repair in ("match_", "reestimate_", "update_bn") if repair in found]
        figures = ", ".join(f"{repair} {found[repair]:.1f} ({removed(found, repair):.0f} %)" for repair in repairs)
        ends = " and ".join(f"{e:.1f}" for e in found["end points"])
        print(f"seed {seed}: ends {ends}, merged {found['merged']:.1f}, {figures}; {found['seconds']} s", flush=True)
        yield f"seed {seed}", found


def part_of(name: str) -> Part:
    def part(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
        return run_family(name, options)

    part.__doc__ = f"{name}: test error in percent, and how much of the barrier is removed"
    return part


def table(results: Mapping[str, Any]) -> str:
    """Test errors and what was removed of the barrier, as a table of a page: means over seeds."""
    columns = ("end points", "not aligned", "merged", "`match_`", "`reestimate_`", "`update_bn`")
    lines = [f"| network | {' | '.join(columns)} | barrier removed |", f"|---|{'---|' * (len(columns) + 1)}"]
    for name in (name for name in FAMILIES if name in results):
        seeds = list(results[name].values())
        ends = f"{mean(sum(one['end points']) / 2 for one in seeds):.1f}"
        keys = [key.strip("`") for key in columns[1:]]
        found = [f"{mean(one[key] for one in seeds):.1f}" if key in seeds[0] else "" for key in keys]
        parts = [removed(one, "match_") for one in seeds]
        share = f"{mean(parts):.0f} % ({min(parts):.0f} to {max(parts):.0f})"
        lines.append(f"| {name} | {' | '.join([ends, *found])} | {share} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--page", type=Path, help="write the table into this page, such as docs/after-merging.md")
    warnings.simplefilter("ignore", ek.StretchWarning)
    options = run_parts(parser, {name: part_of(name) for name in FAMILIES}, RESULTS)
    shown = table(json.loads(options.out.read_text()))
    print(f"\n{shown}")
    for name, share in PAPER.items():
        print(f"Jordan et al., {name}: {share} % of the barrier removed")
    if options.page is not None:
        put_into(options.page, {"merging": shown})


if __name__ == "__main__":
    main()
