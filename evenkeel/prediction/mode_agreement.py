"""Mode agreement: does eval mode feed norms what the noise-free replica does?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evenkeel.errors import TraceError, brief
from evenkeel.graph.kinds import REORDERINGS, Kind, function_name, kind_of_function
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.model.flags import set_modes
from evenkeel.model.nested import tensors
from evenkeel.model.norms import Norm
from evenkeel.model.restoring import restored
from evenkeel.prediction.random_inputs import takes_turns
from evenkeel.prediction.replica_recorder import SamplingPlan
from evenkeel.prediction.sampling import sample

_ROUNDING = 1e-3  # relative difference of signals that should be the same


class _NormWatch(TorchFunctionMode):
    """Keeps what norms are fed, by path."""

    def __init__(self, norms: Mapping[str, Norm]) -> None:
        super().__init__()
        self.paths = {id(norm.running_var): path for path, norm in norms.items()}
        self.fed: dict[str, list[Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if kind_of_function(function_name(func)) is Kind.NORM:
            given = tensors((args, kwargs or {}))
            for path in {self.paths[id(t)] for t in given if id(t) in self.paths}:
                self.fed.setdefault(path, []).append(given[0].clone())
        return func(*args, **(kwargs or {}))


def agreement(
    model: nn.Module, run: Callable[[Any], Any], inputs: Any, graph: LayerGraph, norms: Mapping[str, Norm]
) -> tuple[bool, dict[str, str]]:
    """How replicas are to be run, and where eval mode contradicts them (see `contradictions`).

    Returns:
        Whether they run one after the other, as they must where inputs are no batch that can be made larger, where
        samples are reordered on the way, and where the model takes no other sizes than the example's; and the norms.

    Raises:
        TraceError: the model runs neither way.
    """
    if not takes_turns(tensors(inputs)) and not any(layer.function in REORDERINGS for layer in graph):
        try:
            return False, contradictions(model, run, inputs, graph, norms)
        except TraceError:
            pass  # perhaps only because of the sizes
    return True, contradictions(model, run, inputs, graph, norms, in_turn=True)


def contradictions(
    model: nn.Module,
    run: Callable[[Any], Any],
    inputs: Any,
    graph: LayerGraph,
    norms: Mapping[str, Norm],
    *,
    in_turn: bool = False,
) -> dict[str, str]:
    """Norms that eval mode feeds something else than the replica without noise has there, each with the reason.

    So are found dropout that stays on, samples that mix, and whatever else is not what the replicas make of it.

    Args:
        model: the model, whose parameters are the caller's to restore.
        run: makes one forward pass, given inputs such as `inputs`.
        inputs: as for `sample`.
        graph: the model's graph for it.
        norms: the norms with running statistics, by path.
        in_turn: as for `sample`.
    """
    with restored(model, parameters=False):
        set_modes(model, training=True)
        plan = SamplingPlan(elements=1, fewest=2, matched=False)
        expected, _ = sample(model, run, inputs, graph, norms=norms, known={}, plan=plan, in_turn=in_turn)
    watch = _NormWatch(norms)
    with restored(model, parameters=False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval()
        try:
            with watch:
                run(expected.inputs)
        except Exception as error:
            return dict.fromkeys(
                norms, f"in eval mode, with {expected.samples} random inputs, the model raised {brief(error)}"
            )
    found = {path: _contradiction(calls, watch.fed.get(path, [])) for path, calls in expected.fed.items()}
    return {path: reason for path, reason in found.items() if reason}


def _contradiction(expected: list[Tensor], found: list[Tensor]) -> str | None:
    if not found:
        return "not reached in eval mode"
    if [x.shape for x in expected] != [y.shape for y in found]:
        return "eval mode calls it otherwise than train mode does"
    tolerance = _ROUNDING if expected[0].dtype.itemsize >= 4 else 30 * _ROUNDING
    for x, y in zip(expected, found, strict=True):
        apart, size = (t.double().square().mean().sqrt() for t in (x - y, y))
        if not apart <= tolerance * size:
            return "eval mode feeds it something else: noise that stays on, samples that mix, or another path"
    return None
