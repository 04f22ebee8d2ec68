"""Fields: random inputs for a model, and noise for its dropouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evenkeel.prediction.replicas import COUNT

_CONTRAST = 0.35  # standard deviation of log contrast between inputs; .32 in CIFAR-10, .16 in MNIST


def structures_among(given: Sequence[Tensor], *, in_turn: bool = False) -> set[int]:
    """The ids of those of a model's inputs whose values are kept: how inputs are connected, and which are there.

    They are indices, lengths and other numbers that are not floating, sparse tensors, masks of zeros and ones, and
    adjacency matrices; and, of inputs whose sizes are kept, vectors, such as edges' weights.

    >>> edges, features = torch.tensor([[0, 1], [1, 0]]), torch.zeros(2, 8)
    >>> structures_among([features, edges]) == {id(edges)}
    True
    """
    return {
        id(t)
        for t in given
        if not t.is_floating_point()
        or t.layout is not torch.strided
        or (in_turn and t.dim() < 2)
        or _is_mask(t)
        or is_adjacency(t, given)
    }


def takes_turns(given: Sequence[Tensor]) -> bool:
    """Whether inputs are no batch that can be made larger: tensors of different lengths, sparse ones, or a graph.

    >>> takes_turns([torch.zeros(4, 8), torch.zeros(4)]), takes_turns([torch.zeros(4, 8), torch.zeros(2, 9).long()])
    (False, True)
    """
    sizes = {len(t) for t in given if t.dim()} - {1}
    graph = any(t.dim() == 2 and is_adjacency(t, given) for t in given)
    return len(sizes) > 1 or graph or any(t.layout is not torch.strided for t in given)


def is_adjacency(t: Tensor, given: Sequence[Tensor]) -> bool:
    """Whether a tensor is square, a row and a column for each node of another one: shape (..., nodes, nodes)."""
    square = t.dim() in (2, 3) and t.shape[-1] == t.shape[-2] > 1
    return square and any(
        other is not t and other.dim() == t.dim() and other.shape[:-1] == t.shape[:-1] for other in given
    )


def _is_mask(t: Tensor) -> bool:
    values = t.detach()
    return t.numel() > 1 and bool(((values == 0) | (values == 1)).all()) and bool(values.max() > values.min())


def replicated_like(example: Tensor, size: int, rows: Tensor, *, kept: bool) -> Tensor:
    """Replicas of inputs in an example's place; of an example without a batch dimension, itself.

    Args:
        example: what a model is given.
        size: the batch size of its other inputs.
        rows: of the example, those whose values are taken where they are kept, one a replica's input.
        kept: whether they are; if not, inputs are drawn.
    """
    if not example.dim() or len(example) != size or not size:
        return example.clone()
    drawn = example[rows.to(example.device)] if kept else drawn_like(example, len(rows))
    return torch.cat([drawn] * COUNT)


def drawn_like(example: Tensor, samples: int | None = None) -> Tensor:
    """Random inputs of an example's shape, dtype and device, or of another number of samples."""
    if not example.dim():
        return example.clone()
    return random_field((len(example) if samples is None else samples, *example.shape[1:])).to(example)


def random_field(shape: tuple[int, ...]) -> Tensor:
    """Random inputs of mean 0 and variance 1, each normal given its contrast, which varies; images are smooth.

    Amplitudes fall as 1 / frequency, as in natural images and much else that is sampled along space or time (Field
    1987), whose contrasts, too, vary from one to the next.

    Args:
        shape: samples, channels, then the dimensions along which the field is smooth.

    >>> random_field((1000, 3, 8, 8)).var().round(decimals=1)
    tensor(1.)
    """
    field, dims = torch.randn(shape), list(range(2, len(shape)))
    if dims and math.prod(shape[2:]) > 1:
        squares = torch.zeros(())
        for dim, size in zip(dims, shape[2:], strict=True):
            squares = squares + (torch.fft.fftfreq(size) ** 2).view(-1, *(1,) * (len(shape) - 1 - dim))
        amplitude = 1 / squares.sqrt().clamp_min(1 / max(shape[2:]))
        field = torch.fft.ifftn(torch.fft.fftn(field, dim=dims) * amplitude, dim=dims).real
    contrast = (_CONTRAST * torch.randn(shape[0])).exp()
    field = field * contrast.view(-1, *(1,) * (len(shape) - 1))
    return field / field.square().mean().sqrt()


def noises(shape: list[int], dim: int, keep: float, like: Tensor) -> list[Tensor]:
    """Noise of mean 1 and a mask's variance for both train replicas, of which few samples show as much as many do.

    It has two values, each as often as the other along the dimension, and in the second replica half of them change.
    A mask that keeps less than half would so become negative: it is drawn by chance.
    """
    if keep < 0.5:
        return [torch.full(shape, keep).bernoulli_().to(like) / keep for _ in range(2)]
    signs, changes = (_balanced(shape, dim) for _ in range(2))
    return [(1 + math.sqrt((1 - keep) / keep) * sign).to(like) for sign in (signs, signs * changes)]


def _balanced(shape: list[int], dim: int) -> Tensor:
    """Random signs, as many of one as of the other along a dimension."""
    order = torch.rand(shape).argsort(dim).argsort(dim) % 2
    flips = torch.rand(shape).narrow(dim, 0, 1) < 0.5  # of an odd number, which is the more frequent one
    return 2.0 * (order ^ flips) - 1
