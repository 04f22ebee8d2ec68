"""Import torchvision beside a CPU build of torch: its wheels expect compiled operators that such a build lacks."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import torch

_LIBRARIES: list[torch.library.Library] = []  # a library that is garbage collected takes its operators with it


def declare_operators() -> None:
    """Declare the operators' names where they cannot be loaded, so that what calls none of them can be imported."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _LIBRARIES:
        return
    folder = Path(spec.origin).parent
    try:
        for compiled in folder.glob("_C*"):
            torch.ops.load_library(compiled)
    except OSError:
        source = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
        library = torch.library.Library("torchvision", "DEF")
        for name in sorted(set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source))):
            library.define(f"{name}() -> ()")
        _LIBRARIES.append(library)


def import_torchvision() -> ModuleType:
    """The module torchvision.

    Raises:
        ImportError: it is not installed.
    """
    declare_operators()
    return importlib.import_module("torchvision")
