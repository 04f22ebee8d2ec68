"""Aligning: the units of one network put into the order of another's that they are most like (activation matching).

Networks of the same function differ in the order of their units. Of every group of units that share an order, those of
two networks are paired so that the sum of the correlations of what they return is largest (Li et al. 2016; Jordan et
al. 2023, section 2), and the second network's are put into the order of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from evenkeel.model.restoring import restored


@dataclass(frozen=True)
class Order:
    """Units that share an order.

    Attributes:
        seen: paths of the modules that return them, channels in the second dimension.
        rows: paths of the modules that make them: first dimension of all that these hold.
        columns: paths of the weight layers that read them: second dimension of their weights.
    """

    seen: Sequence[str]
    rows: Sequence[str]
    columns: Sequence[str]


def aligned(model: nn.Module, other: nn.Module, orders: Sequence[Order], x: Tensor) -> tuple[dict[str, Tensor], float]:
    """The state dict of another network, its units in the order of a model's; and the mean correlation of the pairs."""
    ours, theirs = (_returned(net, [path for order in orders for path in order.seen], x) for net in (model, other))
    state = {name: value.clone() for name, value in other.state_dict().items()}
    correlations: list[float] = []
    for order in orders:
        table = sum(_correlation(ours[path], theirs[path]) for path in order.seen) / len(order.seen)
        rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
        correlations.extend(table[rows, columns].tolist())
        place = torch.as_tensor(columns)
        for path in order.rows:
            for name in [n for n in state if n.startswith(f"{path}.") and state[n].dim()]:
                state[name] = state[name][place]
        for path in order.columns:
            state[f"{path}.weight"] = state[f"{path}.weight"][:, place]
    return state, sum(correlations) / len(correlations)


def interpolated(one: Mapping[str, Tensor], other: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """`weight` of one state dict and the rest of another; counters are those of the first."""
    return {
        name: value.lerp(other[name], 1 - weight) if value.is_floating_point() else value.clone()
        for name, value in one.items()
    }


def _returned(net: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """What modules return, a row a sample and position."""
    found: dict[str, Tensor] = {}
    with restored(net), torch.no_grad():
        for path in paths:
            net.get_submodule(path).register_forward_hook(
                lambda _m, _i, out, path=path: found.__setitem__(path, out.movedim(1, -1).flatten(0, -2).clone())
            )
        net.eval()(x)
    return found


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Of every unit of one network with every unit of the other, shape (units, units)."""
    a, b = ((values - values.mean(0)) / values.std(0).clamp_min(1e-6) for values in (one, other))
    return a.T @ b / (len(a) - 1)
