"""The data that a name stands for: image sets read from their standard files, as batches to go over again and again."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenkeel.batches import tensors
from evenkeel.errors import EvenkeelError, brief
from evenkeel.names import raised, resolve

_Split = tuple[Tensor, Tensor]  # images (uint8, NCHW) and labels (int64, N)
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# channels: Pillow's mode, and the usual mean and deviation of such images, of pixels from 0 to 255
_PIXELS = {1: ("L", (127.5,), (127.5,)), 3: ("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))}


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        name: what it was asked for by.
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
    """Standardized batches of images, in a fixed order, as often as they are asked for.

    Args:
        read: gives the images of a slice: pixels, NCHW.
        labels: int64, N; None where there are none, and a batch is the images alone.
        mean: what is taken off each channel, in units of the pixels.
        deviation: what each channel is then divided by.
        count: number of images, N.
        batch_size: images in a batch; the last one may hold fewer, or one more where one would be left over, which no
            norm can be given alone.

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

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Any]:
        mean, deviation = self.mean.view(-1, 1, 1), self.deviation.view(-1, 1, 1)
        starts = self._starts()
        for start, end in zip(starts, (*starts[1:], self.count), strict=True):
            part = slice(start, end)
            images = (self.read(part).float() - mean) / deviation
            yield images if self.labels is None else (images, self.labels[part])

    def _starts(self) -> range:
        one_is_left = self.count > self.batch_size > 1 and self.count % self.batch_size == 1
        return range(0, self.count - one_is_left, self.batch_size)


def load_data(
    name: str, *, data_dir: str | Path | None = None, shape: tuple[int, ...] | None = None, batch_size: int = 128
) -> Data:
    """Load the data set of that name.

    Images of `digits`, `mnist` and `cifar10` are standardized by their training split's mean and deviation, channel
    by channel; those of a folder by ImageNet's (3 channels), or by .5 and .5 of pixels from 0 to 1 (1 channel).

    Args:
        name: `digits` (from scikit-learn, 1,000 to train and 797 to test), `mnist`, `cifar10`, `folder:PATH` (images,
            in one sub-folder a class or without labels), or `package.module:callable` (called without arguments;
            returns batches, or a tuple of training and test batches).
        data_dir: folder with the files of mnist or cifar10; the environment's EVENKEEL_DATA if None.
        shape: CHW, to which images of a folder are resized; images of other sets are checked against it.
        batch_size: images in a batch, except of a callable.

    Returns:
        The data.

    Raises:
        EvenkeelError: no such set, files missing or damaged, or the wrong shape; names file and remedy in one line.

    >>> data = load_data("digits", batch_size=100)
    >>> len(data.train), len(data.test), data.shape, data.classes
    (10, 8, (1, 8, 8), 10)
    """
    if batch_size < 1:
        raise EvenkeelError(f"batch_size must be at least 1, not {batch_size}")
    kind, _, rest = name.partition(":")
    if kind == "folder" and rest:
        return _load_folder(name, Path(rest), shape, batch_size)
    if name in _SETS:
        return _load_set(name, data_dir, shape, batch_size)
    if kind and rest:
        return _load_callable(name, shape)
    raise EvenkeelError(f"no data set {name!r}: name {', '.join(_SETS)}, folder:PATH or package.module:callable")


