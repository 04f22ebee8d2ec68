"""Files written whole or not at all, and JSON without NaN."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError, brief


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yield a temporary name beside a path, and rename it to the path if all went well.

    Yields:
        Where to write it.

    Raises:
        EvenkeelError: the path is a folder, its own folder does not exist, or writing failed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "a.txt")) as temporary:
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
