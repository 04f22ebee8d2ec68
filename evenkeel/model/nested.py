"""Nested structures of tensors: tuples, lists, mappings, dataclasses, and objects such as graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass, replace
from types import FunctionType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

_LEAVES = {int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device}  # that hold no tensors


def map_tensors(function: Callable[[Tensor], Any], value: Any, *, objects: bool = False) -> Any:
    """The same nested structure with every tensor replaced by the function's value of it.

    Enters tuples, named tuples, lists, mappings and dataclasses; leaves everything else as it is.

    Args:
        function: of one tensor.
        value: the structure.
        objects: whether other objects that hold tensors, as those of graphs do, are entered too, and copied.

    >>> import torch
    >>> map_tensors(lambda t: t + 1, {"x": torch.zeros(2), "y": [3]})
    {'x': tensor([1., 1.]), 'y': [3]}
    """

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        return _mapped_object(function, leaf) if objects and not isinstance(leaf, (nn.Module, type)) else leaf

    return map_together(lambda leaves: mapped(leaves[0]), [value])


def _mapped_object(function: Callable[[Tensor], Any], value: Any) -> Any:
    """A copy of an object with its tensors replaced, those in mappings too; the object itself if it holds none."""
    if not _tensors_in(getattr(value, "__dict__", {})):
        return value
    copied = copy.copy(value)
    vars(copied).update(_mapped_items(function, vars(copied)))
    return copied


def _mapped_items(function: Callable[[Tensor], Any], mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    """What of a mapping of mappings holds tensors, replaced."""
    found: dict[Any, Any] = {}
    for key, item in mapping.items():
        if isinstance(item, Tensor):
            found[key] = function(item)
        elif isinstance(item, MutableMapping) and _tensors_in(item):
            found[key] = copy.copy(item)
            found[key].update(_mapped_items(function, item))
    return found


def map_together(function: Callable[[Sequence[Any]], Any], values: Sequence[Any]) -> Any:
    """The nested structure that all values have, with the function's value of the leaves at every place.

    A list of words is a leaf.

    >>> map_together(sum, [(1, {"x": 2}), (10, {"x": 20})])
    (11, {'x': 22})
    """
    first = values[0]

    def entered(items: Iterable[Sequence[Any]]) -> list[Any]:
        return [map_together(function, column) for column in items]

    if isinstance(first, Mapping):
        mapped = dict(zip(first, entered([v[key] for v in values] for key in first), strict=True))
        if not isinstance(first, MutableMapping):
            return mapped
        result = copy.copy(first)  # of the same type: a tokenizer's batch has its entries as attributes too
        for key, item in mapped.items():
            result[key] = item
        return result
    if isinstance(first, (tuple, list)) and not is_words(first):
        items = entered(zip(*values, strict=True))
        return type(first)(*items) if hasattr(first, "_fields") else tuple(items) if isinstance(first, tuple) else items
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first) if field.init]
        items = entered([getattr(v, name) for v in values] for name in names)
        return replace(first, **dict(zip(names, items, strict=True)))
    return function(values)


def is_words(value: Any) -> bool:
    """Whether the value is a list or tuple of words, such as the samples' names."""
    return type(value) in (tuple, list) and bool(value) and all(isinstance(item, str) for item in value)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a nested structure, in order.

    >>> import torch
    >>> len(tensors((torch.ones(1), {"mask": torch.ones(1)}, "text")))
    2
    """
    found: list[Tensor] = []
    _gather(value, found)
    return found


def _gather(value: Any, found: list[Tensor]) -> None:
    """Append all tensors in a nested structure to those found."""
    kind: type = type(value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, Tensor):
        found.append(value)
    elif kind in _LEAVES:
        return
    elif kind is tuple or kind is list or isinstance(value, (tuple, list)):
        for item in cast("Iterable[Any]", value):
            _gather(item, found)
    elif kind is dict or isinstance(value, Mapping):
        for item in value.values():
            _gather(item, found)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            _gather(getattr(value, field.name), found)
    else:  # of other objects, the attributes that are tensors, or mappings of them as a graph's store is
        found += _tensors_in(getattr(value, "__dict__", {}))


def _tensors_in(mapping: Mapping[Any, Any]) -> list[Tensor]:
    """The tensors in a mapping of mappings."""
    found: list[Tensor] = []
    for item in mapping.values():
        found += [item] if isinstance(item, Tensor) else _tensors_in(item) if isinstance(item, Mapping) else []
    return found


def is_holder(value: Any) -> bool:
    """Whether an object, no module or data set, has attributes that are tensors or arrays, as running statistics are.

    >>> class Running:
    ...     def __init__(self):
    ...         self.mean, self.count = torch.zeros(2), 0
    >>> is_holder(Running()), is_holder(torch.zeros(2)), is_holder("text")
    (True, False, False)
    """
    if isinstance(value, (Tensor, nn.Module, Dataset, type, FunctionType, ModuleType)):
        return False
    held = getattr(value, "__dict__", {})
    return type(held) is dict and any(isinstance(item, (Tensor, np.ndarray)) for item in held.values())


def channels_last(tensor: Tensor) -> Tensor:
    """A batch of images or volumes with channels last in memory; any other tensor as it is.

    >>> channels_last(torch.ones(1, 2, 3, 3)).stride()
    (18, 1, 6, 2)
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    is_known = tensor.is_floating_point() and tensor.ndim in formats
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if is_known else tensor
