"""Fingerprints: short texts that are equal exactly if tensors are, to tell which model a part belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from evenkeel.model.norms import has_running_statistics

_STATISTICS = ("running_mean", "running_var")


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of named tensors, whatever their order and device.

    >>> one = torch.ones(2)
    >>> fingerprint([("a", one)]) == fingerprint([("a", one.clone())]), fingerprint([("a", one)]) == fingerprint([])
    (True, False)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update((torch.view_as_real(flat) if flat.is_complex() else flat).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def of_weights(model: nn.Module) -> str:
    """Of all that a model holds but what its norms gather from data."""
    return fingerprint((name, tensor) for name, tensor in _held(model).items() if name not in _gathered(model))


def of_statistics(model: nn.Module) -> str:
    """Of what a model's norms store."""
    held = _held(model)
    return fingerprint((name, held[name]) for name in _gathered(model) if name.endswith(_STATISTICS))


def _held(model: nn.Module) -> Mapping[str, Tensor]:
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in named}


def _gathered(model: nn.Module) -> set[str]:
    """Names of the norms' statistics, and of their counts of updates, as `_held` has them."""
    norms = [path for path, m in model.named_modules(remove_duplicate=False) if has_running_statistics(m)]
    names = (f"{path}.{name}".lstrip(".") for path in norms for name in (*_STATISTICS, "num_batches_tracked"))
    return {name.replace("_orig_mod.", "") for name in names}
