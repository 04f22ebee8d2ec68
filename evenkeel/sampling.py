"""Sampling: a model's signals, with and without the noise of dropout, from weights and norms alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.batches import device_of, map_tensors, tensors
from evenkeel.errors import TraceError
from evenkeel.graph import Layer, LayerGraph
from evenkeel.kinds import HIDDEN_DROPOUT, Kind, function_name, kind_of_function
from evenkeel.modes import write_
from evenkeel.norms import Norm
from evenkeel.recorder import Recorder
from evenkeel.replicas import COUNT, Channels, Energies, calm_rows, channels_of, energies_of, match_, row_dim
from evenkeel.stored import Stored, is_untrained

ELEMENTS = 1 << 26  # of all signals of all replicas together, as far as the fewest samples allow
_FEWEST, _MOST = 4, 4096  # samples
_CONTRAST = 0.35  # standard deviation of log contrast between inputs; .32 in CIFAR-10, .16 in MNIST
_SEEN = 16  # expected number of masks that drop, from which on these are left to chance
_SHARED = frozenset("dropout1d dropout2d dropout3d feature_dropout".split())  # one mask for all positions of a channel


class Sampler(Recorder):
    """Records a pass of replicas, and sees to it that each stays what it is: noisy or not, as strong as stored.

    A sample of signals carries what a propagation of moments would have to be told about every pair of channels and
    positions, and goes through any operation by the operation itself.

    Args:
        model: the model, to be run in train mode with its norms in eval mode.
        samples: how many inputs there are.
        norms: the norms with running statistics, by path.
        known: what is known of other layers, by name.
        settled: whether norms hand on, without noise, what they would once their statistics were right.

    Attributes:
        channels: of every norm, by path, the moments of what each of its calls was fed.
        energies: of every layer that holds replicas, what these share.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int,
        norms: Mapping[str, Norm],
        known: Mapping[str, Stored],
        settled: bool,
    ) -> None:
        super().__init__(model, training=True)
        self.samples = samples
        self.known = known
        self.settled = settled
        self.channels: dict[str, list[Channels]] = {}
        self.energies: dict[Layer, Energies] = {}
        # Their buffers are what a call is known by, whichever module makes it.
        self._norms = {id(norm.running_var): (path, norm) for path, norm in norms.items()}
        self._untrained = {norm for norm in norms.values() if is_untrained(norm)}
        self._given: Tensor | None = None  # what the call that runs was fed
        self._mask: tuple[int, ...] = ()  # the shape of the mask that it multiplies by, as far as that is known
        self._arrived: tuple[Norm, Channels] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, function_name(func)
        if self.whole is None:
            if kind_of_function(name) is Kind.NORM:
                self._arrive(args, kwargs)
            else:
                self._set_aside(name, args, kwargs)
        result = super().__torch_function__(func, types, args, kwargs)
        if self.whole is None and name in HIDDEN_DROPOUT and self.layers and self.layers[-1].p:
            self._repeat(func, name, args, kwargs, result)
        return result

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        super()._enter(module, args, kwargs)
        if module is self.whole:
            with torch._C.DisableTorchFunction():
                self._set_aside("dropout", args, kwargs)

    def _add(self, kind: Kind, function: str, outputs: Iterable[Tensor], **details: Any) -> None:
        outputs = list(outputs)
        super()._add(kind, function, outputs, **details)
        layer = self.layers[-1]
        with torch._C.DisableTorchFunction():
            if not outputs:
                return
            out = outputs[0]
            if kind is Kind.DROPOUT:
                self._quieten(layer, out)
            elif kind is Kind.NORM and self._arrived is not None:
                self._settle(out, *self._arrived)
                self._arrived = None
            stored = self.known.get(layer.name)
            if stored is not None and _takes(out, self.samples, stored):
                match_(out, stored.mean, stored.variance)
            self._weigh(layer, out)

    def _weigh(self, layer: Layer | None, out: Tensor) -> None:
        found = energies_of(out, self.samples)
        if layer is not None and found is not None:
            self.energies[layer] = found

    def _arrive(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Match what a norm is fed to what it stores, or have one that stores nothing yet store what it is fed."""
        entry = next((self._norms[id(t)] for t in tensors((args, kwargs)) if id(t) in self._norms), None)
        x = next(iter(tensors((args, kwargs))))
        if entry is None:
            return
        path, norm = entry
        assert norm.running_mean is not None and norm.running_var is not None
        if not _takes(x, self.samples, Stored(norm.running_mean, norm.running_var)):
            return
        if norm in self._untrained:
            found = channels_of(x)
            write_(norm.running_mean, found.train_mean.to(norm.running_mean))
            write_(norm.running_var, found.train_var.to(norm.running_var))
        else:
            found = match_(x, norm.running_mean, norm.running_var)
        self.channels.setdefault(path, []).append(found)
        self._arrived = norm, found
        self._weigh(self.producers.get(x), x)

    def _settle(self, out: Tensor, norm: Norm, found: Channels) -> None:
        """Make of a norm's output, without noise, what it is once the norm stores the moments without noise."""
        calm = calm_rows(out, self.samples)
        if not self.settled or calm is None:
            return
        deviation = (found.train_var + norm.eps).sqrt()
        scale = deviation / (found.eval_var + norm.eps).sqrt()
        gamma, beta = (norm.weight.double(), norm.bias.double()) if norm.affine else (scale**0, scale * 0)
        mean = beta + gamma * (found.eval_mean - found.train_mean) / deviation  # of what came out
        shape = (1, -1, *(1,) * (out.dim() - 2))
        factor, offset = ((t.view(shape).to(out.dtype)) for t in (scale, beta - scale * mean))
        calm.mul_(factor).add_(offset)

    def _set_aside(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember what a dropout is fed, which it may write over, and the mask that it is fed, if it is."""
        given = tensors((args, kwargs))
        masks = [tuple(t.shape) for t in given if t in self.noise]
        if not masks and kind_of_function(name) is not Kind.DROPOUT:
            return
        signal = next((t for t in given if self.producers.get(t) is not None), None)
        self._given = None if signal is None else signal.clone()
        if signal is not None and name in _SHARED:
            masks = [(*signal.shape[:2], *(1,) * (signal.dim() - 2))]
        self._mask = masks[0] if masks else ()

    def _quieten(self, layer: Layer, out: Tensor) -> None:
        """Take the noise of a dropout out of the replica that is to have none, and see that the others have some."""
        given, dim = self._given, row_dim(out, self.samples)
        if given is None or dim is None or given.shape != out.shape:
            return
        calm, *trains = given.chunk(COUNT, dim)
        out.narrow(dim, 0, calm.shape[dim]).copy_(calm)
        shared = 0 < math.prod(self._mask) < out.numel() and len(self._mask) == out.dim()
        if shared and layer.p and layer.p < 1 and layer.scaled and self.samples * layer.p < _SEEN:
            strength = math.sqrt(layer.p / (1 - layer.p))
            shape = [size if d != dim else calm.shape[dim] for d, size in enumerate(self._mask)]
            signs = _balanced(shape, dim, out)
            for i, (part, sign) in enumerate(zip(trains, (signs, signs * _balanced(shape, dim, out)), strict=True), 1):
                out.narrow(dim, i * calm.shape[dim], calm.shape[dim]).copy_(part * (1 + strength * sign))

    def _repeat(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Make a call with a dropout inside once more without it, for the replica that is to have no noise."""
        place = HIDDEN_DROPOUT[name]
        off = {"dropout_p": 0.0} if "dropout_p" in kwargs else {}
        quiet = func(*(0.0 if i == place else a for i, a in enumerate(args)), **(kwargs | off))
        for noisy, other in zip(tensors(result), tensors(quiet), strict=True):
            calm, wanted = calm_rows(noisy, self.samples), calm_rows(other, self.samples)
            if calm is not None and wanted is not None:
                calm.copy_(wanted)


def sample(
    model: nn.Module,
    run: Callable[[Any], Any],
    inputs: Any,
    graph: LayerGraph,
    *,
    norms: Mapping[str, Norm],
    known: Mapping[str, Stored],
    settled: bool = False,
    elements: int = ELEMENTS,
    seed: int = 0,
) -> Sampler:
    """Send replicas of random inputs through a model, which is the caller's to restore.

    Args:
        model: the model, its modes set as for a recording.
        run: makes one forward pass, given inputs such as `inputs`.
        inputs: an example, whose floating tensors give shapes only.
        graph: the model's graph for it, which tells how many samples there can be.
        norms: the norms with running statistics, by path.
        known: what is known of other layers, by name.
        settled: as for `Sampler`.
        elements: of all signals of all replicas together: how large the sample is.
        seed: of inputs and masks.

    Raises:
        TraceError: the pass raised, such as for a model that takes batches of one size only.
    """
    sizes = [len(t) for t in tensors(inputs) if t.dim()]
    size = sizes[0] if sizes else 1
    single = sum(math.prod(layer.shape) for layer in graph) / max(size, 1)
    samples = int(min(max(elements / COUNT / max(single, 1), _FEWEST), _MOST))
    torch.manual_seed(seed)
    sampler = Sampler(model, samples=samples, norms=norms, known=known, settled=settled)
    replicated = map_tensors(lambda t: _replicated(t, size, samples).to(device_of(model)), inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler.run(run, replicated)
    except Exception as error:
        raise TraceError(f"with {COUNT * samples} random inputs in one batch, {sampler.explain(error)}") from error
    return sampler


def _replicated(example: Tensor, size: int, samples: int) -> Tensor:
    """Replicas of random inputs in an example's place; of an example without a batch dimension, itself."""
    if not example.dim() or len(example) != size:
        return example
    if example.is_floating_point():
        drawn = random_field((samples, *example.shape[1:])).to(example.dtype)
    else:
        drawn = example[torch.randint(size, (samples,))]
    return torch.cat([drawn] * COUNT)


def random_field(shape: tuple[int, ...]) -> Tensor:
    """Random inputs of mean 0 and variance 1, each normal given its contrast, which varies; images are smooth.

    Amplitudes fall as 1 / frequency, as in natural images and much else that is sampled along space or time (Field
    1987), whose contrasts, too, vary from one to the next.

    Args:
        shape: samples, channels, then the dimensions along which the field is smooth.

    >>> random_field((1000, 3, 8, 8)).var().round(decimals=1)
    tensor(1.)
    """
    field, dims = torch.randn(shape), list(range(2, len(shape)))
    if dims and math.prod(shape[2:]) > 1:
        squares = torch.zeros(())
        for dim, size in zip(dims, shape[2:], strict=True):
            squares = squares + (torch.fft.fftfreq(size) ** 2).view(-1, *(1,) * (len(shape) - 1 - dim))
        amplitude = 1 / squares.sqrt().clamp_min(1 / max(shape[2:]))
        field = torch.fft.ifftn(torch.fft.fftn(field, dim=dims) * amplitude, dim=dims).real
    contrast = (_CONTRAST * torch.randn(shape[0])).exp()
    field = field * contrast.view(-1, *(1,) * (len(shape) - 1))
    return field / field.square().mean().sqrt()


def _balanced(shape: list[int], dim: int, like: Tensor) -> Tensor:
    """Random signs, as many of one as of the other along a dimension.

    Noise of two values has the variance of a mask's, and few samples show it, where they might show no mask that drops.
    """
    order = torch.rand(shape).argsort(dim).argsort(dim) % 2
    flips = torch.rand(shape).narrow(dim, 0, 1) < 0.5  # of an odd number, which is the more frequent one
    return (2 * (order ^ flips) - 1).to(like)


def _takes(x: Tensor, samples: int, stored: Stored) -> bool:
    """Whether x is a signal of replicas with as many channels as are known."""
    rows = x.dim() > 1 and len(x) % (COUNT * samples) == 0 and x.is_floating_point()
    return rows and x.shape[1] == len(stored.mean)
