"""matching: what a norm's output keeps when its stored variance is matched, and when its mean over masks is.

Two repairs of a norm that was trained behind noise. Let z_t be its input in train mode and z_e the same without noise:

- Variance matching stores the mean and variance of z_e, so the norm's output has mean 0 and variance 1 over data again.
- Mean matching stores what makes the output in eval mode the best affine prediction, from z_e, of the output that
  training gives on average over masks. With the slope `k = Cov(z_e, z_t) / Var(z_e)` it is `mean_matched`.

Masks are independent of the data, so `Cov(z_e, z_t) = Cov(z_e, E[z_t | x])`. Right behind noise that keeps the mean,
E[z_t | x] = z_e (dropout, Uout, any noise that multiplies by mean 1 or adds mean 0, and weights behind it), k = 1
whatever the data: mean matching leaves the variance as training stored it. Behind a nonlinearity k is what
`slope_through` gives. p is always the probability to drop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError, raised, require
from evenkeel.theory.li2018 import Number, shift_before_norm

Function = Callable[[Tensor], Tensor]

_END = 12  # standard deviations; the normal density beyond is below 1e-31
_STEPS = torch.from_numpy(np.arange(-_END, _END + 1.0))  # where pieces begin and end, before they are halved
_NODES = 12  # of the Gauss-Legendre rule on one piece
_TOLERANCE = 1e-10  # by how much halving a piece may still change its integral
_HALVINGS = 45  # after which a piece is too short to matter, whatever kink or jump it holds
_PIECES = 2000  # more of them, and f is no function to integrate
_AT_ONCE = 2**21  # values of f that are held in memory


class Stored(NamedTuple):
    """What a norm is to store.

    Attributes:
        mean: its running mean.
        variance: its running variance.
    """

    mean: Number
    variance: Number


def slope_through(f: Function, *, mean: Number = 0.0, variance: Number = 1.0, noise: Number) -> Number:
    """The slope k of a channel behind an elementwise f whose input is normal, and so is the noise in it.

    `k = Cov(f(s), f(s + n)) / Var f(s)` with s ~ N(mean, variance) and n ~ N(0, noise), independent. Weights behind
    dropout make such noise, nearly normal if there are many: its variance is `li2018.noise_variance`. Integrated by
    the Gauss-Legendre rule on pieces that are halved until that changes nothing, so kinks and jumps of f are found; k
    is exact to 1e-8. It is 1 of an affine f, and of a square; positive of a monotone f; below 1 where noise takes from
    the signal (ReLU at mean 0: from 1 down to .7335 as noise grows), and above 1 where it adds to it (`z^3` at mean 0:
    `1 + .6 noise / variance`; ReLU at mean -1, variance .5, noise 2, which lets more through than without: 1.2089).
    A kink or two take a tenth of a second, dozens of jumps take seconds.

    Args:
        f: any elementwise callable of a float64 tensor, of any shape; of a module a copy in float64 is used.
        mean: of the input in eval mode.
        variance: of the input in eval mode, > 0.
        noise: what noise adds to that variance in train mode, >= 0. All may be numbers or tensors that broadcast.

    Returns:
        k, of the shape the three broadcast to.

    Raises:
        EvenkeelError: an argument is out of range, f is constant, not finite or not elementwise, or has no moments.

    >>> slope_through(lambda z: 3 * z - 1, noise=0.5)
    1.0
    >>> round(slope_through(torch.relu, noise=1.0), 6), round(slope_through(torch.relu, mean=2.0, noise=1.0), 6)
    (0.906793, 0.942946)
    """
    return _by_element(_slope, f, mean, variance, noise)


def shift_through(f: Function, *, mean: Number = 0.0, variance: Number = 1.0, noise: Number) -> Number:
    """Delta = Var_eval / Var_train of a channel behind an elementwise f whose input is normal, as is the noise in it.

    `Var f(s) / Var f(s + n)` with s ~ N(mean, variance) and n ~ N(0, noise), independent: what `slope_through` is to
    mean matching, this is to variance matching. For f(z) = z it is `li2018.shift_ratio`. Integrated as there, exact to
    1e-8.

    Args:
        f: any elementwise callable of a float64 tensor, of any shape; of a module a copy in float64 is used.
        mean: of the input in eval mode.
        variance: of the input in eval mode, > 0.
        noise: what noise adds to that variance in train mode, >= 0. All may be numbers or tensors that broadcast.

    Returns:
        Delta, of the shape the three broadcast to.

    Raises:
        EvenkeelError: an argument is out of range, f is constant, not finite or not elementwise, or has no moments.

    >>> round(shift_through(torch.relu, noise=1.0), 9), round(shift_through(torch.tanh, noise=1.0), 6)
    (0.5, 0.758294)
    """
    return _by_element(_shift, f, mean, variance, noise)


def mean_matched(
    k: Number,
    *,
    mean: Number,
    variance: Number,
    eval_mean: Number,
    train_mean: Number | None = None,
    eps: float = 1e-5,
) -> Stored:
    """What a norm is to store so that eval mode gives, as well as two numbers can, training's average over masks.

    `v' = (v + eps) / k^2 - eps` and `m' = E z_e - (E z_t - m) / k`, of the m and v that train mode normalised by. Of
    all affine functions of z_e, the norm's output is then the one closest in mean square to its output in train mode,
    hence to the average of that over masks. Of k = 1 it is v' = v, m' = m + E z_e - E z_t.

    Args:
        k: the channel's slope, Cov(z_e, z_t) / Var(z_e), > 0. Channels where it is not are to be left out.
        mean: m, by which train mode normalised.
        variance: v, by which train mode normalised, >= 0.
        eval_mean: E z_e, of the norm's input in eval mode.
        train_mean: E z_t, of its input in train mode; None if that is m.
        eps: the norm's own, >= 0. All else may be numbers or tensors that broadcast.

    Returns:
        The mean and the variance.

    Raises:
        EvenkeelError: an argument is out of range, or the variance to store would be negative.

    >>> mean_matched(0.5, mean=1.0, variance=2.0, eval_mean=0.25, eps=0.0)
    Stored(mean=0.25, variance=8.0)
    """
    train_mean = mean if train_mean is None else train_mean
    means = {"the mean": mean, "the mean in eval mode": eval_mean, "the mean in train mode": train_mean}
    for name, value in means.items():
        require(name, value, abs(value) < math.inf, "give the finite mean of the norm's input")
    require("k", k, (k > 0) & (k < math.inf), "without a positive slope there is nothing to match; leave such channels")
    _require_variance(variance)
    _require_eps(eps)
    stored = (variance + eps) / k**2 - eps
    require("the variance to store", stored, stored >= 0, "k^2 exceeds (v + eps) / eps: the channel is dead; leave it")
    return Stored(eval_mean - (train_mean - mean) / k, stored)


def stretch(variance: Number, eval_variance: Number, *, eps: float = 1e-5) -> Number:
    """By how much variance matching stretches a norm's output in eval mode.

    `sqrt((v + eps) / (v_eval + eps))`: outputs are v's in eval mode as trained, v_eval's when matched. Where k = 1, as
    right behind a dropout, the average over masks stays as it is, so a linear head behind the norm then gives this many
    times what training gave on average. Behind a nonlinearity it gives `stretch / k` times as much.

    Args:
        variance: v, as training stored it, >= 0.
        eval_variance: v_eval, of the norm's input in eval mode, >= 0.
        eps: the norm's own, >= 0. All else may be numbers or tensors that broadcast.

    Returns:
        The factor.

    Raises:
        EvenkeelError: an argument is out of range, or v_eval + eps is 0.

    >>> round(stretch(2.0, 1.0), 4)
    1.4142
    """
    _require_variance(variance)
    _require_variance(eval_variance)
    _require_eps(eps)
    divisor = eval_variance + eps
    require("v_eval + eps", divisor, divisor > 0, "a norm cannot divide by 0; leave such channels")
    return ((variance + eps) / divisor) ** 0.5


def dropout_stretch(p: Number, *, mean: Number = 0.0, variance: Number = 1.0, eps: float = 1e-5) -> Number:
    """By how much variance matching stretches the output of a norm right behind a dropout.

    `stretch(v / Delta, v)` with Delta = `li2018.shift_before_norm`; but for eps it is
    `sqrt((1 + p c^2 / v) / (1 - p))`, of inputs of mean 0 `1 / sqrt(keep)`.

    Args:
        p: probability to drop, 0 <= p < 1.
        mean: c, of the dropped input.
        variance: v, of the dropped input in eval mode, > 0.
        eps: the norm's own, >= 0. All else may be numbers or tensors that broadcast.

    Returns:
        The factor, >= 1.

    Raises:
        EvenkeelError: an argument is out of range.

    >>> round(dropout_stretch(0.5), 4), round(dropout_stretch(0.5, mean=1.0), 4)
    (1.4142, 1.732)
    """
    return stretch(variance / shift_before_norm(p, mean=mean, variance=variance), variance, eps=eps)


def _by_element(
    figure: Callable[[Function, float, float, float], float], f: Function, mean: Number, variance: Number, noise: Number
) -> Number:
    require("the mean", mean, abs(mean) < math.inf, "give the finite mean of the input")
    require("the variance", variance, (variance > 0) & (variance < math.inf), "a slope needs it finite and above 0")
    require("the noise", noise, (noise >= 0) & (noise < math.inf), "what noise adds is finite and at least 0")
    call = cast("Function", copy.deepcopy(f).to("cpu", torch.float64)) if isinstance(f, nn.Module) else f
    given = (mean, variance, noise)
    with torch.no_grad():
        if not any(isinstance(value, Tensor) for value in given):
            return figure(call, *map(float, given))
        kind = next(value for value in given if isinstance(value, Tensor))
        dtype = kind.dtype if kind.is_floating_point() else torch.float64
        spread = torch.broadcast_tensors(
            *(torch.as_tensor(value, dtype=torch.float64, device="cpu") for value in given)
        )
        rows = zip(*(value.flatten().tolist() for value in spread), strict=True)
        return kind.new_tensor([figure(call, *row) for row in rows], dtype=dtype).view(spread[0].shape)


def _slope(f: Function, mean: float, variance: float, noise: float) -> float:
    """`1 + Cov(f(s), E[f(s + n) - f(s) | s]) / Var f(s)`, which loses nothing to rounding where k is near 1."""
    if noise == 0:
        _scaled(f, mean, variance)
        return 1.0
    wide, _ = _scaled(f, mean, variance + noise)
    _, edges = _integrate(lambda z: _powers(wide(z)), mean, variance + noise)
    scaled, _ = _scaled(f, mean, variance)

    def integrand(s: Tensor) -> Tensor:
        value, gained = scaled(s), _gained(scaled, s, edges, math.sqrt(noise))
        return torch.stack([value, value**2, gained, value * gained])

    (first, second, gain, product), _ = _integrate(integrand, mean, variance)
    return 1 + (product - first * gain) / (second - first**2)


def _shift(f: Function, mean: float, variance: float, noise: float) -> float:
    plain, noisy = (_variance(f, mean, v) for v in (variance, variance + noise))
    return plain / noisy


def _variance(f: Function, mean: float, variance: float) -> float:
    scaled, scale = _scaled(f, mean, variance)
    (first, second), _ = _integrate(lambda z: _powers(scaled(z)), mean, variance)
    return scale**2 * (second - first**2)


def _powers(value: Tensor) -> Tensor:
    return torch.stack([value, value**2])


def _scaled(f: Function, mean: float, variance: float) -> tuple[Function, float]:
    """f, moved and scaled to about mean 0 and variance 1 so that tolerances have a meaning, and the scale."""
    x, weights = _points(_STEPS[:-1], _STEPS[1:])
    x, weights = mean + math.sqrt(variance) * x, weights * _density(x)
    value = _checked(f, x)
    if not torch.allclose(value.flatten()[::3], _checked(f, x.flatten()[::3]), rtol=1e-9, atol=1e-12):
        raise EvenkeelError("f is not elementwise: a value depends on the others in its tensor, or on chance")
    centre = float((value * weights).sum())
    scale = float(((value - centre) ** 2 * weights).sum()) ** 0.5
    require("the deviation of f", scale, scale > 1e-12 * abs(centre), "f must not be constant over its input")
    return lambda z: (_checked(f, z) - centre) / scale, scale


def _checked(f: Function, z: Tensor) -> Tensor:
    try:
        value = f(z.clone()).double()  # a clone: f may work in place
    except Exception as error:
        raise EvenkeelError(f"f {raised(error)}: give a callable of a float64 tensor of any shape") from error
    if value.shape != z.shape or not value.isfinite().all():
        raise EvenkeelError(
            f"f made of a tensor of shape {tuple(z.shape)} one of {tuple(value.shape)}, with "
            f"{int((~value.isfinite()).sum())} values that are not finite: give an elementwise function, finite "
            f"from {float(z.min()):.4g} to {float(z.max()):.4g}"
        )
    return value


def _gained(f: Function, s: Tensor, edges: Tensor, deviation: float) -> Tensor:
    """E[f(s + n) - f(s) | s], by pieces of n that end where f's own pieces do."""
    found = list[Tensor]()
    for part in s.flatten().split(max(1, _AT_ONCE // (_NODES * (len(_STEPS) + len(edges))))):
        ends = ((edges - part[:, None]) / deviation).clamp(-_END, _END)
        ends = torch.cat([_STEPS.expand(len(part), -1), ends], 1).sort(1).values
        row, piece = (ends[:, 1:] > ends[:, :-1]).nonzero(as_tuple=True)
        u, weights = _points(ends[row, piece], ends[row, piece + 1])
        gained = f(part[row, None] + deviation * u) - f(part)[row, None]
        found.append(torch.zeros_like(part).index_add(0, row, (gained * weights * _density(u)).sum(1)))
    return torch.cat(found).view(s.shape)


def _integrate(f: Function, mean: float, variance: float) -> tuple[list[float], Tensor]:
    """Integrals of f's rows against the normal density, and the edges of the pieces it took."""
    deviation = math.sqrt(variance)

    def pieces(left: Tensor, right: Tensor) -> Tensor:
        x, weights = _points(left, right)
        return (f(mean + deviation * x) * weights * _density(x)).sum(-1)

    left, right, taken = _STEPS[:-1], _STEPS[1:], [_STEPS]
    whole = pieces(left, right)
    total = whole.new_zeros(len(whole))
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        halves = pieces(torch.cat([left, middle]), torch.cat([middle, right])).unflatten(1, (2, -1))
        open_ = (halves.sum(1) - whole).abs().amax(0) > _TOLERANCE
        total += halves.sum(1)[:, ~open_].sum(1)
        if not open_.any():
            return total.tolist(), mean + deviation * torch.cat(taken)
        left, middle, right, whole = left[open_], middle[open_], right[open_], halves[:, :, open_].flatten(1)
        left, right = torch.cat([left, middle]), torch.cat([middle, right])
        taken.append(middle)
        require("pieces of f", len(left), len(left) <= _PIECES, "f has too many kinks, or grows too fast, to integrate")
    if float(whole.abs().max()) > _TOLERANCE:
        raise EvenkeelError(f"f has no finite variance: it grows without bound near {float(left[0]):.4g} deviations")
    return (total + whole.sum(1)).tolist(), mean + deviation * torch.cat(taken)


def _points(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule on the pieces between left and right, in a dimension behind."""
    nodes, weights = _rule()
    half = ((right - left) / 2)[..., None]
    return ((left + right) / 2)[..., None] + half * nodes, half * weights


def _density(x: Tensor) -> Tensor:
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


@cache
@torch.inference_mode(False)
def _rule() -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _require_variance(variance: Number) -> None:
    require("a variance", variance, (variance >= 0) & (variance < math.inf), "it is finite and at least 0")


def _require_eps(eps: float) -> None:
    require("eps", eps, 0 <= eps < math.inf, "give the norm's own, finite and at least 0")
