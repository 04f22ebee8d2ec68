"""Extent: where in memory a view of a tensor lies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def base_of(tensor: Tensor) -> Tensor:
    """The tensor that another is a view of; itself, if it is none.

    >>> import torch
    >>> base = torch.zeros(4)
    >>> base_of(base[1:]) is base
    True
    """
    return tensor if tensor._base is None else tensor._base


@dataclass(frozen=True)
class Extent:
    """Where in memory a view of a tensor lies."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Extent:
        """The extent of a tensor."""
        return cls(int(tensor.storage_offset()), tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride())))

    def overlaps(self, other: Extent) -> bool:
        """Whether two views of one tensor may share memory."""
        if self.strides != other.strides:
            return True
        low, high = sorted((self, other), key=lambda extent: extent.offset)
        distance = high.offset - low.offset
        for stride, size in sorted(zip(low.strides, low.shape, strict=True), reverse=True):
            steps, distance = divmod(distance, stride) if stride else (0, distance)
            if steps >= size:
                return False
        return True
