"""Wrappers: DDP, torch.compile and FSDP2 taken off a model, and put back."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from evenkeel.errors import ModelError
from evenkeel.model.opacity import require_readable
from evenkeel.model.sharding import gathered


@contextmanager
def unwrapped(model: nn.Module) -> Generator[nn.Module]:
    """Yield the model inside its wrappers: compiled parts as plain Python, parallel replicas and shards as one model.

    Hooks and recorders then see every call, and no call waits for other processes.

    Args:
        model: a model, perhaps one that `torch.compile`, DistributedDataParallel or DataParallel returned, or with
            parts that `fully_shard` (FSDP2) shards (see `gathered`); then every process must call this.

    Yields:
        The model inside.

    Raises:
        ModelError: a part is wrapped by FullyShardedDataParallel, whose shards each forward pass gathers by itself; or
            the model is scripted or exported (see `require_readable`).
    """
    original = model
    while (inner := _inside(original)) is not None:
        original = inner
    require_readable(original)
    if sharded := [path for path, m in original.named_modules() if type(m).__name__ == "FullyShardedDataParallel"]:
        raise ModelError(
            f"{sharded[0] or 'the model'!r} is wrapped by FullyShardedDataParallel, whose ranks must all run each "
            "forward pass: shard it by torch.distributed.fsdp.fully_shard, or load its weights into a plain model"
        )
    with _eager(original, original is not model), gathered(model):
        yield original


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return model.module
    return getattr(model, "_orig_mod", None)


@contextmanager
def _eager(model: nn.Module, wrapped: bool) -> Generator[None]:
    if wrapped or any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
        with torch.compiler.set_stance("force_eager"):  # imports the compiler: only where it may be in use already
            yield
    else:
        yield
