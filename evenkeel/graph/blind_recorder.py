"""BlindRecorder: a pass on real tensors, recorded only if it goes the same way whatever their values."""

from __future__ import annotations

from typing import Any

import torch

from evenkeel.graph.kinds import BY_VALUES, LEAVING, function_name
from evenkeel.graph.recorder import Recorder
from evenkeel.model.nested import tensors


class ValuesDecideError(Exception):
    """A pass depends on values, which may be those of an example that only has the shapes of data, or random."""


class BlindRecorder(Recorder):
    """Records a pass on real tensors, and ends it where values decide how it goes on, as fake tensors do.

    So it shows what a pass on fake tensors shows, whose machinery takes a second to start.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if _shows_values(function_name(func), args, kwargs or {}, result):
            raise ValuesDecideError
        return result


def _shows_values(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
    """Whether a call gives values of tensors to Python, or returns a shape that they decide."""
    if name == "getitem":
        return any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1:]))
    if name == "where":
        return len(args) + len(kwargs) == 1
    return name in BY_VALUES or (name in LEAVING and not tensors(result))  # x.float() returns a tensor
