"""Errors and warnings: every message says what is wrong (with numbers), where (layer path, file:line), what to do."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = os.path.join(os.path.dirname(__file__), "")


class EvenkeelError(Exception):
    """Base of all errors that evenkeel raises on purpose.

    >>> import torch, evenkeel as ek
    >>> try:
    ...     ek.variance_shift(torch.nn.Linear(2, 2), [torch.ones(4, 2)])
    ... except EvenkeelError as error:
    ...     print(type(error).__name__)
    ModelError
    """


class TraceError(EvenkeelError):
    """The model could not be read into a graph: its forward pass raised, with or without fake tensors."""


class BatchError(EvenkeelError):
    """A batch, or the iterable that yields it, raised, ran short, was empty or was not finite."""


class ActivationError(EvenkeelError):
    """A callable is no activation whose Gaussian moments exist: not elementwise, finite or deterministic."""


class ModelError(EvenkeelError):
    """The model has nothing for a verb to work on, such as no norm layer with running statistics."""


class UnappliedWarning(UserWarning):
    """`fix` left findings: each is named with the edit to make by hand and the reason."""


class UnpredictedWarning(UserWarning):
    """`lint` could not predict shifts or variances, with the reason; findings that need them are missing."""


class SortedStreamWarning(UserWarning):
    """Batches of a stream that are adapted to one by one are unlike each other, as in data sorted by class."""


class StretchWarning(UserWarning):
    """A repair that matches variances makes outputs larger: a regression's error may grow."""


def brief(error: BaseException, most: int = 200) -> str:
    """An error of others in one line: its type and its message, cut after `most` letters.

    >>> brief(ValueError("no luck"))
    'ValueError: no luck'
    """
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:most]}{'...' if len(message) > most else ''}"


def listed(paths: Sequence[str]) -> str:
    """The first of some layers' paths, and how many more there are.

    >>> listed(["bn1"]), listed(["2", "5"])
    ('bn1', 'layer 2 and 1 more')
    """
    first, *others = [f"layer {path}" if path.isdecimal() else path for path in paths]  # else "1 and 1 more"
    return f"{first} and {len(others)} more" if others else first


def count_text(count: int, what: str) -> str:
    """How many there are of something, in words.

    >>> count_text(1, "norm"), count_text(2, "norm")
    ('1 norm', '2 norms')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of others says that there is not enough memory: torch has several for that.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    (True, True)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def require(name: str, value: float | Tensor, holds: bool | Tensor, rule: str) -> None:
    """Refuse an argument that breaks a rule, with the first value that does.

    Raises:
        EvenkeelError: it does not hold.

    >>> require("p", 0.5, True, "below 1")
    """
    import torch  # here, so that `evenkeel --help` need not wait for it

    if not torch.as_tensor(holds).all():
        first = torch.as_tensor(value)[~torch.as_tensor(holds)].flatten()[0]
        raise EvenkeelError(f"{name} is {float(first):.6g}: {rule}")


def raised(error: BaseException) -> str:
    """That an error was raised, in one line, and where, if that is known and not in this package.

    >>> raised(ValueError("no luck"))
    'raised ValueError: no luck'
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((PACKAGE, "<"))]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"raised {brief(error)}{where}"


def similar(name: str, known: Iterable[str]) -> str:
    """A question for the names that come closest; empty if none does.

    >>> similar("resnet81", ["resnet18", "vgg"])
    'did you mean resnet18?'
    """
    matches = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(matches)}?" if matches else ""
