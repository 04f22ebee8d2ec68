"""Arrival: what reaches a norm, in one call or in chunks of the batch, as in ghost batch norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.queries import cut_from
from evenkeel.model.norms import Norm
from evenkeel.prediction.anchors import Stored
from evenkeel.prediction.replicas import Channels, channels_of, match_


@dataclass(frozen=True)
class Arrival:
    """What reaches a norm.

    Attributes:
        channels: its moments, once it has those that training stored.
        found: its moments as random inputs give them.
        exceeded: of each channel, whether the noise is more than all that is stored.
    """

    channels: Channels
    found: Channels
    exceeded: Tensor


@dataclass
class Pending:
    """What is reaching a norm, in one call or in chunks.

    Attributes:
        path, norm: the norm.
        arrival: of all of it.
        missing: how many rows are still to come.
    """

    path: str
    norm: Norm
    arrival: Arrival
    missing: int


def whole_of(x: Tensor, source: Layer) -> tuple[Tensor, int] | None:
    """The batch that a chunk is cut out of, and where in it the chunk begins; None if it is no chunk of a batch.

    Args:
        x: what a call is fed.
        source: the layer that returned it.
    """
    batch, base = cut_from(source), x._base
    if batch is None or base is None or not x.stride(0):
        return None
    first, start = divmod(int(x.storage_offset() - base.storage_offset()), x.stride(0))
    shape = (batch.shape[0], *x.shape[1:])
    reach = start + sum((size - 1) * stride for size, stride in zip(shape, x.stride(), strict=True))
    if reach >= base.numel():
        return None
    return base.as_strided(shape, x.stride(), int(base.storage_offset()) + start), first


def arrived(x: Tensor, stored: Stored) -> Arrival:
    """Match replicas to what is stored, in place (see `match_`)."""
    found = channels_of(x)
    channels, exceeded = match_(x, stored.mean, stored.variance, found)
    return Arrival(channels, found, exceeded)


def fits(x: Tensor, stored: Stored) -> bool:
    """Whether a tensor has samples first and as many channels as are known second, and can be written to."""
    expanded = any(size > 1 and not stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.dim() > 1 and x.is_floating_point() and not expanded and x.shape[1] == len(stored.mean)
