"""Measurement: what reaches each norm layer while batches run through a model in eval mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.batches import Forward, device_of, each, forward_pass, map_tensors, samples
from evenkeel.errors import BatchError
from evenkeel.norms import Norm, pools_batch
from evenkeel.population import Population, batch_moments

Layout = Callable[[Tensor], Tensor]

# Forwards that, with momentum 1, leave the batch's own statistics in the buffers: no second pass over the data.
_KERNELS = (
    nn.modules.batchnorm._BatchNorm.forward,
    nn.SyncBatchNorm.forward,
    nn.modules.instancenorm._InstanceNorm.forward,
)
_MERGE_EVERY = 64  # batches whose statistics wait to be merged at once
_FEWEST = 4  # batches from which the spread between batches says enough to stop by


class Measurement:
    """One pass over batches that gathers the population at every norm's input; the model is the caller's to restore.

    Args:
        model: is put into eval mode, so that every source of noise is off, and gets hooks.
        norms: the norms to watch, by path.
        by_batch: whether these norms normalise by each batch's own statistics, as when statistics are re-estimated,
            or by those they store, as in eval mode.

    Attributes:
        populations: of the norms reached, by path, in the order in which the pass reaches them.
        batches: number of batches run.
        samples: number of samples in them, as far as tensors tell.

    >>> model, data = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)), torch.randn(3, 64, 2)
    >>> measurement = Measurement(model, {"1": model[1]}, by_batch=False)
    >>> measurement.run(data)
    >>> torch.allclose(measurement.populations["1"].variance.float(), data.flatten(0, 1).var(0))
    True
    """

    def __init__(self, model: nn.Module, norms: dict[str, Norm], *, by_batch: bool) -> None:
        self.model = model
        self.populations: dict[str, Population] = {}
        self.batches = 0
        self.samples = 0
        model.eval()
        for path, norm in norms.items():
            self._watch(path, norm, by_batch=by_batch)

    def run(
        self,
        batches: Iterable[Any],
        forward: Forward | None = None,
        max_batches: int | None = None,
        tolerance: float | None = None,
    ) -> None:
        """Run the batches, until the relative standard error of every norm's mean variance is within the tolerance."""
        layout = _channels_last if device_of(self.model).type == "cpu" else None  # there it makes statistics cheap
        for batch in each(batches, self.model, max_batches):
            self.batches += 1
            self.samples += samples(batch)
            layout = self._run_one(batch, forward, layout)
            if tolerance is None:
                if self.batches % _MERGE_EVERY == 0:
                    self._merge()
            elif self._is_check() and self._merge() <= tolerance:
                return
        self._merge()
        if not self.populations:
            raise BatchError(f"the {self.batches} batches reached none of the model's norms")

    def _is_check(self) -> bool:
        """Whether to look at the standard errors now: rarely enough that looking costs nothing."""
        return self.batches >= _FEWEST and self.batches % (1 + self.batches // 8) == 0

    def _run_one(self, batch: Any, forward: Forward | None, layout: Layout | None) -> Layout | None:
        """Run one batch, in the layout given if the model takes it; return the layout for the next one."""
        if layout is not None:
            reached = dict(self.populations)
            try:
                forward_pass(self.model, map_tensors(layout, batch), self.batches, forward)
                return layout
            except BatchError:  # such as a .view() that needs the usual layout
                for population in self.populations.values():
                    population.drop(self.batches)
                self.populations = reached
        forward_pass(self.model, batch, self.batches, forward)
        return None

    def _merge(self) -> float:
        """Merge what waits at every norm; return the largest relative standard error."""
        for path, population in self.populations.items():
            bad = population.merge()
            if bad is not None:
                raise BatchError(f"batch {bad} is not finite at norm {path!r}: its mean or variance is NaN or infinite")
        return largest(population.standard_error for population in self.populations.values())

    def _watch(self, path: str, norm: Norm, *, by_batch: bool) -> None:
        """Have every call of a norm hand its batch's statistics to the norm's population."""
        pooled = pools_batch(norm)
        population = Population(pooled=pooled)
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        channels = len(mean)

        def read_kernel(module: nn.Module, args: Any, output: Tensor) -> None:
            self.populations[path] = population
            count = output.numel() // channels if pooled else len(output)
            population.add(self.batches, count, mean.clone(), variance.clone())

        def read_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.populations[path] = population
            population.add(self.batches, *batch_moments(args[0] if args else kwargs["input"], pooled=pooled))

        if by_batch:
            norm.training = True  # on the object itself: .train() would wake a dropout nested in it
            norm.momentum = 1.0
        if by_batch and type(norm).forward in _KERNELS and variance.dtype in (torch.float32, torch.float64):
            norm.num_batches_tracked = None  # spares the counting
            norm.register_forward_hook(read_kernel)
        else:
            norm.register_forward_pre_hook(read_input, with_kwargs=True)


def largest(values: Iterable[float]) -> float:
    """The largest value; NaN if there is none or one is NaN: not known to be within any tolerance."""
    listed = list(values)
    return max(listed) if listed and not any(map(math.isnan, listed)) else math.nan


def _channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    known = tensor.is_floating_point() and tensor.ndim in formats
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if known else tensor
