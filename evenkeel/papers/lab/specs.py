"""What is trained, as data: networks, images, recipes, and the factors that arms differ in. Nothing here runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from typing import Any, Literal

Scale = Literal["smoke", "quick", "desk", "full"]
EngineName = Literal["local", "ray"]
Accelerator = Literal["auto", "cpu", "cuda"]
Precision = Literal["32-true", "bf16-mixed"]  # not 16-mixed: its loss scale is a state that a resumed run would need
SCALES: tuple[Scale, ...] = ("smoke", "quick", "desk", "full")
_LATER = {"later": True}  # of a field that records made before it lack: it is told only where it is not the default
_RISE = 0.3  # share of a one-cycle schedule in which the learning rate rises
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
        schedule: `steps` keeps the learning rate until a milestone; `one-cycle` raises it from a 25th of `lr` to `lr`
            over the first .3 of the steps, and lowers it to 0 by the last, both along half a cosine.
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
    schedule: Literal["steps", "one-cycle"] = field(default="steps", metadata=_LATER)

    def lr_at(self, epochs: float) -> float:
        """Learning rate after so many epochs, of which the last may have been done in part.

        >>> [Recipe(epochs=4, lr=1.0, milestones=(0.5, 0.75), gamma=0.5).lr_at(epochs) for epochs in (0, 1.9, 2, 3)]
        [1.0, 1.0, 0.5, 0.25]
        >>> [round(Recipe(epochs=10, lr=1.0, schedule="one-cycle").lr_at(epochs), 3) for epochs in (0, 1.5, 3, 6.5, 10)]
        [0.04, 0.52, 1.0, 0.5, 0.0]
        """
        if self.schedule == "one-cycle":
            done = epochs / self.epochs
            way, low = (done / _RISE, self.lr / 25) if done < _RISE else ((1 - done) / (1 - _RISE), 0.0)
            return low + (self.lr - low) * (1 - math.cos(math.pi * way)) / 2
        return self.lr * self.gamma ** sum(epochs >= round(share * self.epochs) for share in self.milestones)

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


# At desk scale: what nets are trained by and on that are to reach 8 to 10 % error in less than an hour of one core
DESK_RECIPE = Recipe(epochs=16, lr=0.2, weight_decay=5e-4, augment=True, schedule="one-cycle")
# What nets for CIFAR are trained on at each scale, by the name of the data.
CIFAR: dict[Scale, dict[str, ImageSource]] = {
    "smoke": {"synthetic": ImageSource("synthetic")},
    "quick": {"cifar10": ImageSource("cifar10", train=10_000, size=16)},
    "desk": {"cifar10": ImageSource("cifar10")},
    "full": {"cifar10": ImageSource("cifar10"), "cifar100": ImageSource("cifar100")},
}

# The same and MNIST, for claims that are not about natural images alone.
IMAGES: dict[Scale, dict[str, ImageSource]] = {
    **CIFAR,
    "quick": {**CIFAR["quick"], "mnist": ImageSource("mnist", train=10_000, size=16)},
    "full": {**CIFAR["full"], "mnist": ImageSource("mnist")},
}


def recipe_on(data: str, recipe: Recipe) -> Recipe:
    """A recipe for images of some name: digits are taken as they are, since a mirrored one is none.

    >>> recipe_on("mnist", DESK_RECIPE).augment, recipe_on("cifar10", DESK_RECIPE).augment
    (False, True)
    """
    return replace(recipe, augment=recipe.augment and data != "mnist")


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
    """A dataclass as plain data for JSON, without what was added to it later and is at its default.

    >>> plain(Training(Net("mlp"), ImageSource("digits"), Recipe(epochs=1)))["net"]
    {'name': 'mlp', 'arguments': {}}
    """
    return json.loads(json.dumps(value, default=_told))


def _told(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that its plain form holds."""
    if not is_dataclass(value):
        raise TypeError(f"{value!r} is no plain data")
    held = {field.name: getattr(value, field.name) for field in fields(value)}
    return {
        field.name: held[field.name]
        for field in fields(value)
        if not field.metadata.get("later") or held[field.name] != field.default
    }


def digest(*values: Any) -> str:
    """A short name for plain values: the same for the same values, in every process.

    >>> digest({"a": 1}, 2) == digest({"a": 1}, 2) != digest({"a": 1}, 3)
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
