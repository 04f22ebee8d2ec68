"""Residual nets: a stem, three stages of blocks and a head, in one of several orders of norm, activation and weight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from evenkeel.papers.lab.nets.noises import Noise
from evenkeel.papers.lab.nets.parts import (
    HEAD_PLACES,
    init_convs_,
    make_conv,
    make_head,
    make_layers,
    place_noises,
    require_counts,
    row,
)


class Shape(NamedTuple):
    """A convolution of a block, but for what comes in."""

    kernel: int
    outputs: int
    groups: int = 1


@dataclass(frozen=True)
class Order:
    """In which order a residual net has its norms, activations and weights.

    Each of stem, branch and head names kinds of layers; the branch is repeated for every weight of a block.

    Attributes:
        stem: what comes before the first block.
        branch: one weight and what belongs to it.
        head: what comes between the last block and the pool.
        shortcut: what a shortcut is where height, width or channels change.
        shared: how many layers at the start of the branch come before the fork, in a block with such a shortcut.
        joined: how many layers at the end of the branch come after the join.

    >>> PRE.names(2)
    ['norm1', 'act1', 'conv1', 'norm2', 'act2', 'conv2']
    """

    stem: str
    branch: str
    head: str = ""
    shortcut: str = "conv"
    shared: int = 0
    joined: int = 0

    def names(self, weights: int) -> list[str]:
        """Names of a block's layers, of so many weights."""
        return [f"{kind}{number}" for number in range(1, weights + 1) for kind in self.branch.split()]

    def slots(self, weights: int) -> dict[str, tuple[str, ...]]:
        """The layer that noise comes before, by the name of the place in a block.

        "a" and "b" are li2018's: before the last norm, and before the last weight. P0 to P7 are kim2023's, in blocks
        of {norm, activation, weight}: P0 before the block, its shortcut included, P1 to P3 before each of the first
        three layers, P4 to P6 before each of the last three, and P7 after them.
        """
        found = {"a": (f"norm{weights}",), "b": (f"conv{weights}",)}
        if self.branch == PRE.branch:
            names = self.names(weights)
            found |= {f"P{i}": (name,) for i, name in enumerate(["input", *names[:3], *names[-3:], "join"])}
        return found


POST = Order("conv norm act", "conv norm act", shortcut="conv norm", joined=1)
PRE = Order("conv", "norm act conv", "norm act")
WIDE = Order("conv", "norm act conv", "norm act", shared=2)
# chen2019's: one cycle of weight, activation and IC, with the shortcuts between other two of them in each; and the
# first one with norms for ICs, which may have dropout before the last weight of a branch alone (ours).
IC_ORDERS = {
    "relu-ic-conv": Order("conv", "act ic conv", "act ic"),
    "ic-conv-relu": Order("conv act", "ic conv act", "ic"),
    "conv-relu-ic": Order("conv act ic", "conv act ic"),
    "relu-norm-conv": Order("conv", "act norm conv", "act norm"),
}


class Residual(nn.Module):
    """A block: what comes before the fork, then branch plus shortcut, then what comes after the join.

    Args:
        front: before the fork.
        branch: one way.
        shortcut: the other; empty for the identity.
        joined: after the join.
    """

    def __init__(self, front: nn.Module, branch: nn.Module, shortcut: nn.Module, joined: nn.Module) -> None:
        super().__init__()
        self.front, self.branch, self.shortcut, self.joined = front, branch, shortcut, joined

    def forward(self, x: Tensor) -> Tensor:
        """Shape (samples, channels, height, width); a block may change all but the first."""
        x = self.front(x)
        return self.joined(self.shortcut(x) + self.branch(x))


def build_residual(
    net: str,
    order: Order,
    stages: Sequence[Sequence[Shape]],
    blocks: int,
    stem: int,
    classes: int,
    channels: int,
    places: str,
    noise: Noise | None,
    activation: str,
    *,
    ics: bool = False,
) -> nn.Sequential:
    """Build a residual net; every stage but the first halves height and width.

    Args:
        net: what the net is called, for messages.
        order: in which order it has its layers.
        stages: convolutions of each stage's blocks; the first of kernel 3 has the stride.
        blocks: in each stage.
        stem: channels of the first convolution.
        classes: number of outputs.
        channels: of an image.
        places: where noise goes, in the blocks or in the head.
        noise: what goes there.
        activation: by name.
        ics: whether the net has the orders of `IC_ORDERS`, too, in place of its own.

    Raises:
        EvenkeelError: there is no such place or activation, or a number is none.
    """
    require_counts(classes=classes, channels=channels)
    weights = len(stages[0])
    chosen = next((place for place in places.split("+") if ics and place in IC_ORDERS), None)
    if chosen:
        order = IC_ORDERS[chosen]
        last = {} if "ic" in order.branch else {"b": (f"conv{weights}",)}  # an IC drops there as it is
        slots = {chosen: ()} | last | HEAD_PLACES
    else:
        slots = order.slots(weights) | HEAD_PLACES | (dict.fromkeys(IC_ORDERS, ()) if ics else {})
    noises = place_noises(f"{net} of {chosen}" if chosen else net, places, noise, slots)
    make = partial(make_layers, activation=activation, noise=noise)

    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["stem"] = row(make(order.stem.split(), channels, [make_conv(channels, stem, 3)]))
    inputs = stem
    for stage, shapes in enumerate(stages):
        made: list[nn.Module] = []
        for index in range(blocks):
            made.append(_make_block(order, inputs, shapes, 2 if stage and not index else 1, make, noises))
            inputs = shapes[-1].outputs
        parts[f"stage{stage + 1}"] = nn.Sequential(*made)
    parts["head"] = row(make(order.head.split(), inputs) | make_head(inputs, classes), noises)
    built = nn.Sequential(parts)
    init_convs_(built)
    return built


def _make_block(
    order: Order,
    inputs: int,
    shapes: Sequence[Shape],
    stride: int,
    make: partial[dict[str, nn.Module]],
    noises: dict[str, Noise],
) -> Residual:
    outputs, first = shapes[-1].outputs, next(i for i, shape in enumerate(shapes) if shape.kernel == 3)
    projects = stride > 1 or inputs != outputs
    channels, weights = inputs, list[nn.Conv2d]()
    for i, shape in enumerate(shapes):
        weights.append(make_conv(channels, shape.outputs, shape.kernel, stride if i == first else 1, shape.groups))
        channels = shape.outputs
    layers = list(make(order.names(len(shapes)), inputs, weights).items())
    fork, join = order.shared * projects, len(layers) - order.joined
    shortcut = make(order.shortcut.split(), inputs, [make_conv(inputs, outputs, 1, stride)]) if projects else {}
    return Residual(
        row({"input": None, **dict(layers[:fork])}, noises),
        row({**dict(layers[fork:join]), "join": None}, noises),
        row(shortcut),
        row(dict(layers[join:])),
    )
