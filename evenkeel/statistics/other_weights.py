"""Statistics of other weights: what shows without data that weights have changed since norms were last updated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.optim.swa_utils import AveragedModel

from evenkeel.errors import listed
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.model.buffers import is_as_written
from evenkeel.model.norms import Norm
from evenkeel.model.restoring import restored
from evenkeel.statistics.stored_values import is_untrained

_BEHIND = 0.9  # of the updates of another norm: with fewer, a norm missed some of the training
_NOTHING = 1e-3  # of a norm's mean variance: what a channel without input stores is no more, once updated


def of_other_weights(graph: LayerGraph, norms: Mapping[str, Norm]) -> dict[str, str]:
    """Norms that store a variance where the weights before them are 0, by path, each with that in words.

    A filter of zeros has one output, whatever the data, so that the statistics are of weights before it was pruned.

    >>> from evenkeel.graph.tracing import trace
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> net[0].weight.data[0], net[1].num_batches_tracked = 0, torch.tensor(9)
    >>> of_other_weights(trace(net, torch.ones(2, 2)), {"1": net[1]})
    {'1': "statistics of other weights: all weights of 1 of 2 channels of '0' are 0, where it stores variance up to 1"}
    """
    paths = {norm: path for path, norm in norms.items()}
    found: dict[str, str] = {}
    for layer in graph.of(Kind.NORM):
        norm = layer.module
        if not isinstance(norm, Norm) or norm not in paths or len(layer.inputs) != 1 or is_untrained(norm):
            continue  # of an untrained net, weights may be 0 by design
        source = layer.inputs[0]
        empty = _empty_channels(source)
        variance = norm.running_var
        if empty is None or variance is None or len(empty) != len(variance) or not empty.any():
            continue
        most = float(variance[empty].max())
        if most > _NOTHING * float(variance.mean()):
            found[paths[norm]] = (
                f"statistics of other weights: all weights of {int(empty.sum())} of {len(empty)} channels of "
                f"{source.path!r} are 0, where it stores variance up to {most:.3g}"
            )
    return found


def left_behind(graph: LayerGraph, norms: Mapping[str, Norm]) -> dict[str, str]:
    """Norms that were updated less often than others of the model, by path, each with how often, in words.

    A norm that a pass calls several times is updated as often; of one that is called on parts of a batch, how often
    depends on the batch. Whether those behind are newer layers, or were in eval
    mode, or were copied from elsewhere, counts do not tell.

    >>> from evenkeel.graph.tracing import trace
    >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    >>> net[0].num_batches_tracked.fill_(20), net[1].num_batches_tracked.fill_(120)
    (tensor(20), tensor(120))
    >>> left_behind(trace(net, torch.ones(2, 2)), {"0": net[0], "1": net[1]})
    {'0': "updated 20 times, where '1' was 120 times: statistics of other weights, unless it is a newer layer"}
    """
    calls = Counter(layer.module for layer in graph.of(Kind.NORM))
    rows = Counter[object]()
    for layer in graph.of(Kind.NORM):
        rows[layer.module] += layer.shape[0] if layer.shape else 0
    batches = {layer.shape[0] for layer in graph.of(Kind.INPUT) if layer.shape}
    counts = {
        path: int(count) / max(calls[norm], 1)
        for path, norm in norms.items()
        if (count := norm.num_batches_tracked) is not None and count > 0 and not is_as_written(norm)
        if calls[norm] < 2 or rows[norm] not in batches
    }
    most = max(counts, key=counts.__getitem__, default="")
    return {
        path: f"updated {count:.0f} times, where {most!r} was {counts[most]:.0f} times: statistics of other weights, "
        "unless it is a newer layer"
        for path, count in counts.items()
        if count < _BEHIND * counts[most]
    }


def changes_of(model: nn.Module) -> list[str]:
    """What a model shows of having been given other weights than those that its norms ran with, in words.

    >>> changes_of(AveragedModel(nn.Linear(2, 2)))
    ['the weights are averages over 0 updates (AveragedModel), which never ran in training']
    """
    averages = [int(module.n_averaged) for module in model.modules() if isinstance(module, AveragedModel)]
    masked = [path for path, module in model.named_modules() if _is_masked(module)]
    found: list[str] = []
    if averages:
        found.append(
            f"the weights are averages over {averages[0]} updates (AveragedModel), which never ran in training"
        )
    if masked:
        found.append(f"weights of {listed(masked)} are masked (torch.nn.utils.prune)")
    return found


def _is_masked(module: nn.Module) -> bool:
    return any(isinstance(hook, BasePruningMethod) for hook in module._forward_pre_hooks.values())


def _weight_of(module: nn.Module | None) -> object:
    """A layer's weight; one that a parametrization computes, such as spectral norm's, may write buffers when read."""
    if module is None or not is_parametrized(module, "weight"):
        return getattr(module, "weight", None)
    with restored(module, parameters=False), torch.no_grad():
        return module.weight


def _empty_channels(layer: Layer) -> Tensor | None:
    """Which of a layer's channels, its second dimension, have weights of 0 alone; None if that is not known."""
    module = layer.module
    is_linear = isinstance(module, nn.Linear) and len(layer.shape) == 2
    if layer.kind is not Kind.WEIGHT or not (is_linear or isinstance(module, _ConvNd)):
        return None
    weight = _weight_of(module)
    original, mask = (getattr(module, f"weight_{name}", None) for name in ("orig", "mask"))
    if isinstance(original, Tensor) and isinstance(mask, Tensor):
        weight = original * mask  # the product that the layer holds may be of an earlier state dict
    if not isinstance(weight, Tensor) or weight.is_meta or weight.ndim < 2:
        return None
    if isinstance(module, _ConvTransposeNd):
        if module.groups != 1:
            return None
        weight = weight.transpose(0, 1)
    with torch.no_grad():
        return weight.flatten(1).abs().amax(1) == 0
