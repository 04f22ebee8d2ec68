"""Mode agreement: does eval mode feed norms what the noise-free replica does?"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import TraceError, brief
from evenkeel.graph.kinds import QUANTIZING, REORDERINGS, Kind, function_name, kind_of_function
from evenkeel.graph.queries import stays_on
from evenkeel.graph.recorder import Recorder
from evenkeel.model.flags import set_modes
from evenkeel.model.nested import tensors
from evenkeel.model.norms import Norm
from evenkeel.model.restoring import restored
from evenkeel.model.threads import threads_for
from evenkeel.prediction.noisy_call import NoisyCall
from evenkeel.prediction.random_inputs import takes_turns
from evenkeel.prediction.replica_recorder import SamplingPlan, Site
from evenkeel.prediction.sampling import Sampled, sample

_ROUNDING, _COARSE = 1e-3, 0.03  # relative difference of signals that should be the same; of few bits each


class _NormWatch(Recorder):
    """Records a pass in eval mode, and keeps what norms are fed, by path; noise is the same in every such pass."""

    def __init__(self, model: nn.Module, norms: Mapping[str, Norm], always: Collection[Site]) -> None:
        super().__init__(model, training=False)
        self.norms = {id(norm.running_var): path for path, norm in norms.items()}
        self.always = always
        self.fed: dict[str, list[Tensor]] = {}
        self._call: NoisyCall | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, kind = tensors((args, kwargs or {})), kind_of_function(function_name(func))
        with threads_for(given, product=kind is Kind.WEIGHT):
            if kind is Kind.NORM:
                for path in {self.norms[id(t)] for t in given if id(t) in self.norms}:
                    self.fed.setdefault(path, []).append(given[0].clone())
            self._call = NoisyCall.of(func, args, kwargs or {}, self._copied, self._noise_in) if self.always else None
            return super().__torch_function__(func, types, args, kwargs)

    def _add(self, kind: Kind, function: str, outputs: Iterable[Tensor], **details: Any) -> None:
        outputs = list(outputs)
        super()._add(kind, function, outputs, **details)
        if self._call is not None and kind in (Kind.DROPOUT, Kind.NOISE) and self.layers[-1].site in self.always:
            with torch._C.DisableTorchFunction():
                outputs[0].copy_(self._call.calmed())

    def _copied(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        if tensor in self.laws:
            self.laws[copy] = self.laws[tensor]
        return copy


def agreement(given: Sampled) -> tuple[Sampled, dict[str, str]]:
    """How replicas are to be run, and where eval mode contradicts them.

    Returns:
        The same with `in_turn`, if replicas must run one after the other: where inputs are no batch that can be made
        larger, where samples are reordered on the way, where norms are fed parts of the batch of other samples than
        a replica's, and where the model takes no other sizes than the example's;
        and with `always`. And the norms that eval mode feeds something else than the replica without noise has there,
        by path, each with the reason: so are found samples that mix, and whatever else is not what replicas make of it.

    Raises:
        TraceError: the model runs neither way.
    """
    at_once, reached = None, set[str]()
    if not takes_turns(tensors(given.inputs)) and not any(layer.function in REORDERINGS for layer in given.graph):
        with suppress(TraceError):  # perhaps only because of the sizes
            at_once, reached = _compared(replace(given, in_turn=False))
            called = {layer.module for layer in given.graph.of(Kind.NORM)}
            if all(path in reached or norm not in called for path, norm in given.norms.items()):
                return at_once
    try:  # perhaps only because parts of the batch are no parts of replicas
        in_turn, reached_in_turn = _compared(replace(given, in_turn=True))
    except TraceError:
        if at_once is None:
            raise
        return at_once
    return in_turn if at_once is None or len(reached_in_turn) > len(reached) else at_once


def _compared(given: Sampled) -> tuple[tuple[Sampled, dict[str, str]], set[str]]:
    """Compare eval mode with the replicas; once more if it has noise, too, which is part of the signal then.

    Returns:
        As `agreement`, and the norms that the replicas reached.
    """
    found, always, reached = _contradictions(given)
    if always:
        given = replace(given, always=always)
        found, _, reached = _contradictions(given)
    return (given, found), reached


def _contradictions(given: Sampled) -> tuple[dict[str, str], frozenset[Site], set[str]]:
    """Norms that eval mode feeds something else than the replica without noise has there, and where it has noise.

    And the norms that the replicas reached.

    The model is the caller's to restore, unless the pass of the replicas raises.
    """
    model, norms = given.model, given.norms
    with restored(model, parameters=False):
        set_modes(model, training=True)
        expected, _ = sample(given, SamplingPlan(elements=1, fewest=2, matched=False, energies=False))
    watch = _NormWatch(model, norms, given.always)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval()
        try:
            graph = watch.run(given.run, expected.inputs)
        except Exception as error:
            reason = f"in eval mode, with {expected.samples} random inputs, the model raised {brief(error)}"
            return dict.fromkeys(norms, reason), frozenset(), set(norms)
    near = _COARSE if any(layer.function in QUANTIZING for layer in given.graph) else _ROUNDING
    found = {path: _contradiction(calls, watch.fed.get(path, []), near) for path, calls in expected.fed.items()}
    always = frozenset(layer.site for layer in graph if stays_on(layer))
    return {path: reason for path, reason in found.items() if reason}, always, set(expected.fed)


def _contradiction(expected: list[Tensor], found: list[Tensor], near: float) -> str | None:
    if not found:
        return "not reached in eval mode"
    if [x.shape for x in expected] != [y.shape for y in found]:
        if len({x.shape[1:] for x in (*expected, *found)}) > 1 or sum(map(len, expected)) != sum(map(len, found)):
            return "eval mode calls it otherwise than train mode does"
        expected, found = [torch.cat(expected)], [torch.cat(found)]  # chunks of a batch of another size
    tolerance = near if expected[0].dtype.itemsize >= 4 else _COARSE
    for x, y in zip(expected, found, strict=True):
        apart, size = (float(torch.linalg.vector_norm(t, dtype=torch.float64)) for t in (x - y, y))
        if not apart <= tolerance * size:
            return "eval mode feeds it something else: noise that stays on, samples that mix, or another path"
    return None
