"""Small networks with li2018's two places for dropout in every block, for predictions to be held against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.nets import Net

PLACES, RATES = ("a", "b"), (0.1, 0.3, 0.5)


class Step(nn.Sequential):
    """norm, ReLU, weight layer, with dropout right before the norm (a) or right before the weights (b)."""

    def __init__(self, norm: nn.Module, weight: nn.Module, place: str, p: float) -> None:
        before, after = ([nn.Dropout(p)] if place == here else [] for here in PLACES)
        super().__init__(*before, norm, nn.ReLU(), *after, weight)


class Residual(nn.Module):
    """A pre-activation block with dropout in its second step."""

    def __init__(self, inputs: int, outputs: int, place: str, p: float) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        convs = [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        ]
        self.first = Step(nn.BatchNorm2d(inputs), convs[0], "", p)
        self.second = Step(nn.BatchNorm2d(outputs), convs[1], place, p)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))


class Dense(nn.Module):
    """A bottleneck of a DenseNet, 1x1 then 3x3, with dropout in its second step."""

    def __init__(self, inputs: int, growth: int, place: str, p: float) -> None:
        super().__init__()
        self.first = Step(nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False), "", p)
        conv = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)
        self.second = Step(nn.BatchNorm2d(4 * growth), conv, place, p)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.second(self.first(x))], 1)


def stem(channels: int, width: int) -> nn.Conv2d:
    """The first convolution, which halves coloured images."""
    return nn.Conv2d(channels, width, 3, 2 if channels == 3 else 1, 1, bias=False)


def head(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def deep_mlp(place: str, p: float, *, inputs: int) -> nn.Sequential:
    """Six hidden layers of 128."""
    widths = (128,) * 6
    steps = [Step(nn.BatchNorm1d(a), nn.Linear(a, b), place, p) for a, b in pairwise((*widths, 10))]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, widths[0]), *steps)


def plain_cnn(place: str, p: float, *, channels: int) -> nn.Sequential:
    """Six convolutions, with max-pooling after every two."""
    widths = (16, 16, 32, 32, 64, 64)
    layers: list[nn.Module] = [stem(channels, widths[0])]
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [
            *([nn.MaxPool2d(2)] if i % 2 else []),
            Step(nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), place, p),
        ]
    return nn.Sequential(*layers, *head(widths[-1]))


def preresnet(place: str, p: float, *, channels: int) -> nn.Sequential:
    """Six residual blocks, 13 norms."""
    widths = (16, 16, 32, 32, 64, 64)
    blocks = [Residual(a, b, place, p) for a, b in zip((16, *widths), widths, strict=False)]
    return nn.Sequential(stem(channels, 16), *blocks, *head(widths[-1]))


def densenet(place: str, p: float, *, channels: int, growth: int = 12) -> nn.Sequential:
    """Three dense blocks of three bottlenecks, 21 norms."""
    width = 24
    layers: list[nn.Module] = [stem(channels, width)]
    for block in range(3):
        for _ in range(3):
            layers.append(Dense(width, growth, place, p))
            width += growth
        if block < 2:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, *head(width))


# The family, the set, batches of 128 of it, passes over them, and what the nets are built with.
FAMILIES: dict[str, tuple[Callable[..., nn.Module], str, int, int]] = {
    "MLP, digits": (partial(deep_mlp, inputs=64), "digits", 8, 40),
    "MLP, MNIST": (partial(deep_mlp, inputs=784), "mnist", 469, 5),
    "plain CNN, MNIST": (partial(plain_cnn, channels=1), "mnist", 78, 5),
    "plain CNN, CIFAR-10": (partial(plain_cnn, channels=3), "cifar10", 78, 12),
    "residual net, CIFAR-10": (partial(preresnet, channels=3), "cifar10", 78, 12),
    "DenseNet, CIFAR-10": (partial(densenet, channels=3), "cifar10", 78, 12),
}


def net_of(family: str, place: str, p: float) -> Net:
    """The network of a family with dropout of that type and rate, and how it is trained."""
    build, data, batches, epochs = FAMILIES[family]
    return Net(partial(build, place, p), data, batches, epochs, f"{family}-{place}-{p:g}".replace(", ", "-"))
