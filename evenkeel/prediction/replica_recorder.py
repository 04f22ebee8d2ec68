"""ReplicaRecorder: one pass of replicas through a model, one of them kept free of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenkeel.graph.kinds import (
    CHANNEL_DROPOUT,
    HIDDEN_DROPOUT,
    SAMPLES,
    Kind,
    function_name,
    hidden_rate,
    kind_of_function,
)
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.recorder import Recorder
from evenkeel.model.buffers import is_as_written, is_mean_matched, trained_buffer, write_
from evenkeel.model.nested import tensors
from evenkeel.model.norms import Norm
from evenkeel.model.threads import single_threaded, threads_for
from evenkeel.prediction.anchors import Stored, is_repaired
from evenkeel.prediction.arrivals import Arrival, Pending, arrived, fits, whole_of
from evenkeel.prediction.mask_versions import MaskVersions
from evenkeel.prediction.noisy_call import NoisyCall, is_unknown_factor
from evenkeel.prediction.random_inputs import noises
from evenkeel.prediction.replicas import (
    COUNT,
    Channels,
    Energies,
    as_trained,
    channels_of,
    dropped,
    energies_of,
    noise_free_rows,
    row_dim,
)
from evenkeel.statistics.noise import STATISTICS
from evenkeel.statistics.pairs import Match
from evenkeel.statistics.stored_values import is_untrained

Site = tuple[object, ...]  # of a call: `Layer.site`

_SEEN = 16  # expected number of masks that drop, from which on these are left to chance


@dataclass(frozen=True)
class SamplingPlan:
    """How a sample is made.

    Attributes:
        settled: the norms whose noise-free output is what it would be with corrected statistics.
        stats: which of these: both, or var.
        match: what corrected statistics keep of train mode.
        elements: of all signals of all replicas together, as far as the fewest samples allow.
        fewest: samples; four times as many where few of them show little: masks of whole samples, norms of vectors.
        seed: of inputs and masks.
        matched: whether norms' inputs are given the strength that norms store.
        energies: whether layers' energies are taken, which causes and doubts are read from.
    """

    settled: Collection[Norm] = ()
    stats: str = "both"
    match: Match = "variance"
    elements: int = 1 << 26
    fewest: int = 4
    seed: int = 0
    matched: bool = True
    energies: bool = True


class ReplicaRecorder(Recorder):
    """Records one pass of replicas, keeps one of them free of noise, and rescales norms' inputs to what norms store.

    A sample of signals holds the moments of every pair of channels and positions, and passes any operation by running
    it.

    Args:
        model: the model, to be run in train mode with its norms in eval mode.
        samples: how many inputs there are.
        norms: the norms with running statistics, by path.
        known: what is known of other layers, by name.
        always: call sites of noise that eval mode has, too: there, all replicas are given the same.
        plan: the rest.

    Attributes:
        arrivals: of every norm, by path, what each of its calls was fed; chunks of a batch count as one.
        calls: of every norm, by path, its last call.
        energies: of every layer that holds replicas, what these share.
        unresolved: layers with noise whose eval output is unknown.
        fed: of every norm, by path, what each call was fed without noise, if signals are not matched.
        inputs: the inputs without noise.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int,
        norms: Mapping[str, Norm],
        known: Mapping[str, Stored],
        plan: SamplingPlan,
        always: Collection[Site] = (),
    ) -> None:
        super().__init__(model, training=True)
        self.samples = samples
        self.known = known
        self.plan = plan
        self.always = always
        self.arrivals: dict[str, list[Arrival]] = {}
        self.calls: dict[str, Layer] = {}
        self.energies: dict[Layer, Energies] = {}
        self.unresolved: set[Layer] = set()
        self.fed: dict[str, list[Tensor]] = {}
        self.inputs: Any = None
        # Their buffers are what a call is known by, whichever module makes it.
        self._norms = {id(norm.running_var): (path, norm) for path, norm in norms.items()}
        self._untrained = {norm for norm in norms.values() if is_untrained(norm)}
        self._repaired = set(filter(is_repaired, norms.values()))
        self._call: NoisyCall | None = None  # the call that runs, if it has noise, or is given a noisy parameter
        self._mask: tuple[int, ...] | None = None  # the shape of the noise that it was fed
        self._rate: float | None = None  # of the call that runs, if it is plain dropout of replicas
        self._versions = MaskVersions(samples)
        self._arrived: tuple[Pending, int] | None = None  # at the norm that runs, and how many rows have no noise
        self._begun: dict[tuple[str, Layer], Pending] = {}
        self._seen: set[tuple[str, Layer]] = set()  # the same, where signals are not matched

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, function_name(func)
        kind = kind_of_function(name)
        with threads_for(tensors((args, kwargs)), product=kind is Kind.WEIGHT):
            if self.whole is None:
                if kind is Kind.NORM:
                    self._arrive(args, kwargs)
                self._rate = self._plain_rate(func, args, kwargs)
                self._remember(func, args, kwargs)
            result = super().__torch_function__(func, types, args, kwargs)
            if self.whole is None and name in HIDDEN_DROPOUT and self.layers and self.layers[-1].p:
                self._repeat(func, name, args, kwargs, result)
        return result

    def _make(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._rate is None:
            return super()._make(func, args, kwargs)
        rate, self._rate = self._rate, None
        return dropped(next(iter(tensors((args, kwargs)))), rate)

    def _plain_rate(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
        """The rate of a call that does to replicas what `dropped` does; None of any other."""
        if func not in (functional.dropout, torch.dropout) or not self.samples or self.always:
            return None
        names = ("input", "p", "training" if func is functional.dropout else "train", "inplace")
        given: dict[str, Any] = {"p": 0.5, "training": True, "inplace": False}
        given |= {**dict(zip(names, args, strict=False)), **kwargs}
        x, p, training = given["input"], given["p"], given[names[2]]
        is_signal = self.producers.get(x) is not None and self._noise_in(x) is None and x not in self._versions
        plain = training is True and not given["inplace"] and isinstance(p, float) and 0 < p < 1
        return p if is_signal and plain and x.is_floating_point() and row_dim(x, self.samples) == 0 else None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        super()._enter(module, args, kwargs)
        if module is self.whole:
            with torch._C.DisableTorchFunction():
                self._remember(module.forward, args, kwargs)

    def _add(self, kind: Kind, function: str, outputs: Iterable[Tensor], **details: Any) -> None:
        outputs = list(outputs)
        super()._add(kind, function, outputs, **details)
        if not outputs:
            return
        layer, out = self.layers[-1], outputs[0]
        with torch._C.DisableTorchFunction():
            if layer in self.rootless:
                self._vary(layer, outputs)
                return
            if function != "view":  # which may be written down first, to bring what the call reads up to date
                if not self._spread(out) or (self._mask is not None and not self._remove_noise(layer, out)):
                    self.unresolved.add(layer)
                self._mask = self._call = None
            if kind is Kind.NORM and self._arrived is not None:
                self._settle(layer, out)
            stored = self.known.get(layer.name)
            if stored is not None and self._takes(out, stored):
                self._match_(out, stored)
            self._measure(layer, out)

    def _vary(self, layer: Layer, outputs: list[Tensor]) -> None:
        """Keep what a noisy parameter is without its noise, and with others."""
        call, self._call = self._call, None
        if call is None or (layer.site in self.always and not self._versions.given(call.given)):
            return
        if self._versions.given(call.given):
            self._versions.keep(outputs, self._versions.each(call.run, call.given))
        elif layer.drops or layer.kind is Kind.NOISE:
            self._versions.hold(outputs[0], layer, call)

    def _spread(self, out: Tensor) -> bool:
        """Give the replicas of what a call made of a noisy parameter their versions; False if that cannot be."""
        call = self._call
        if call is None or not self._versions.given(call.given):
            return True
        return self._versions.spread_(out, call.run, call.given, lambda t: self.producers.get(t) is not None)

    def _measure(self, layer: Layer | None, out: Tensor) -> None:
        found = self._energies(out) if self.plan.energies else None
        if layer is not None and found is not None:
            self.energies[layer] = found

    def _takes(self, x: Tensor, stored: Stored) -> bool:
        """Whether x is a signal of replicas with as many channels as are known, that can be written to."""
        return fits(x, stored) and len(x) % (COUNT * self.samples) == 0

    def _noise_free(self, x: Tensor) -> Tensor | None:
        """The replica without noise, to be written to; None if there is none."""
        return noise_free_rows(x, self.samples)

    def _noise_free_count(self, rows: int) -> int:
        """How many of so many rows, from the first on, are without noise."""
        return rows // COUNT

    @single_threaded()  # some of its places, however many there are
    def _energies(self, x: Tensor) -> Energies | None:
        return energies_of(x, self.samples)

    def _moments(self, x: Tensor) -> Channels:
        return channels_of(x)

    def _match_(self, x: Tensor, stored: Stored) -> Arrival:
        return arrived(x, stored)

    def _as_trained(self, x: Tensor, stored: Stored, *, mean_matched: bool) -> tuple[Tensor, Tensor]:
        return as_trained(x, stored.mean, stored.variance, mean_matched=mean_matched)

    def _arrive(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Match what a norm is fed to what it stores, or have one that stores nothing yet store what it is fed.

        Of a batch that comes in chunks, this is done to the whole, with the first of them.
        """
        entry = next((self._norms[id(t)] for t in tensors((args, kwargs)) if id(t) in self._norms), None)
        x = next(iter(tensors((args, kwargs))))
        source = self.producers.get(x)
        if entry is None or source is None:
            return
        (path, norm), rows, first = entry, len(x), 0
        if (whole := whole_of(x, source)) is not None:
            (x, first), source = whole, source.inputs[0]
        stored = Stored.of(norm)
        if not self._takes(x, stored):
            return
        if norm in self._repaired and self.plan.matched:
            self._undo_repair(norm, x, stored)
        begun = (path, source) in self._begun or (path, source) in self._seen
        if not self.plan.matched:
            if not begun or whole is None:
                noise_free = self._noise_free(x)
                self.fed.setdefault(path, []).extend([] if noise_free is None else [noise_free.clone()])
            self._seen.add((path, source))
            return
        if not begun or whole is None:
            arrival = self._stored_now(x, stored) if norm in self._untrained else self._match_(x, stored)
            self._begun[path, source] = Pending(path, norm, arrival, len(x))
            self._measure(source, x)
        pending = self._begun[path, source]
        pending.missing -= rows
        if not pending.missing:
            self.arrivals.setdefault(path, []).append(pending.arrival)
        self._arrived = pending, max(self._noise_free_count(len(x)) - first, 0)

    def _undo_repair(self, norm: Norm, x: Tensor, stored: Stored) -> None:
        """Have a repaired norm store what training left there, as far as that is known, or the replicas tell."""
        self._repaired.discard(norm)
        known = [trained_buffer(norm, name) if is_as_written(norm) else None for name in STATISTICS]
        mean, variance = self._as_trained(x, stored, mean_matched=is_mean_matched(norm))
        mean, variance = (guess if left is None else left for left, guess in zip(known, (mean, variance), strict=True))
        if is_as_written(norm, "running_mean"):
            write_(stored.mean, mean.to(stored.mean))
        write_(stored.variance, variance.to(stored.variance))

    def _stored_now(self, x: Tensor, stored: Stored) -> Arrival:
        """What a norm is fed that has stored nothing yet: it stores that."""
        found = self._moments(x)
        write_(stored.mean, found.train_mean.to(stored.mean))
        write_(stored.variance, found.train_var.to(stored.variance))
        return Arrival(found, found, found.train_var < 0)

    def _settle(self, layer: Layer, out: Tensor) -> None:
        """Make of a norm's output, without noise, what it is once the norm stores the moments without noise."""
        assert self._arrived is not None
        (pending, rows), self._arrived = self._arrived, None
        norm, found = pending.norm, pending.arrival.channels
        if not pending.missing:
            self.calls[pending.path] = layer
        if norm not in self.plan.settled:
            return
        deviation = (found.train_var + norm.eps).sqrt()
        scale = deviation / (found.matched(self.plan.match, norm.eps)[1] + norm.eps).sqrt()
        gamma, beta = (norm.weight.double(), norm.bias.double()) if norm.affine else (scale**0, scale * 0)
        shift = gamma * (found.eval_mean - found.train_mean) / deviation * (self.plan.stats == "both")
        shape = (1, -1, *(1,) * (out.dim() - 2))
        factor, offset = (t.view(shape).to(out.dtype) for t in (scale, beta - scale * (beta + shift)))
        out[:rows].mul_(factor).add_(offset)

    def _remember(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember a call with noise, with what it is fed, which it may write over, and the shape of its noise."""
        self._call = self._mask = None
        if self._rate is not None:
            return
        given, name = tensors((args, kwargs)), function_name(func)
        masks = [tuple(t.shape) for t in given if self._noise_in(t)]
        signal = next((t for t in given if self.producers.get(t) is not None), None)
        noisy = masks or name == "rrelu" or name in SAMPLES or kind_of_function(name) is Kind.DROPOUT
        noisy = noisy or func == getattr(self.whole, "forward", None)
        if not noisy and not self._versions.given(given):
            return
        self._call = NoisyCall.of(func, args, kwargs, self._copied, self._noise_in)
        if signal is None or not noisy or signal in self._versions:
            return
        channels = (*signal.shape[:2], *(1,) * (signal.dim() - 2))
        self._mask = masks[0] if masks else channels if name in CHANNEL_DROPOUT else tuple(signal.shape)

    def _copied(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of which the same is known."""
        copy = tensor.clone()
        self._versions.alias(copy, tensor)
        for known in (self.producers, self.laws):
            if tensor in known:
                known[copy] = known[tensor]
        return copy

    def _remove_noise(self, layer: Layer, out: Tensor) -> bool:
        """Take noise out of the replica that is to have none; return whether that is known to be right.

        Noise that eval mode has, too, is made the same in all replicas.
        """
        call, dim = self._call, row_dim(out, self.samples)
        if call is None or dim is None or layer.kind not in (Kind.DROPOUT, Kind.NOISE):
            return False
        if layer.site in self.always:
            out.copy_(call.alike(out, self.samples, calm=not self.plan.matched))
            return True
        if layer.kind is Kind.DROPOUT:
            return self._remove_dropout(layer, out, dim)
        quiet = None if is_unknown_factor(layer) else call.quiet(layer)
        if quiet is None or quiet.shape != out.shape or quiet.dtype != out.dtype:
            return False
        rows = out.shape[dim] // COUNT
        out.narrow(dim, 0, rows).copy_(quiet.narrow(dim, 0, rows))
        return call.has_rows(dim, out.shape[dim])

    def _remove_dropout(self, layer: Layer, out: Tensor, dim: int) -> bool:
        """Take a dropout's noise out of one replica.

        The others are given masks of their own where they share one, or so few that chance might not drop any.
        """
        given = self._call.signal if self._call else None
        if not is_multiple(layer) or given is None or given.shape != out.shape or self._mask is None:
            return False
        keep = 1 - (layer.p or 0.0)
        noise_free, *trains = given.chunk(COUNT, dim)
        out.narrow(dim, 0, noise_free.shape[dim]).copy_(noise_free if layer.scaled else noise_free * keep)
        mask = (*(1,) * (out.dim() - len(self._mask)), *self._mask)
        one_for_all = mask[dim] == 1 and noise_free.shape[dim] > 1
        shared = one_for_all or math.prod(mask) < out.numel()
        rare = self.samples * min(keep, 1 - keep) < _SEEN
        if not shared or not layer.p or keep <= 0 or not (one_for_all or rare):
            return not one_for_all
        shape = [size if d != dim else noise_free.shape[dim] for d, size in enumerate(mask)]
        for number, (part, noise) in enumerate(zip(trains, noises(shape, dim, keep, out), strict=True), 1):
            noisy = part * noise if layer.scaled else part * noise * keep
            out.narrow(dim, number * noise_free.shape[dim], noise_free.shape[dim]).copy_(noisy)
        return not one_for_all  # which makes means differ from batch to batch, and no norm stores that

    def _repeat(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Make a call with a dropout inside once more without it, for the replica that is to have no noise."""
        place = hidden_rate(name, args)
        off = {"dropout_p": 0.0} if "dropout_p" in kwargs else {}
        args, kwargs = self._versions.quiet((args, kwargs))
        quiet = func(*(0.0 if i == place else a for i, a in enumerate(args)), **(kwargs | off))
        for noisy, other in zip(tensors(result), tensors(quiet), strict=True):
            noise_free, wanted = self._noise_free(noisy), self._noise_free(other)
            if noise_free is not None and wanted is not None:
                noise_free.copy_(wanted)
        self._measure(self.layers[-1], tensors(result)[0])


def is_multiple(layer: Layer) -> bool:
    """Whether a dropout returns, in eval mode, a known multiple of what it is fed."""
    return layer.kind is Kind.DROPOUT and (layer.scaled or layer.p is not None)
