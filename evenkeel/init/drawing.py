"""Drawing: random weights of a given mean square."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from evenkeel.signals.weights import Weights

Distribution = Literal["sphere", "orthogonal", "normal", "uniform"]

_BLOCK = 1 << 15  # elements drawn at once: few enough for a core's own cache
_LANES = 16  # numbers that torch draws together: of whole ones, blocks get what all at once would get


def draw_(weights: Weights, variance: float, distribution: Distribution, generator: torch.Generator) -> None:
    """Draw the parameter of a weight layer anew, in place: see `fill_`."""
    parameter = weights.parameter
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        rows = weights.rows()
        in_place = rows.data_ptr() == parameter.data_ptr() and rows.is_contiguous()
        if in_place and rows.dtype in (torch.float32, torch.float64):
            fill_(rows, variance, distribution, generator)
        else:
            dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
            drawn = fill_(torch.empty(rows.shape, dtype=dtype, device=rows.device), variance, distribution, generator)
            target = weights.units_first()
            target.copy_(drawn.view(target.shape))
        if weights.unused is not None:
            parameter[weights.unused] = 0


def fill_(matrix: Tensor, variance: float, distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Fill a matrix, a row an output unit, with random weights of the given mean square.

    Args:
        matrix: shape (output units, weights of each).
        variance: mean square of its entries.
        distribution: "sphere" (every row uniform on the sphere of squared norm columns * variance), "orthogonal"
            (orthogonal rows, or columns if there are more rows than columns), "normal" or "uniform".
        generator: of the matrix's device.

    >>> fill_(torch.empty(4, 9), 2.0, "sphere", torch.Generator().manual_seed(0)).square().sum(1)
    tensor([18.0000, 18.0000, 18.0000, 18.0000])
    """
    return FILLS[distribution](matrix, math.sqrt(variance), generator)


def _sphere(matrix: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    length = scale * math.sqrt(matrix.shape[1])
    count = max(_BLOCK // max(matrix.shape[1], 1), 1)
    for rows in matrix.split(count - count % _LANES or count):
        rows.normal_(generator=generator)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(torch.finfo(matrix.dtype).tiny)
        rows.mul_(length / norms)
    return matrix


def _orthogonal(matrix: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    nn.init.orthogonal_(matrix, gain=scale * math.sqrt(max(matrix.shape)), generator=generator)
    return matrix


def _normal(matrix: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return matrix.normal_(0, scale, generator=generator)


def _uniform(matrix: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return matrix.uniform_(-math.sqrt(3) * scale, math.sqrt(3) * scale, generator=generator)


FILLS: dict[Distribution, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "sphere": _sphere,
    "orthogonal": _orthogonal,
    "normal": _normal,
    "uniform": _uniform,
}
