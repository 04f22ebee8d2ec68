"""Hooks: a child module run before or after its parent, without a change to the parent's source."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import nn


def attach_(module: nn.Module, child: nn.Module, side: Literal["before", "after"], name: str) -> str:
    """Run a child on what a module reads first, or on what it returns, by a hook.

    The child follows train() and eval(), and is copied and pickled with the module; without parameters it adds no key
    to the state dict.

    Args:
        module: the module, changed in place.
        child: what is to run.
        side: "before": on the module's first argument; "after": on its output.
        name: under which the child is registered, with a number if there is one of that name.

    >>> import torch
    >>> layer = nn.Linear(2, 2)
    >>> attach_(layer, nn.Dropout(0.5), "before", "input_dropout"), list(layer.state_dict())
    ('input_dropout', ['weight', 'bias'])
    """
    name = free_name(module, name)
    child.train(module.training)
    module.add_module(name, child)
    # Under a name as key: torch's own numbers start again at 0 in a process that unpickles the module.
    if side == "before":
        module._forward_pre_hooks[name] = partial(_run_before, name)  # type: ignore[index]
        module._forward_pre_hooks_with_kwargs[name] = True  # type: ignore[index]
    else:
        module._forward_hooks[name] = partial(_run_after, name)  # type: ignore[index]
    return name


def free_name(module: nn.Module, name: str) -> str:
    """The name, or the name with the first number that makes it no attribute of the module.

    >>> free_name(nn.Linear(2, 2), "weight")
    'weight_2'
    """
    number, free = 1, name
    while hasattr(module, free):
        number += 1
        free = f"{name}_{number}"
    return free


def _run_before(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    child = module._modules.get(name)
    if child is None:  # a quantized layer, for example, takes over hooks but no children
        return None
    if kwargs is None:
        return (child(args[0]), *args[1:])
    if args:
        return (child(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, kwargs | {first: child(kwargs[first])}


def _run_after(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    child = module._modules.get(name)
    return output if child is None else child(output)
