"""IC: the independent-component layer, batch norm then dropout, placed before each weight layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenkeel.errors import EvenkeelError

# By the number of spatial dimensions.
_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def ic(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float = 0.05,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize by batch norm, then drop: the functional form of `IC`.

    `Dropout(BatchNorm(x))` (Chen et al. 2019), the arguments those of `torch.nn.functional.batch_norm`.

    Args:
        x: floating, shape (N, C, ...).
        running_mean: shape (C,), used in eval mode and, in training, updated in place; None, which only training
            allows, to keep none.
        running_var: likewise.
        weight: shape (C,), the norm's scale; 1 if None.
        bias: shape (C,), the norm's offset; 0 if None.
        p: drop rate, not the rate to keep.
        training: normalize by the batch and drop; if not, by what is stored, and drop nothing.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        A tensor of x's shape, dtype and device.

    Raises:
        EvenkeelError: p is not a drop rate below 1.

    >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    >>> ic(x, torch.tensor([1.0, 2.0]), torch.ones(2), eps=0.0)
    tensor([[0., 0.],
            [2., 4.]])
    """
    _require_rate(p)
    normalized = functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return functional.dropout(normalized, p, training)


class IC(nn.Module):
    """The independent-component layer: batch norm, then dropout of single elements at a small rate.

    `IC(x) = Dropout(BatchNorm(x))` (Chen et al. 2019), placed before each weight layer, instead of a norm
    after it: {activation, IC, weight} for {weight, norm, activation}. Batch norm centres and scales its input; the
    dropout after it multiplies the correlation of any two elements by keep = 1 - p, and their mutual information by
    keep^2 (the paper's theorem). In training only: in eval mode IC is batch norm.

    The theorem's p is the rate to *keep*; the p of the paper's experiments, 0.05, and the p here are the rate to drop.

    The dropout shifts variances as any does. What its weight layer returns has, in eval mode, keep times the variance
    that it has in training, if x is standardized and elements do not correlate; where each weight layer has an IC of
    its own, the factors multiply. `variance_shift` measures that, and `reestimate_` repairs it.

    Args:
        num_features: C, the number of channels.
        p: drop rate, 0 to below 1.
        ndim: number of spatial dimensions: 0 for features (N, C), 1 for sequences (N, C, L), 2 for images
            (N, C, H, W), 3 for volumes (N, C, D, H, W).
        eps: added to the norm's variance.
        momentum: weight of the batch in the running statistics; None for a plain average over all batches.
        affine: whether the norm has a learnt scale and offset.
        device: of the norm's parameters and buffers.
        dtype: of the norm's parameters and buffers.

    Raises:
        EvenkeelError: num_features is no positive whole number, p no drop rate below 1, or ndim none of 0, 1, 2 and 3.

    Attributes:
        norm: `torch.nn.BatchNorm1d`, `2d` or `3d`.
        dropout: `torch.nn.Dropout`, whose `p` may be set.

    >>> layer = IC(8)
    >>> type(layer.norm).__name__, layer.dropout
    ('BatchNorm2d', Dropout(p=0.05, inplace=False))
    >>> block = nn.Sequential(nn.ReLU(), IC(8), nn.Conv2d(8, 16, 3))
    >>> block(torch.randn(4, 8, 10, 10)).shape
    torch.Size([4, 16, 8, 8])
    """

    evenkeel_layer = True  # whose source lines are not the model's

    def __init__(
        self,
        num_features: int,
        p: float = 0.05,
        ndim: int = 2,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _require_rate(p)
        if num_features < 1 or num_features % 1:
            raise EvenkeelError(f"num_features is {num_features}: give the number of channels, 1 or more")
        if ndim not in _NORMS:
            raise EvenkeelError(
                f"ndim is {ndim}: give the number of spatial dimensions of x: 0 for (N, C), 1 for (N, C, L), "
                "2 for (N, C, H, W), 3 for (N, C, D, H, W)"
            )
        self.norm = _NORMS[ndim](num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        """Dropout of batch norm of x, shape (N, C, ...)."""
        return self.dropout(self.norm(x))


def _require_rate(p: float) -> None:
    if not 0 <= p < 1:  # not a number is neither
        raise EvenkeelError(
            f"p is {p}, but IC drops elements at a rate of 0 <= p < 1: give the rate to drop, such as 0.05, "
            "which is 1 minus the rate to keep"
        )
