"""Weight files: what safetensors and torch.save have written, read safely; written in safetensors."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenkeel.errors import EvenkeelError, brief
from evenkeel.io.formats import foreign_format


def is_safetensors(path: Path) -> bool:
    """Whether a file is of that format, as its name says."""
    return path.suffix.lower() == ".safetensors"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors, by name, and the texts in its header.

    Raises:
        EvenkeelError: it is damaged, or no such file.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names: list[str] = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:
        raise EvenkeelError(
            f"{path} of {path.stat().st_size:,} bytes is damaged or no safetensors file ({brief(error)}): "
            "download or save it again"
        ) from error


def write_safetensors(path: Path, state: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write a state dict and texts as a safetensors file.

    Raises:
        TypeError: an entry is no tensor.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{key!r} is a {type(value).__name__}, and safetensors holds tensors only")
        tensor = value.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if memory in seen else tensor  # the format refuses shared memory
        seen.add(memory)
    save_file(tensors, path, metadata or None)


def read_torch(path: Path) -> Any:
    """What torch.save wrote, read without running any code that it may hold.

    Raises:
        EvenkeelError: it holds more than tensors, is damaged, or is no such file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old protocols and TorchScript, which the errors below speak of
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        asked = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if asked:
            raise EvenkeelError(f"{path} holds more than tensors ({asked[1]}), {_allowing(path, asked[1])}") from error
        if what := foreign_format(path):
            raise EvenkeelError(f"{path} is {what}") from error
        raise EvenkeelError(
            f"{path} of {path.stat().st_size:,} bytes is damaged or no weights file ({brief(error)}): "
            "download it again, or save model.state_dict() with torch.save"
        ) from error


def _allowing(path: Path, name: str) -> str:
    """What to do about a class in a file, and what that risks."""
    module = name.rpartition(".")[0]
    trusted = f"torch.serialization.add_safe_globals([{name}])"
    return (
        "and loading that may run code: save model.state_dict() alone where the file comes from; if you trust it, let "
        f"the module of TARGET import {module or name} and call {trusted}; a whole model is no weights file: name as "
        f"TARGET a function of yours that returns torch.load({path.name!r}, weights_only=False), without --weights"
    )
