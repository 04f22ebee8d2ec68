"""The fully connected nets of Hendrycks & Gimpel 2016."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab.nets.noises import Noise
from evenkeel.papers.lab.nets.parts import make_layers, place_noises, require_counts, row


def mlp(
    widths: Sequence[int] = (256,) * 7,
    *,
    inputs: int = 784,
    classes: int = 10,
    places: str = "none",
    noise: Noise | None = None,
    activation: str = "relu",
    norm: bool = False,
) -> nn.Sequential:
    """A fully connected net: weight, norm if asked for, and activation for each hidden layer, then a classifier.

    The default is the MNIST net of Hendrycks & Gimpel 2016, section 5: 8 weight layers, the classifier included, 256
    wide; `mlp((500,) * 15 + (250,) * 4, inputs=500, classes=250)` is that of their Figure 1.

    Args:
        widths: of the hidden layers.
        inputs: features of a sample, of whatever shape.
        classes: number of outputs.
        places: of noise: "none"; "hidden", after each hidden activation; or "last", before the classifier alone.
        noise: what is put there.
        activation: by name, such as "relu".
        norm: whether a batch norm comes before each activation.

    Raises:
        EvenkeelError: there is no such place or activation, no noise for the place, or a number is none.

    >>> mlp([4], inputs=8, places="hidden", noise=Noise("Dropout", 0.5))
    Sequential(
      (flatten): Flatten(start_dim=1, end_dim=-1)
      (fc1): Linear(in_features=8, out_features=4, bias=True)
      (act1): ReLU()
      (drop_fc): Dropout(p=0.5, inplace=False)
      (fc): Linear(in_features=4, out_features=10, bias=True)
    )
    """
    require_counts(inputs=inputs, classes=classes, **{f"widths[{i}]": width for i, width in enumerate(widths)})
    if not widths:
        raise EvenkeelError("widths of mlp is empty, and so there is no hidden layer: give one width or more")
    hidden = range(1, len(widths) + 1)
    weights = [nn.Linear(a, b) for a, b in zip((inputs, *widths), (*widths, classes), strict=True)]
    kinds = ("fc", "norm", "act") if norm else ("fc", "act")
    names = [f"{kind}{number}" for number in hidden for kind in kinds]
    slots = {"hidden": [*(f"fc{number}" for number in hidden[1:]), "fc"], "last": ["fc"]}
    layers = make_layers(["flatten", *names, "fc"], inputs, weights, activation=activation)
    return row(layers, place_noises("mlp", places, noise, slots))
