"""reestimate_: give every norm layer the statistics of what it sees with dropout off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evenkeel.batches import Forward, device_of, each, forward_pass, map_tensors, samples
from evenkeel.errors import BatchError, EvenkeelError, ModelError
from evenkeel.modes import eager, restored
from evenkeel.norms import Norm, norms_of, pools_batch
from evenkeel.population import Population, batch_moments
from evenkeel.progress import Bar

Layout = Callable[[Tensor], Tensor]

# Forwards that, with momentum 1, leave the batch's own statistics in the buffers: no second pass over the data.
_KERNELS = (
    nn.modules.batchnorm._BatchNorm.forward,
    nn.SyncBatchNorm.forward,
    nn.modules.instancenorm._InstanceNorm.forward,
)
_MERGE_EVERY = 64  # batches whose statistics wait to be merged at once
_FEWEST = 4  # batches from which the spread between batches says enough to stop by


@dataclass(frozen=True, repr=False)
class Reestimation:
    """What `reestimate_` did, and the way back.

    Attributes:
        batches: number of batches used.
        samples: number of samples in them.
        standard_errors: per norm, by path: the relative standard error of its mean variance (NaN from one batch).
        untouched: norms left as they were, by path, each with the reason.
    """

    batches: int
    samples: int
    standard_errors: dict[str, float]
    untouched: dict[str, str]
    _before: Sequence[tuple[nn.Module, str, Tensor]] = ()

    @property
    def standard_error(self) -> float:
        """The largest of the norms' relative standard errors: what `tolerance` is compared with."""
        return _largest(self.standard_errors.values())

    def undo(self) -> None:
        """Put the statistics found before back, in place."""
        with torch.no_grad():
            for norm, name, value in self._before:
                getattr(norm, name).copy_(value)

    def __repr__(self) -> str:
        untouched = "".join(f"; {path!r} untouched: {reason}" for path, reason in self.untouched.items())
        return (
            f"Reestimation({len(self.standard_errors)} norms from {self.batches} batches of {self.samples} samples, "
            f"relative standard error at most {self.standard_error:.2%}{untouched})"
        )


def reestimate_(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    stats: Literal["both", "var", "mean"] = "both",
    tolerance: float | None = None,
    max_batches: int | None = None,
    prior: float = 0,
    progress: bool = False,
) -> Reestimation:
    """Replace the running statistics of every norm layer by those of its input with dropout off.

    The whole model is in eval mode, so that every source of noise is off; only the norm modules themselves normalise
    by, and report, each batch's own statistics. Those are merged over all batches into the population's mean and
    (unbiased) variance, `var = within + between`, in float64. This is the update of Hendrycks & Gimpel (2016, section
    3) and of Li et al. (2018, "adjust", Table 3) with the population's variance in place of a moving average.

    Norms in eval mode inside a model in train mode are frozen and stay as they are; so do norms that no batch reaches.
    Norms used more than once per pass get the statistics of all uses. Buffers are written in place, after the last
    batch. Train/eval flags, momentum, hooks, `num_batches_tracked` and random states are as found afterwards. On any
    error the model is exactly as it was. On a CPU images are laid out channels-last while measuring, which is faster.

    Args:
        model: the model, changed in place.
        batches: an iterable; a tensor b is run as `model(b)`, a tuple or list as `model(b[0])`, a mapping as
            `model(**b)`.
        forward: how to run anything else: `lambda model, batch: ...`.
        stats: which statistics to write: both, var (as the paper says) or mean.
        tolerance: stop as soon as the relative standard error of every norm's mean variance is at most this.
        max_batches: how many batches to use; all if None.
        prior: how many samples the statistics found in the model count for; 0 replaces them.
        progress: show a progress bar.

    Returns:
        A `Reestimation`, whose `undo()` takes it all back.

    Raises:
        ModelError: the model has no norm with running statistics, or all of them are frozen.
        BatchError: the batches raised, ran short, were empty or not finite; says which batch and layer.

    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2, momentum=1.0))
    >>> data = [torch.randn(256, 2) for _ in range(4)]
    >>> _ = model(data[0])
    >>> done = reestimate_(model, data)
    >>> torch.allclose(model[1].running_var, torch.cat(data).var(0))
    True
    """
    if stats not in ("both", "var", "mean"):
        raise EvenkeelError(f"stats must be 'both', 'var' or 'mean', not {stats!r}")
    if prior < 0 or (tolerance is not None and tolerance <= 0):
        raise EvenkeelError(f"prior must be at least 0 and tolerance above 0, not {prior} and {tolerance}")
    with eager(model) as plain:
        free, untouched = _divide(plain)
        with restored(plain), torch.no_grad():
            measurement = _Measurement(plain, free)
            measurement.run(Bar(batches, "re-estimating") if progress else batches, forward, tolerance, max_batches)
    if prior and not measurement.samples:
        raise BatchError(f"prior={prior} needs the number of samples, and no tensor in the batches tells it")
    populations = measurement.populations
    errors = {path: population.standard_error for path, population in populations.items()}
    untouched |= {path: "never reached by the batches" for path in free if path not in populations}
    names = {"both": ("running_mean", "running_var"), "var": ("running_var",), "mean": ("running_mean",)}[stats]
    before = [(free[path], name, getattr(free[path], name).clone()) for path in populations for name in names]
    for path, population in populations.items():
        if prior:
            _blend(population, free[path], prior / measurement.samples)
        values = {"running_mean": population.mean, "running_var": population.variance}
        with torch.no_grad():
            for name in names:
                getattr(free[path], name).copy_(values[name])
    return Reestimation(measurement.batches, measurement.samples, errors, untouched, before)


