"""Thinning: one of so many samples of a stream, from all over it, where fewer than all tell enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from evenkeel.statistics.batch_merging import Piece

_GOLDEN = 0.618034


def thinned(pieces: Iterable[Piece], step: float, *, is_divisible: bool) -> Iterator[Piece]:
    """One of every `step` samples, or, where the samples of a batch cannot run apart, of every `step` batches.

    The stream is cut into runs of so many, and one of each is taken, not always from the same place in it: a loader may
    go round in its order, as one that yields two views of every image does.

    Args:
        pieces: the batches.
        step: of how many one is taken, at least 1.
        is_divisible: whether samples can run in any company, those of a batch that has a form.

    >>> import torch
    >>> pieces = [Piece(number, torch.arange(8.0)[:, None], 8) for number in range(1, 4)]
    >>> [(piece.number, piece.batch.flatten().tolist()) for piece in thinned(pieces, 4, is_divisible=True)]
    [(1, [0.0, 6.0]), (2, [0.0, 7.0]), (3, [1.0, 4.0])]
    """
    start, run, last = 0, 0, -1
    for piece in pieces:
        is_whole = not is_divisible or piece.form is None
        end = start + (1 if is_whole else piece.samples)
        chosen = list[int]()
        while (place := max(_place(run, step), last + 1)) < end:
            chosen.append(place - start)
            run, last = run + 1, place
        start = end
        if chosen:
            yield piece if is_whole else piece.chosen(tuple(chosen))


def _place(run: int, step: float) -> int:
    """Which one of a run is taken, counted from the first of all."""
    return int(step * (run + run * _GOLDEN % 1))
