"""Data sets by name: image sets read from their standard files, as batches that can be iterated over again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenkeel.errors import EvenkeelError, brief, raised
from evenkeel.io.downloads import SETS
from evenkeel.io.preprocessing import Preprocessing
from evenkeel.io.readers import by, channel_moments, read_set
from evenkeel.io.resolving import resolve
from evenkeel.model.nested import tensors

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# channels: Pillow's mode, and the usual mean and deviation of such images, of pixels from 0 to 255
_PIXELS = {1: ("L", (127.5,), (127.5,)), 3: ("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))}
_WHITE, _WHITES = 255, {"digits": 16}  # the largest value of a pixel, and of those of some sets


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        name: of the set, as given.
        train: training batches: pairs of images (float32, NCHW) and labels (int64), images alone for a flat folder,
            or whatever a callable yields.
        test: test batches, if there are any.
        shape: shape of one image, CHW, where known.
        classes: number of classes, where known.
    """

    name: str
    train: Iterable[Any]
    test: Iterable[Any] | None = None
    shape: tuple[int, ...] | None = None
    classes: int | None = None


@dataclass(frozen=True, eq=False)
class Batches:
    """Standardized batches of images, in a fixed order, each time they are iterated over.

    Args:
        read: gives the images of a slice: pixels, NCHW.
        labels: int64, N; None where there are none, and a batch is the images alone.
        mean: what is taken off each channel, in units of the pixels.
        deviation: what each channel is then divided by.
        count: number of images, N.
        batch_size: images in a batch; the last one may hold fewer, or one more where one would be left over, which no
            norm can be given alone.
        finish: what is then done to a batch of images.

    >>> pixels = torch.tensor([0, 4, 8]).view(3, 1, 1, 1)
    >>> batches = Batches(pixels.__getitem__, None, torch.tensor([4.0]), torch.tensor([2.0]), count=3, batch_size=2)
    >>> [images.flatten().tolist() for images in batches]
    [[-2.0, 0.0, 2.0]]
    """

    read: Callable[[slice], Tensor]
    labels: Tensor | None
    mean: Tensor
    deviation: Tensor
    count: int
    batch_size: int
    finish: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Any]:
        mean, deviation = self.mean.view(-1, 1, 1), self.deviation.view(-1, 1, 1)
        starts = self._starts()
        for start, end in zip(starts, (*starts[1:], self.count), strict=True):
            part = slice(start, end)
            images = (self.read(part).float() - mean) / deviation
            images = images if self.finish is None else self.finish(images)
            yield images if self.labels is None else (images, self.labels[part])

    def _starts(self) -> range:
        one_is_left = self.count > self.batch_size > 1 and self.count % self.batch_size == 1
        return range(0, self.count - one_is_left, self.batch_size)


