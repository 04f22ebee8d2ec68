"""Lists of samples: batches that hold a list with an entry a sample, as detectors take images of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeGuard

from torch import Tensor

from evenkeel.model.nested import tensors

_CHANNELS = (1, 3, 4)  # of images
_FEW = 3  # tensors of one shape that are more than inputs and targets


def listed_samples(batch: Any) -> int | None:
    """How many samples a batch holds as a list or tuple with an entry a sample; None where it holds none.

    The entries are tensors, or mappings of one image and what belongs to it. A list of a batch's inputs or targets,
    each with the samples as its leading dimension, is none.

    >>> import torch
    >>> image, x = torch.ones(3, 8, 8), torch.ones(32, 5)
    >>> listed_samples(((image, image), ({"boxes": x}, {"boxes": x}))), listed_samples([{"image": image, "height": 8}])
    (2, 1)
    >>> listed_samples([[x, x], [x, x]]), listed_samples((x, [x, x]))
    (None, None)
    """
    parts = _parts_of(batch)
    for number, part in enumerate(parts):
        others = [*parts[:number], *parts[number + 1 :]]
        is_behind = type(part) is tuple and any(isinstance(before, Tensor) for before in parts[:number])
        if _is_listing(part) and not is_behind and (_are_samples(part, others) or _are_records(part)):
            return len(part)
    return len(batch) if _is_listing(batch) and (_are_records(batch) or _are_bare_images(batch)) else None


def _parts_of(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, (tuple, list)):
        return list(batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in fields(batch)]
    return [] if isinstance(batch, Tensor) else list(getattr(batch, "__dict__", {}).values())


def _is_listing(value: Any) -> TypeGuard[Sequence[Any]]:
    return type(value) in (list, tuple) and len(value) > 0


def _are_tensors(value: Sequence[Any]) -> TypeGuard[Sequence[Tensor]]:
    return all(isinstance(item, Tensor) and item.ndim for item in value)


def _are_samples(found: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether each tensor of a list is a sample, as what is beside it in the batch tells."""
    if not _are_tensors(found):
        return False
    sizes = {len(tensor) for tensor in found}
    if len(sizes) > 1 or any(_has_entry_a_sample(other, len(found), sizes) for other in others):
        return True
    beside = {len(other) for other in others if isinstance(other, Tensor) and other.ndim}  # as labels have
    is_images = found[0].ndim == 3 and (len({t.shape for t in found}) > 1 or max(sizes) in _CHANNELS)
    return (is_images and not sizes & beside) or beside == {len(found)}


def _has_entry_a_sample(value: Any, count: int, sizes: set[int]) -> bool:
    """Whether something is a list of as many entries, and not of tensors that are batches of the same size."""
    if not _is_listing(value) or len(value) != count:
        return False
    return not _are_tensors(value) or {len(tensor) for tensor in value} != sizes


def _are_records(found: Sequence[Any]) -> bool:
    """Whether each mapping of a list is a sample: by what is no batch of samples in it."""
    if not all(isinstance(item, Mapping) and item.keys() == found[0].keys() and tensors(item) for item in found):
        return False
    held = [[tensor for tensor in tensors(item) if tensor.ndim] for item in found]
    if len({len(tensor) for item in held for tensor in item}) > 1:
        return True
    has_numbers = any(isinstance(value, (int, float, str)) for item in found for value in item.values())
    return has_numbers or all(bool(item) and item[0].ndim == 3 and len(item[0]) in _CHANNELS for item in held)


def _are_bare_images(found: Sequence[Any]) -> bool:
    """Whether tensors alone are images, not inputs and targets: of one shape, or of unlike heights and widths."""
    if not _are_tensors(found) or any(t.ndim != 3 or len(t) not in _CHANNELS for t in found):
        return False
    if len({(len(t), t.dtype) for t in found}) > 1:
        return False
    heights, widths = ({t.shape[dim] for t in found} for dim in (1, 2))
    return len(found) >= _FEW if len(heights) == len(widths) == 1 else min(len(heights), len(widths)) > 1
