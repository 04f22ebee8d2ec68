"""What all nets are made of: rows of named layers, and noise right before layers of some names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.layers.ic import IC
from evenkeel.papers.lab.nets.noises import Noise

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
# Of a head that pools: li2018's Table 4, and kim2023's two sides of the pool.
HEAD_PLACES = {"last": ("fc",), "head-before": ("pool",), "head-after": ("fc",)}


def row(layers: Mapping[str, nn.Module | None], noises: Mapping[str, Noise] | None = None) -> nn.Sequential:
    """Named layers one after another, with noise right before those of some names.

    The noise before the layer "conv2" is called "drop_conv2", and so leaves every other layer its name, and every
    parameter its key in the state dict.

    Args:
        layers: by name; None for a place without a layer, such as the end of a branch.
        noises: by the name of the layer that follows. Other names are passed over.

    >>> row({"conv": nn.Conv2d(3, 8, 1), "join": None}, {"join": Noise("Dropout", 0.1)})
    Sequential(
      (conv): Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1))
      (drop_join): Dropout(p=0.1, inplace=False)
    )
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in layers.items():
        if noises and name in noises:
            modules[f"drop_{name}"] = noises[name]()
        if layer is not None:
            modules[name] = layer
    return nn.Sequential(modules)


def place_noises(
    net: str,
    places: str,
    noise: Noise | Mapping[str, Noise] | None,
    slots: Mapping[str, Sequence[str]],
) -> dict[str, Noise]:
    """Noise by the name of the layer that it comes before, which is what `row` takes.

    Args:
        net: what the net is called, for messages.
        places: "none", or names of places, joined by "+".
        noise: at all of them, or noises by the name of the layer; not needed, nor used, if there are none.
        slots: names of layers, by the name of the place.

    Raises:
        EvenkeelError: the net has no such place, two of them are the same one, there is no noise to put there, or it
            drops channels where there are none.

    >>> place_noises("net", "a", Noise("Dropout", 0.5), {"a": ("norm2",), "b": ("conv2",)})
    {'norm2': Noise(kind='Dropout', amount=0.5)}
    """
    if places == "none":
        return {}
    placed: dict[str, Noise] = {}
    owners: dict[str, str] = {}
    for place in places.split("+"):
        if place not in slots:
            raise EvenkeelError(
                f"{net} has no place {place!r} in places={places!r}: give 'none', or one or more of "
                f"{', '.join(slots)}, joined by '+'"
            )
        if noise is None:
            raise EvenkeelError(f"places={places!r} of {net} has no noise: give one, such as noise=['Dropout', 0.5]")
        for slot in slots[place]:
            if slot in owners:
                raise EvenkeelError(
                    f"{owners[slot]!r} and {place!r} in places={places!r} both put noise before {slot} of {net}: "
                    "give one of them"
                )
            owners[slot] = place
            placed[slot] = noise if isinstance(noise, Noise) else noise[slot]
            if placed[slot].kind == "Dropout2d" and slot.startswith("fc"):
                raise EvenkeelError(
                    f"{place!r} of {net} puts Dropout2d before {slot}, which reads features and no channels of images: "
                    "give Dropout"
                )
    return placed


def make_layers(
    names: Iterable[str],
    channels: int,
    weights: Iterable[nn.Conv2d | nn.Linear] = (),
    *,
    activation: str = "relu",
    noise: Noise | None = None,
) -> dict[str, nn.Module]:
    """Layers by name; the name, less its number, says what it is.

    Args:
        names: "conv" and "fc" are the next of the weights, "norm" is a batch norm, "act" the activation and "ic" a
            batch norm followed by noise, as in Chen et al. 2019; "pool" is a max-pool of 2x2 and "flatten" itself.
        channels: that come in.
        weights: weight layers, in order.
        activation: a name in `ACTIVATIONS`.
        noise: of an "ic".

    Raises:
        EvenkeelError: there is no such activation.

    >>> make_layers(["act1", "fc1"], 4, [nn.Linear(4, 2)], activation="elu")
    {'act1': ELU(alpha=1.0), 'fc1': Linear(in_features=4, out_features=2, bias=True)}
    """
    if activation not in ACTIVATIONS:
        raise EvenkeelError(f"there is no activation {activation!r}: give one of {', '.join(ACTIVATIONS)}")
    rest, layers = iter(weights), dict[str, nn.Module]()
    modules = {"act": ACTIVATIONS[activation], "pool": partial(nn.MaxPool2d, 2), "flatten": nn.Flatten}
    norm: type[nn.Module] = nn.BatchNorm2d
    for name in names:
        kind = name.rstrip("0123456789")
        if kind in modules:
            layers[name] = modules[kind]()
        elif kind == "norm":
            layers[name] = norm(channels)
        elif kind == "ic":
            layers[name] = _independent(channels, noise)
        else:
            layers[name] = weight = next(rest)
            linear = isinstance(weight, nn.Linear)
            norm, channels = (nn.BatchNorm1d, weight.out_features) if linear else (nn.BatchNorm2d, weight.out_channels)
    return layers


def _independent(channels: int, noise: Noise | None) -> nn.Module:
    assert noise is not None
    if noise.kind == "Dropout":
        return IC(channels, noise.amount)
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), dropout=noise()))


def make_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that, at stride 1, keeps height and width.

    >>> make_conv(3, 16, 3)
    Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def make_head(channels: int, classes: int) -> dict[str, nn.Module]:
    """Global average pooling and a classifier.

    >>> list(make_head(8, 10))
    ['pool', 'flatten', 'fc']
    """
    return {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(channels, classes)}


def init_convs_(net: nn.Module) -> None:
    """Draw convolutions from He's normal by fan-out, as the code that Li et al. 2018 trained with does.

    Args:
        net: changed in place; norms start at 1 and 0, and linear layers as in torch.

    >>> net = make_conv(64, 64, 3)
    >>> init_convs_(net)
    >>> round(float(net.weight.detach().std() * (64 * 9 / 2) ** 0.5), 1)
    1.0
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def count_blocks(net: str, depth: int, layers: int, rest: int) -> int:
    """How many blocks a stage has in a net of three stages and a given depth.

    Args:
        net: what the net is called, for messages.
        depth: weight layers.
        layers: weight layers in one block of each stage.
        rest: weight layers outside.

    Raises:
        EvenkeelError: no number of blocks has that depth.

    >>> count_blocks("a bottleneck preresnet", 164, 9, 2)
    18
    """
    blocks = (depth - rest) // layers
    if blocks < 1 or depth != layers * blocks + rest:
        near = sorted({layers * max(1, n) + rest for n in (blocks, blocks + 1)})
        raise EvenkeelError(
            f"depth is {depth}, but {net} has {layers} n + {rest} weight layers: give {' or '.join(map(str, near))}"
        )
    return int(blocks)


def require_counts(**counts: int) -> None:
    """Refuse numbers of channels, classes and the like that are not 1 or more.

    Raises:
        EvenkeelError: one of them is not.

    >>> require_counts(classes=10)
    """
    for name, count in counts.items():
        if count < 1 or count % 1:
            raise EvenkeelError(f"{name} is {count}: give a whole number, 1 or more")
