"""What is trained, as data: networks, images, recipes, and the factors that arms differ in. Nothing here runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal

Scale = Literal["smoke", "quick", "full"]
EngineName = Literal["local", "ray"]
Accelerator = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "bf16-mixed"]  # not 16-mixed: its loss scale is a state that a resumed run would need
SCALES: tuple[Scale, ...] = ("smoke", "quick", "full")
Factors = Mapping[str, Any]  # what one arm differs in from the others: {"net": "wrn", "place": "a", "p": 0.5}


@dataclass(frozen=True)
class Net:
    """A network by name, with plain arguments, so that it can be stored and built anywhere.

    Args:
        name: of a builder in `evenkeel.papers.lab.nets`.
        arguments: what that builder is given, as plain numbers, strings and lists.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class ImageSource:
    """The images to train and to judge on.

    Args:
        name: of a data set, such as cifar10.
        train: how many training images are used; all if None.
        test: how many test images are used; all if None.
        validation: how many training images are held out.
        size: height and width that images are averaged down to; as they are if None.
    """

    name: str
    train: int | None = None
    test: int | None = None
    validation: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    The loss is the mean cross-entropy over a batch, labels as they are. Weight decay is the gradient of
    `weight_decay / 2 * |w|^2` over ALL trainable parameters, biases and norms' scales included, added to the loss's
    (L2, not decoupled, under Adam too), as the code bases of hendrycks2016 and li2018 do it.

    Args:
        epochs: passes over the training images.
        batch: images a step, over all devices together.
        optimizer: `sgd` (with momentum), `nesterov` or `adam` (betas .9 and .999).
        lr: learning rate at the start.
        momentum: of sgd and nesterov.
        weight_decay: see above.
        milestones: shares of the epochs after which the learning rate is multiplied by gamma.
        gamma: see milestones.
        augment: zero-pad by an eighth of the width (4 of 32), crop at random, mirror half of the images.
        reset_momentum: epochs of each period after which momentum is reset; 0 for never (hendrycks2016).
        snapshots: shares of the epochs after which the weights are kept, besides the end's.
        watched: how many images of the training and of the test or validation split are scored in eval mode after
            each epoch; 0 for none.
    """

    epochs: int
    batch: int = 128
    optimizer: Literal["sgd", "nesterov", "adam"] = "nesterov"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    augment: bool = False
    reset_momentum: int = 0
    snapshots: tuple[float, ...] = ()
    watched: int = 1000

    def lr_at(self, epoch: int) -> float:
        """Learning rate in an epoch, counted from 0.

        >>> [Recipe(epochs=4, lr=1.0, milestones=(0.5, 0.75), gamma=0.5).lr_at(epoch) for epoch in range(4)]
        [1.0, 1.0, 0.5, 0.25]
        """
        return self.lr * self.gamma ** sum(epoch >= round(share * self.epochs) for share in self.milestones)

    def kept(self) -> tuple[int, ...]:
        """The numbers of epochs done after which weights are kept, the last one among them.

        >>> Recipe(epochs=7, snapshots=(0.5,)).kept()
        (4, 7)
        """
        return tuple(sorted({max(1, round(share * self.epochs)) for share in (*self.snapshots, 1.0)}))


@dataclass(frozen=True)
class Training:
    """All that decides the weights that come out, except the seed and the hardware.

    Args:
        net: what is trained.
        source: on which images.
        recipe: how.
        init: `given` leaves the net's own initialization, `xavier` and `he` are torch's, `hendrycks2016`, `forward`,
            `backward` and `mean` those of `evenkeel.init_`; biases start at 0 except for `given`.
    """

    net: Net
    source: ImageSource
    recipe: Recipe
    init: str = "given"


@dataclass(frozen=True)
class Selection:
    """Which of the arms that differ in one factor only, such as the learning rate, counts: the best by some figure.

    Args:
        over: the factor.
        by: the figure, of which the lowest mean over seeds is best; it must not be a test figure.
    """

    over: str
    by: str


def grid(**levels: tuple[Any, ...]) -> tuple[Factors, ...]:
    """Every combination of levels, the last factor fastest.

    >>> grid(place=("a", "b"), p=(0.5,))
    ({'place': 'a', 'p': 0.5}, {'place': 'b', 'p': 0.5})
    """
    return tuple(dict(zip(levels, values, strict=True)) for values in product(*levels.values()))


def arm_name(factors: Factors) -> str:
    """The name of an arm in files and tables.

    >>> arm_name({"net": "wrn", "place": "a", "p": 0.5})
    'wrn-a-0.5'
    """
    return "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in factors.values())


def plain(value: Any) -> Any:
    """A dataclass as plain data for JSON.

    >>> plain(Training(Net("mlp"), ImageSource("digits"), Recipe(epochs=1)))["net"]
    {'name': 'mlp', 'arguments': {}}
    """
    return json.loads(json.dumps(asdict(value)))


def digest(*values: Any) -> str:
    """A short name for plain values: the same for the same values, in every process.

    >>> digest({"a": 1}, 2) == digest({"a": 1}, 2) != digest({"a": 1}, 3)
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
