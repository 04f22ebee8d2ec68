"""Anchors: which running statistics to trust, and what they fix of the layers before their norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evenkeel.graph.kinds import CONCATENATIONS, MULTIPLYING_DROPOUT, Kind, kind_of_function
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.queries import chunked
from evenkeel.model.buffers import written_left
from evenkeel.model.flags import FROZEN
from evenkeel.model.norms import Norm, pools_batch
from evenkeel.statistics.other_weights import of_other_weights
from evenkeel.statistics.stored_values import (
    MUCH,
    NEVER_UPDATED,
    counted,
    history_of,
    initial_left,
    is_never_updated,
    is_untrained,
    misleading_counts,
)
from evenkeel.theory.li2018 import dropout_noise

WRITTEN = "as reestimate_ or correct_ wrote it since training: the noise of dropout is out already"
_MIXED = 0.1  # of what was written: with more of it left, to take all noise out would take out too much
_LEAST = 1e-3  # of what a norm stores: what its dropout was fed at least, where a moving average says less


@dataclass(frozen=True)
class Stored:
    """The mean and variance, per channel, of a signal in training."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, norm: Norm) -> Stored:
        """What a norm stores: its buffers themselves."""
        assert norm.running_mean is not None and norm.running_var is not None
        return cls(norm.running_mean, norm.running_var)

    def double(self) -> Stored:
        """The same as float64."""
        return Stored(self.mean.double(), self.variance.double())

    def before(self, noise: float) -> Stored:
        """The statistics of x, given those of x times independent noise of mean 1 and variance `noise`.

        `Var_after = Var + s2 (Var + mean^2)`, s2 = p / (1 - p) for dropout: case (a) of Li et al. 2018, equation 7.

        >>> Stored(torch.zeros(1), torch.full((1,), 2.0)).before(noise=1.0).variance
        tensor([1.])
        """
        variance = (self.variance - noise * self.mean**2) / (1 + noise)
        return Stored(self.mean, torch.maximum(variance, _LEAST * self.variance))


def distrust(graph: LayerGraph, norms: Mapping[str, Norm]) -> dict[str, str]:
    """Norms whose statistics cannot be trusted, by path, each with the reason."""
    # Chunks of one batch are one call in effect.
    fed = {(layer.module, chunked(layer) or layer) for layer in graph.of(Kind.NORM)}
    calls = Counter(id(getattr(module, "running_var", None)) for module, _ in fed)  # norms may share what they store
    frozen = {layer.module for layer in graph if layer.frozen}
    misleading, pruned = misleading_counts(norms.values()), of_other_weights(graph, norms)
    reasons: dict[str, str] = {}
    for path, norm in norms.items():
        if (written := written_left(norm, "running_var")) == 1:
            reasons[path] = WRITTEN
        elif written > _MIXED:
            reasons[path] = f"{written:.0%} of what reestimate_ or correct_ wrote is left: train on, or repair by data"
        elif path in pruned:
            reasons[path] = pruned[path]
        elif is_never_updated(norm):
            reasons[path] = NEVER_UPDATED
        elif is_untrained(norm):
            reasons[path] = "untrained: it stores no statistics yet"
        elif not pools_batch(norm):
            reasons[path] = "its statistics are of single instances, not of the batch"
        elif (count := calls[id(norm.running_var)]) > 1:
            reasons[path] = f"its statistics are of {count} calls together"
        elif norm in frozen:
            reasons[path] = FROZEN
        elif (left := initial_left(norm) or 0.0) > MUCH and counted(norm) not in misleading:
            reasons[path] = f"stale: {left:.0%} of the initial statistics is left after {history_of(norm)}"
    return reasons


def is_repaired(norm: nn.Module) -> bool:
    """Whether a norm stores what `reestimate_` or `correct_` wrote, or mostly that."""
    return written_left(norm, "running_var") >= 0.5


def stored_before(graph: LayerGraph, trusted: Collection[Norm]) -> dict[str, Stored]:
    """The statistics of what dropouts right before a trusted norm read, by the name of the layer that they read.

    Args:
        graph: the graph.
        trusted: the norms that store what they were fed in training.
    """
    found: dict[str, Stored] = {}
    for layer in graph.of(Kind.NORM):
        norm = layer.module
        if not isinstance(norm, Norm) or norm not in trusted:
            continue
        found |= _stored_before(chunked(layer) or layer.inputs[0], Stored.of(norm).double())
    return found


def _stored_before(source: Layer, stored: Stored) -> dict[str, Stored]:
    """The same for one layer whose statistics are known, and for the parts of a concatenation of channels."""
    found: dict[str, Stored] = {}
    while source.kind is Kind.DROPOUT and _is_factor(source):
        assert source.p is not None
        stored, source = stored.before(float(dropout_noise(source.p))), source.inputs[0]
        found[source.name] = stored
    sizes = _concatenated(source)
    if sum(sizes) == len(stored.mean):
        parts = zip(source.inputs, stored.mean.split(sizes), stored.variance.split(sizes), strict=True)
        for part, mean, variance in parts:
            found |= _stored_before(part, Stored(mean, variance))
    return found


def _concatenated(layer: Layer) -> list[int]:
    """How many channels of each signal a layer concatenates; none if it does something else."""
    if layer.function not in CONCATENATIONS or not layer.args or len(layer.args[0]) != len(layer.inputs):
        return []
    dim = layer.kwargs.get("dim", layer.args[1] if len(layer.args) > 1 else 0)
    along_channels = dim in (1, 1 - len(layer.shape)) and all(len(x.shape) == len(layer.shape) for x in layer.inputs)
    return [x.shape[1] for x in layer.inputs] if along_channels else []


def _is_factor(layer: Layer) -> bool:
    """Whether a dropout multiplies by noise of mean 1 whose variance is known."""
    by_mask = kind_of_function(layer.function) is Kind.GATE or hasattr(layer.module, "evenkeel_kind")
    multiplies = by_mask or layer.function in MULTIPLYING_DROPOUT
    return layer.scaled and layer.p is not None and layer.p < 1 and multiplies
