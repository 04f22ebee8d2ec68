"""Files appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from evenkeel.errors import EvenkeelError, brief


@contextmanager
def whole(path: Path) -> Generator[Path]:
    """Lend a temporary name beside a path, and rename it to the path if all went well.

    Args:
        path: where the file shall appear.

    Yields:
        Where to write it.

    Raises:
        EvenkeelError: the path is a folder, its own folder does not exist, or writing failed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("done")
    ...     os.listdir(folder)
    ['a.txt']
    """
    require_folder(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise EvenkeelError(f"{path} cannot be written: {brief(error)}; nothing was written") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it alone
    os.umask(mask)
    return mask


def require_folder(path: Path) -> None:
    """Raise EvenkeelError if no file of that name can be made: better known before long work than after."""
    if path.is_dir():
        raise EvenkeelError(f"{path} is a folder: name a file")
    if not path.absolute().parent.is_dir():
        raise EvenkeelError(f"{path} cannot be written: there is no folder {path.parent}: make it first")
