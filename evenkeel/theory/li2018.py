"""li2018: Delta = Var_eval / Var_train of a norm's input, for dropout, Uout and any other noise of mean 1.

Li, Chen, Hu & Yang, "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift", arXiv
1801.05134. The paper's p is the probability to keep; here p is always the probability to drop, keep = 1 - p.

All of it follows from one identity. Let every input x_i be multiplied by its own noise, of mean 1, variance s2 and
independent of x and of the others: then `Var_train(w.x) = Var_eval(w.x) + s2 sum_i w_i^2 E x_i^2`, whatever the inputs'
means and correlations. Dropout has s2 = p / keep, Uout beta^2 / 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evenkeel.errors import EvenkeelError, require

Number = float | Tensor


def dropout_noise(p: Number) -> Number:
    """Variance of dropout's noise: that of a / keep, where a is 1 with probability keep and 0 else.

    `s2 = p / keep`, from equation 3 (inverted dropout, as torch's).

    Args:
        p: probability to drop, 0 <= p < 1; a number or a tensor of any shape.

    Returns:
        s2, relative to the square of what is multiplied; of the shape of p.

    Raises:
        EvenkeelError: p is out of range.

    >>> dropout_noise(0.5)
    1.0
    """
    require("p", p, (p >= 0) & (p < 1), "the probability to drop is at least 0 and below 1; it is 1 - keep")
    return p / (1 - p)


def uout_noise(beta: Number) -> Number:
    """Variance of Uout's noise: that of 1 + r, r ~ U(-beta, beta).

    `s2 = beta^2 / 3`. The paper has beta at most 1, beyond which values may change sign; the formula holds there, too.

    Args:
        beta: half width of the noise, >= 0; a number or a tensor of any shape.

    Returns:
        s2, relative to the square of what is multiplied; of the shape of beta.

    Raises:
        EvenkeelError: beta is negative or not finite.

    >>> uout_noise(1.0) == 1 / 3
    True
    """
    require("beta", beta, (beta >= 0) & (beta < math.inf), "the half width of Uout's noise is finite and at least 0")
    return beta**2 / 3


def equal_noise_p(beta: Number) -> Number:
    """The drop probability at which dropout is as noisy as Uout.

    `p = beta^2 / (3 + beta^2)` solves `p / keep = beta^2 / 3`: much of Uout's small shift comes from weak noise.

    Args:
        beta: Uout's half width, >= 0; a number or a tensor of any shape.

    Returns:
        The probability to drop, of the shape of beta.

    Raises:
        EvenkeelError: beta is negative or not finite.

    >>> equal_noise_p(1.0), round(equal_noise_p(0.5), 4)
    (0.25, 0.0769)
    """
    noise = uout_noise(beta)
    return noise / (1 + noise)


def equal_noise_beta(p: Number) -> Number:
    """The half width at which Uout is as noisy as dropout: the inverse of `equal_noise_p`.

    `beta = sqrt(3 p / keep)`, above 1, the paper's limit, if p is above 1/4.

    Args:
        p: probability to drop, 0 <= p < 1; a number or a tensor of any shape.

    Returns:
        The half width, of the shape of p.

    Raises:
        EvenkeelError: p is out of range.

    >>> equal_noise_beta(0.25)
    1.0
    """
    return (3 * dropout_noise(p)) ** 0.5


def noise_variance(weight: Tensor, second_moments: Tensor, noise: Number) -> Tensor:
    """What noise on single inputs adds to the variance of a weight layer's outputs in training.

    `s2 sum_i w_i^2 E x_i^2`, the identity of this file's head. Exact for noise of mean 1 that is independent from
    element to element and of the inputs, with no nonlinearity in between; inputs may correlate.

    Args:
        weight: shape (units, ...) with the weights of a unit, or of a filter, behind; or one unit's, shape (inputs,).
        second_moments: E x_i^2, of a shape that broadcasts to the weight's: of a convolution (channels, 1, 1).
        noise: s2, >= 0, as `dropout_noise` or `uout_noise` give it.

    Returns:
        The added variance by unit, shape (units,); of one unit, shape ().

    Raises:
        EvenkeelError: shapes do not fit, a second moment or s2 is negative or not finite.

    >>> noise_variance(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1.0, 0.5]), dropout_noise(0.5)).tolist()
    [3.0, 9.0]
    """
    _require_noise(noise)
    require("a second moment", second_moments, _finite(second_moments, 0), "E x^2 is finite and at least 0")
    try:
        moments = second_moments.expand_as(weight)
    except RuntimeError as error:
        raise EvenkeelError(
            f"second moments of shape {tuple(second_moments.shape)} do not broadcast to a weight of shape "
            f"{tuple(weight.shape)}: give one per input, of a convolution in shape (channels, 1, 1)"
        ) from error
    return noise * _by_unit(weight**2 * moments).sum(-1)


def channel_noise_variance(weight: Tensor, products: Tensor, noise: Number) -> Tensor:
    """What noise on whole channels, as torch's Dropout2d, adds to the variance of a convolution's outputs in training.

    `s2 sum_c E (sum_k w_ck x_ck)^2`: all positions k of a channel c share one noise, so their products count, too.
    Exact for noise of mean 1, independent between channels and of the inputs, with no nonlinearity in between.

    Args:
        weight: shape (units, channels, ...), the K positions of the filter behind.
        products: E x_ck x_cl, shape (channels, K, K).
        noise: s2, >= 0, as `dropout_noise` or `uout_noise` give it.

    Returns:
        The added variance by unit, shape (units,).

    Raises:
        EvenkeelError: shapes do not fit, s2 is negative or not finite.

    >>> constant = torch.ones(1, 2, 2)  # one channel whose two positions are always 1
    >>> channel_noise_variance(torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]]), constant, dropout_noise(0.5)).tolist()
    [4.0, 0.0]
    """
    _require_noise(noise)
    filters = weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(-1)
    if weight.ndim < 2 or products.shape != (*filters.shape[1:], filters.shape[2]):
        raise EvenkeelError(
            f"products of shape {tuple(products.shape)} do not fit a weight of shape {tuple(weight.shape)}: of "
            "(units, channels, ...) with K filter positions they have shape (channels, K, K)"
        )
    return noise * torch.einsum("uck,ckl,ucl->u", filters, products, filters)


def shift_ratio(variance: Number, added: Number) -> Number:
    """Delta = Var_eval / Var_train, of the variance in eval mode and what noise adds to it in training.

    `Delta = V / (V + N)`, at most 1: a norm that stored V + N divides by too much in eval mode.

    Args:
        variance: V, > 0, in squared units of the signal; a number or a tensor.
        added: N, >= 0, in the same units, as `noise_variance` gives it; a number or a tensor.

    Returns:
        Delta, of the shape the two broadcast to.

    Raises:
        EvenkeelError: the variance is not positive, the addition negative, or one of them not finite.

    >>> shift_ratio(1.0, 1.0)
    0.5
    """
    _require_variance(variance)
    require("the added variance", added, _finite(added, 0), "what noise adds to a variance is finite and at least 0")
    return variance / (variance + added)


def shift_before_norm(p: Number, *, mean: Number = 0.0, variance: Number = 1.0) -> Number:
    """Case (a), dropout directly before a norm: Delta of what the norm reads.

    `Delta = v / ((c^2 + v) / keep - c^2)`, equation 8, where the paper writes p for keep. Of inputs of mean 0 it is
    keep, whatever the width; the further the mean is from 0, the smaller.

    Args:
        p: probability to drop, 0 <= p < 1.
        mean: c, of the dropped input.
        variance: v, of the dropped input in eval mode, > 0. All may be numbers or tensors that broadcast.

    Returns:
        Delta = Var_eval / Var_train, in (0, 1].

    Raises:
        EvenkeelError: an argument is out of range.

    >>> round(shift_before_norm(0.1), 12)
    0.9
    >>> [round(delta, 4) for delta in shift_before_norm(0.5, mean=torch.tensor([0.0, 1.0])).tolist()]
    [0.5, 0.3333]
    """
    return _shift(dropout_noise(p), mean, variance)


def shift_through_weights(
    p: Number, *, d: Number, cos2: Number, rho: Number, mean: Number = 0.0, variance: Number = 1.0
) -> Number:
    """Case (b), dropout before the weight layer before a norm: Delta of what the norm reads.

    `Delta = (v + v rho k) / ((c^2 + v) / keep - c^2 + v rho k)` with `k = d cos2 - 1`, equations 12 and 14, where the
    paper writes p for keep. Assumed are fixed weights, no nonlinearity in between, and inputs of one mean, one variance
    and one correlation; `noise_variance` assumes none of the last three. Delta goes to 1 with d, but only if rho > 0
    and cos2 stays: with rho = 0 width does nothing, nor with random weights of mean 0, of which d cos2 is about 1.

    Args:
        p: probability to drop, 0 <= p < 1.
        d: inputs of a unit, >= 1; of a k x k convolution channels * k * k.
        cos2: of a unit's weights, as `cos_squared` gives it. Only d * cos2 counts: of a measured product P >= 1 pass
            d=P, cos2=1.
        rho: correlation between any two inputs, between -1 / (d - 1) and 1.
        mean: c, of the inputs.
        variance: v, of the inputs in eval mode, > 0. All may be numbers or tensors that broadcast.

    Returns:
        Delta = Var_eval / Var_train, in (0, 1].

    Raises:
        EvenkeelError: an argument is out of range, or nothing is left of the signal.

    >>> [round(shift_through_weights(0.5, d=d, cos2=0.05, rho=0.1), 3) for d in (20, 200, 2000)]
    [0.5, 0.655, 0.916]
    """
    return _shift(dropout_noise(p), mean, variance, d, cos2, rho)


def shift_through_layer_norm(p: Number, *, noise_gain: Number = 1.0) -> Number:
    """The shift behind dropout, a LayerNorm and weights: at least 1 where the weights favour the signal.

    A LayerNorm (so a GroupNorm or RMSNorm) gives each sample one strength, signal and noise together: in train mode
    only 1 - n of the variance that it hands on is signal, in eval mode all of it, n = s2 / (1 + s2) = p for inputs of
    mean 0. Weights that pass `noise_gain` times as much of the noise as of the signal make of it

        Delta = 1 / (1 - p + p noise_gain).

    It is 1 for random weights. Weights that read a signal of rank r among d features pass r / d of the noise, which is
    in all directions: the statistics stored are then too small, not too large as `shift_through_weights` has it.

    Args:
        p: probability to drop, 0 <= p < 1; a number or a tensor of any shape.
        noise_gain: what the weights pass of the noise, relative to what they pass of the signal, >= 0; likewise.

    Returns:
        Delta = Var_eval / Var_train at a norm behind the weights.

    Raises:
        EvenkeelError: p is out of range, or noise_gain is negative or not finite.

    >>> shift_through_layer_norm(0.5), round(shift_through_layer_norm(0.5, noise_gain=16 / 256), 2)
    (1.0, 1.88)
    """
    dropout_noise(p)
    require("noise_gain", noise_gain, _finite(noise_gain, 0.0), "a gain is at least 0 and finite")
    return 1 / (1 - p + p * noise_gain)


def uout_shift(
    beta: Number,
    *,
    mean: Number = 0.0,
    variance: Number = 1.0,
    d: Number = 1.0,
    cos2: Number = 1.0,
    rho: Number = 0.0,
) -> Number:
    """Delta of Uout, x (1 + r) with r ~ U(-beta, beta), before a norm or before a weight layer before a norm.

    `Delta = v / (v + beta^2 / 3 (c^2 + v))`, which at c = 0 is equation 15, `3 / (3 + beta^2)`. The paper has neither
    the mean nor the weights; they enter as they do in `shift_through_weights`, under the same assumptions. The
    defaults of d, cos2 and rho mean: no weights in between.

    Args:
        beta: half width of the noise, >= 0.
        mean: c, of the inputs.
        variance: v, of the inputs in eval mode, > 0.
        d: inputs of a unit, >= 1.
        cos2: of a unit's weights.
        rho: correlation between any two inputs. All may be numbers or tensors that broadcast.

    Returns:
        Delta = Var_eval / Var_train, in (0, 1].

    Raises:
        EvenkeelError: an argument is out of range, or nothing is left of the signal.

    >>> round(uout_shift(0.1), 6) == round(300 / 301, 6)
    True
    >>> round(uout_shift(0.5, mean=1.0), 4), round(uout_shift(0.5, mean=1.0, d=100, cos2=0.1, rho=0.2), 4)
    (0.8571, 0.9438)
    """
    return _shift(uout_noise(beta), mean, variance, d, cos2, rho)


def cos_squared(weight: Tensor) -> Tensor:
    """Squared cosine of the angle between a unit's weights and the vector of ones.

    `(sum w)^2 / (d sum w^2)`, equation 13: 1 if all weights are equal, 0 if they sum to 0, about 1 / d if random.

    Args:
        weight: shape (units, ...) with the weights of a unit, or of a filter, behind; or one unit's, shape (inputs,).

    Returns:
        cos2 by unit, shape (units,), between 0 and 1; of one unit, shape ().

    Raises:
        EvenkeelError: all weights of a unit are 0, or one is not finite.

    >>> cos_squared(torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, -1.0]])).tolist()
    [1.0, 0.5, 0.0]
    """
    rows = _by_unit(weight)
    squares = rows.square().mean(-1)
    require(
        "a unit's mean squared weight",
        squares,
        (squares > 0) & (squares < math.inf),
        "its angle needs a finite weight other than 0; leave such units out",
    )
    return rows.mean(-1) ** 2 / squares


def _shift(
    noise: Number, mean: Number, variance: Number, d: Number = 1.0, cos2: Number = 1.0, rho: Number = 0.0
) -> Number:
    """Delta of d equally distributed inputs per squared weight; no weights in between are one weight."""
    require("the mean", mean, _finite(mean), "give the finite mean of the inputs")
    _require_variance(variance)
    require("d", d, _finite(d, 1), "a unit has at least one input")
    require("cos2", cos2, (cos2 >= 0) & (cos2 <= 1), "a squared cosine lies between 0 and 1, as of cos_squared")
    require("rho", rho, (rho >= -1) & (rho <= 1), "a correlation lies between -1 and 1")
    least = 1 + rho * (d - 1)
    require("1 + rho (d - 1)", least, least > -1e-6, "no d inputs all correlate by less than -1 / (d - 1); raise rho")
    share = 1 + rho * (d * cos2 - 1)
    require("1 + rho (d cos2 - 1)", share, share > 0, "these weights leave no variance in eval mode to compare with")
    return shift_ratio(variance * share, noise * (mean**2 + variance))


def _by_unit(weight: Tensor) -> Tensor:
    return weight.flatten(1) if weight.ndim > 1 else weight


def _require_variance(variance: Number) -> None:
    require("the variance", variance, (variance > 0) & (variance < math.inf), "a ratio needs it finite and above 0")


def _require_noise(noise: Number) -> None:
    require("the noise variance", noise, _finite(noise, 0), "s2 is finite and at least 0, as of dropout_noise(p)")


def _finite(value: Number, least: float = -math.inf) -> bool | Tensor:
    return (value >= least) & (abs(value) < math.inf)
