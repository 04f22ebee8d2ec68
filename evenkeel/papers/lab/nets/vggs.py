"""The regularized VGG of Hendrycks & Gimpel 2016."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab.nets.noises import Noise
from evenkeel.papers.lab.nets.parts import make_layers, place_noises, require_counts, row

# Layers and width, in units of the first, of each stack.
_STACKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
_RATES = (0.3, 0.4, 0.4, 0.5)


def vgg(
    stacks: int = 5,
    *,
    width: int = 64,
    size: int = 32,
    classes: int = 10,
    channels: int = 3,
    places: str = "hendrycks2016",
    noise: Noise | None = None,
    rates: Sequence[float] | None = None,
    activation: str = "relu",
    norm: bool = False,
) -> nn.Sequential:
    """The VGG of Hendrycks & Gimpel 2016, section 5: stacks of 3x3 convolutions, then two hidden layers of 8 widths.

    Every stack is closed by a max-pool, which halves height and width. By the paper's text there are two hidden fully
    connected layers of 512, each reading through dropout, as the classifier does; its code has one.

    Args:
        stacks: how many of the five there are; 3 go with images of 8x8.
        width: of the first stack, 64 in the paper; the others have 2, 4, 8 and 8 times as many.
        size: height and width of an image, 2^stacks or more.
        classes: number of outputs.
        channels: of an image.
        places: of noise: "none"; "hendrycks2016", after convolution 1 and 3, after the first two of each of the last
            three stacks, and before each fully connected layer; or "last", before the classifier alone.
        noise: what is put there, the same everywhere; if None, dropout at `rates`.
        rates: to drop after convolution 1, after 3, in the last three stacks and before the fully connected layers;
            if None, the paper's, 0.3, 0.4, 0.4 and 0.5 (which it states as rates to keep).
        activation: by name, such as "relu".
        norm: whether a batch norm comes before each activation; the paper's net has none.

    Raises:
        EvenkeelError: there is no such place or activation, both noise and rates are given, the image is too small for
            the stacks, or a number is none.

    >>> [name for name, _ in vgg(1, width=2).named_children()]
    ['conv1', 'act1', 'drop_conv2', 'conv2', 'act2', 'pool1', 'flatten', 'drop_fc1', 'fc1', 'act3', 'drop_fc2', 'fc2', \
'act4', 'drop_fc', 'fc']
    """
    require_counts(stacks=stacks, width=width, size=size, classes=classes, channels=channels)
    if stacks > len(_STACKS):
        raise EvenkeelError(f"stacks of vgg is {stacks}: give 1 to {len(_STACKS)}")
    if size < 2**stacks:
        raise EvenkeelError(
            f"size of vgg is {size}, but {stacks} stacks halve it {stacks} times: give {2**stacks} or more, or fewer "
            "stacks"
        )
    if rates is not None and noise is not None:
        raise EvenkeelError(f"vgg was given noise {noise} and rates {list(rates)}, both: give one of them")
    chances = _RATES if rates is None else rates
    if len(chances) != len(_RATES):
        raise EvenkeelError(f"rates of vgg has {len(chances)} numbers: give {len(_RATES)} rates to drop")
    names, weights, rate_before = list[str](), list[nn.Conv2d | nn.Linear](), dict[str, float]()
    middle = ("norm", "act") if norm else ("act",)
    inputs = channels
    for stack, (depth, times) in enumerate(_STACKS[:stacks]):
        for index in range(depth):
            weights.append(nn.Conv2d(inputs, times * width, 3, padding=1))
            inputs, number = times * width, len(weights)
            names += [f"{kind}{number}" for kind in ("conv", *middle)]
            if index < depth - 1:
                rate_before[f"conv{number + 1}"] = chances[min(stack, 2)]
        names.append(f"pool{stack + 1}")
    names.append("flatten")
    inputs *= (size // 2**stacks) ** 2
    for name, outputs in {"fc1": 8 * width, "fc2": 8 * width, "fc": classes}.items():
        weights.append(nn.Linear(inputs, outputs))
        names += [name, *(f"{kind}{len(weights)}" for kind in middle if name != "fc")]
        inputs, rate_before[name] = outputs, chances[3]

    slots = {"hendrycks2016": [*rate_before], "last": ["fc"]}
    noises = noise or {name: Noise("Dropout", rate) for name, rate in rate_before.items()}
    layers = make_layers(names, channels, weights, activation=activation)
    return row(layers, place_noises("vgg", places, noises, slots))
