"""Preprocessing: what a model's training did to images before the model was given them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenkeel.errors import EvenkeelError, raised
from evenkeel.io.resolving import resolve


@dataclass(frozen=True)
class Preprocessing:
    """Images from 0 to 1 become `(images * scale - mean) / std`, and then what a transform makes of them.

    Args:
        mean: what is taken off each channel, or one number for all.
        std: what it is then divided by, likewise.
        scale: what it was multiplied by before, likewise: 255 for pixels from 0 to 255.
        transform: is given batches of these images, float32, NCHW, and returns what the model is given.

    Raises:
        EvenkeelError: a number is not finite, or a std or scale not above 0.

    >>> Preprocessing(mean=(0.5,), std=(0.25,)).moments(channels=1, white=255)
    (tensor([127.5000]), tensor([63.7500]))
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    scale: Sequence[float] = (1.0,)
    transform: Callable[[Tensor], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std", "scale"):
            values: Sequence[float] = getattr(self, name)
            if not values or not all(math.isfinite(v) and (v > 0 or name == "mean") for v in values):
                rule = "finite" if name == "mean" else "finite and above 0"
                raise EvenkeelError(f"{name} must be {rule}, one number or one a channel, not {list(values)}")

    def moments(self, channels: int, white: float) -> tuple[Tensor, Tensor]:
        """What is taken off pixels from 0 to `white`, and what they are then divided by; shape (channels,).

        Raises:
            EvenkeelError: there are neither one number nor as many as channels.
        """
        values: list[Tensor] = []
        for name in ("mean", "std", "scale"):
            given: Sequence[float] = getattr(self, name)
            if len(given) not in (1, channels):
                images = f"the images have {channels} channel{'' if channels == 1 else 's'}"
                raise EvenkeelError(f"{name} has {len(given)} numbers, and {images}: give one, or one a channel")
            values.append(torch.tensor(given, dtype=torch.float64).expand(channels))
        mean, std, scale = values
        return (mean * white / scale).float(), (std * white / scale).float()

    def transformed(self, images: Tensor) -> Tensor:
        """What the transform makes of a batch of images; the images if there is none.

        Raises:
            EvenkeelError: it raised, or returned no tensor with as many samples.
        """
        if self.transform is None:
            return images
        shape = "x".join(map(str, images.shape))
        try:
            made = self.transform(images)
        except Exception as error:
            raise EvenkeelError(f"the transform, given {shape} images, {raised(error)}: it is given batches") from error
        if not isinstance(made, Tensor) or not made.ndim or len(made) != len(images):
            what = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
            raise EvenkeelError(
                f"the transform made {what} of {shape} images: it must return a tensor, sample by sample"
            )
        return made


def parse_preprocessing(
    mean: str | None, std: str | None, scale: str | None, transform: str | None
) -> Preprocessing | None:
    """What the command line asks for: numbers with commas between them, and `package.module:callable`.

    Returns:
        The preprocessing; None if nothing is asked for.

    Raises:
        EvenkeelError: no numbers, or nothing of that name that can be called.

    >>> parse_preprocessing("0.5,0.4,0.3", None, None, None).mean
    (0.5, 0.4, 0.3)
    """
    if mean is std is scale is transform is None:
        return None
    function: Any = None if transform is None else resolve(transform)
    if function is not None and not callable(function):
        raise EvenkeelError(f"--transform {transform} is of type {type(function).__name__}: name what can be called")
    found = {"mean": mean, "std": std, "scale": scale}
    return Preprocessing(
        **{name: _numbers(name, text) for name, text in found.items() if text is not None}, transform=function
    )


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise EvenkeelError(f"--{name} {text}: write one number, or one a channel with commas between them") from error
