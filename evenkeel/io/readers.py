"""Readers of the standard files of image sets: idx, CIFAR's two layouts, SVHN's .mat; and scikit-learn's digits."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenkeel.errors import EvenkeelError, brief
from evenkeel.io.downloads import SOURCES, cache_folder, fetch

_AGAIN = "remove it and download it again"


class LabelledImages(NamedTuple):
    """One part of an image set.

    Attributes:
        images: pixels, uint8, NCHW.
        labels: int64, N.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """An image set as it is published.

    Attributes:
        train: the training split.
        test: the test split.
        classes: number of classes; labels run from 0 to one less.
    """

    train: LabelledImages
    test: LabelledImages
    classes: int


def read_set(name: str, *, data_dir: str | Path | None = None, download: bool = False) -> ImageSet:
    """Read an image set from its standard files.

    Args:
        name: `digits` (from scikit-learn, 1,000 to train and 797 to test, pixels from 0 to 16), `mnist`,
            `fashion-mnist`, `cifar10`, `cifar100` (the fine labels) or `svhn`.
        data_dir: folder with the files, or with the set's usual sub-folder; the environment's EVENKEEL_DATA if None,
            and without that the cache that downloads go to.
        download: whether files that are missing there are downloaded to it, their checksums verified.

    Returns:
        The set, its pixels as they are in the files.

    Raises:
        EvenkeelError: no such set, files missing or damaged, or a download failed; names file and remedy in one line.

    >>> digits = read_set("digits")
    >>> digits.train.images.shape, digits.test.labels.shape, digits.classes
    (torch.Size([1000, 1, 8, 8]), torch.Size([797]), 10)
    """
    if name not in _READERS:
        raise EvenkeelError(f"no image set {name!r}: name {', '.join(_READERS)}")
    kept = _READERS[name]
    train, test = kept.read(name, _locate(name, kept, data_dir, download) if kept.layouts else [], kept.classes)
    return ImageSet(train, test, kept.classes)


def channel_moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, exactly, from how often each pixel value occurs.

    Returns:
        Mean and deviation, float32, C, in units of the pixels; the deviation of a constant channel is given as 1.

    >>> channel_moments(torch.tensor([1, 3], dtype=torch.uint8).view(2, 1, 1, 1))
    (tensor([2.]), tensor([1.]))
    """
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)]).double()
    values = torch.arange(256).double()
    mean = counts @ values / counts.sum(1)
    deviation = ((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt()
    return mean.float(), torch.where(deviation > 0, deviation, 1).float()


def by(shape: Sequence[int]) -> str:
    """A shape as it is written on the command line.

    >>> by((3, 32, 32))
    '3x32x32'
    """
    return "x".join(map(str, shape))


def _read_digits(_name: str, _paths: Sequence[Path], _classes: int) -> tuple[LabelledImages, LabelledImages]:
    digits: Any = _imported("sklearn.datasets", "digits come with scikit-learn").load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.uint8)[order, None]
    labels = torch.tensor(digits.target, dtype=torch.int64)[order]
    return LabelledImages(images[:1000], labels[:1000]), LabelledImages(images[1000:], labels[1000:])


def _imported(module: str, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EvenkeelError(f'{why}: pip install "evenkeel[papers]"') from error


def _read_idx_set(name: str, paths: Sequence[Path], classes: int) -> tuple[LabelledImages, LabelledImages]:
    images, labels, test_images, test_labels = map(_read_idx, paths, (3, 1, 3, 1))
    others = [other for other, first in _FIRST_LABELS.items() if other != name and labels[:10].tolist() == first]
    if others:
        remedy = f"keep the files of {name} in a sub-folder {_READERS[name].folders[0]}, which is looked at first"
        raise EvenkeelError(f"{paths[1]} holds the labels of {others[0]}, not of {name}: {remedy}")
    train = _checked(paths[1], images[:, None], labels, classes)
    return train, _checked(paths[3], test_images[:, None], test_labels, classes)


def _read_idx(path: Path, dimensions: int) -> Tensor:
    content = _read_bytes(path)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        what = f"its {len(content):,} bytes start with {content[:4].hex(' ') or 'nothing'}"
        raise EvenkeelError(f"{path} is no idx file of bytes in {dimensions} dimensions: {what}; {_AGAIN}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape) or 0 in shape:
        what = f"{len(content) - start:,} bytes of data, where its header says {by(shape)} = {math.prod(shape):,}"
        raise _damaged(path, what)
    return _as_tensor(content[start:]).view(shape)


def _read_cifar(
    key: str, label_bytes: int, _name: str, paths: Sequence[Path], classes: int
) -> tuple[LabelledImages, LabelledImages]:
    """The files of a CIFAR set, the last of which is the test split; `label_bytes` precede a record's pixels."""
    *train, test = (_read_cifar_batch(path, key, label_bytes, classes) for path in paths)
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    return LabelledImages(images, labels), test


