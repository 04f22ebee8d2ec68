"""Simulations: what is found out without training: signals in networks just initialized, moments of activations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.papers.lab.nets import build
from evenkeel.papers.lab.training import initialize_
from evenkeel.papers.lab.trials import Trial
from evenkeel.signals.moments import activation_moments

_BINS = 40
_INJECTED = 0.01  # deviation of the errors that are put in


def signal(trial: Trial) -> dict[str, Any]:
    """Signals and errors of a network just initialized, layer by layer, in train mode (hendrycks2016, Fig. 1 and 5).

    Standard normal inputs go forward, and normal errors of deviation .01 are put on the last layer's outputs and go
    backward, by autograd. A neuron is the output of a weight layer.

    Factors: `keep`, 1 less dropout's rate, and `init`, as of `Training.init`. The first layer reads no activation.

    Figures: `forward_var`, the mean square of neurons by layer; `eval_var`, the same with dropout off; `backward_var`,
    that of the errors there, first layer first, over those put in; `last_forward`, `last_eval`, `first_backward`,
    their far ends, and `forward_distance`, `backward_distance`, how far these are from 1, as |ln|; `forward` and
    `backward`, densities of neurons and of errors (in units of those put in) at some layers.
    """
    (first, *hidden, last), samples = _SIGNAL[trial.scale]
    noise = ["Dropout", 1 - trial.factors["keep"]]
    net = build("mlp", widths=hidden, inputs=first, classes=last, places="hidden", noise=noise)
    initialize_(net, trial.factors["init"], torch.zeros(2, first))
    neurons: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, neuron: Tensor) -> None:
        neurons.append(neuron)

    handles = [module.register_forward_hook(keep) for module in net.modules() if isinstance(module, nn.Linear)]
    inputs = torch.randn(samples, first)
    outputs = net(inputs)
    errors = torch.autograd.grad(outputs, neurons, grad_outputs=_INJECTED * torch.randn_like(outputs))
    forward = [neuron.detach().double() for neuron in neurons]
    backward = [error.double() / _INJECTED for error in errors]
    neurons.clear()
    with torch.no_grad():
        net.eval()(inputs)
    for handle in handles:
        handle.remove()
    series = {"forward": _mean_squares(forward), "eval": _mean_squares(neurons), "backward": _mean_squares(backward)}
    shown = [round(len(forward) * share) for share in (0.25, 0.5, 0.75, 1)]
    return {
        **{f"{name}_var": values for name, values in series.items()},
        "last_forward": series["forward"][-1],
        "last_eval": series["eval"][-1],
        "first_backward": series["backward"][0],
        "forward_distance": abs(math.log(series["forward"][-1])),
        "backward_distance": abs(math.log(series["backward"][0])),
        "forward": {str(layer): _density(forward[layer - 1]) for layer in shown},
        "backward": {str(layer): _density(backward[layer - 1]) for layer in shown},
    }


def moments(trial: Trial) -> dict[str, Any]:
    """E f(z)^2 and E f'(z)^2, z ~ N(0, 1): by quadrature, and over a million draws as the authors' code.

    Factors: `activation`. `derivative_squared` is the square of E f'^2, which is what the paper prints for tanh.
    """
    f = _ACTIVATIONS[trial.factors["activation"]]
    exact = activation_moments(f)
    z = torch.randn(_DRAWS[trial.scale], dtype=torch.float64, requires_grad=True)
    values = f(z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    second, derivative = values.detach() ** 2, slopes**2
    return {
        "second": exact.second,
        "derivative_second": exact.derivative_second,
        "derivative_squared": exact.derivative_second**2,
        "drawn_second": float(second.mean()),
        "drawn_derivative_second": float(derivative.mean()),
        "standard_errors": [float(x.std()) / len(x) ** 0.5 for x in (second, derivative)],
    }


_SIGNAL = {
    "smoke": ([50] * 4 + [25] * 4, 100),
    "quick": ([500] * 16 + [250] * 5, 1000),
    "desk": ([500] * 16 + [250] * 5, 1000),
    "full": ([500] * 16 + [250] * 5, 1000),
}
_DRAWS = {"smoke": 10_000, "quick": 100_000, "desk": 1_000_000, "full": 1_000_000}
_ACTIVATIONS = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "tanh": nn.Tanh(),
    "elu": nn.ELU(),
}


def _mean_squares(values: list[Tensor]) -> list[float]:
    return [float(value.double().square().mean()) for value in values]


def _density(values: Tensor) -> dict[str, list[float]]:
    """The density of values that are not 0: what dropout or ReLU set to 0 is left out, as in the paper."""
    kept = values[values != 0].float()
    counts, edges = torch.histogram(kept, bins=_BINS, range=(-4.0, 4.0))
    width = 8.0 / _BINS
    return {
        "edges": [round(float(e), 4) for e in edges],
        "density": [round(float(c) / len(kept) / width, 5) for c in counts],
    }
