"""Opacity: models and parts of models that torch.jit or torch.export made, which show none of their layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from evenkeel.errors import ModelError

_REMEDY = "give evenkeel the module that it was made from, and script or export afterwards"


def opaque_parts(model: nn.Module) -> dict[str, str]:
    """The outermost modules whose layers cannot be seen, by path, each with what it is; "" is the model itself.

    >>> opaque_parts(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    {}
    """
    return {path: what for path, (_, what) in _outermost(model).items()}


def require_module(model: object) -> nn.Module:
    """The model, if it is one.

    Raises:
        ModelError: it is no module, but a state dict, say.

    >>> require_module(nn.ReLU())
    ReLU()
    """
    if isinstance(model, Mapping):
        raise ModelError(
            f"the model is of class {type(model).__name__}, a state dict perhaps, not an nn.Module: build it and "
            "load_state_dict into it first"
        )
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is of class {type(model).__name__}, not an nn.Module: {_REMEDY}")
    return model


def require_readable(model: object) -> None:
    """Refuse a model that shows none of its layers, or that cannot be switched between train and eval mode.

    Raises:
        ModelError: it is scripted, exported or no module at all, or a part of it is exported or frozen.

    >>> require_readable(nn.Linear(2, 2))
    """
    for path, (module, what) in _outermost(require_module(model)).items():
        if not path:
            raise ModelError(f"the model is {what}: its layers can be neither seen nor changed: {_REMEDY}")
        if not (isinstance(module, torch.jit.ScriptModule) and hasattr(module, "training")):
            raise ModelError(f"{path!r} is {what}: it cannot be switched between train and eval mode: {_REMEDY}")


def _outermost(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    found: dict[str, tuple[nn.Module, str]] = {}
    for path, module in model.named_modules():
        inside = any(not outer or path.startswith(f"{outer}.") for outer in found)
        if not inside and (what := _opacity(module)):
            found[path] = module, what
    return found


def _opacity(module: nn.Module) -> str | None:
    """What a module is that runs no Python of its own; None for others."""
    if isinstance(module, torch.jit.ScriptModule):
        frozen = "" if hasattr(module, "training") else " and frozen"
        return f"scripted{frozen} (torch.jit, class {module.original_name})"
    graph = module.graph if isinstance(module, fx.GraphModule) else vars(module).get("graph")
    exported = isinstance(graph, fx.Graph) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes
    )
    if exported or type(module).__module__.startswith("torch.export"):
        return "exported (torch.export, a graph of ATen calls)"
    return None
