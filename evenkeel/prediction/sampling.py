"""Sampling: a model's signals, with and without the noise of dropout, from weights and norms alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from evenkeel.errors import TraceError
from evenkeel.graph.kinds import CHANNEL_DROPOUT, Kind, kind_of_function
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.queries import chunked
from evenkeel.model.batches import device_of
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.norms import Norm
from evenkeel.model.restoring import seed_all
from evenkeel.prediction.anchors import Stored
from evenkeel.prediction.lanes import LaneRecorder, Turns, run_in_turn
from evenkeel.prediction.random_inputs import drawn_like, replicated_like, structures_among
from evenkeel.prediction.replica_recorder import ReplicaRecorder, SamplingPlan, Site
from evenkeel.prediction.replicas import COUNT

_MOST = 4096  # samples
_CHUNKED = 512  # the same, where every few of them are a call of their own
_POSITIONS = 16  # of a signal, that make up for few samples
_MOST_COPIES, _ROWS = 32, 1024  # of an example that replicas run on one after the other; rows at norms, wanted of them
_mapped = partial(map_tensors, objects=True)
_PLAN = SamplingPlan()
_NOTHING: Mapping[str, Stored] = MappingProxyType({})
_NEEDS = "what it needs in train mode, such as targets, must be in the example"


@dataclass(frozen=True)
class Sampled:
    """What is sampled, however often.

    Attributes:
        model: the model, without wrappers.
        graph: its layers, which limit the number of samples.
        norms: its norms with running statistics, by path.
        run: makes one forward pass, given inputs such as `inputs`.
        inputs: an example, whose floating tensors give shapes only, except those that say how inputs are connected.
        always: call sites of noise that eval mode has, too.
        in_turn: whether replicas run one after the other, on inputs of the example's own sizes, in place of one large
            batch.
    """

    model: nn.Module
    graph: LayerGraph
    norms: Mapping[str, Norm]
    run: Callable[[Any], Any]
    inputs: Any
    always: frozenset[Site] = frozenset()
    in_turn: bool = False


def sample(
    given: Sampled, plan: SamplingPlan = _PLAN, known: Mapping[str, Stored] = _NOTHING
) -> tuple[ReplicaRecorder, LayerGraph]:
    """Send replicas of random inputs through a model, which is the caller's to restore.

    Args:
        given: the model, its modes set as for a recording, and how it is run.
        plan: the rest.
        known: what is known of other layers, by name.

    Returns:
        What the pass showed, and the graph that it recorded.

    Raises:
        TraceError: the pass raised, such as for a model that takes batches of one size only.
    """
    seed_all(plan.seed)
    method = _sample_in_turn if given.in_turn else _sample_at_once
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method(given, plan, norms=given.norms, always=given.always, known=known)


def _sample_at_once(given: Sampled, plan: SamplingPlan, **options: Any) -> tuple[ReplicaRecorder, LayerGraph]:
    """One pass, in whose batch the replicas lie one after the other."""
    examples = tensors(given.inputs)
    size = next((len(t) for t in examples if t.dim()), 1)
    samples = _samples(given, size, plan)
    kept = structures_among(examples)
    rows = torch.randint(max(size, 1), (samples,)) if kept else torch.arange(samples)
    recorder = ReplicaRecorder(given.model, samples=samples, plan=plan, **options)
    replicated = _mapped(
        lambda t: replicated_like(t, size, rows, kept=id(t) in kept).to(device_of(given.model)),
        given.inputs,
    )
    whole = COUNT * samples
    recorder.inputs = _mapped(lambda t: t[:samples].clone() if t.dim() and len(t) == whole else t.clone(), replicated)
    try:
        return recorder, recorder.run(given.run, replicated)
    except Exception as error:
        raise TraceError(
            f"in train mode, with {whole} random inputs in one batch, {recorder.explain(error)}; {_NEEDS}, and it must "
            "take batches of any size"
        ) from error


def _sample_in_turn(given: Sampled, plan: SamplingPlan, **options: Any) -> tuple[ReplicaRecorder, LayerGraph]:
    """A pass for every replica of every copy of the example, in step."""
    copies, kept = _copies(given.graph, plan), structures_among(tensors(given.inputs), in_turn=True)
    drawn = [_mapped(lambda t: t if id(t) in kept else drawn_like(t), given.inputs) for _ in range(copies)]
    turns = Turns(COUNT * copies)
    lanes = [LaneRecorder(given.model, lane, turns, plan=plan, **options) for lane in range(turns.count)]
    lanes[0].inputs = _mapped(torch.clone, drawn[0])
    try:
        own = [_mapped(torch.clone, drawn[lane % copies]) for lane in range(turns.count)]
        return lanes[0], run_in_turn(lanes, given.run, own)
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(
            f"in train mode, on random inputs of the example's sizes, {lanes[turns.running].explain(error)}; {_NEEDS}, "
            "with the indices, edges, masks and lengths of real inputs"
        ) from error


def _copies(graph: LayerGraph, plan: SamplingPlan) -> int:
    """How many copies of the example show enough of every norm."""
    rows = min((math.prod(x.shape) / max(x.shape[1], 1) for x in graph.of(Kind.NORM) if len(x.shape) > 1), default=1.0)
    affordable = plan.elements / COUNT / max(sum(math.prod(layer.shape) for layer in graph), 1)
    return max(1, min(math.ceil(_ROWS / max(rows, 1.0)), int(affordable), _MOST_COPIES))


def _samples(given: Sampled, size: int, plan: SamplingPlan) -> int:
    """How many inputs there are to be, so that no dimension before the batch's can be taken for it (`row_dim`)."""
    graph = given.graph
    single = sum(math.prod(layer.shape) for layer in graph) / max(size, 1)
    by_mask = any(
        kind_of_function(d.function) is Kind.GATE or d.function in CHANNEL_DROPOUT for d in graph.of(Kind.DROPOUT)
    )
    positions = min((math.prod(layer.shape[2:]) for layer in graph.of(Kind.NORM)), default=_POSITIONS)
    fewest = plan.fewest * (4 if by_mask or positions < _POSITIONS else 1)
    most = _CHUNKED if any(chunked(norm) for norm in graph.of(Kind.NORM)) else _MOST
    samples = int(min(max(plan.elements / COUNT / max(single, 1), fewest), most))
    lengths = set[int]() if _comes_first(given, size) else {n for layer in graph for n in layer.shape[1:]} - {0}
    while any(length % (COUNT * samples) == 0 for length in lengths):
        samples += 1
    return samples


def _comes_first(given: Sampled, size: int) -> bool:
    """Whether the batch, of this size in the graph, is the first dimension of all that is looked for replicas in."""
    signals = (layer for layer in given.graph if layer.shape)
    return not given.always and all(x.shape[0] == size and (x.inputs or x.kind is Kind.INPUT) for x in signals)