def _divide(model: nn.Module) -> tuple[dict[str, Norm], dict[str, str]]:
    """The norms to re-estimate, and those that are frozen, with the reason."""
    norms = norms_of(model)
    frozen = {path for path, norm in norms.items() if model.training and not norm.training}
    reason = "frozen: in eval mode while the model is in train mode"
    if len(frozen) == len(norms):
        raise ModelError(f"all {len(norms)} norms are {reason}: call model.eval() to have them count")
    return {path: norms[path] for path in norms if path not in frozen}, dict.fromkeys(sorted(frozen), reason)


class _Measurement:
    """One pass over the batches that gathers what reaches each norm; the model is the caller's to restore."""

    def __init__(self, model: nn.Module, norms: dict[str, Norm]) -> None:
        self.model = model
        self.populations: dict[str, Population] = {}  # in the order in which the pass reaches the norms
        self.batches = 0
        self.samples = 0
        model.eval()
        for path, norm in norms.items():
            norm.training = True  # on the object itself: .train() would wake a dropout nested in it
            norm.momentum = 1.0
            norm.num_batches_tracked = None
            self._watch(path, norm)

    def run(
        self, batches: Iterable[Any], forward: Forward | None, tolerance: float | None, max_batches: int | None
    ) -> None:
        """Run the batches until they end or the tolerance is met."""
        layout = _channels_last if device_of(self.model).type == "cpu" else None
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
            try:
                forward_pass(self.model, map_tensors(layout, batch), self.batches, forward)
                return layout
            except BatchError:  # such as a .view() that needs the usual layout
                for population in self.populations.values():
                    population.drop(self.batches)
        forward_pass(self.model, batch, self.batches, forward)
        return None

    def _merge(self) -> float:
        """Merge what waits at every norm; return the largest relative standard error."""
        for path, population in self.populations.items():
            bad = population.merge()
            if bad is not None:
                raise BatchError(f"batch {bad} is not finite at norm {path!r}: its mean or variance is NaN or infinite")
        return _largest(population.standard_error for population in self.populations.values())

    def _watch(self, path: str, norm: Norm) -> None:
        """Have every call of a norm hand its batch's statistics to the norm's population."""
        pooled = pools_batch(norm)
        population = Population(pooled=pooled)
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        channels = len(mean)

        def read_kernel(module: nn.Module, args: Any, output: Tensor) -> None:
            self.populations[path] = population  # on reaching it, so that they stand in execution order
            count = output.numel() // channels if pooled else len(output)
            population.add(self.batches, count, mean.clone(), variance.clone())

        def read_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.populations[path] = population
            population.add(self.batches, *batch_moments(args[0] if args else kwargs["input"], pooled=pooled))

        if type(norm).forward in _KERNELS and variance.dtype in (torch.float32, torch.float64):
            norm.register_forward_hook(read_kernel)
        else:
            norm.register_forward_pre_hook(read_input, with_kwargs=True)


def _blend(population: Population, norm: Norm, weight: float) -> None:
    """Merge the statistics found in the norm, as if they came from `weight` times the values seen."""
    assert norm.running_mean is not None and norm.running_var is not None
    population.add(0, weight * population.count, norm.running_mean, norm.running_var)
    population.merge()


def _channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    known = tensor.is_floating_point() and tensor.ndim in formats
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if known else tensor


def _largest(values: Iterable[float]) -> float:
    """The largest, NaN if there is none or one is NaN: not known to be below any tolerance."""
    listed = list(values)
    return max(listed) if listed and not any(map(math.isnan, listed)) else math.nan
