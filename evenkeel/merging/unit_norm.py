"""UnitNorm: what rescales and shifts a weight layer's output while it is matched, before its weights do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from evenkeel.graph.kinds import CONVOLUTIONS, function_name
from evenkeel.graph.unseen_calls import attention_opened
from evenkeel.merging.folds import Fold
from evenkeel.merging.units import Units
from evenkeel.model.batches import Forward
from evenkeel.model.buffers import write_
from evenkeel.statistics.population import Population

_PLACE = {"bilinear": 2} | dict.fromkeys(("linear", *CONVOLUTIONS), 1)  # of the weight among the arguments


class UnitNorm(nn.BatchNorm1d):
    """A norm behind a weight layer, the identity until it is filled, that the engine measures like any other.

    Args:
        units: the layer's.
    """

    stands_for = "layer"  # in messages
    scale: Tensor
    shift: Tensor

    def __init__(self, units: Units) -> None:
        weight = units.weights.parameter
        dtype = torch.promote_types(weight.dtype, torch.float32)
        super().__init__(units.count, affine=False, device=weight.device, dtype=dtype)
        self.register_buffer("scale", torch.ones(units.count, device=weight.device, dtype=dtype))
        self.register_buffer("shift", torch.zeros_like(self.scale))
        self.num_batches_tracked.fill_(1)  # type: ignore[union-attr, operator]
        self.is_last, self.dims = units.is_last, weight.dim()
        self.eval()

    def fill_(self, population: Population, fold: Fold) -> None:
        """Do to outputs of this population what a fold says."""
        write_(self.running_mean, population.mean)  # type: ignore[arg-type]
        write_(self.scale, fold.scale)
        write_(self.shift, fold.scale * population.mean.cpu() + fold.shift)

    def forward(self, input: Tensor) -> Tensor:
        """The outputs of the layer, rescaled and shifted, in their own shape."""
        flat, batched = input.reshape(-1, input.shape[-1]), input if input.dim() == self.dims else input[None]
        x = flat if self.is_last else batched
        eps = torch.finfo(self.scale.dtype).tiny  # 1 + eps is 1: some kernels refuse none
        done = F.batch_norm(x, self.running_mean, self.running_var, self.scale, self.shift, False, 0.0, eps)
        return done.reshape(input.shape)


class UnitCalls(TorchFunctionMode):
    """While entered, outputs of weight layers pass through norms.

    Args:
        norms: the norms, by the weight that a layer has.
    """

    def __init__(self, norms: Mapping[Tensor, UnitNorm]) -> None:
        super().__init__()
        self._norms = {id(weight): norm for weight, norm in norms.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.multi_head_attention_forward:
            with attention_opened(), self:
                return func(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        place = _PLACE.get(function_name(func))
        if place is None:
            return result
        weight = args[place] if len(args) > place else (kwargs or {}).get("weight")
        norm = self._norms.get(id(weight))
        return result if norm is None else norm(result)


def watch_(model: nn.Module, norms: Mapping[Tensor, UnitNorm], forward: Forward | None) -> Forward | None:
    """Have a model's passes go through norms; the model is the caller's to restore.

    Returns:
        How its batches are to be run from now on.
    """
    if forward is not None:
        return lambda model, batch: _run(norms, forward, model, batch)
    found = model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        return _run(norms, found, *args, **kwargs)

    model.__dict__["forward"] = watched
    return None


def _run(norms: Mapping[Tensor, UnitNorm], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with UnitCalls(norms):
        return function(*args, **kwargs)