def _load_set(name: str, data_dir: str | Path | None, shape: tuple[int, ...] | None, batch_size: int) -> Data:
    read, classes = _SETS[name]
    train, test = read(data_dir)
    found = tuple(train[0].shape[1:])
    if shape is not None and shape != found:
        raise EvenkeelError(f"images of {name} are {_by(found)}, not {_by(shape)}: name a model for {_by(found)}")
    moments = _moments(train[0])
    loaders = [Batches(x.__getitem__, y, *moments, count=len(y), batch_size=batch_size) for x, y in (train, test)]
    return Data(name, *loaders, shape=found, classes=classes)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, exactly, from how often each pixel value occurs; 1 for a constant channel."""
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256).double()
    mean = counts @ values / counts.sum(1)
    deviation = ((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt()
    return mean.float(), torch.where(deviation > 0, deviation, 1).float()


def _read_digits(_: str | Path | None) -> tuple[_Split, _Split]:
    try:
        digits: Any = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        raise EvenkeelError('digits come with scikit-learn: pip install "evenkeel[papers]"') from error
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.uint8)[order, None]  # 0 to 16: standardizing drops the unit
    labels = torch.tensor(digits.target, dtype=torch.int64)[order]
    return (images[:1000], labels[:1000]), (images[1000:], labels[1000:])


def _read_idx_set(name: str, folders: Sequence[str], data_dir: str | Path | None) -> tuple[_Split, _Split]:
    """A set that lies in four files, as MNIST does, packed or not."""
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    paths = _locate(name, data_dir, folders, (names, [f"{file}.gz" for file in names]))
    parts = [_read_idx(path, dimensions) for path, dimensions in zip(paths, (3, 1, 3, 1), strict=True)]
    return _checked(paths[1], parts[0][:, None], parts[1], 10), _checked(paths[3], parts[2][:, None], parts[3], 10)


def _read_idx(path: Path, dimensions: int) -> Tensor:
    content = _read_bytes(path)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        what = f"its {len(content):,} bytes start with {content[:4].hex(' ') or 'nothing'}"
        raise EvenkeelError(f"{path} is no idx file of bytes in {dimensions} dimensions: {what}; download it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape) or 0 in shape:
        what = f"{len(content) - start:,} bytes of data, where its header says {_by(shape)} = {math.prod(shape):,}"
        raise EvenkeelError(f"{path} is damaged: {what}; download it again")
    return _as_tensor(content[start:]).view(shape)


def _read_cifar10(data_dir: str | Path | None) -> tuple[_Split, _Split]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    folders = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar10")
    paths = _locate("cifar10", data_dir, folders, (names, [f"{name}.bin" for name in names]))
    *train, test = (_read_cifar_batch(path, "labels", 10) for path in paths)
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    return (images, labels), test


def _read_cifar_batch(path: Path, key: str, classes: int) -> _Split:
    """One file of a CIFAR set: records of a label and 3,072 pixels each, or a pickled dictionary."""
    if path.suffix != ".bin":
        pixels, labels = _read_cifar_pickle(path, key)
    else:
        content = _read_bytes(path)
        if not content or len(content) % 3073:
            what = f"{len(content):,} bytes are {len(content) / 3073:,.2f} records of 3,073"
            raise EvenkeelError(f"{path} is damaged: its {what}; download it again")
        labels, pixels = _as_tensor(content).view(-1, 3073).split([1, 3072], dim=1)
    return _checked(path, pixels.reshape(-1, 3, 32, 32), labels.flatten(), classes)


def _read_cifar_pickle(path: Path, key: str) -> _Split:
    try:
        with path.open("rb") as file:
            content: dict[str | bytes, Any] = _ArrayUnpickler(file, encoding="latin1").load()
        entries = {k.decode() if isinstance(k, bytes) else k: value for k, value in content.items()}
        return entries["data"].tensor().reshape(-1, 3072), torch.tensor(entries[key], dtype=torch.int64)
    except Exception as error:
        raise EvenkeelError(f"{path} is no CIFAR batch ({brief(error)}): download it again") from error


class _Stub:
    """Stands for an array or its dtype while unpickling: numpy's own constructors would trust a hostile file."""

    def __init__(self, *made_of: Any) -> None:
        self.made_of = made_of
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        if self.state:
            _, shape, dtype, by_columns, data = self.state
        else:  # pickle protocol 5
            data, dtype, shape, order = self.made_of
            by_columns = order == "F"
        if dtype.made_of[0] != "u1":
            raise ValueError(f"its array holds {dtype.made_of[0]}, not bytes")
        flat = _as_tensor(data.encode("latin1") if isinstance(data, str) else data)
        return flat.view(shape[::-1]).T if by_columns else flat.view(shape)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads built-in values and numpy arrays of bytes, and nothing that could run code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name.startswith("numpy") and global_name in ("_reconstruct", "_frombuffer", "ndarray", "dtype"):
            return _Stub
        if (module_name, global_name) == ("_codecs", "encode"):  # how protocols 0 to 2 write bytes
            return _encode_latin1
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _encode_latin1(text: str, _: str) -> bytes:
    return text.encode("latin1")


