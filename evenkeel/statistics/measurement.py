"""Measurement: what reaches each norm layer while batches run through a model in eval mode."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError, brief
from evenkeel.model.batches import Forward, device_of, each, forward_pass, inputs, length, samples
from evenkeel.model.nested import channels_last, map_tensors, tensors
from evenkeel.model.norm_calls import NormCalls
from evenkeel.model.norms import Norm, foreign_norms, pools_batch
from evenkeel.model.quantizers import hold_quantizers_
from evenkeel.model.restoring import restored
from evenkeel.statistics.batch_merging import MOST_PARTS, Count, Group, Groups, Piece, copied
from evenkeel.statistics.blame import blame
from evenkeel.statistics.distributed import Message, RankError, Ranks, Retry, State
from evenkeel.statistics.group_limits import MEMORY, GroupLimits
from evenkeel.statistics.pairing import Pairing
from evenkeel.statistics.population import Population, Statistics, batch_statistics
from evenkeel.statistics.probes import FEW, Probes
from evenkeel.statistics.thinning import thinned

_END: Any = object()
Layout = Callable[[Tensor], Tensor]
Sizes = tuple[int, int]  # batches and samples
Parts = Sequence[tuple[int, Statistics]]
Call = tuple[int, Parts]  # its rank
Arrivals = dict[str, list[Call]]
Seen = Callable[["Measurement", str, Norm], None]

NO_CALL = "its forward normalises by no call of torch's batch norm with statistics of its own"
READ = "never called, but its statistics are read, as by a layer that is fused with it: out of reach"


class Measurement:
    """Gathers the population at every norm's input, group of batches by group; the model is the caller's to restore.

    A norm's input is what reaches torch's batch or instance norm with the norm's own statistics (see `NormCalls`).

    Args:
        model: is put into eval mode, so that every source of noise is off, observers too, and gets hooks.
        norms: the norms to watch, by path.
        forward: how to run a batch, if not by `call`.
        ranks: the processes that measure the same norms together, each on batches of its own.
        memory: bytes that the largest input of a norm may take where batches are merged; 0 merges none.
        count: how many samples a batch holds.
        pairing: pairs what reaches the norms with what does with noise on, where that is needed.
        by_sample: whether standard errors are taken from how the samples of a batch differ: of a single one.

    Attributes:
        populations: of the norms reached, by path, in the order in which the pass reaches them.
        arrivals: what came in at every norm since this was last cleared, by path: of each call its rank, and its parts.
        seen: called with this, a path and a norm when the norm has been measured, before it normalises.
        spoilt: paths of norms that store what is not finite: what comes after them in a pass need not be.
        batches: number of batches run.
        samples: number of samples in them.
        limits: of the groups of merged batches.
        called: paths of the norms whose forward was called.
        entangled: paths of the norms whose statistics are read by anything but their own normalising.
        example: the first batch, as the loader gave it.
        shapes: of the tensors that the model returned last.
        is_random: whether the model draws at random in eval mode, too, as far as it was tried.
        pairing: as given; None if it was found not to be needed.
        wanted: told how many samples there are in all, how many to run; all if None, or if not repeatable.
        is_repeatable: whether the batches can surely be had once more.
        step: of how many samples one is run.
        quantizers: of the model, whose ranges are held.

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
        count: Count = samples,
        pairing: Pairing | None = None,
        by_sample: bool = False,
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
        self.called: set[str] = set()
        self.entangled: set[str] = set()
        self.example: Any = None
        self.shapes: list[torch.Size] = []
        self.is_random = False
        self.pairing = pairing
        self.wanted: Callable[[float], float] | None = None
        self.is_repeatable = False
        self.step = 1.0
        self._by_sample = by_sample
        self._is_divided = False
        self._of_batch = 1
        self._is_pairing_tried = pairing is None
        self._forward = forward
        self._probes = Probes(model, norms, forward)
        self.limits = GroupLimits(model, self._probes, memory)
        self._count = count
        self._paths = list(norms)
        # On a CPU this layout makes statistics of images cheap.
        self._layout: Layout | None = channels_last if device_of(model).type == "cpu" else None
        self._group: Group | None = None  # the one that is running
        self._is_spoilt = self._is_watching = False  # whether it has reached a norm that is; whether it is measured
        model.eval()
        self.quantizers = hold_quantizers_(model)
        for path, norm in norms.items():
            norm.register_forward_pre_hook(partial(self._enter, path))

    def _enter(self, path: str, _norm: nn.Module, _args: Any) -> None:
        if self._is_watching and not (self.pairing and self.pairing.is_running):
            self.called.add(path)

    @property
    def total(self) -> float:
        """How many samples all batches of all ranks hold, as far as is known."""
        if self._group is None:
            return self.samples
        running = self._group.samples * self.ranks.size
        return max(self.samples, running, 0 if self.samples else self._expected_of(self._group))

    def _expected_of(self, group: Group) -> float:
        """How many samples all ranks are to have, if their batches are like those of a group; 0 if not known."""
        expected = self.limits.expected * self.ranks.size
        return expected * group.samples / len(group.held) if math.isfinite(expected) else 0

    def groups(
        self, batches: Iterable[Any], max_batches: int | None = None, *, again: bool = False
    ) -> Generator[Group | None]:
        """Begin anew, and give the batches in groups to `add`; None where only other ranks have one left.

        Args:
            batches: the batches, or, if run before, as `Piece`.
            max_batches: how many to use; all if None.
            again: whether they were run before; then there may be none any more.
        """
        self.populations, self.arrivals, self.batches, self.samples = {}, {}, 0, 0
        may_be_empty = again or self.ranks.size > 1
        expected = min(length(batches), max_batches or math.inf)
        pieces = self._pieces(batches, max_batches, may_be_empty, again)
        try:
            yield from self.ranks.rounds(self._grouped(pieces, batches, expected, again))
        finally:
            self._group = None
            pieces.close()  # and with them the loader
            self.limits.release()
        if not self.batches and not again:
            raise BatchError("the loaders of all ranks are empty: they yielded no batch")
        if not self.populations and not again:
            path = next(iter([*sorted(self.called), *sorted(self.entangled), *self.norms]))
            raise BatchError(
                f"the {self.batches} batches reached none of the model's norms; {path!r}: {self.why_not(path)}"
            )

    def regrouped(self, pieces: Iterable[Piece]) -> list[Group | None]:
        """Pieces that were run before, merged as the memory allows; as many groups on every rank."""
        groups: list[Group | None] = [*self.limits.regrouped(pieces)]
        return groups + [None] * (int(self.ranks.largest(len(groups))) - len(groups))

    def add(self, group: Group | None) -> Group | None:
        """Measure a group, together with those of the other ranks; return what of it was run.

        Raises:
            BatchError: it failed, here or on another rank, in its most careful form, too.
        """
        while True:
            try:
                batches, count = self.run(group)
            except Retry as retry:
                if retry.own and group is not None:
                    if self._layout is None:
                        group = self.limits.split(group, f"merged, {retry.__cause__}")
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

    def arrive(self, groups: Iterable[Group | None]) -> Arrivals:
        """Run groups that were run before, as the norms are now; what arrives there, which `populations` hold then."""
        self.populations, self.arrivals, self.seen = {}, {}, None
        for group in groups:
            self.run(group)
        return self.arrivals

    def try_for_noise(self, pieces: Sequence[Piece]) -> None:
        """Find out, from some samples that were run before, whether the model draws at random in eval mode."""
        found = bool(pieces) and self._probes.are_random(pieces[0], is_divisible=self.limits.is_divisible)
        self.is_random = bool(self.ranks.largest(found))

    def _grouped(self, pieces: Iterator[Piece], batches: Iterable[Any], expected: float, again: bool) -> Groups:
        """The pieces in groups: all, or as many as are wanted."""
        if not again and (not self._is_pairing_tried or self.wanted is not None):
            first = self.ranks.collectively(lambda: next(pieces, None))
            pieces = itertools.chain([] if first is None else [first], pieces)
            if not self._is_pairing_tried:
                self._try_pairing(first)
            self.step = self._step(0 if first is None else first.samples, expected)
            self._is_divided = first is not None and self.step > 1 and self.limits.can_divide(first)
            self._of_batch = max(0 if first is None else first.samples, 1)
        if self.step == 1 or (isinstance(batches, list) and any(isinstance(batch, Piece) for batch in batches[:1])):
            return self.limits.groups_of(pieces, expected)
        expected *= min((self._of_batch if self._is_divided else 1) / self.step, 1)  # batches of which any is run
        return self.limits.groups_of(thinned(pieces, self.step, is_divisible=self._is_divided), expected)

    def _step(self, samples: int, expected: float) -> float:
        """Of how many samples one is to be run, on all ranks, given how many the first batch holds."""
        if self.pairing is None or self.wanted is None:
            return 1
        total = self.ranks.total(expected * samples if samples else 0)
        if self.ranks.largest(not self.is_repeatable) or not math.isfinite(total):
            return 1
        return max(total / self.wanted(total), 1)

    def _try_pairing(self, first: Piece | None) -> None:
        """Pair on all ranks, if that is needed on one, as far as some samples of the first batch tell."""
        assert self.pairing is not None
        self._is_pairing_tried = True
        is_needed = self.ranks.collectively(partial(self._is_pairing_needed, self.pairing, first))
        if not self.ranks.largest(is_needed):
            self.pairing = None
        elif self.ranks.largest(self.pairing.is_shared):
            self.pairing.is_shared = True
            self.limits.keep_apart("with noise on, the samples of a batch share masks")
        self.limits.holds = self.pairing is not None

    def _is_pairing_needed(self, pairing: Pairing, first: Piece | None) -> bool:
        if first is None:
            return False
        piece = Piece(1, self.example, first.samples)
        is_divisible = piece.form is not None
        batch = (piece.thinned(-(-piece.samples // FEW)) if is_divisible else piece).batch
        try:
            with restored(self.model, parameters=False):
                return pairing.is_needed(self._tried, batch, self._forward, is_divisible=is_divisible)
        except BatchError:  # what is wrong comes up where it is measured, if it must be
            return pairing.match is not None

    def _tried(self, batch: Any) -> Any:
        return forward_pass(self.model, copied(batch if self._forward else inputs(batch)), 1, self._forward)

    def _pieces(
        self, batches: Iterable[Any], max_batches: int | None, may_be_empty: bool, again: bool
    ) -> Generator[Piece]:
        stream = each(batches, self.model, max_batches, may_be_empty=may_be_empty)
        is_held = isinstance(batches, (list, tuple, Tensor))  # else the next batch may be written over this one
        for number in itertools.count(1):
            try:
                batch = next(stream, _END)
            except BatchError:
                if again and number == 1:  # it was used up the first time
                    return
                raise
            if batch is _END:
                return
            if isinstance(batch, Piece):
                yield batch
                continue
            self.example = batch if self.example is None else self.example
            try:
                count = int(self._count(batch))
            except Exception as error:
                raise BatchError(f"samples= raised {brief(error)} on batch {number}") from error
            batch = batch if self._forward else inputs(batch)
            yield Piece(number, batch if is_held else copied(batch), count)

    def _pass(self, group: Group | None) -> Sizes:
        """Run a group, if this rank has one, and hear from all others till they are done: batches and samples of all.

        Raises:
            BatchError: the group failed, here or on another rank.
            Retry: it did, but there is a more careful way.
        """
        self._group, self._is_spoilt, self._is_watching = group, False, group is not None
        if group is not None:
            try:
                on_read = None if self.batches else self.entangled.add
                run = partial(self._forwarded, group)
                if self.pairing is not None:
                    in_all = max(self._expected_of(group), self.samples, group.samples)
                    self.pairing.hold(run, group, in_all if self.step == 1 else math.inf)
                with NormCalls(self.norms, self._arrive, on_read):
                    outputs = run()
                self.shapes = [tensor.shape for tensor in tensors(outputs)]
            except (Retry, RankError):
                raise
            except BatchError as error:
                last = self._layout is None and len(group.held) == 1
                self.ranks.exchange(Message(State.FAILED if last else State.RETRY))
                if last:
                    raise
                raise Retry(str(error), own=True) from error
        self._is_watching = False
        done = Message(State.DONE, sizes=(len(group.held), group.samples) if group else (0, 0))
        messages = self._exchange(done)
        while any(message.state is not State.DONE for message in messages):
            messages = self._exchange(done)
        return sum(message.sizes[0] for message in messages), sum(message.sizes[1] for message in messages)

    def _forwarded(self, group: Group) -> Any:
        return forward_pass(self.model, self._laid_out(group), group.first, self._forward)

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
            raise Retry("it failed on another rank", own=False)
        for rank, (state, place, parts, _) in enumerate(messages):
            if state is State.MEASURED:
                path = self._paths[place]
                if path not in self.populations:
                    self.populations[path] = self._population(path)
                self.populations[path].add(parts)
                self.arrivals.setdefault(path, []).append((rank, parts))
        return messages

    def _population(self, path: str) -> Population:
        return self.pairing.population(path) if self.pairing else Population(pooled=pools_batch(self.norms[path]))

    def _arrive(self, path: str, norm: Norm, x: Tensor) -> None:
        """What is done when something reaches a norm, before it is normalised."""
        if self._group is None or not x.numel():
            return
        if self.pairing is not None:
            parts: Parts = self.pairing.parts(self._group, path, x, self.limits.expected * self.ranks.size)
        else:
            pooled = pools_batch(norm)
            own = self._group.parts(x, by_sample=self._by_sample)
            parts = [(number, batch_statistics(part, pooled=pooled)) for number, part in own]
        if not self._is_spoilt:
            self._require_finite(path, parts)
        self._is_spoilt |= path in self.spoilt
        self._exchange(Message(State.MEASURED, self._paths.index(path), parts))
        if self.seen is not None:
            self.seen(self, path, norm)

    def _require_finite(self, path: str, parts: Parts) -> None:
        for number, (_, mean, variance) in parts:
            if not (mean.isfinite() & variance.isfinite()).all():
                assert self._group is not None
                batch = number // MOST_PARTS if self.pairing else number
                first = self._group.first if self._by_sample else batch
                raise BatchError(blame(self.model, self.norms, path, self._group, first))

    def strangers(self, frozen: Collection[nn.Module] = ()) -> tuple[dict[str, str], dict[str, str]]:
        """Modules with statistics that are no norms of torch's, and norms that store those of other values; by path."""
        if self.example is None:
            return foreign_norms(self.model), {}
        return self._probes.strangers(self.example, int(self._count(self.example)), frozen)

    def why_not(self, path: str) -> str:
        """Why nothing was measured at a norm."""
        if path in self.called:
            return NO_CALL
        return READ if path in self.entangled else "never reached by the batches"
