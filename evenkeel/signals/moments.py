"""activation_moments: E f(z)^2 and E f'(z)^2 for z ~ N(0, 1) and any elementwise f, by quadrature."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from evenkeel.errors import ActivationError, brief
from evenkeel.model.threads import single_threaded

Activation = Callable[[Tensor], Tensor]

_END = 14  # the normal density beyond is below 1e-43: only functions that grow like e^(z^2/4) matter there
_NODES = 20  # of the Gauss-Legendre rule on one piece
_TOLERANCE = 1e-11  # by how much halving a piece may still change its integral
_HALVINGS = 50  # after which a piece is too short to matter, whatever kink or jump it holds


@dataclass(frozen=True)
class Moments:
    """Moments of an activation f of z ~ N(0, 1).

    Attributes:
        second: E f(z)^2, the factor of unit variance in the forward pass.
        derivative_second: E f'(z)^2, the factor in the backward pass.
        mean: E f(z).
        derivative_mean: E f'(z).
    """

    second: float
    derivative_second: float
    mean: float
    derivative_mean: float

    @property
    def variance(self) -> float:
        """Var f(z) = E f(z)^2 - (E f(z))^2."""
        return self.second - self.mean**2


@single_threaded()
def activation_moments(f: Activation) -> Moments:
    """Integrate an activation's second moment, and its derivative's, against the normal density.

    `E f(z)^2 = int f(z)^2 phi(z) dz` by the Gauss-Legendre rule, in float64, on the unit pieces between -14 and 14,
    each halved until its integral no longer changes. So kinks and jumps are resolved wherever they are, and results
    are exact to 1e-8. f' comes from autograd; a jump of f has no derivative. The moments are those of Hendrycks &
    Gimpel (2016, Table 1), three of whose printed E f'^2 are wrong.

    Args:
        f: any elementwise callable of a tensor, of any shape: torch function, module or lambda. Of a module a copy in
            float64 is used.

    Returns:
        The moments.

    Raises:
        ActivationError: f raises, is not elementwise, not finite, not deterministic, or its moments do not exist.

    >>> moments = activation_moments(torch.relu)
    >>> round(moments.second, 8), round(moments.derivative_second, 8), round(moments.mean, 6)
    (0.5, 0.5, 0.398942)
    """
    call = cast("Activation", copy.deepcopy(f).double()) if isinstance(f, nn.Module) else f
    _require_elementwise(call, _named(f))
    edges = torch.arange(-_END, _END, dtype=torch.float64)
    return Moments(*_integrate(call, edges, edges + 1, _named(f)).tolist())


def _integrate(f: Activation, left: Tensor, right: Tensor, name: str) -> Tensor:
    """The four integrals over the pieces between left and right, halved where needed."""
    whole = _piecewise(f, left, right, name)
    if float(whole[[0, -1]].abs().max()) > _TOLERANCE:
        raise ActivationError(f"{name} grows so fast that its Gaussian moments do not exist")
    total = torch.zeros(4, dtype=torch.float64)
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        halves = _piecewise(f, torch.cat([left, middle]), torch.cat([middle, right]), name).view(2, -1, 4)
        done = (halves.sum(0) - whole).abs().amax(1) <= _TOLERANCE
        total += halves.sum(0)[done].sum(0)
        if done.all():
            return total
        left, middle, right = left[~done], middle[~done], right[~done]
        left, right, whole = torch.cat([left, middle]), torch.cat([middle, right]), halves[:, ~done].flatten(0, 1)
    if float(whole.abs().max()) > _TOLERANCE:
        raise ActivationError(
            f"{name} or its derivative has no finite second moment: near {float(left[0]):.4g} the integral of "
            f"f'^2 still holds {float(whole.abs().max()):.2g} on a piece of length {float(right[0] - left[0]):.1g}"
        )
    return total + whole.sum(0)


def _piecewise(f: Activation, left: Tensor, right: Tensor, name: str) -> Tensor:
    """Integrals of f^2, f'^2, f and f' against the normal density, shape (pieces, 4)."""
    nodes, weights = _rule()
    z = (left + right)[:, None] / 2 + (right - left)[:, None] / 2 * nodes
    value, slope = _with_slope(f, z, name)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * weights * (right - left)[:, None] / 2
    return torch.stack([(g * density).sum(1) for g in (value**2, slope**2, value, slope)], 1)


def _with_slope(f: Activation, z: Tensor, name: str) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().flatten().requires_grad_()
        value = f(z * 1)  # not the leaf itself: f may work in place
        slope = torch.autograd.grad(value.sum(), z)[0] if value.requires_grad else torch.zeros_like(z)
    if not (value.isfinite().all() and slope.isfinite().all()):
        at = z[(~(value.isfinite() & slope.isfinite())).nonzero()[0]]
        raise ActivationError(f"{name} or its derivative is not finite at z = {at.item():.6g}")
    return value.detach().double().view(-1, _NODES), slope.view(-1, _NODES)


def _require_elementwise(f: Activation, name: str) -> None:
    """Refuse functions that depend on other elements, on positions, or on chance."""
    z = torch.linspace(-3.1, 3.3, 31, dtype=torch.float64)
    try:
        with torch.no_grad():
            value, again, reversed_, part = f(z.clone()), f(z.clone()), f(z.flip(0)).flip(0), f(z[:12].clone())
            matrix = f(z[:30].clone().view(5, 6))
    except Exception as error:
        raise ActivationError(
            f"{name} raised {brief(error)}: an activation takes a float64 tensor of any shape"
        ) from error
    if value.shape != z.shape or matrix.shape != (5, 6):
        raise ActivationError(f"{name} is not elementwise: of a tensor of shape (31,) it made {tuple(value.shape)}")
    if not torch.allclose(value, again, rtol=0, atol=0, equal_nan=True):
        raise ActivationError(f"{name} is not deterministic: two calls on one tensor differ; put it in eval mode")
    pairs = ((value, reversed_), (value[:12], part), (value[:30], matrix.flatten()))
    if not all(torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True) for a, b in pairs):
        raise ActivationError(f"{name} is not elementwise: a value depends on the others in its tensor")


@cache
@torch.inference_mode(False)
def _rule() -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule on [-1, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _named(f: object) -> str:
    return repr(f) if isinstance(f, nn.Module) else getattr(f, "__name__", repr(f))
