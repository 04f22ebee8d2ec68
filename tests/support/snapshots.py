"""All that a read-only verb must leave as it found it, in a form that compares with ==."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


class Snapshot:
    """A model, and the world around it, as of now; `changes()` names what is no longer so.

    It keeps every object it saw, so that an identity cannot be taken by a newer one. Where the test itself draws
    numbers meanwhile, the world stays out of it.
    """

    def __init__(self, model: nn.Module, *, world: bool = True) -> None:
        self.model, self.world = model, world
        self.kept: list[Any] = []
        self.was = self._now()

    def changes(self, written: Collection[str] = ()) -> list[str]:
        """All that changed, but for the contents of the buffers `written`, and the mark that says that they were."""
        now = self._now()
        changed = [key for key in sorted({*self.was, *now}) if self.was.get(key) != now.get(key)]
        return [key for key in changed if key not in places_of(written) or self._replaced(key, now)]

    def _replaced(self, key: str, now: Mapping[str, Any]) -> bool:
        """Whether a buffer is another object."""
        return key.startswith("state_dict") and self.was[key][0] != now[key][0]

    def _now(self) -> dict[str, Any]:
        found = {f"state_dict {key}": self._frozen(t) for key, t in self.model.state_dict(keep_vars=True).items()}
        for path, parameter in self.model.named_parameters():
            found[f"gradient {path}"] = self._frozen(parameter.grad), parameter.requires_grad
        for path, module in self.model.named_modules():
            found[f"module {path}"] = self._identity(module), type(module), module.training
            found[f"attributes {path}"] = list(module.__dict__)
            for name, value in module.__dict__.items():
                found[f"attribute {path}:{name}"] = self._frozen(value)
        return found | (_world() if self.world else {})

    def _identity(self, value: object) -> int:
        self.kept.append(value)
        return id(value)

    def _frozen(self, value: Any) -> Any:  # noqa: PLR0911 - one sort of value, one line
        """A value that equals a later one only if the object is the same and so is all that it holds."""
        identity = self._identity(value)
        if isinstance(value, Tensor):
            return identity, type(value), value.dtype, value.shape, value.requires_grad, _bits(value)
        if isinstance(value, np.ndarray):
            return identity, value.dtype, value.shape, value.tobytes()
        if isinstance(value, torch.Generator):
            return identity, _bits(value.get_state())
        if isinstance(value, Mapping):
            return identity, [(key, self._frozen(item)) for key, item in value.items()]
        if isinstance(value, (set, frozenset)):
            return identity, frozenset(map(id, value))
        if isinstance(value, (str, int, float, bool, type(None))):
            return repr(value)
        if isinstance(value, Collection) and not isinstance(value, nn.Module):
            return identity, [self._frozen(item) for item in value]
        return identity


def places_of(buffers: Collection[str]) -> set[str]:
    """The places where a snapshot sees the contents of buffers, and the mark that they were written."""
    paths = {name.rpartition(".")[0] for name in buffers}
    names = ("attributes {}", "attribute {}:evenkeel_written", "attribute {}:evenkeel_trained")
    marks = {name.format(path) for path in paths for name in names}
    return {f"state_dict {name}" for name in buffers} | marks | {f"attribute {path}:_buffers" for path in paths}


def _bits(tensor: Tensor) -> bytes:
    own: Any = tensor.detach()
    own = own.to_local() if hasattr(own, "to_local") else own  # of a shard
    return own.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _world() -> dict[str, Any]:
    """The state of libraries that a verb may borrow, all of it comparable."""
    return {
        "generator of Python": random.getstate(),
        "generator of numpy": repr(np.random.get_state()),
        "generator of torch": _bits(torch.get_rng_state()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default dtype": torch.get_default_dtype(),
        "function modes": len(_get_current_function_mode_stack()),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "loggers": [
            (name, logger.disabled, logger.level)
            for name, logger in sorted(logging.root.manager.loggerDict.items())
            if isinstance(logger, logging.Logger) and "fake_tensor" in name
        ],
        "global hooks": (
            len(nn.modules.module._global_forward_hooks),
            len(nn.modules.module._global_forward_pre_hooks),
        ),
    }
