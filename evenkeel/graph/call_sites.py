"""Call sites: where in the model's source a call of torch is made."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from itertools import islice
from types import FrameType
from typing import Any

import torch
from torch import nn

TORCH = os.path.join(os.path.dirname(torch.__file__), "")


def location_of_call(model: nn.Module, between: Collection[str]) -> dict[str, Any]:
    """File, line and end of the source that makes the call at hand: the innermost frame outside of torch.

    Args:
        model: the module whose call is the outermost one: what lies above it is the caller's code.
        between: files of code that calls, or is called, between the model's source and torch.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is nn.Module._call_impl.__code__ and frame.f_locals["self"] is model:
            break
        if code.co_filename not in between and not code.co_filename.startswith(TORCH):
            return {"file": code.co_filename, "line": frame.f_lineno, "end": _end(frame)}
        frame = frame.f_back
    return {}


def _end(frame: FrameType) -> tuple[int, int] | None:
    """Line and column where the call that a frame makes ends."""
    if sys.version_info < (3, 11):
        return None
    _, line, _, column = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    return None if line is None or column is None else (line, column)
