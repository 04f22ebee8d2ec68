"""Fields: random inputs for a model, and noise for its dropouts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evenkeel.prediction.replicas import COUNT

_CONTRAST = 0.35  # standard deviation of log contrast between inputs; .32 in CIFAR-10, .16 in MNIST


def replicated_like(example: Tensor, size: int, samples: int) -> Tensor:
    """Replicas of random inputs in an example's place; of an example without a batch dimension, itself.

    Args:
        example: what a model is given.
        size: the batch size of its other inputs.
        samples: how many inputs to draw: normal ones for floating tensors, others from the example's own.
    """
    if not example.dim() or len(example) != size or not size:
        return example.clone()
    if example.is_floating_point():
        drawn = random_field((samples, *example.shape[1:])).to(example.dtype)
    else:
        drawn = example[torch.randint(size, (samples,))]
    return torch.cat([drawn] * COUNT)


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
