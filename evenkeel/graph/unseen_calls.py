"""Calls that a mode of torch does not see, or that hide others, while a pass is recorded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from evenkeel.graph.kinds import RANDOM, Kind, kind_of_function


@contextmanager
def attention_opened() -> Generator[None]:
    """Make multi-head attention, one function to torch, run its inner calls under the recorder."""
    names: Any = vars(functional)
    asked = names["has_torch_function"]
    names["has_torch_function"] = lambda tensors: False  # type: ignore[misc]
    try:
        yield
    finally:
        names["has_torch_function"] = asked


@contextmanager
def scripted_calls(seen: Callable[[Any, Any, Any], None]) -> Generator[None]:
    """Tell of every call of a scripted function or module: what is called, what it is given and what it returns."""
    scripted: Any = torch.jit.ScriptFunction
    call = scripted.__call__

    def told(function: Any, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # a mode would see some of the calls inside, and only the first time
            output = call(function, *args, **kwargs)
        seen(function, (args, kwargs), output)
        return output

    def left(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            seen(module, args, output)

    scripted.__call__ = told
    handle = nn.modules.module.register_module_forward_hook(left)
    try:
        yield
    finally:
        scripted.__call__ = call
        handle.remove()


def noisy_calls_in(scripted: Any) -> list[str]:
    """The dropouts, norms and random functions inside what torch.jit has scripted, each once."""

    def names(block: Any) -> Iterator[str]:
        for node in block.nodes():
            yield node.kind().rpartition("::")[2].strip("_")
            for inner in node.blocks():
                yield from names(inner)

    found = dict.fromkeys(names(scripted.inlined_graph))
    return [name for name in found if name in RANDOM or kind_of_function(name) in (Kind.DROPOUT, Kind.NORM)]


@contextmanager
def unchecked_laws() -> Generator[None]:
    """Keep torch.distributions from looking at the values that it is given: there are none in fake tensors."""
    distribution: Any = torch.distributions.Distribution
    asked = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(asked)
