"""What norm layers store: which may be written, what they hold, and populations written into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError, ModelError
from evenkeel.model.buffers import Held, write_, write_buffers_
from evenkeel.model.flags import FROZEN, frozen_in
from evenkeel.model.norms import Norm, foreign_norms, norms_of
from evenkeel.statistics.population import Population
from evenkeel.statistics.stored_values import NEVER_UPDATED, faults_in, is_never_updated

STORED = {"both": ("running_mean", "running_var"), "var": ("running_var",), "mean": ("running_mean",)}


def divide(model: nn.Module, *, leave: bool) -> tuple[dict[str, Norm], dict[str, str]]:
    """The norms to re-estimate, and those that are frozen, or left as never updated, with the reason."""
    norms, modules = norms_of(model), frozen_in(model)
    untouched = {path: FROZEN for path, norm in norms.items() if norm in modules}
    if len(untouched) == len(norms):
        raise ModelError(f"all {len(norms)} norms are {FROZEN}: call model.eval() to have them count")
    if leave:
        untouched |= {p: NEVER_UPDATED for p, norm in norms.items() if p not in untouched and is_never_updated(norm)}
    free = {path: norm for path, norm in norms.items() if path not in untouched}
    if not free:
        count = sum(reason == NEVER_UPDATED for reason in untouched.values())
        raise ModelError(
            f"{count} of {len(norms)} norms, such as {next(iter(norms))!r}: {NEVER_UPDATED}; pass unsure='write' "
            "(--unsure write) to replace them, or held_out= and choose='best' (--held-out) to let a score decide"
        )
    return free, dict(sorted(untouched.items())) | foreign_norms(model)


def found_in(norm: Norm) -> tuple[Tensor, Tensor]:
    """A norm's own running mean and variance, not copies."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def values_of(norm: Norm) -> tuple[Tensor, Tensor]:
    """Copies of a norm's running mean and variance, on the CPU."""
    mean, variance = found_in(norm)
    return mean.detach().to("cpu", copy=True), variance.detach().to("cpu", copy=True)


def require_cured(norms: Mapping[str, Norm], names: Sequence[str]) -> None:
    """Raise ModelError where a norm stores what cannot be, and it is not among the buffers to be written."""
    for path, norm in norms.items():
        for name in faults_in(norm):
            if name not in names:
                raise ModelError(f"{name} of {path!r} is not usable, and stays so: pass stats='both'")


def set_usable_(norms: Iterable[Norm]) -> None:
    """Give norms that store what is not finite, or negative variances, those of a new norm to begin with."""
    for norm in norms:
        if faults_in(norm):
            mean, variance = found_in(norm)
            write_(mean, torch.zeros_like(mean))
            write_(variance, torch.ones_like(variance))


def store_(norm: Norm, population: Population, names: Sequence[str]) -> None:
    """Write a population into the norm's buffers of these names, unmarked."""
    values = {"running_mean": population.mean, "running_var": population.variance}
    for name in names:
        write_(getattr(norm, name), values[name])


def write_populations_(
    populations: Mapping[Norm, Population], names: Sequence[str], shares: Mapping[nn.Module, float], is_mean: bool
) -> Held:
    """Write the populations' statistics into the norms, all or none of them; return what was there before."""
    values: dict[tuple[nn.Module, str], Tensor] = {
        (norm, name): (population.mean if name == "running_mean" else population.variance).to(getattr(norm, name).dtype)
        for norm, population in populations.items()
        for name in names
    }
    for (norm, name), value in values.items():
        if not value.isfinite().all():
            raise BatchError(f"{name} of {norm} reaches {float(value.abs().max())}: it overflows {value.dtype}")
    return write_buffers_(values, shares, mean_matched=is_mean)
