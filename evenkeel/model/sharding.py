"""Sharding: a model that FSDP2 shards, made a plain one for the time of a verb, and sharded again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

from evenkeel.errors import ModelError
from evenkeel.model.nested import map_tensors

_SHARDING, _SPLITTING = "torch.distributed.fsdp", "torch.distributed.tensor"  # whose hooks shard a module, and split it
# What fully_shard sets on modules beside: for the compiler, and to know them again.
_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params", "__composable_api")
_SHARD_OF = WeakIdKeyDictionary()  # by whole parameter
_WHOLE_OF = WeakIdKeyDictionary()  # by shard, a reference to the whole parameter: a graph that holds it stays valid


@contextmanager
def gathered(model: nn.Module) -> Generator[None]:
    """Make a model that `fully_shard` shards a plain one, and shard it again on leaving.

    Meanwhile every parameter is whole, in the precision of the shards, and hooks and classes that shard are off: no
    forward pass waits for other processes, and a copy is a plain model. On leaving, parameters that were changed are
    written into the shards; of the others no bit changes. A graph made meanwhile keeps the whole parameters in memory.

    Args:
        model: the model; every process that holds a shard must enter, and may go its own way then.

    Raises:
        ModelError: a parameter is on the meta device, or split by tensor parallelism too.
    """
    modules = list(model.modules())
    if not any(map(_is_sharded, modules)):
        yield
        return
    shards = _shards_of(modules)
    whole = {id(shard): _whole(shard) for *_, shard in shards}
    back = [undo for module in modules for undo in _made_plain(module)]
    for owner, name, shard in shards:
        owner._parameters[name] = whole[id(shard)]
    try:
        yield
    finally:
        for owner, name, shard in shards:
            owner._parameters[name] = shard
        for undo in back:
            undo()
        for *_, shard in shards:
            _write_shard_(shard, whole[id(shard)])


def own_parameter(parameter: Any) -> Any:
    """The parameter that stays with the model: the shard of one that is whole for now; else the one given."""
    return parameter if parameter is None else _SHARD_OF.get(parameter, parameter)


def groups_of(model: nn.Module) -> list[Any]:
    """The process groups of torch.distributed that replicate or shard a model, gathered or not.

    >>> groups_of(nn.Linear(2, 2))
    []
    """
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return [module.process_group]
    meshes = (getattr(own_parameter(parameter), "device_mesh", None) for parameter in model.parameters())
    mesh: Any = next((mesh for mesh in meshes if mesh is not None), None)
    return [] if mesh is None else mesh.get_all_groups()


def _is_sharded(module: nn.Module | type) -> bool:
    return hasattr(module if isinstance(module, type) else type(module), "set_reshard_after_forward")


def _shards_of(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """Every parameter that is sharded, as DTensor, with its module and its name there."""
    for module in modules:
        if _is_sharded(module):
            module.reshard()  # type: ignore[operator] # after a forward pass it may be whole still
    held: list[tuple[nn.Module, str, Any]] = [(m, name, p) for m in modules for name, p in m._parameters.items()]
    shards = [place for place in held if hasattr(place[2], "device_mesh")]
    for module, name, shard in shards:
        if shard.is_meta:
            raise ModelError(f"{name!r} of a {type(module).__name__} is on the meta device: load the weights first")
    for module in modules:
        if any(_comes_from(_SPLITTING, hook) for hook in module._forward_pre_hooks.values()):
            raise ModelError(
                f"{type(module).__name__} is split by tensor parallelism as well as sharded, and its ranks must all "
                "run each forward pass: load its weights into a plain model"
            )
    return shards


def _whole(shard: Any) -> nn.Parameter:
    from torch.distributed.tensor import DTensor

    with torch.inference_mode(False), torch.no_grad():
        part = shard.to_local().to(shard.device_mesh.device_type)  # the shards may be kept on the CPU
        layout = {"shape": shard.shape, "stride": shard.stride()}
        full = DTensor.from_local(part, shard.device_mesh, shard.placements, run_check=False, **layout).full_tensor()
        kept = _WHOLE_OF[shard]() if shard in _WHOLE_OF else None
        if kept is not None and (kept.shape, kept.dtype, kept.device) == (full.shape, full.dtype, full.device):
            return kept.copy_(full).requires_grad_(shard.requires_grad)
        whole = nn.Parameter(full.clone(), requires_grad=shard.requires_grad)
        _WHOLE_OF[shard], _SHARD_OF[whole] = TensorWeakRef(whole), shard
        return whole


def _write_shard_(shard: Any, whole: Tensor) -> None:
    """Write this process's part of a parameter into its shard, if it differs."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * shard.device_mesh.ndim
    with torch.inference_mode(False), torch.no_grad():
        full = DTensor.from_local(whole.detach(), shard.device_mesh, everywhere, run_check=False)
        part, own = full.redistribute(placements=shard.placements).to_local(), shard.to_local()
        if not torch.equal(part.contiguous().view(torch.uint8), own.to(part.device).contiguous().view(torch.uint8)):
            own.copy_(part)


def _made_plain(module: nn.Module) -> list[Callable[[], None]]:
    """Take off a module what shards it, and return how to put that back."""
    order = list(vars(module))
    marks = {name: module.__dict__.pop(name) for name in order if name.startswith(_MARKS)}
    back: list[Callable[[], None]] = [partial(_put_marks_back, module, marks, order)]
    for name, hooks in vars(module).items():
        if (
            name.endswith("_hooks")
            and isinstance(hooks, dict)
            and any(_comes_from(_SHARDING, hook) for hook in hooks.values())
        ):
            back.append(partial(_refill, hooks, dict(hooks)))
            casts = name == "_forward_pre_hooks" and _casts(module)
            kept = {key: _cast if casts and _comes_from(_SHARDING, hook) else hook for key, hook in hooks.items()}
            _refill(hooks, {key: hook for key, hook in kept.items() if not _comes_from(_SHARDING, hook)})
    if _is_sharded(module):
        back.append(partial(setattr, module, "__class__", type(module)))
        module.__class__ = next(base for base in type(module).__mro__ if not _is_sharded(base))
    return back


def _put_marks_back(module: nn.Module, marks: dict[str, Any], order: list[str]) -> None:
    held = vars(module) | marks
    _refill(module.__dict__, {name: held[name] for name in order if name in held} | held)


def _comes_from(package: str, hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith(package)


def _refill(hooks: dict[Any, Any], items: dict[Any, Any]) -> None:
    hooks.clear()
    hooks.update(items)


def _casts(module: Any) -> bool:
    """Whether a sharded module casts what it is given, for mixed precision."""
    policy = module._get_fsdp_state()._mp_policy
    return policy.param_dtype is not None and policy.cast_forward_inputs


def _cast(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """A hook: what a module is given, in the precision of its parameters."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    return map_tensors(lambda t: t.to(dtype if t.is_floating_point() else None), (args, kwargs))
