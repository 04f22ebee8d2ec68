"""Measurement: what reaches each norm layer while batches run through a model in eval mode."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError, brief
from evenkeel.model.batches import Forward, device_of, each, forward_pass, inputs, length, samples
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.norms import Norm, mixes_batch, pools_batch
from evenkeel.model.restoring import restored
from evenkeel.statistics.batch_merging import Group, Groups
from evenkeel.statistics.distributed import Message, RankError, Ranks, State
from evenkeel.statistics.population import Population, Statistics, batch_statistics

Layout = Callable[[Tensor], Tensor]
Sizes = tuple[int, int]  # batches and samples
Parts = Sequence[tuple[int, Statistics]]
Call = tuple[int, Parts]  # its rank
Arrivals = dict[str, list[Call]]
Seen = Callable[["Measurement", str, Norm], None]

MEMORY = 1 << 27  # bytes
_CHEAP = 1 << 24  # bytes that a CPU's allocator reuses; it maps larger pieces anew every time
_ALL = 4  # times as many samples as should be in a group that had better be in it all


class Measurement:
    """Gathers the population at every norm's input, group of batches by group; the model is the caller's to restore.

    Args:
        model: is put into eval mode, so that every source of noise is off, and gets hooks.
        norms: the norms to watch, by path.
        forward: how to run a batch, if not by `call`.
        ranks: the processes that measure the same norms together, each on batches of its own.
        memory: bytes that the largest input of a norm may take where batches are merged; 0 merges none.

    Attributes:
        populations: of the norms reached, by path, in the order in which the pass reaches them.
        arrivals: what came in at every norm since this was last cleared, by path: of each call its rank, and its parts.
        seen: called with this, a path and a norm when the norm has been measured, before it normalises.
        spoilt: paths of norms that store what is not finite: what comes after them in a pass need not be.
        batches: number of batches run.
        samples: number of samples in them, by the tensors' sizes.
        least: samples that a group of merged batches should hold, as far as the memory allows; more where that is
            cheap, and all where they are not many more.
        most: samples that it should not exceed.

    >>> model, data = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)), torch.randn(3, 64, 2)
    >>> measurement = Measurement(model, {"1": model[1]})
    >>> for group in measurement.groups(data):
    ...     _ = measurement.add(group)
    >>> torch.allclose(measurement.populations["1"].variance.float(), data.flatten(0, 1).var(0))
    True
    """

    def __init__(
        self,
        model: nn.Module,
        norms: dict[str, Norm],
        *,
        forward: Forward | None = None,
        ranks: Ranks | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.model = model
        self.norms = norms
        self.ranks = ranks or Ranks()
        self.populations: dict[str, Population] = {}
        self.arrivals: Arrivals = {}
        self.seen: Seen | None = None
        self.spoilt: Collection[str] = ()
        self.batches = 0
        self.samples = 0
        self.least = 0.0
        self.most = math.inf
        self._forward = forward
        self._memory = 0 if any(map(mixes_batch, model.modules())) else memory
        self._paths = list(norms)
        # On a CPU this layout makes statistics of images cheap.
        self._layout: Layout | None = _channels_last if device_of(model).type == "cpu" else None
        self._group: Group | None = None  # the one that is running
        self._expected = math.inf  # number of batches
        self._size: float | None = None  # bytes of a sample at the norm where it is largest
        self._largest: int | None = None  # the same, while one sample is tried
        self._rows = Counter[str]()  # of norms' inputs in this pass
        self._rows_of_one = Counter[str]()  # and when one sample was tried
        model.eval()
        for path, norm in norms.items():
            norm.register_forward_pre_hook(partial(self._read, path), with_kwargs=True)

    def groups(self, batches: Iterable[Any], max_batches: int | None = None) -> Iterator[Group | None]:
        """The batches in groups to `add`; None where only other ranks have one left."""
        self._expected = min(length(batches), max_batches or math.inf)
        stream = each(batches, self.model, max_batches, may_be_empty=self.ranks.size > 1)
        self._groups = Groups(stream if self._forward else map(inputs, stream), self._limit)
        try:
            yield from self.ranks.rounds(self._groups)
        finally:
            self._group = None
            del self._groups  # and with them the loader
        if not self.batches:
            raise BatchError("the loaders of all ranks are empty: they yielded no batch")
        if not self.populations:
            raise BatchError(f"the {self.batches} batches reached none of the model's norms")

    def add(self, group: Group | None) -> Group | None:
        """Measure a group, together with those of the other ranks; return what of it was run.

        Raises:
            BatchError: it failed, here or on another rank, in its most careful form, too.
        """
        while True:
            try:
                batches, count = self.run(group)
            except _Retry as retry:
                if retry.own and group is not None:
                    if self._layout is None or isinstance(retry.__cause__, _MixedError):
                        group = self._groups.split(group)
                    else:
                        self._layout = None
            else:
                self.batches += batches
                self.samples += count
                return group

    def run(self, group: Group | None) -> Sizes:
        """Run a group, gather what arrives at the norms, and return how many batches and samples all ranks ran."""
        populations = {path: population.copy() for path, population in self.populations.items()}
        arrivals = {path: list(calls) for path, calls in self.arrivals.items()}
        try:
            sizes = self._pass(group)
        except BatchError:
            self.populations, self.arrivals = populations, arrivals
            raise
        for population in self.populations.values():
            population.merge()
        return sizes

    def _pass(self, group: Group | None) -> Sizes:
        """Run a group, if this rank has one, and hear from all others till they are done: batches and samples of all.

        Raises:
            BatchError: the group failed, here or on another rank.
            _Retry: it did, but there is a more careful way.
        """
        self._group = group
        if group is not None:
            try:
                self._rows.clear()
                forward_pass(self.model, self._laid_out(group), group.first, self._forward)
                self._require_samples(group)
            except (_Retry, RankError):
                raise
            except BatchError as error:
                last = self._layout is None and len(group.held) == 1
                self.ranks.exchange(Message(State.FAILED if last else State.RETRY))
                if last:
                    raise
                raise _Retry(own=True) from error
        done = Message(State.DONE, sizes=(len(group.held), group.samples) if group else (0, 0))
        messages = self._exchange(done)
        while any(message.state is not State.DONE for message in messages):
            messages = self._exchange(done)
        return sum(message.sizes[0] for message in messages), sum(message.sizes[1] for message in messages)

    def _laid_out(self, group: Group) -> Any:
        try:
            return map_tensors(self._layout, group.batch) if self._layout else group.batch
        except Exception as error:  # there is no memory for it
            raise BatchError(
                f"{len(group.held)} batches from {group.first} on cannot be merged: {brief(error)}"
            ) from error

    def _exchange(self, message: Message) -> list[Message]:
        """Exchange what was measured with all ranks."""
        messages = self.ranks.exchange(message)
        self.ranks.require([message.state for message in messages])
        if any(message.state is State.RETRY for message in messages):
            raise _Retry(own=False)
        for rank, (state, place, parts, _) in enumerate(messages):
            if state is State.MEASURED:
                path = self._paths[place]
                population = self.populations.setdefault(path, Population(pooled=pools_batch(self.norms[path])))
                population.add(parts)
                self.arrivals.setdefault(path, []).append((rank, parts))
        return messages

    def _read(self, path: str, norm: Norm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What every norm does before it is called."""
        x: Tensor = args[0] if args else kwargs["input"]
        if not pools_batch(norm) and x.ndim == norm._get_no_batch_dim():  # type: ignore[operator]
            x = x[None]
        if self._largest is not None:
            self._largest = max(self._largest, x.numel() * x.element_size())
            self._rows_of_one[path] += len(x)
        elif self._group is not None and x.numel():
            parts = [
                (number, batch_statistics(part, pooled=pools_batch(norm))) for number, part in self._group.parts(x)
            ]
            if not any(self._rows[spoilt] for spoilt in self.spoilt):
                _require_finite(path, parts)
            self._rows[path] += len(x)
            self._exchange(Message(State.MEASURED, self._paths.index(path), parts))
            if self.seen is not None:
                self.seen(self, path, norm)

    def _require_samples(self, group: Group) -> None:
        """Of many samples merged, a norm meets more rows than of one, or they were not merged along samples."""
        if len(group.held) > 1 and (mixed := [path for path, n in self._rows.items() if n <= self._rows_of_one[path]]):
            raise _MixedError(f"norm {mixed[0]!r} meets {self._rows[mixed[0]]} rows of one sample and of many")

    def _limit(self, batch: Any) -> float:
        """How many samples a group may hold."""
        if self._size is None:
            self._size = max(self._bytes_of_a_sample(batch), 1) if self._memory else math.inf
        cheap = min(self._memory, _CHEAP) if device_of(self.model).type == "cpu" else self._memory
        least = max(self.least, cheap // self._size)
        total = self._expected * samples(batch)
        return min(total if total <= _ALL * least else least, self.most, self._memory // self._size)

    def _bytes_of_a_sample(self, batch: Any) -> float:
        """Bytes of the largest input of a norm, tried on one sample; infinite if the model does not take one."""
        sample = map_tensors(lambda t: (t[:1] if t.ndim else t).clone(), batch)
        self._largest = max((t.numel() * t.element_size() for t in tensors(sample)), default=1)
        try:
            with restored(self.model, parameters=False):
                forward_pass(self.model, sample, 1, self._forward)
            return self._largest
        except BatchError:
            return math.inf
        finally:
            self._largest = None


class _MixedError(BatchError):
    """Batches were merged that cannot be: time came first, or the model makes one of all samples."""


class _Retry(BatchError):
    """A pass failed, on this rank or on another, and may be run again in a more careful way."""

    def __init__(self, *, own: bool) -> None:
        super().__init__("a batch that had run before failed when it was run again")
        self.own = own


def _require_finite(path: str, parts: Parts) -> None:
    for number, (_, mean, variance) in parts:
        if not (mean.isfinite() & variance.isfinite()).all():
            raise BatchError(f"batch {number} is not finite at norm {path!r}: its mean or variance is NaN or infinite")


def _channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    known = tensor.is_floating_point() and tensor.ndim in formats
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if known else tensor
