"""Families of small nets with dropout: classifiers, regressors, and embeddings that tell classes apart by cosine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.matching import data
from benchmarks.matching.data import Source, Split
from benchmarks.nets import kept
from benchmarks.placements import PLACES, Residual, densenet, head, plain_cnn, preresnet, stem
from evenkeel.demo import train

ORDERS = ("Linear-Dropout-BN-ReLU", "Linear-ReLU-Dropout-BN", "Linear-BN-ReLU-Dropout")


def mlp(order: str, p: float, *, inputs: int, outputs: int = 1, depth: int = 3, width: int = 64) -> nn.Sequential:
    """Hidden layers in that order."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((inputs, *(width,) * depth)):
        named: dict[str, nn.Module] = {
            "Linear": nn.Linear(before, after),
            "BN": nn.BatchNorm1d(after),
            "ReLU": nn.ReLU(),
            "Dropout": nn.Dropout(p),
        }
        layers += [named[name] for name in order.split("-")]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def wide_resnet(place: str, p: float) -> nn.Sequential:
    """WRN-10-2: three pre-activation blocks of 32, 64 and 128 channels, dropout between their two convolutions."""
    widths = (32, 64, 128)
    blocks = [Residual(a, b, place, p) for a, b in pairwise((widths[0], *widths))]
    return nn.Sequential(stem(3, widths[0]), *blocks, *head(widths[-1]))


def angle_cnn(place: str, p: float) -> nn.Sequential:
    """The plain CNN with one output."""
    net = plain_cnn(place, p, channels=1)
    net[-1] = nn.Linear(64, 1)
    return net


def embedding(_: str, p: float) -> nn.Sequential:
    """A CNN with ArcFace's head: BN, Dropout, Flatten, Linear, BN (Deng et al. 2019, section 3.2)."""
    body = [
        (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        for a, b in pairwise((1, 16, 32))
    ]
    last = nn.Conv2d(32, 64, 3, padding=1, bias=False)
    tail = nn.BatchNorm2d(64), nn.Dropout(p), nn.Flatten(), nn.Linear(64 * 9, 64), nn.BatchNorm1d(64)
    return nn.Sequential(*(layer for block in body for layer in block), last, *tail)


class Margin(nn.Module):
    """ArcFace's loss: log loss of scaled cosines, with an angle added to that of the right class."""

    def __init__(self, features: int = 64, classes: int = 6, scale: float = 16.0, margin: float = 0.3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight)).clamp(-1 + 1e-6, 1 - 1e-6)
        moved = (cosines.acos() + self.margin * F.one_hot(labels, len(self.weight))).cos()
        return F.cross_entropy(self.scale * moved, labels)


def fit(net: nn.Module, split: Split, loss: nn.Module, *, epochs: int, size: int = 50, rate: float = 1e-3) -> nn.Module:
    """Train by Adam at a constant rate."""
    optimizer = torch.optim.Adam([*net.parameters(), *loss.parameters()], rate)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(split.x)).split(size):
            optimizer.zero_grad()
            loss(net(split.x[chosen]), split.y[chosen]).backward()
            optimizer.step()
    return net


@dataclass(frozen=True)
class Family:
    """Nets that differ by where dropout is, its rate and the seed.

    Attributes:
        build: a net, given where dropout is and its rate.
        source: its data, given the seed.
        task: what it is for: "classes", "values" or "pairs".
        epochs: passes over the training data.
        arms: where dropout can be.
        size: samples in a step.
        seeds: at most so many.
    """

    build: Callable[[str, float], nn.Module]
    source: Source
    task: str
    epochs: int
    arms: tuple[str, ...] = ORDERS
    size: int = 50
    seeds: int = 5

    def train(self, net: nn.Module, split: Split) -> nn.Module:
        if self.task == "classes":
            return train(net, [(split.x, split.y)], self.epochs, batch_size=self.size)
        loss = Margin() if self.task == "pairs" else nn.MSELoss()
        return fit(net, split, loss, epochs=self.epochs, size=self.size)

    def trained(self, arm: str, p: float, seed: int, split: Split, path: Path) -> nn.Module:
        """The net of this seed, in eval mode."""
        return kept(partial(self.build, arm, p), lambda net: self.train(net, split), seed, path).eval()


CIFAR = data.image_set("cifar10", 10_000, 2000, pool=2)  # at 16 pixels


def classifier(inputs: int, source: Source, epochs: int, size: int) -> Family:
    """MLPs of five hidden layers."""
    return Family(partial(mlp, inputs=inputs, outputs=10, depth=5, width=128), source, "classes", epochs, size=size)


def regressor(inputs: int, source: Source, epochs: int, depth: int = 3) -> Family:
    return Family(partial(mlp, inputs=inputs, depth=depth), source, "values", epochs)


FAMILIES: dict[str, Family] = {
    "MLP, digits": classifier(64, data.image_set("digits", 1000, 797), 10, 50),
    "MLP, MNIST": classifier(784, data.image_set("mnist", 60_000, 4000), 3, 128),
    "residual net, digits": Family(
        partial(preresnet, channels=1), data.image_set("digits", 1000, 797), "classes", 5, PLACES
    ),
    "residual net, CIFAR-10": Family(partial(preresnet, channels=3), CIFAR, "classes", 10, PLACES, size=128, seeds=2),
    "DenseNet, CIFAR-10": Family(partial(densenet, channels=3), CIFAR, "classes", 10, PLACES, size=128, seeds=2),
    "WRN, CIFAR-10": Family(wide_resnet, CIFAR, "classes", 10, PLACES, size=128, seeds=2),
    "friedman1, 2 layers": regressor(10, data.friedman1, 30, depth=2),
    "friedman1, 4 layers": regressor(10, data.friedman1, 30, depth=4),
    "diabetes": regressor(10, data.diabetes, 40),
    "diamonds": regressor(9, data.diamonds, 12),
    "flights": regressor(26, data.flights, 12),
    "embedding, MNIST": Family(embedding, data.other_classes(10_000, 1000), "pairs", 5, ("head",), size=128),
    "rotation, MNIST": Family(angle_cnn, data.rotated(10_000, 1000), "values", 6, PLACES, seeds=3),
}
