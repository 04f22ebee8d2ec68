"""Versions of a noisy parameter: one without noise and several with, since a batch has one, and replicas need more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from evenkeel.graph.kinds import MULTIPLYING_DROPOUT, Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.prediction.noisy_call import NoisyCall
from evenkeel.prediction.replicas import COUNT, row_dim

_EACH = 8  # versions with noise for each train replica


class MaskVersions:
    """What dropout and noise make of parameters, and what follows of it before it meets a signal.

    A norm stores the variance within batches, in each of which a parameter has one mask. So the samples of a train
    replica are given several masks, group by group, and what masks do to a channel's mean is taken out.

    Args:
        samples: how many inputs there are.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._groups = _EACH if samples >= _EACH else _EACH // 2
        self._held: Any = WeakIdKeyDictionary()  # of every such tensor: without noise, then with

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._held

    def alias(self, copy: Tensor, tensor: Tensor) -> None:
        """Let a copy of a tensor stand for it."""
        if tensor in self._held:
            self._held[copy] = self._held[tensor]

    def quiet(self, given: Any) -> Any:
        """A call's arguments without noise on parameters."""
        return self._chosen(given, 0)

    def hold(self, tensor: Tensor, layer: Layer, call: NoisyCall) -> None:
        """Remember a parameter without noise, and with several of its noise."""
        quiet, count = call.quiet(layer), self._groups * (COUNT - 1)
        multiplying = layer.function in MULTIPLYING_DROPOUT or layer.noise is not None
        if layer.kind is Kind.DROPOUT and layer.p is not None and layer.p < 1 and multiplying:
            deviation = math.sqrt(layer.p / (1 - layer.p))
            signs = torch.cat(_signs(self._groups, _own_sizes(call.factor(), quiet.shape))).to(quiet)
            self._held[tensor] = [quiet, *(quiet * (1 + deviation * sign) for sign in signs)]
        else:
            self._held[tensor] = [quiet, *(call.drawn_again() for _ in range(count))]

    def given(self, args: Any) -> bool:
        """Whether a call is given such a tensor."""
        return any(tensor in self._held for tensor in tensors(args))

    def keep(self, outputs: Sequence[Tensor], results: Sequence[Any]) -> None:
        """Remember what a call made of each version."""
        for place, output in enumerate(outputs):
            self._held[output] = [tensors(result)[place] for result in results]

    def each(self, run: Callable[[Any], Any], given: Any) -> list[Any]:
        """What a call makes of each version, where no signal is given to it."""
        return [run(self._chosen(given, version)) for version in range(1 + self._groups * (COUNT - 1))]

    def spread_(self, out: Tensor, run: Callable[[Any], Any], given: Any, is_signal: Callable[[Tensor], bool]) -> bool:
        """Give the replicas in a call's result, in place, the versions of what they met; return whether that was done.

        Args:
            out: the call's result.
            run: makes the call.
            given: its arguments, as they were before it.
            is_signal: whether a tensor has rows of replicas.
        """
        dim = row_dim(out, self.samples)
        if dim is None:
            return False
        quiet = tensors(run(self._chosen(given, 0)))[0]
        rows = quiet.shape[dim] // COUNT
        out.narrow(dim, 0, rows).copy_(quiet.narrow(dim, 0, rows))
        for replica in range(1, COUNT):
            pieces, shifts = list[Tensor](), list[Tensor]()
            for group in range(self._groups):
                version = 1 + (replica - 1) * self._groups + group
                part = self._part_of(given, replica, group, is_signal)
                noisy = tensors(run(self._chosen(part, version)))[0]
                pieces.append(noisy)
                shifts.append(_means(noisy - tensors(run(self._chosen(part, 0)))[0]))
            if sum(piece.shape[dim] for piece in pieces) != rows:
                return False
            common = torch.stack(shifts).mean(0)
            moved = [piece - (shift - common) for piece, shift in zip(pieces, shifts, strict=True)]
            out.narrow(dim, replica * rows, rows).copy_(torch.cat(moved, dim))
        return True

    def _chosen(self, given: Any, version: int) -> Any:
        def chosen(tensor: Tensor) -> Tensor:
            return self._held[tensor][version] if tensor in self._held else tensor

        return map_tensors(chosen, given)

    def _part_of(self, given: Any, replica: int, group: int, is_signal: Callable[[Tensor], bool]) -> Any:
        """The arguments for the rows of one group of a replica's samples."""

        def part(tensor: Tensor) -> Tensor:
            dim = row_dim(tensor, self.samples) if tensor not in self._held and is_signal(tensor) else None
            if dim is None:
                return tensor
            return tensor.chunk(COUNT, dim)[replica].tensor_split(self._groups, dim)[group]

        return map_tensors(part, given)


def _means(x: Tensor) -> Tensor:
    """The means of a signal's channels."""
    return x.mean([dim for dim in range(x.dim()) if dim != 1], keepdim=True)


def _own_sizes(mask: Tensor, shape: Sequence[int]) -> list[int]:
    """The sizes of a mask, 1 along dimensions in which it is the same throughout, as along rows or filters."""
    mask = mask.expand(*shape)
    return [1 if bool((mask == mask.narrow(dim, 0, 1)).all()) else size for dim, size in enumerate(shape)]


def _signs(groups: int, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Random signs for both train replicas: of every element, those of each sum to 0, and so do their products.

    They are two of the rows of a Hadamard matrix, whose size is a power of 2; the first row is all ones. Each has a
    sign of its own, or elements that chance gives the same row would count as one.
    """
    rows = torch.ones(1, 1)
    while len(rows) < groups:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    first = torch.randint(1, groups, tuple(shape))
    second = (first - 1 + torch.randint(1, groups - 1, tuple(shape))) % (groups - 1) + 1
    one, two = ((rows[row] * _any_sign(shape)).movedim(-1, 0) for row in (first, second))
    return one, two


def _any_sign(shape: Sequence[int]) -> Tensor:
    """1 or -1 by chance, of every element."""
    return 2.0 * torch.randint(2, (*shape, 1)) - 1
