"""Reservoir: some samples of every part of a stream, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from evenkeel.model.nested import tensors
from evenkeel.statistics.batch_merging import Piece

_HELD = 1 << 28  # bytes
_MOST = 64  # batches that a sample comes from


class Reservoir:
    """Keeps the batches of a stream, or, once they are too many to be held, as large a part of each as there is room.

    Batches that cannot be divided are kept or left as a whole. What is kept is spread evenly over the stream, so that
    it stands for all of it in whatever order it comes.

    Args:
        budget: bytes that may be held.

    Attributes:
        pieces: what is held.
        is_complete: whether all that was added is held.

    >>> import torch
    >>> held = Reservoir(budget=1600)
    >>> for number in range(100):
    ...     held.add(Piece(number, torch.ones(8, 1), 8), is_divisible=True)
    >>> len(held.pieces), held.pieces[0].samples, held.is_complete
    (100, 4, False)
    """

    def __init__(self, budget: int = _HELD) -> None:
        self._budget = budget
        self.pieces: list[Piece] = []
        self.is_complete = True
        self._bytes = 0
        self._step = 1  # of the samples of a batch that can be divided, every how many-th is kept
        self._skip = 1  # of batches that cannot, every how many-th
        self._added = 0

    def add(self, piece: Piece, *, is_divisible: bool) -> None:
        """Keep a batch, or a copy of a part of it."""
        self._added += 1
        if self._added % self._skip:
            return
        if self._step > 1 and is_divisible and piece.form is not None:
            piece = piece.thinned(self._step)
        self.pieces.append(piece)
        self._bytes += _bytes(piece)
        while self._bytes > self._budget and len(self.pieces) > 1:
            self._thin(is_divisible)

    def sample(self, count: int, fewest: int, *, is_divisible: bool) -> list[Piece]:
        """About so many of the samples held, from at least so many batches; all, if they are not many more.

        Args:
            count: samples wanted.
            fewest: batches wanted.
            is_divisible: whether batches can be divided.
        """
        total = sum(piece.samples for piece in self.pieces)
        if total <= 2 * count:
            return self.pieces
        step = total // count
        if is_divisible:
            pieces = _spread(self.pieces, min(max(fewest, _MOST), count, len(self.pieces)))
            if all(piece.form is not None for piece in pieces):
                return [piece.thinned(max(sum(p.samples for p in pieces) // count, 1)) for piece in pieces]
        found = _spread(self.pieces, max(fewest, ceil(len(self.pieces) / step)))
        return self.pieces if len(found) == len(self.pieces) else found

    def _thin(self, is_divisible: bool) -> None:
        """Halve what is held."""
        self.is_complete = False
        if is_divisible and sum(piece.samples for piece in self.pieces) >= 2 * len(self.pieces):
            self._step *= 2
            self.pieces = [piece if piece.form is None else piece.thinned(2) for piece in self.pieces]
        else:
            self._skip *= 2
            self.pieces = self.pieces[1::2]
        self._bytes = sum(map(_bytes, self.pieces))


def _spread(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """So many of the pieces, evenly spread, but not at one distance: a loader may go round in its order."""
    width = len(pieces) / count
    return [pieces[int((i + (i * 0.618034) % 1) * width)] for i in range(count)] if width > 1 else list(pieces)


def _bytes(piece: Piece) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(piece.batch))
