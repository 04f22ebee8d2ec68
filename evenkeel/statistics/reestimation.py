"""reestimate_: give every norm layer the statistics of its input with dropout off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError, EvenkeelError, ModelError
from evenkeel.model.batches import Forward
from evenkeel.model.buffers import Held, write_buffers_
from evenkeel.model.evaluation import Score, Scorer, evaluate
from evenkeel.model.flags import FROZEN, frozen_in
from evenkeel.model.norms import Norm, foreign_norms, norms_of
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.progress import Bar
from evenkeel.statistics.batch_merging import MOST_PARTS
from evenkeel.statistics.distributed import Ranks, default_group
from evenkeel.statistics.measurement import MEMORY, Measurement
from evenkeel.statistics.norm_change import NormChange
from evenkeel.statistics.population import Population, Statistics
from evenkeel.statistics.reestimation_report import Reestimation, largest
from evenkeel.statistics.settling import settle

_STORED = {"both": ("running_mean", "running_var"), "var": ("running_var",), "mean": ("running_mean",)}


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
    group: Any = None,
    memory: int = MEMORY,
    held_out: Iterable[Any] | None = None,
    score: Scorer | None = None,
    choose: Literal["new", "best"] = "new",
) -> Reestimation:
    """Replace the running statistics of every norm layer by those of its input with dropout off.

    The whole model is in eval mode, so that every source of noise is off, and what each norm is fed is merged over all
    batches into the population's mean and (unbiased) variance, `var = within + between`, in float64: the update of
    Hendrycks & Gimpel (2016, section 3) and of Li et al. (2018, "adjust", Table 3) with the population's variance in
    place of a moving average. Norms are settled in order (see `settle`): each is measured on what it
    reads once the norms before it normalise by their own new statistics, as they will in eval mode, however small the
    batches. Small batches are merged into large ones, which is exact and faster, within `memory`.

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
        group: the process group of torch.distributed that measures together, each process on batches of its own, all
            calling this; every process if None. They end with the same statistics, those of all their batches.
        memory: bytes that the largest input of a norm may take where batches are merged; 0 runs each by itself. They
            run apart, too, where merging is found to be wrong: the model fails on merged batches, normalises by its
            batch in eval mode, or feeds a norm no more rows from many samples than from one, as with time first.
        held_out: pairs of inputs and targets, or mappings, iterated over twice, on which the model is scored before and
            after, run by `forward` too (see `evaluate`): did it help?
        score: what to judge held-out data by, `score(outputs, targets)`, lower is better; if None, log loss of class
            labels, squared error of floating targets, or the loss that the model returns.
        choose: "best" takes the new statistics back if the held-out loss is not lower with them; NaN is never lower,
            and anything finite is lower than NaN.

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
    if stats not in _STORED:
        raise EvenkeelError(f"stats must be 'both', 'var' or 'mean', not {stats!r}")
    if memory < 0:
        raise EvenkeelError(f"memory must be a number of bytes, or 0, not {memory}")
    if not 0 <= prior < math.inf or (tolerance is not None and not 0 < tolerance < math.inf):
        raise EvenkeelError(f"prior must be at least 0 and tolerance above 0, both finite, not {prior} and {tolerance}")
    if choose not in ("new", "best") or (choose == "best" and held_out is None):
        raise EvenkeelError(f"choose must be 'new', or, with held_out data to judge by, 'best', not {choose!r}")
    if score is not None and held_out is None:
        raise EvenkeelError("score says how to judge held-out data, and there are none: pass held_out=")
    judge = None if held_out is None else partial(evaluate, batches=held_out, score=score, forward=forward)
    with unwrapped(model) as plain:
        free, untouched = _divide(plain)
        channels = [norm.num_features for norm in free.values()]
        ranks = Ranks(default_group(group), channels=channels, parts=MOST_PARTS)
        before = None if judge is None else ranks.collectively(partial(judge, plain))
        with restored(plain), torch.no_grad():
            measurement = Measurement(plain, free, forward=forward, ranks=ranks, memory=memory)
            with closing(Bar(batches, "re-estimating", total=max_batches)) as bar:
                stream = bar if progress else batches
                populations = settle(measurement, stream, max_batches, tolerance, stored=_STORED[stats])
    for path, population in populations.items():
        if population.pooled and population.count < 2:
            raise BatchError(f"norm {path!r} saw one value per channel, which has no variance: more samples are needed")
    errors = {path: population.standard_error for path, population in populations.items()}
    untouched |= {path: "never reached by the batches" for path in free if path not in populations}
    if prior and not measurement.samples:
        raise BatchError(f"prior={prior} needs the number of samples, and no tensor in the batches has it")
    for path, population in populations.items():
        if prior:
            _blend(population, free[path], prior / measurement.samples, ranks)
    held = _write({free[path]: population for path, population in populations.items()}, _STORED[stats])
    done = Reestimation(
        [NormChange.of(path, free[path], held, errors[path]) for path in populations],
        batches=measurement.batches,
        samples=measurement.samples,
        untouched=untouched,
        converged=tolerance is None or largest(errors.values()) <= tolerance,
        held=held,
        before=before,
    )
    return done if judge is None or before is None else _scored(done, before, model, judge, choose, ranks)


def _scored(
    done: Reestimation, before: Score, model: nn.Module, judge: Callable[..., Score], choose: str, ranks: Ranks
) -> Reestimation:
    """Score the model with its new statistics, and take them back if they are no better and the best are to be kept."""
    try:
        with unwrapped(model) as plain:
            after = ranks.collectively(partial(judge, plain))
    except BaseException:
        done.undo()
        raise
    better = after.is_better_than(before)
    done.after, done.kept = after, choose == "new" or bool(ranks.first(torch.tensor([better])))
    if not done.kept:
        done.undo()
    return done


def _write(populations: dict[Norm, Population], names: Sequence[str]) -> Held:
    """Write the populations' statistics into the norms, all or none of them; return what was there before."""
    values: dict[tuple[nn.Module, str], Tensor] = {
        (norm, name): (population.mean if name == "running_mean" else population.variance).to(getattr(norm, name).dtype)
        for norm, population in populations.items()
        for name in names
    }
    for (norm, name), value in values.items():
        if not value.isfinite().all():
            raise BatchError(f"{name} of {norm} reaches {float(value.abs().max())}: it overflows {value.dtype}")
    return write_buffers_(values)


def _divide(model: nn.Module) -> tuple[dict[str, Norm], dict[str, str]]:
    """The norms to re-estimate, and those that are frozen, with the reason."""
    norms = norms_of(model)
    modules = frozen_in(model)
    frozen = {path for path, norm in norms.items() if norm in modules}
    if len(frozen) == len(norms):
        raise ModelError(f"all {len(norms)} norms are {FROZEN}: call model.eval() to have them count")
    untouched = dict.fromkeys(sorted(frozen), FROZEN) | foreign_norms(model)
    return {path: norms[path] for path in norms if path not in frozen}, untouched


def _blend(population: Population, norm: Norm, weight: float, ranks: Ranks) -> None:
    """Merge the statistics found in the norm, the first rank's, as if they came from `weight` times the values seen."""
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = ranks.first(torch.stack([norm.running_mean, norm.running_var]))
    population.add([(0, Statistics(weight * population.count, mean, variance))])
    population.merge()
