"""The DenseNet and DenseNet-BC of Huang et al. 2017 for small images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab.nets.noises import Noise
from evenkeel.papers.lab.nets.parts import (
    HEAD_PLACES,
    count_blocks,
    init_convs_,
    make_conv,
    make_head,
    make_layers,
    place_noises,
    require_counts,
    row,
)


class Dense(nn.Module):
    """A dense layer: its input, and what the branch makes of it, side by side.

    Args:
        branch: gives the new channels.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Shape (samples, channels, height, width) to (samples, channels + growth, height, width)."""
        return torch.cat([x, self.branch(x)], 1)


def densenet(
    depth: int,
    *,
    growth: int = 12,
    bottleneck: bool = False,
    reduction: float | None = None,
    first: int | None = None,
    classes: int = 10,
    channels: int = 3,
    places: str = "none",
    noise: Noise | None = None,
    activation: str = "relu",
) -> nn.Sequential:
    """The DenseNet of Huang et al. 2017 for small images: three dense blocks with two transitions between them.

    `densenet(40)` is DenseNet (L = 40, k = 12), and `densenet(100, bottleneck=True)` DenseNet-BC (L = 100, k = 12).

    Args:
        depth: weight layers, 3 n + 4, with bottlenecks 6 n + 4.
        growth: channels that each layer adds, k.
        bottleneck: whether a convolution of 1x1 to 4 k channels comes before each of 3x3.
        reduction: share of the channels that a transition keeps; if None, 0.5 with bottlenecks and all without.
        first: channels of the first convolution; if None, 2 k with bottlenecks and 16 without.
        classes: number of outputs.
        channels: of an image.
        places: of noise, joined by "+": "none"; li2018's "a", before the last (or only) norm of each dense layer, and
            "b", before its last weight; "conv", after every convolution but the first, which is the authors' own;
            "last" or "head-after", before the classifier; "head-before", before the global pool.
        noise: what is put there.
        activation: by name, such as "relu".

    Raises:
        EvenkeelError: there is no net of that depth, no such place or activation, no noise for the place, or a number
            is none.

    >>> net = densenet(10, bottleneck=True, places="a", noise=Noise("Dropout", 0.5))
    >>> [name for name, _ in net.block1[0].branch.named_children()]
    ['norm1', 'act1', 'conv1', 'drop_norm2', 'norm2', 'act2', 'conv2']
    """
    weights = 2 if bottleneck else 1
    share = reduction if reduction is not None else 0.5 if bottleneck else 1.0
    inputs = first if first is not None else 2 * growth if bottleneck else 16
    require_counts(growth=growth, first=inputs, classes=classes, channels=channels)
    if not 0 < share <= 1:
        raise EvenkeelError(f"reduction is {share}: give the share of channels to keep, above 0 and up to 1")
    net = "a densenet of bottlenecks" if bottleneck else "a densenet"
    layers = count_blocks(net, depth, 3 * weights, 4)
    after = [*(f"norm{number}" for number in range(2, weights + 1)), "join", "halve"]
    slots = {"a": [f"norm{weights}"], "b": [f"conv{weights}"], "conv": after} | HEAD_PLACES
    noises = place_noises(net, places, noise, slots)
    names = [f"{kind}{number}" for number in range(1, weights + 1) for kind in ("norm", "act", "conv")]

    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["stem"] = row({"conv": make_conv(channels, inputs, 3)})
    for block in range(3):
        if block:
            outputs = max(1, int(inputs * share))
            transition = make_layers(
                ["norm", "act", "conv"], inputs, [make_conv(inputs, outputs, 1)], activation=activation
            )
            parts[f"transition{block}"] = row(transition | {"halve": nn.AvgPool2d(2)}, noises)
            inputs = outputs
        dense: list[nn.Module] = []
        for _ in range(layers):
            convs = [make_conv(inputs, growth, 3)]
            if bottleneck:
                convs = [make_conv(inputs, 4 * growth, 1), make_conv(4 * growth, growth, 3)]
            branch = make_layers(names, inputs, convs, activation=activation)
            dense.append(Dense(row({**branch, "join": None}, noises)))
            inputs += growth
        parts[f"block{block + 1}"] = nn.Sequential(*dense)
    head = make_layers(["norm", "act"], inputs, activation=activation)
    parts["head"] = row(head | make_head(inputs, classes), noises)
    built = nn.Sequential(parts)
    init_convs_(built)
    return built
