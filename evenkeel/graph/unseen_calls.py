"""Calls that a mode of torch does not see, or that hide others, while a pass is recorded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._functorch import apis
from torch.nn import functional

from evenkeel.graph.kinds import RANDOM, Kind, kind_of_function
from evenkeel.model.nested import tensors

_FUNCTORCH: Any = vars(torch._C)["_functorch"]
_VMAP: Any = apis
_ASKED: Any = vars(functional)["has_torch_function"]


@contextmanager
def attention_opened() -> Generator[None]:
    """Make multi-head attention, one function to torch, run its inner calls under the recorder."""
    names: Any = vars(functional)
    names["has_torch_function"] = lambda tensors: False  # type: ignore[misc]
    try:
        yield
    finally:
        names["has_torch_function"] = _ASKED  # not what was found: another lane may be inside, too


@contextmanager
def scripted_calls(seen: Callable[[Any, Any, Any], None]) -> Generator[None]:
    """Tell of every call of a scripted function or module: what is called, what it is given and what it returns."""
    classes: tuple[Any, ...] = (torch.jit.ScriptFunction, torch.jit.ScriptModule)
    calls = [scripted.__call__ for scripted in classes]

    def told(call: Callable[..., Any]) -> Callable[..., Any]:
        def tell(scripted: Any, *args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():  # a mode would see some of the calls inside, and only the first time
                output = call(scripted, *args, **kwargs)
            seen(scripted, (args, kwargs), output)
            return output

        return tell

    for scripted, call in zip(classes, calls, strict=True):
        scripted.__call__ = told(call)
    try:
        yield
    finally:
        for scripted, call in zip(classes, calls, strict=True):
            scripted.__call__ = call


class Vectorized:
    """What stands for a call of torch.vmap, whose inner calls are of tensors that lead nowhere."""

    name = "vmap"


@contextmanager
def vectorized_calls(seen: Callable[[Any, Any, Any], None]) -> Generator[None]:
    """Tell of every call of torch.vmap that is given values: what stands for it, what it is given and returns."""
    call = _VMAP.vmap_impl

    def tell(function: Any, in_dims: Any, out_dims: Any, randomness: str, size: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(tensor.is_floating_point() for tensor in tensors((args, kwargs))):  # of indices, as for masks
            return call(function, in_dims, out_dims, randomness, size, *args, **kwargs)
        with torch._C.DisableTorchFunction():
            output = call(function, in_dims, out_dims, randomness, size, *args, **kwargs)
        seen(Vectorized(), (args, kwargs), output)
        return output

    _VMAP.vmap_impl = tell
    try:
        yield
    finally:
        _VMAP.vmap_impl = call


@contextmanager
def hidden_calls(seen: Callable[[Any, Any, Any], None]) -> Generator[None]:
    """Tell of every call of what is scripted, and of torch.vmap."""
    with scripted_calls(seen), vectorized_calls(seen):
        yield


def is_vectorizing() -> bool:
    """Whether torch.vmap is running, inside of which tensors stand for many."""
    top = _FUNCTORCH.peek_interpreter_stack()
    return top is not None and top.key() == _FUNCTORCH.TransformType.Vmap


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
