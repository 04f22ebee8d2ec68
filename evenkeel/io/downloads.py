"""Downloads of image sets from their public homes by pooch, which verifies the published checksums."""

from __future__ import annotations

import importlib
import math
import tarfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import Any

from evenkeel.errors import EvenkeelError, brief
from evenkeel.output.files import atomic_write
from evenkeel.output.progress import Bar

_MEBIBYTE = 1 << 20
_PATIENCE = 30  # seconds without a byte from the server


@dataclass(frozen=True)
class Publication:
    """The public home of an image set.

    Attributes:
        url: what the names of the files are appended to.
        files: the names of the files, training before test, with the published md5 of each.
    """

    url: str
    files: Mapping[str, str]


def _idx(*checksums: str) -> Mapping[str, str]:
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return dict(zip(names, checksums, strict=True))


# As torchvision's data sets know them, too.
SOURCES = {
    "mnist": Publication(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _idx(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": Publication(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        _idx(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "cifar10": Publication(
        "https://www.cs.toronto.edu/~kriz/", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
    ),
    "cifar100": Publication(
        "https://www.cs.toronto.edu/~kriz/", {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}
    ),
    "svhn": Publication(
        "http://ufldl.stanford.edu/housenumbers/",
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
    ),
}


SETS = ("digits", *SOURCES)  # what `load_data` knows by name; digits come with scikit-learn


def cache_folder() -> Path | None:
    """Where downloads go if no folder is named: the user's cache folder; None without pooch, which knows it.

    >>> cache_folder() is None or "evenkeel" in cache_folder().parts
    True
    """
    try:
        return importlib.import_module("pooch").os_cache("evenkeel")
    except ImportError:
        return None


def fetch(name: str, folder: str, home: Path | None) -> Path:
    """Download what is missing of an image set, with a progress bar on a terminal.

    Every file appears whole or not at all, and none that is there already is touched. What an archive holds is put
    where the archive was, and the archive removed.

    Args:
        name: the set, one of `SOURCES`.
        folder: the sub-folder that the files belong in; of archives, the folder that they hold.
        home: the folder above it, made if need be; `cache_folder` if None.

    Raises:
        EvenkeelError: pooch is not installed, a file cannot be had, or it is not the published one; in one line that
            says where to put it by hand.

    >>> [name for name, source in SOURCES.items() if "cifar-100-python.tar.gz" in source.files]
    ['cifar100']
    """
    home = home or cache_folder()
    if home is None:
        raise _without_pooch(name)
    for file, checksum in SOURCES[name].files.items():
        if file.endswith(".tar.gz"):
            archive = _retrieve(name, file, checksum, home)
            _unpack(archive, home / folder)
            archive.unlink()
        elif not (home / folder / file).is_file():
            _retrieve(name, file, checksum, home / folder)
    return home


def _without_pooch(name: str) -> EvenkeelError:
    return EvenkeelError(f'{name} is downloaded by pooch: pip install "evenkeel[papers]"')


def _retrieve(name: str, file: str, checksum: str, folder: Path) -> Path:
    """Download one file, unless it is there with the right checksum."""
    try:
        pooch: Any = importlib.import_module("pooch")
    except ImportError as error:
        raise _without_pooch(name) from error
    url = f"{SOURCES[name].url}{file}"
    try:
        return Path(pooch.retrieve(url, f"md5:{checksum}", file, folder, downloader=_download))
    except (OSError, ValueError) as error:  # what requests raises is an OSError, and a wrong checksum a ValueError
        what = f"{file} could not be downloaded from {url} ({brief(error)})"
        raise EvenkeelError(f"{name}: {what}: try again, or put it into {folder} by hand") from error


def _download(url: str, path: str, _pooch: Any) -> None:
    """What pooch downloads by, in place of its own: that asks for tqdm to show how far it is."""
    import requests

    with requests.get(url, stream=True, timeout=_PATIENCE) as response, Path(path).open("wb") as file:
        response.raise_for_status()
        total = math.ceil(int(response.headers.get("content-length", 0)) / _MEBIBYTE)
        chunks = response.iter_content(_MEBIBYTE)
        with closing(Bar(chunks, f"{url.rpartition('/')[2]}, MiB", total=total)) as bar:
            for chunk in bar:
                file.write(chunk)


def _unpack(archive: Path, folder: Path) -> None:
    """Put the files of an archive's folder of that name into the folder, except those that are there."""
    try:
        folder.mkdir(exist_ok=True)
        with tarfile.open(archive) as content:
            for member in content:
                name = PurePosixPath(member.name)
                if member.isfile() and str(name.parent) == folder.name and not (folder / name.name).exists():
                    packed: Any = content.extractfile(member)
                    with atomic_write(folder / name.name) as temporary, temporary.open("wb") as file:
                        copyfileobj(packed, file)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise EvenkeelError(f"{archive} cannot be unpacked into {folder} ({brief(error)}): do so by hand") from error