def _read_cifar_batch(path: Path, key: str, label_bytes: int, classes: int) -> LabelledImages:
    """One file of a CIFAR set: records of labels, the finest last, and 3,072 pixels; or a pickled dictionary."""
    if path.suffix != ".bin":
        pixels, labels = _read_cifar_pickle(path, key)
    else:
        content, size = _read_bytes(path), label_bytes + 3072
        if not content or len(content) % size:
            raise _damaged(path, f"its {len(content):,} bytes are {len(content) / size:,.2f} records of {size:,}")
        records = _as_tensor(content).view(-1, size)
        pixels, labels = records[:, label_bytes:], records[:, label_bytes - 1]
    return _checked(path, pixels.reshape(-1, 3, 32, 32), labels, classes)


def _read_cifar_pickle(path: Path, key: str) -> tuple[Tensor, Tensor]:
    try:
        with path.open("rb") as file:
            content: dict[str | bytes, Any] = _ArrayUnpickler(file, encoding="latin1").load()
        entries = {k.decode() if isinstance(k, bytes) else k: value for k, value in content.items()}
        return entries["data"].tensor().reshape(-1, 3072), torch.tensor(entries[key], dtype=torch.int64)
    except Exception as error:
        raise EvenkeelError(f"{path} is no CIFAR batch ({brief(error)}): {_AGAIN}") from error


class _Stub:
    """Replaces an array or its dtype while unpickling: numpy's own constructors would trust a hostile file."""

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


def _read_svhn(_name: str, paths: Sequence[Path], classes: int) -> tuple[LabelledImages, LabelledImages]:
    matlab = _imported("scipy.io", "svhn is read by scipy, which comes with scikit-learn")
    train, test = (_read_mat(matlab, path, classes) for path in paths)
    return train, test


def _read_mat(matlab: Any, path: Path, classes: int) -> LabelledImages:
    """One file of SVHN: X, height x width x channel x image, and y, of which 10 is the digit 0."""
    try:
        content = matlab.loadmat(path, variable_names=("X", "y"))
        pixels, labels = (torch.from_numpy(content[key]) for key in "Xy")
        if pixels.dtype != torch.uint8 or pixels.shape[:3] != (32, 32, 3):
            raise ValueError(f"its X holds {pixels.dtype} of {by(pixels.shape)}")
        pixels = pixels.reshape(32, 32, 3, -1).permute(3, 2, 0, 1).contiguous()  # MATLAB drops the 1 of a single image
    except Exception as error:
        raise EvenkeelError(f"{path} is no file of SVHN ({brief(error)}): {_AGAIN}") from error
    labels = labels.flatten().long()
    return _checked(path, pixels, labels.where(labels != 10, 0), classes)


