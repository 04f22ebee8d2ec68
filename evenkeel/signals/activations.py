"""Activations: a signal's moments behind an elementwise function."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evenkeel.errors import ActivationError
from evenkeel.graph.layer_graph import Layer
from evenkeel.model.nested import map_tensors
from evenkeel.signals.marginals import nodes, shared
from evenkeel.signals.signal import Signal

Function = Callable[[Tensor], Tensor]

_STRENGTHS = 17  # of the input, at which an activation is evaluated where its input's variance varies


def activation_of(layer: Layer) -> Function:
    """The elementwise function of an activation layer, with the mean of its parameters and of its noise.

    >>> import evenkeel as ek
    >>> layer = ek.trace(torch.nn.LeakyReLU(0.5), torch.ones(1)).of(ek.Kind.ACTIVATION)[0]
    >>> activation_of(layer)(torch.tensor([-1.0, 1.0]))
    tensor([-0.5000,  1.0000])
    """
    options = {name: value for name, value in layer.kwargs.items() if not isinstance(value, Layer)}
    rest, options = map_tensors(lambda t: t.detach().double().mean(), (layer.args[1:], options))
    if layer.function == "rrelu":
        slopes = [v for v in (*rest, *options.values()) if isinstance(v, float)]
        return lambda z: F.leaky_relu(z, sum(slopes[:2]) / 2 if len(slopes) > 1 else 11 / 48)
    if layer.function == "prelu":
        slope = float(next(iter((*rest, *options.values()))))
        return lambda z: torch.where(z > 0, z, z * slope)
    call = layer.call
    if call is None:
        raise ActivationError(f"{layer.name} is no call of a function")
    return lambda z: call(z.clone(), *rest, **options)


def activated(x: Signal, f: Function) -> Signal:
    """The signal after an elementwise function.

    Raises:
        ActivationError: f is not elementwise, or not finite.
    """
    power, weights = x.power, x.marginal.weights
    if power == 0 and float(f(torch.zeros(1, dtype=torch.float64))) == 0:
        return x
    values, slopes = _with_slopes(f, x.marginal.values * math.sqrt(power))
    marginal, grown = x.marginal.mapped(values, slopes**2)
    strength, steeper = x.second / power, torch.ones((), dtype=torch.float64)
    if x.second.numel() > 1 and not is_homogeneous(f):
        strength, steeper = _responses(f, x, strength)
    second = grown * strength
    mean = marginal.mean * second.sqrt()
    position, sample = (
        second * shared(marginal, x.latent_correlation(common, same_mask=same_mask), same_mask)
        for common, same_mask in ((x.position, x.marginal.channelwise), (x.sample, False))
    )
    radial, turned = _radial(x, values, slopes)
    passing = (x.marginal.slopes @ weights).clamp_min(1e-300)
    derivative = ((slopes**2 * x.marginal.slopes) @ weights) / passing
    like = (-1, *(1,) * (x.flow.dim() - 1))
    flow = x.flow * derivative.view(like) * steeper + (x.radial * turned / 4).view(like)
    local = x.local * derivative * steeper.mean()
    return Signal(x.shape, second, position, sample, mean, marginal, flow, radial, local)


def _radial(x: Signal, values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Behind an activation, a change of strength: the part that is one again, and the rest, by level.

    If z grows to z (1 + e / 2), f(z) grows by e f'(z) z / 2. The part along f(z) changes the mean square by chi e,
    chi = E f f' z / E f^2; the rest is a change like any other.
    """
    weights = x.marginal.weights
    grown = slopes * x.marginal.values * math.sqrt(x.power)
    squares = ((values**2) @ weights).clamp_min(1e-300)
    along = (values * grown) @ weights
    return x.radial * (along / squares) ** 2, ((grown**2) @ weights - along**2 / squares).clamp_min(0)


def _with_slopes(f: Function, values: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = values.detach().clone().requires_grad_()
        y = f(z * 1)
        slopes = torch.autograd.grad(y.sum(), z)[0] if y.requires_grad else torch.zeros_like(z)
    if y.shape != z.shape or not (y.isfinite().all() and slopes.isfinite().all()):
        raise ActivationError("no elementwise function that is finite everywhere")
    return y.detach().double(), slopes


def is_homogeneous(f: Function) -> bool:
    """Whether f(3 z) = 3 f(z), as for ReLU: samples of any strength are then treated alike.

    >>> is_homogeneous(torch.relu), is_homogeneous(torch.tanh)
    (True, False)
    """
    probe, _ = nodes()
    return torch.allclose(f(3 * probe), 3 * f(probe), rtol=1e-9, atol=1e-12)


def _responses(f: Function, x: Signal, strength: Tensor) -> tuple[Tensor, Tensor]:
    """E f^2 and E f'^2 where the input is weaker or stronger than on average, relative to those at the average."""
    grid = torch.linspace(float(strength.min()), float(strength.max()), _STRENGTHS, dtype=torch.float64)
    law, scale = x.marginal, math.sqrt(x.power)
    found: list[tuple[float, float]] = []
    for s in (1.0, *grid.tolist()):
        values, slopes = _with_slopes(f, law.values * scale * math.sqrt(s))
        squares = ((values**2) @ law.weights) @ law.masses, ((slopes**2 * law.slopes) @ law.weights) @ law.masses
        found.append((float(squares[0]), float(squares[1])))
    columns = torch.tensor(found, dtype=torch.float64).clamp_min(1e-300)
    seconds, derivatives = (columns[1:] / columns[0]).unbind(1)
    at, knots = strength.numpy(), grid.numpy()
    return torch.from_numpy(np.interp(at, knots, seconds)), torch.from_numpy(np.interp(at, knots, derivatives))
