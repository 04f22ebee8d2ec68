"""Other values: norms of a class of their own that store statistics of what eval mode does not normalise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from evenkeel.model.norm_calls import NormCalls
from evenkeel.model.norms import Norm
from evenkeel.model.restoring import restored

_REASON = (
    "train mode stores statistics of other values than eval mode normalises, such as those of valid positions alone, "
    "and eval mode is what is measured: let its forward normalise the same values in both modes, or leave it as it was"
)
_NEAR = 0.02  # relative


def of_other_values(model: nn.Module, norms: Mapping[str, Norm], run: Callable[[], object]) -> dict[str, str]:
    """Norms that store statistics of other values than eval mode has them normalise, by path, each with what is wrong.

    Only a norm can be one whose class is not torch's, and whose forward in train mode makes no call of torch's batch
    norm with its own statistics. Such a norm is run in train mode behind layers in eval mode: what it stores then must
    have moved towards the mean and variance of what eval mode normalises. The model is restored.

    Args:
        model: the model.
        norms: its norms with running statistics, by path.
        run: runs a few samples through it; called only where a norm's class is not torch's.

    >>> class OfValid(nn.BatchNorm1d):
    ...     def forward(self, x):
    ...         if self.training:
    ...             valid = x[x.abs().sum(1) > 0]
    ...             self.running_mean.lerp_(valid.mean(0), 0.1), self.running_var.lerp_(valid.var(0), 0.1)
    ...             return (x - valid.mean(0)) / valid.std(0)
    ...         return super().forward(x)
    >>> model, x = nn.Sequential(OfValid(2)), torch.randn(64, 2) + 1
    >>> x[::2] = 0
    >>> list(of_other_values(model, {"0": model[0]}, lambda: model(x)))
    ['0']
    """
    own = {path: norm for path, norm in norms.items() if not type(norm).__module__.startswith("torch.")}
    if not own:
        return {}
    try:
        suspects = _without_call(model, own, run)
        return {path: _REASON for path, norm in suspects.items() if not _stores_what_it_reads(model, path, norm, run)}
    except Exception:  # whatever is wrong comes up where it is measured
        return {}


def _without_call(model: nn.Module, norms: Mapping[str, Norm], run: Callable[[], object]) -> dict[str, Norm]:
    """The norms for which a pass in train mode makes no call of torch's batch norm with their own statistics."""
    called = set[str]()
    with restored(model), torch.no_grad(), NormCalls(norms, lambda path, _norm, _x: called.add(path)):
        model.train()
        run()
    return {path: norm for path, norm in norms.items() if path not in called}


def _stores_what_it_reads(model: nn.Module, path: str, norm: Norm, run: Callable[[], object]) -> bool:
    """Whether train mode moves what a norm stores towards statistics of what eval mode has it normalise."""
    fed: list[Tensor] = []
    with restored(model), torch.no_grad():
        model.eval()
        with NormCalls({path: norm}, lambda _path, _norm, x: fed.append(x.detach().clone())):
            run()
        before, counted = _stored(norm), int(norm.num_batches_tracked if norm.num_batches_tracked is not None else 0)
        norm.training = True  # itself: .train() would reach a dropout nested in it
        run()
        after = _stored(norm)
    moved = [new - old for old, new in zip(before, after, strict=True)]
    if not fed or not any(t.any() for t in moved):  # it normalises or stores nothing: that is said elsewhere
        return True
    values = torch.cat([x.double().transpose(0, 1).flatten(1) for x in fed], 1)
    count, mean = values.shape[1], values.mean(1)
    biased = values.var(1, correction=0)
    share = 1 / (counted + 1) if norm.momentum is None else norm.momentum
    largest = max(float(t.abs().max()) for t in (*before, *after, mean, biased))
    rounding = 4 * torch.finfo(norm.running_mean.dtype).eps * largest  # type: ignore[union-attr]
    return any(
        all(
            _is_near(new - old, share * (to - old), rounding)
            for old, new, to in zip(before, after, (mean, variance), strict=True)
        )
        for variance in (biased, biased * count / max(count - 1, 1))
    )


def _is_near(moved: Tensor, expected: Tensor, rounding: float) -> bool:
    """Whether statistics moved as they were to; what is no more than they are rounded by tells nothing."""
    apart = float((moved - expected).square().mean().sqrt())
    return apart <= _NEAR * float(expected.square().mean().sqrt()) + rounding


def _stored(norm: Norm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean.detach().double().clone(), norm.running_var.detach().double().clone()