def load_data(
    name: str,
    *,
    data_dir: str | Path | None = None,
    shape: tuple[int, ...] | None = None,
    batch_size: int = 128,
    download: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Data:
    """Load the data set of that name.

    Unless preprocessing says otherwise, images of the named sets are standardized by their training split's mean and
    deviation, channel by channel; those of a folder by ImageNet's (3 channels), or by .5 and .5 of pixels from 0 to 1
    (1 channel).

    Args:
        name: `digits` (from scikit-learn, 1,000 to train and 797 to test), `mnist`, `fashion-mnist`, `cifar10`,
            `cifar100`, `svhn`, `folder:PATH` (images, in one sub-folder a class or without labels), or
            `package.module:callable` (called without arguments; returns batches, or a tuple of training and test
            batches).
        data_dir: folder with the files of a named set; the environment's EVENKEEL_DATA if None, and without that the
            cache that downloads go to.
        shape: CHW, to which images of a folder are resized; images of other sets are checked against it.
        batch_size: images in a batch, except of a callable.
        download: whether files of a named set that are missing are downloaded; by default, nothing is.
        preprocessing: what training did to the images of a named set or a folder.

    Returns:
        The data.

    Raises:
        EvenkeelError: no such set, files missing or damaged, the wrong shape, or a download failed; names file and
            remedy in one line.

    >>> data = load_data("digits", batch_size=100)
    >>> len(data.train), len(data.test), data.shape, data.classes
    (10, 8, (1, 8, 8), 10)
    """
    if batch_size < 1:
        raise EvenkeelError(f"batch_size must be at least 1, not {batch_size}")
    kind, _, rest = name.partition(":")
    if name == "folder:":
        raise EvenkeelError("folder: names no folder: write folder:PATH, such as folder:images/train")
    if kind == "folder" and rest:
        return _load_folder(name, Path(rest), shape, batch_size, preprocessing)
    if name in SETS:
        return _load_set(name, data_dir, shape, batch_size, download, preprocessing)
    if kind and rest:
        if preprocessing is not None:
            raise EvenkeelError(f"{name} yields what the model is given: preprocess there, without mean, std, scale")
        return _load_callable(name, shape)
    raise EvenkeelError(f"no data set {name!r}: name {', '.join(SETS)}, folder:PATH or package.module:callable")


def _load_set(
    name: str,
    data_dir: str | Path | None,
    shape: tuple[int, ...] | None,
    batch_size: int,
    download: bool,
    preprocessing: Preprocessing | None,
) -> Data:
    images = read_set(name, data_dir=data_dir, download=download)
    found = tuple(images.train.images.shape[1:])
    finish = _finish(preprocessing)
    if shape is not None and shape != found and finish is None:
        raise EvenkeelError(f"images of {name} are {by(found)}, not {by(shape)}: name a model for {by(found)}")
    pixels = images.train.images
    moments = preprocessing.moments(found[0], _WHITES.get(name, _WHITE)) if preprocessing else channel_moments(pixels)
    train, test = (
        Batches(split.images.__getitem__, split.labels, *moments, len(split.labels), batch_size, finish)
        for split in (images.train, images.test)
    )
    if shape is not None and finish is not None:
        _check_first(name, train, shape)
    return Data(name, train, test, shape=shape or found, classes=images.classes)


def _finish(preprocessing: Preprocessing | None) -> Callable[[Tensor], Tensor] | None:
    return preprocessing.transformed if preprocessing and preprocessing.transform else None


def _load_folder(
    name: str, folder: Path, shape: tuple[int, ...] | None, batch_size: int, preprocessing: Preprocessing | None
) -> Data:
    if not folder.is_dir():
        raise EvenkeelError(f"{name}: there is no folder {folder}; name one that holds images")
    if shape is None or len(shape) != 3 or shape[0] not in _PIXELS:
        asked = "no shape" if shape is None else f"shape {by(shape)}"
        raise EvenkeelError(f"{name} with {asked}: give one of 1 or 3 channels to resize to, such as --input 3x224x224")
    loose = _images_in(folder.iterdir())
    classes = [files for sub in sorted(folder.iterdir()) if sub.is_dir() and (files := _images_in(sub.rglob("*")))]
    if bool(loose) == bool(classes):
        found = f"{len(loose):,} images and {len(classes):,} sub-folders with images"
        raise EvenkeelError(f"{folder} holds {found}: put images into it or into one sub-folder a class, not both")
    files = loose or [file for part in classes for file in part]
    labels = torch.tensor([label for label, part in enumerate(classes) for _ in part]) if classes else None
    mode, *usual = _PIXELS[shape[0]]
    mean, deviation = preprocessing.moments(shape[0], _WHITE) if preprocessing else map(torch.tensor, usual)
    read = partial(_read_images, files, mode, shape[1:])
    loader = Batches(read, labels, mean, deviation, len(files), batch_size, _finish(preprocessing))
    return Data(name, loader, shape=shape, classes=len(classes) or None)


def _images_in(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file())


def _read_images(files: Sequence[Path], mode: str, size: tuple[int, ...], part: slice) -> Tensor:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter's lock, so that threads serve
        images = np.stack(list(pool.map(partial(_read_image, mode=mode, size=size), files[part])))
    return torch.from_numpy(images).view(*images.shape[:3], -1).permute(0, 3, 1, 2)


def _read_image(path: Path, mode: str, size: tuple[int, ...]) -> Any:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    except Exception as error:
        raise EvenkeelError(f"{path} is no image that can be read ({brief(error)}): fix or remove it") from error


@dataclass(frozen=True)
class _Remade:
    """Batches from a generator, which can be gone over only once, and so is made anew every time."""

    make: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def _load_callable(name: str, shape: tuple[int, ...] | None) -> Data:
    function = resolve(name)
    try:
        made: Any = function()
    except (Exception, SystemExit) as error:
        raise EvenkeelError(f"data {name!r} {raised(error)}: name a callable that returns batches") from error
    pair: tuple[Any, ...] = made if isinstance(made, tuple) else ()
    if isinstance(made, tuple) and len(pair) != 2:
        raise EvenkeelError(f"data {name!r} returned a tuple of {len(pair)}: return batches, or (train, test)")
    if pair:
        train, test = (_reiterable(name, part, lambda i=i: function()[i]) for i, part in enumerate(pair))
    else:
        train, test = _reiterable(name, made, function), None
    if shape is not None:
        _check_first(name, train, shape)
    return Data(name, train, test)


def _check_first(name: str, batches: Iterable[Any], shape: tuple[int, ...]) -> None:
    """Refuse data whose first batch has another shape."""
    found = next((tuple(tensor.shape[1:]) for tensor in tensors(next(iter(batches), ()))), shape)
    if found != shape:
        raise EvenkeelError(f"inputs of {name} are {by(found)}, not {by(shape)}: name a model for {by(found)}")


def _reiterable(name: str, made: Any, again: Callable[[], Any]) -> Iterable[Any]:
    if not isinstance(made, Iterable) or isinstance(made, (str, Tensor, Mapping)):
        raise EvenkeelError(f"data {name!r} returned a {type(made).__name__}, not batches: return [batch] or a loader")
    return _Remade(again) if isinstance(made, Iterator) else made
