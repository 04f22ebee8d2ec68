"""Images in memory, as training takes them: parts of a set, standardization, augmentation, shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from evenkeel.errors import EvenkeelError
from evenkeel.io.readers import ImageSet, LabelledImages, by, channel_moments, read_set

SYNTHETIC = "synthetic"
_DEFAULT = {SYNTHETIC: (400, 200)}  # how many images to train and to test on, where that is not all of them


@dataclass(frozen=True, eq=False)
class Images:
    """Images in memory, kept as bytes; `standardize` turns a batch of them into what a network reads.

    Attributes:
        train: what to train on.
        validation: what to choose by, disjoint from the former; None where none was asked for.
        test: what to report on.
        mean: of each channel of `train`, in units of the pixels, float32, C.
        deviation: of each channel of `train`, likewise; 1 for a constant channel.
        classes: number of classes.
    """

    train: LabelledImages
    validation: LabelledImages | None
    test: LabelledImages
    mean: Tensor
    deviation: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, CHW."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device | str) -> Images:
        """The same images on a device.

        Returns:
            New images; those that lie there already are shared.

        >>> load_images("synthetic", train=2, test=1).to("meta").train.images.device
        device(type='meta')
        """
        train, test = _moved(self.train, device), _moved(self.test, device)
        validation = None if self.validation is None else _moved(self.validation, device)
        mean, deviation = self.mean.to(device), self.deviation.to(device)
        return replace(self, train=train, validation=validation, test=test, mean=mean, deviation=deviation)

    def standardize(self, pixels: Tensor) -> Tensor:
        """Take off each channel's training mean, and divide by its training deviation.

        Raises:
            EvenkeelError: what was given are no bytes, and so may have been standardized before.

        >>> images = load_images("synthetic")
        >>> bool(images.standardize(images.train.images).mean().abs() < 1e-5)
        True
        """
        if pixels.dtype != torch.uint8:
            raise EvenkeelError(f"images to standardize must be uint8 pixels, not {pixels.dtype}: give them as read")
        return (pixels.float() - self.mean.view(-1, 1, 1)) / self.deviation.view(-1, 1, 1)


def load_images(
    name: str,
    *,
    train: int | None = None,
    test: int | None = None,
    validation: int = 0,
    size: int | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
) -> Images:
    """Load an image set, or part of it, into memory.

    Each published split is put into one fixed random order, of which parts are the first images, so that the smaller
    part is contained in the larger; those to validate are the last of the training split. Classes are as frequent as
    that order has them.

    Args:
        name: as for `read_set`; or `synthetic`, 2,000 + 1,000 images of 10 classes, 3x16x16, that need no files and
            are learned in no time.
        train: number of images to train on; by default all that are not to validate (of `synthetic`, 400).
        test: number of images to test on; by default all (of `synthetic`, 200).
        validation: number of training images that are set apart.
        size: height and width to which images are averaged down, each pixel the mean of those that it takes the place
            of; as they are if None.
        data_dir: folder with the files, as for `read_set`.
        download: whether to download files that are missing.

    Raises:
        EvenkeelError: there are fewer images than asked for, or the set cannot be read; in one line.

    >>> images = load_images("digits", train=600, validation=200)
    >>> len(images.train.labels), len(images.validation.labels), len(images.test.labels), images.shape
    (600, 200, 797, (1, 8, 8))
    """
    found = _synthetic() if name == SYNTHETIC else read_set(name, data_dir=data_dir, download=download)
    there, there_to_test = len(found.train.labels), len(found.test.labels)
    default = _DEFAULT.get(name, (max(there - validation, 1), there_to_test))
    train, test = (given if asked is None else asked for asked, given in zip((train, test), default, strict=True))
    if train < 1 or test < 1 or validation < 0:
        asked = f"{train:,} to train, {validation:,} to validate and {test:,} to test"
        raise EvenkeelError(f"images of {name}: {asked}: ask for 1 or more to train and to test, and 0 to validate")
    if train + validation > there:
        asked = f"{train:,} images to train and {validation:,} to validate"
        raise EvenkeelError(f"{name} has {there:,} training images, not the {asked} that were asked for: ask for fewer")
    if test > there_to_test:
        raise EvenkeelError(f"{name} has {there_to_test:,} test images, not {test:,}: ask for fewer")
    order = _order(there)
    part = _chosen(found.train, order[:train], size)
    apart = _chosen(found.train, order[there - validation :], size) if validation else None
    mean, deviation = channel_moments(part.images)
    held_out = _chosen(found.test, _order(there_to_test)[:test], size)
    return Images(part, apart, held_out, mean, deviation, found.classes)


def augment(images: Tensor, generator: torch.Generator, *, pad: int = 4, flip: bool = True) -> Tensor:
    """Pad images with zeros, crop them to their size at random, and mirror every other one, each by its own draw.

    Zero is the mean of a standardized image: the usual way of training on CIFAR, which pads after standardizing. Of
    bytes it is black.

    Args:
        images: NCHW, of any type.
        generator: what is drawn from; on any device: one on the CPU draws the same for every device.
        pad: number of pixels on each side; 0 leaves the images where they are.
        flip: whether an image is mirrored, left for right, with probability 0.5.

    Returns:
        New images of the same shape, type and device.

    Raises:
        EvenkeelError: the padding is negative, or the images are not NCHW.

    >>> augment(torch.ones(2, 1, 3, 3), torch.Generator().manual_seed(0), pad=1).shape
    torch.Size([2, 1, 3, 3])
    """
    if pad < 0 or images.ndim != 4:
        raise EvenkeelError(f"augment pads NCHW images by 0 or more pixels, not {by(images.shape)} by {pad}")
    count, channels, height, width = images.shape
    rows, columns, mirrored = draws(count, generator, pad, flip).to(images.device)[..., None]
    across = torch.arange(width, device=images.device)
    across = columns + torch.where(mirrored.bool(), width - 1 - across, across)
    down = rows + torch.arange(height, device=images.device)
    places = (down[:, :, None] * (width + 2 * pad) + across[:, None, :]).view(count, 1, -1)
    padded = F.pad(images, (pad,) * 4).flatten(2)
    return padded.gather(2, places.expand(-1, channels, -1)).view_as(images)


def draws(count: int, generator: torch.Generator, pad: int, flip: bool) -> Tensor:
    """What `augment` draws: of each image, where its crop begins in the padded one, and whether it is mirrored.

    Returns:
        First row and first column, from 0 to twice the padding, and 0 or 1; int64, 3 x N, on the generator's device.

    >>> draws(4, torch.Generator().manual_seed(0), pad=0, flip=False).sum()
    tensor(0)
    """
    corners = torch.randint(2 * pad + 1, (2, count), generator=generator, device=generator.device)
    mirrored = torch.randint(1 + flip, (1, count), generator=generator, device=generator.device)
    return torch.cat([corners, mirrored])


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The shuffled batches of one epoch, as indices.

    Args:
        count: number of images.
        size: images in a batch. The last batch may hold fewer; one that would hold a single image is dropped, since no
            norm can be trained on it.
        generator: what the order is drawn from.

    Returns:
        Iterator of int64 indices, on the generator's device.

    Raises:
        EvenkeelError: that makes no batch.

    >>> [len(batch) for batch in batches(10, 4, torch.Generator())]
    [4, 4, 2]
    >>> [len(batch) for batch in batches(9, 4, torch.Generator())]
    [4, 4]
    """
    if size < 1 or count < min(size, 2):
        raise EvenkeelError(
            f"{count:,} images make no batch of up to {size:,}: give 2 or more images, 1 or more a batch"
        )
    parts = torch.randperm(count, generator=generator, device=generator.device).split(size)
    return iter(parts[:-1] if len(parts[-1]) == 1 < size else parts)


def _moved(split: LabelledImages, device: torch.device | str) -> LabelledImages:
    return LabelledImages(split.images.to(device), split.labels.to(device))


def _chosen(split: LabelledImages, indices: Tensor, size: int | None) -> LabelledImages:
    images = split.images[indices]
    if size is not None:
        images = F.adaptive_avg_pool2d(images.float(), size).round().to(torch.uint8)
    return LabelledImages(images, split.labels[indices])


def _order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _synthetic() -> ImageSet:
    """Patches of 4 x 4 pixels in a class's own colours, under noise: crops and mirror images keep much of them."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(10, 3, 4, 4, generator=generator).mul(30).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def split(count: int) -> LabelledImages:
        labels = torch.arange(count) % 10
        noise = torch.randn(count, 3, 16, 16, generator=generator).mul(40)
        return LabelledImages((128 + colours[labels] + noise).round().clamp(0, 255).to(torch.uint8), labels)

    return ImageSet(split(2000), split(1000), 10)
