"""Files written whole or not at all, and JSON without NaN."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError, brief

_REFUSED = {"a socket": stat.S_ISSOCK, "a disk": stat.S_ISBLK}


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yield a temporary name beside a path, and rename it to the path if all went well.

    Only regular files are replaced: of a symlink it is the file that it names; a character device, such as /dev/null,
    a pipe, and what lies below /dev or /proc are written into, once all is done.

    Yields:
        Where to write it.

    Raises:
        EvenkeelError: the path is a folder, a socket or a disk, its own folder does not exist, or writing failed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("done")
    ...     os.listdir(folder)
    ['a.txt']
    """
    require_folder(path)
    try:
        if _is_written_into(path):
            with tempfile.TemporaryDirectory(prefix="evenkeel-") as folder:
                temporary = Path(folder, path.name)
                yield temporary
                _pour(temporary, path)
            return
        with _beside(Path(os.path.realpath(path))) as temporary:
            yield temporary
    except OSError as error:
        unread = error.errno == errno.ENXIO and path.is_fifo()
        reason = "nobody reads this pipe: start its reader first" if unread else brief(error)
        raise EvenkeelError(f"{path} cannot be written: {reason}; nothing was written") from error


@contextmanager
def _beside(path: Path) -> Generator[Path]:
    """A temporary name in the path's folder, renamed to the path if all went well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_written_into(path: Path) -> bool:
    """Whether a path is there and no file that may be replaced: a device, a pipe, or standard output by its name."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) or path.absolute().parts[1:2] in (("dev",), ("proc",))


def _pour(source: Path, path: Path) -> None:
    """Write a file's bytes into a device or a pipe; one that nobody reads is an error, not a wait without end."""
    sys.stdout.flush()
    descriptor = _own_descriptor(path)
    if descriptor is None:
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    with open(descriptor, "wb") as file:
        if hasattr(os, "set_blocking"):
            os.set_blocking(descriptor, True)
        with source.open("rb") as content:
            shutil.copyfileobj(content, file)


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it alone
    os.umask(mask)
    return mask


def _own_descriptor(path: Path) -> int | None:
    """A copy of standard output's or standard error's descriptor, if the path names it: it knows where it is."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return os.dup(descriptor)
    return None


def require_folder(path: Path) -> None:
    """Raise EvenkeelError if no file of that name can be made: better known before long work than after."""
    if path.is_dir():
        raise EvenkeelError(f"{path} is a folder: name a file")
    for kind, test in _REFUSED.items():
        with suppress(OSError):
            if test(path.stat().st_mode):
                raise EvenkeelError(f"{path} is {kind}, which is not written to: name a file")
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise EvenkeelError(f"{path} is a symlink that leads back to itself: name a file")
    folder = real.parent if path.is_symlink() else path.parent
    if not folder.absolute().is_dir():
        raise EvenkeelError(f"{path} cannot be written: there is no folder {folder}: make it first")


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths name one file that is there, by links, too.

    >>> is_same_file(Path(), Path.cwd())
    True
    """
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data as JSON, whole or not at all, one line an entry; what is not finite becomes null.

    Raises:
        EvenkeelError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "a.json"), {"error": 0.5, "loss": math.inf})
    ...     json.loads(Path(folder, "a.json").read_text())
    {'error': 0.5, 'loss': None}
    """
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(finite(value))}" for key, value in data.items())
    with atomic_write(path) as temporary:
        temporary.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """The same plain data with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
