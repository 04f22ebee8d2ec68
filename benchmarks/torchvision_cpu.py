"""Import torchvision beside a CPU build of torch: its wheels expect compiled operators that such a build lacks."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import torch

_LIBRARIES: list[torch.library.Library] = []  # a library that is garbage collected takes its operators with it


def import_torchvision() -> ModuleType:
    """Declare the operators' names, so that torchvision's models (which do not call them) can be imported.

    Returns:
        The module torchvision.
    """
    if not _LIBRARIES:
        spec = importlib.util.find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise ImportError("torchvision is not installed")
        source = (Path(spec.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
        library = torch.library.Library("torchvision", "DEF")
        for name in sorted(set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source))):
            library.define(f"{name}() -> ()")
        _LIBRARIES.append(library)
    return importlib.import_module("torchvision")
