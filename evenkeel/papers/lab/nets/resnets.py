"""The residual nets of the papers: ResNet, PreResNet, ResNeXt and wide ResNet for small images."""

from __future__ import annotations

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab.nets.noises import Noise
from evenkeel.papers.lab.nets.parts import count_blocks, require_counts
from evenkeel.papers.lab.nets.residuals import POST, PRE, WIDE, Shape, build_residual


def resnet(
    depth: int,
    *,
    width: int = 16,
    block: str = "basic",
    classes: int = 10,
    channels: int = 3,
    places: str = "none",
    noise: Noise | None = None,
    activation: str = "relu",
) -> nn.Sequential:
    """The ResNet of He et al. 2015 for small images, with activations after the joins.

    Shortcuts that change channels are a convolution and a norm. Dropout at kim2023's P0 to P7 is refused: these are
    positions between norm, activation and weight of a pre-activation branch.

    Args:
        depth: weight layers, 6 n + 2 of basic blocks, 9 n + 2 of bottlenecks.
        width: channels of the stem and, before expansion, of the first stage; they double at the other two.
        block: "basic", two 3x3 convolutions, or "bottleneck", 1x1, 3x3, and 1x1 to four times the channels.
        classes: number of outputs.
        channels: of an image.
        places: of noise, joined by "+": "none"; "a", before each block's last norm, and "b", before its last weight;
            "last" or "head-after", before the classifier; "head-before", before the pool; or, in place of the block's
            own order, chen2019's "relu-ic-conv", "ic-conv-relu" or "conv-relu-ic", or "relu-norm-conv", the first of
            them with norms for ICs; all go with those of the head, and the last one with "b".
        noise: what is put there.
        activation: by name, such as "relu".

    Raises:
        EvenkeelError: there is no net of that depth, no such block, place or activation, or no noise for the place.

    >>> net = resnet(110, width=2)
    >>> sum(isinstance(module, nn.ReLU) for module in net.modules())
    109
    """
    stages, blocks = _plain_stages("resnet", depth, width, block)
    return build_residual("resnet", POST, stages, blocks, width, classes, channels, places, noise, activation, ics=True)


def preresnet(
    depth: int,
    *,
    width: int = 16,
    block: str = "bottleneck",
    classes: int = 10,
    channels: int = 3,
    places: str = "none",
    noise: Noise | None = None,
    activation: str = "relu",
) -> nn.Sequential:
    """The pre-activation ResNet of He et al. 2016 for small images.

    Li et al. 2018's "PreResNet-110" of 1.70 M parameters is `preresnet(164)`; Kim et al. 2023's is
    `preresnet(110, block="basic")`.

    Args:
        depth: weight layers, 6 n + 2 of basic blocks, 9 n + 2 of bottlenecks.
        width: channels of the stem and, before expansion, of the first stage; they double at the other two.
        block: "basic", two 3x3 convolutions, or "bottleneck", 1x1, 3x3, and 1x1 to four times the channels.
        classes: number of outputs.
        channels: of an image.
        places: as for `resnet`, and kim2023's "P0", before the block, its shortcut included; "P1", "P2" and "P3",
            before the first norm, activation and weight; "P4", "P5" and "P6", before the last ones; "P7", before the
            join. "P4" is "a", and "P6" is "b".
        noise: what is put there.
        activation: by name, such as "relu".

    Raises:
        EvenkeelError: as for `resnet`.

    >>> net = preresnet(11, width=2, places="b", noise=Noise("Dropout", 0.3))
    >>> [name for name, _ in net.stage1[0].branch.named_children()][-4:]
    ['norm3', 'act3', 'drop_conv3', 'conv3']
    """
    stages, blocks = _plain_stages("preresnet", depth, width, block)
    return build_residual(
        "preresnet", PRE, stages, blocks, width, classes, channels, places, noise, activation, ics=True
    )


def resnext(
    depth: int = 29,
    *,
    cardinality: int = 8,
    base_width: int = 64,
    width: int = 64,
    classes: int = 10,
    channels: int = 3,
    places: str = "none",
    noise: Noise | None = None,
    activation: str = "relu",
) -> nn.Sequential:
    """The ResNeXt of Xie et al. 2017 for small images: bottlenecks whose 3x3 convolution is grouped.

    Args:
        depth: weight layers, 9 n + 2.
        cardinality: number of groups.
        base_width: channels of a group in the first stage; they double at the other two.
        width: channels of the stem; a block of the first stage gives four times as many.
        classes: number of outputs.
        channels: of an image.
        places: as for `resnet`, but for chen2019's orders.
        noise: what is put there.
        activation: by name, such as "relu".

    Raises:
        EvenkeelError: as for `resnet`.

    >>> resnext(11, cardinality=2, base_width=1, width=2).stage1[0].branch.conv2.groups
    2
    """
    require_counts(cardinality=cardinality, base_width=base_width, width=width)
    blocks = count_blocks("resnext", depth, 9, 2)
    inner = [cardinality * base_width * 2**stage for stage in range(3)]
    outer = [4 * width * 2**stage for stage in range(3)]
    stages = [[Shape(1, n), Shape(3, n, cardinality), Shape(1, m)] for n, m in zip(inner, outer, strict=True)]
    return build_residual("resnext", POST, stages, blocks, width, classes, channels, places, noise, activation)


def wrn(
    depth: int = 28,
    *,
    widen: int = 10,
    width: int = 16,
    classes: int = 10,
    channels: int = 3,
    places: str = "none",
    noise: Noise | None = None,
    activation: str = "relu",
) -> nn.Sequential:
    """The wide ResNet of Zagoruyko & Komodakis 2016: pre-activation basic blocks of many channels.

    In a block whose shortcut is a convolution, that reads the first norm and activation, too, and so does noise at
    "P1" and "P2" reach it.

    Args:
        depth: weight layers, 6 n + 4 by the authors' count.
        widen: how many times as many channels as in the stem the first stage has.
        width: channels of the stem.
        classes: number of outputs.
        channels: of an image.
        places: as for `preresnet`, but for chen2019's orders; "b" is the authors' own.
        noise: what is put there.
        activation: by name, such as "relu".

    Raises:
        EvenkeelError: as for `resnet`.

    >>> sum(isinstance(module, nn.BatchNorm2d) for module in wrn(28, widen=1, width=2).modules())
    25
    """
    require_counts(widen=widen, width=width)
    blocks = count_blocks("wrn", depth, 6, 4)
    stages = [[Shape(3, width * widen * 2**stage)] * 2 for stage in range(3)]
    return build_residual("wrn", WIDE, stages, blocks, width, classes, channels, places, noise, activation)


def _plain_stages(net: str, depth: int, width: int, block: str) -> tuple[list[list[Shape]], int]:
    require_counts(width=width)
    planes = [width * 2**stage for stage in range(3)]
    if block == "basic":
        stages = [[Shape(3, p), Shape(3, p)] for p in planes]
    elif block == "bottleneck":
        stages = [[Shape(1, p), Shape(3, p), Shape(1, 4 * p)] for p in planes]
    else:
        raise EvenkeelError(f"block of {net} is {block!r}: give 'basic' or 'bottleneck'")
    return stages, count_blocks(f"a {net} of {block} blocks", depth, 3 * len(stages[0]), 2)
