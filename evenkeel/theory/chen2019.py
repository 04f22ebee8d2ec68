"""chen2019: what dropout makes of the mutual information, the entropy and the correlation of neurons.

Chen, Chen, Shi, Hsieh, Liao & Zhang, "Rethinking the Usage of Batch Normalization and Dropout in the Training of Deep
Neural Networks", arXiv 1905.05928, the theorem on the independent-component layer. The theorem's p is the probability
to keep, that of the paper's experiments the one to drop; here p is always the probability to drop, keep = 1 - p.

The masks g_i are independent of the neurons x and of each other. If x_i is never 0, g_i x_i tells g_i and, where that
is 1, x_i; hence the first two laws. They are about the noisy neurons of training: in eval mode nothing changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evenkeel.errors import require

Number = float | Tensor


def information_factor(p: Number) -> Number:
    """By how much dropout lessens the mutual information of two neurons.

    `I(g_i x_i; g_j x_j) = keep^2 I(x_i; x_j)`, where the theorem writes p for keep. Assumed are masks of their own and
    no mass at 0, P(x_i = 0) = 0. With such mass, as behind a ReLU, the factor is an upper bound; a norm in between
    moves the zeros away and restores it. Scaling by 1 / keep changes nothing.

    Args:
        p: probability to drop, 0 <= p < 1; a number or a tensor of any shape.

    Returns:
        keep^2, of the shape of p.

    Raises:
        EvenkeelError: p is out of range.

    >>> information_factor(0.5), round(information_factor(0.05), 4)
    (0.25, 0.9025)
    """
    return _keep(p) ** 2


def dropped_entropy(entropy: Number, p: Number) -> Number:
    """Entropy of a neuron that dropout acts on.

    `H(g x) = keep H(x) + H(g)`, with `H(g) = -keep log keep - p log p`, where the theorem writes p for keep and eps_p
    for the entropy of the mask. Assumed is no mass at 0. Of a continuous x, H(x) is the differential entropy, and
    H(g x) that of an atom at 0 with a density beside it; inverted dropout then spreads the density and adds
    -keep log keep, while of a discrete x it changes nothing.

    Args:
        entropy: H(x) in nats, finite; a number or a tensor.
        p: probability to drop, 0 <= p < 1; a number or a tensor.

    Returns:
        H(g x) in nats, of the shape the two broadcast to.

    Raises:
        EvenkeelError: p is out of range, or the entropy not finite.

    >>> round(dropped_entropy(math.log(3), 0.5) - 0.5 * math.log(3), 6) == round(math.log(2), 6)
    True
    """
    require("the entropy", entropy, abs(entropy) < math.inf, "give it in nats, as a finite number")
    keep = _keep(p)
    gate = keep if isinstance(keep, Tensor) else torch.tensor(keep, dtype=torch.float64)
    mask = torch.special.entr(gate) + torch.special.entr(1 - gate)
    return keep * entropy + (mask if isinstance(keep, Tensor) else mask.item())


def correlation_factor(p: Number, *, mean: Number = 0.0, variance: Number = 1.0) -> Number:
    """By how much dropout lessens the correlation of two neurons.

    `Corr(g_i x_i, g_j x_j) = keep / (1 + p mean^2 / variance) Corr(x_i, x_j)`. The theorem, which writes p for keep,
    assumes standardized neurons and has only the numerator; both here have one mean and variance. Of unequal ones,
    multiply the roots of the factors of each. Scaling by 1 / keep changes nothing.

    Args:
        p: probability to drop, 0 <= p < 1.
        mean: of either neuron without dropout.
        variance: of either neuron without dropout, > 0. All may be numbers or tensors that broadcast.

    Returns:
        The factor, in (0, 1].

    Raises:
        EvenkeelError: an argument is out of range.

    >>> correlation_factor(0.5), correlation_factor(0.5, mean=1.0) == 1 / 3
    (0.5, True)
    """
    require("the mean", mean, abs(mean) < math.inf, "give the finite mean of the neurons")
    require("the variance", variance, (variance > 0) & (variance < math.inf), "a correlation needs one above 0")
    return _keep(p) / (1 + p * mean**2 / variance)


def _keep(p: Number) -> Number:
    require("p", p, (p >= 0) & (p < 1), "the probability to drop is at least 0 and below 1; it is 1 - keep")
    return 1 - p
