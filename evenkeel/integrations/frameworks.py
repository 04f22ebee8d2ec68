"""Frameworks: what is said if the one that a callback is for cannot be imported."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from evenkeel.errors import EvenkeelError, brief


class FrameworkError(EvenkeelError, ImportError):
    """A framework that a callback is for cannot be imported: it is not installed, or broken."""


@contextmanager
def importing(framework: str, *, extra: str) -> Generator[None]:
    """Import a framework inside, and say what to do if that fails.

    Args:
        framework: the package.
        extra: of evenkeel, that installs it.

    Yields:
        Nothing.

    Raises:
        FrameworkError: it is not installed, or broken, such as by a torchvision built for another torch; in one line.

    >>> with importing("json", extra="lightning"):
    ...     import json
    """
    try:
        yield
    except (ImportError, RuntimeError, OSError) as error:
        raise FrameworkError(_complaint(framework, extra, error)) from error


def _complaint(framework: str, extra: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == framework:
        return f'{framework} is not installed: pip install "evenkeel[{extra}]"'
    import torch

    culprit = _of_torchvision(error)
    what = f"{framework} cannot be imported beside torch {torch.__version__} ({brief(culprit or error)})"
    if culprit is None:
        return f'{what}: install versions that fit each other, such as by pip install "evenkeel[{extra}]"'
    return (
        f"{what}: the installed torchvision was built for another torch, so that its compiled operators are missing: "
        "install the torchvision that matches, from the index that torch came from, or uninstall it"
    )


def _of_torchvision(error: BaseException | None) -> BaseException | None:
    """Of an error and those that led to it, the first that says what an installed torchvision lacks."""
    while error is not None:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if "torchvision" in str(error) and not missing:
            return error
        error = error.__cause__ or error.__context__
    return None