def _checked(path: Path, images: Tensor, labels: Tensor, classes: int) -> LabelledImages:
    labels = labels.long()
    if len(images) != len(labels):
        raise _damaged(path, f"{len(labels):,} labels for {len(images):,} images")
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten().tolist()
    if wrong:
        raise _damaged(path, f"label {labels[wrong[0]]} of image {wrong[0]:,} is none of 0 to {classes - 1}")
    return LabelledImages(images, labels)


def _damaged(path: Path, what: str) -> EvenkeelError:
    return EvenkeelError(f"{path} is damaged: {what}; {_AGAIN}")


def _locate(name: str, kept: _Files, data_dir: str | Path | None, download: bool) -> list[Path]:
    """The files of one layout that are all there, in a usual sub-folder or in the folder itself."""
    named = data_dir or os.environ.get("EVENKEEL_DATA")
    home = Path(named) if named else cache_folder()
    files = _best(home, kept) if home else []
    if download and not (files and all(file.is_file() for file in files)):
        home = fetch(name, kept.folders[0], home)
        files = _best(home, kept)
    lacking = [file.name for file in files if not file.is_file()]
    if files and not lacking:
        return files
    remedy = "name the folder that holds them by data_dir (--data-dir) or EVENKEEL_DATA"
    remedy = f"{remedy}, or let evenkeel download them by download=True (--download)"
    if not named:
        raise EvenkeelError(f"{name} is read from the files {', '.join(kept.layouts[0])}: {remedy}")
    where = ", ".join(map(str, _places(Path(named), kept))) if len(lacking) == len(files) else str(files[0].parent)
    raise EvenkeelError(f"{name}: no {', '.join(lacking)} in {where}: put them there, or {remedy}")


def _places(home: Path, kept: _Files) -> list[Path]:
    return [home / folder for folder in (*kept.folders, "")]


def _best(home: Path, kept: _Files) -> list[Path]:
    """Of all layouts in all places, the files of that of which most are there."""
    candidates = [[place / file for file in layout] for place in _places(home, kept) for layout in kept.layouts]
    return max(candidates, key=lambda files: sum(file.is_file() for file in files))


def _read_bytes(path: Path) -> bytes:
    import gzip
    import zlib

    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise EvenkeelError(f"{path} cannot be read ({brief(error)}): {_AGAIN}") from error


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@dataclass(frozen=True)
class _Files:
    """How a set is kept: what reads its files, its classes, its usual sub-folders, and the names of its files."""

    read: Callable[[str, Sequence[Path], int], tuple[LabelledImages, LabelledImages]]
    classes: int
    folders: Sequence[str] = ()  # the first is where downloads go
    layouts: Sequence[Sequence[str]] = ()  # names of the files, training before test, one way and another


def _or(suffix: str, names: Sequence[str]) -> Sequence[Sequence[str]]:
    return names, [f"{name}{suffix}" for name in names]


_IDX = _or(".gz", [file.removesuffix(".gz") for file in SOURCES["mnist"].files])
_BATCHES = _or(".bin", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
_TRAIN_AND_TEST = _or(".bin", ["train", "test"])
_read_cifar10 = partial(_read_cifar, "labels", 1)
_read_cifar100 = partial(_read_cifar, "fine_labels", 2)  # a coarse label comes first

# A set is one line here.
_READERS = {
    "digits": _Files(_read_digits, 10),
    "mnist": _Files(_read_idx_set, 10, ("mnist", "MNIST/raw", "MNIST"), _IDX),
    "fashion-mnist": _Files(_read_idx_set, 10, ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"), _IDX),
    "cifar10": _Files(_read_cifar10, 10, ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar10"), _BATCHES),
    "cifar100": _Files(_read_cifar100, 100, ("cifar-100-python", "cifar-100-binary", "cifar100"), _TRAIN_AND_TEST),
    "svhn": _Files(_read_svhn, 10, ("svhn", "SVHN"), [tuple(SOURCES["svhn"].files)]),
}

# MNIST and Fashion-MNIST have the same file names; their first training labels differ.
_FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion-mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}