def _checked(path: Path, images: Tensor, labels: Tensor, classes: int) -> _Split:
    labels = labels.long()
    if len(images) != len(labels):
        raise EvenkeelError(f"{path} is damaged: {len(labels):,} labels for {len(images):,} images; download it again")
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten().tolist()
    if wrong:
        what = f"label {labels[wrong[0]]} of image {wrong[0]:,} is none of 0 to {classes - 1}"
        raise EvenkeelError(f"{path} is damaged: {what}; download it again")
    return images, labels


def _locate(
    name: str, data_dir: str | Path | None, folders: Sequence[str], layouts: Sequence[Sequence[str]]
) -> list[Path]:
    """The files of one layout that are all there, in a usual sub-folder or in the folder itself."""
    home = data_dir or os.environ.get("EVENKEEL_DATA")
    remedy = "name the folder that holds them by data_dir (--data-dir) or EVENKEEL_DATA"
    if not home:
        raise EvenkeelError(f"{name} is read from the files {', '.join(layouts[0])}: {remedy}")
    places = [Path(home, folder) for folder in (*folders, "")]
    candidates = [[place / file for file in layout] for place in places for layout in layouts]
    best = max(candidates, key=lambda files: sum(file.is_file() for file in files))
    lacking = [file.name for file in best if not file.is_file()]
    if lacking:
        where = ", ".join(map(str, places)) if len(lacking) == len(best) else str(best[0].parent)
        raise EvenkeelError(f"{name}: no {', '.join(lacking)} in {where}: put them there, or {remedy}")
    return best


def _read_bytes(path: Path) -> bytes:
    import gzip
    import zlib

    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise EvenkeelError(f"{path} cannot be read ({brief(error)}): download it again") from error


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


# A set is one line here: what reads its training and its test split, and its number of classes.
_SETS: dict[str, tuple[Callable[[str | Path | None], tuple[_Split, _Split]], int]] = {
    "digits": (_read_digits, 10),
    "mnist": (partial(_read_idx_set, "mnist", ("mnist", "MNIST/raw", "MNIST")), 10),
    "cifar10": (_read_cifar10, 10),
}


def _load_folder(name: str, folder: Path, shape: tuple[int, ...] | None, batch_size: int) -> Data:
    if shape is None or len(shape) != 3 or shape[0] not in _PIXELS:
        asked = "no shape" if shape is None else f"shape {_by(shape)}"
        raise EvenkeelError(f"{name} with {asked}: give one of 1 or 3 channels to resize to, such as --input 3x224x224")
    if not folder.is_dir():
        raise EvenkeelError(f"{name}: there is no folder {folder}; name one that holds images")
    loose = _images_in(folder.iterdir())
    classes = [files for sub in sorted(folder.iterdir()) if sub.is_dir() and (files := _images_in(sub.rglob("*")))]
    if bool(loose) == bool(classes):
        found = f"{len(loose):,} images and {len(classes):,} sub-folders with images"
        raise EvenkeelError(f"{folder} holds {found}: put images into it or into one sub-folder a class, not both")
    files = loose or [file for part in classes for file in part]
    labels = torch.tensor([label for label, part in enumerate(classes) for _ in part]) if classes else None
    mode, *moments = _PIXELS[shape[0]]
    read = partial(_read_images, files, mode, shape[1:])
    loader = Batches(read, labels, *map(torch.tensor, moments), count=len(files), batch_size=batch_size)
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
        raise EvenkeelError(f"{path} is no image that can be read ({brief(error)}): mend or remove it") from error


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
    """Refuse data whose first batch is of another shape than asked for."""
    found = next((tuple(tensor.shape[1:]) for tensor in tensors(next(iter(batches), ()))), shape)
    if found != shape:
        raise EvenkeelError(f"inputs of {name} are {_by(found)}, not {_by(shape)}: name a model for {_by(found)}")


def _reiterable(name: str, made: Any, again: Callable[[], Any]) -> Iterable[Any]:
    if not isinstance(made, Iterable) or isinstance(made, (str, Tensor, Mapping)):
        raise EvenkeelError(f"data {name!r} returned a {type(made).__name__}, not batches: return [batch] or a loader")
    return _Remade(again) if isinstance(made, Iterator) else made


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
