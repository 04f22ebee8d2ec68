"""reestimate_: give every norm layer the statistics of its input with dropout off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evenkeel.errors import BatchError, EvenkeelError, ModelError, TraceError
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.tracing import record
from evenkeel.model.batches import Forward, call
from evenkeel.model.batches import samples as samples_in
from evenkeel.model.buffers import Held, write_, write_buffers_
from evenkeel.model.evaluation import Score, Scorer, evaluate
from evenkeel.model.flags import FROZEN, frozen_in
from evenkeel.model.norms import Norm, foreign_norms, norms_of
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.progress import Bar
from evenkeel.statistics.batch_merging import MOST_PARTS, Count
from evenkeel.statistics.distributed import Ranks, default_group
from evenkeel.statistics.measurement import MEMORY, Measurement
from evenkeel.statistics.norm_change import NormChange
from evenkeel.statistics.population import Population
from evenkeel.statistics.prior import Prior, Weight
from evenkeel.statistics.reestimation_report import Reestimation, largest
from evenkeel.statistics.settling import Settled, settle
from evenkeel.statistics.stored_values import NEVER_UPDATED, faults_in, is_never_updated
from evenkeel.statistics.stretching import has_class_labels, stretched, warn

_HELD = (
    "settled on {} of {} samples, held from all over the stream: the first were not like the others, and all can be "
    "had only once; shuffle them, or pass batches that can be iterated over again, such as a list or a DataLoader"
)
_RESTLESS = (
    "off by {:.1%}: what it is fed depends on what it stores, as where weights are rounded that it scales, and no "
    "statistics were found that agree with themselves; train it on with its statistics fixed"
)
_NO_SAY = (
    "prior='auto' had no say: one batch tells no standard errors, so its statistics replaced the old ones; pass its "
    "samples in several batches, or a number"
)
_STORED = {"both": ("running_mean", "running_var"), "var": ("running_var",), "mean": ("running_mean",)}


def reestimate_(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    stats: Literal["both", "var", "mean"] = "both",
    tolerance: float | None = None,
    max_batches: int | None = None,
    prior: Weight = 0,
    samples: Callable[[Any], int] | int | None = None,
    progress: bool = False,
    group: Any = None,
    memory: int = MEMORY,
    held_out: Iterable[Any] | None = None,
    score: Scorer | None = None,
    choose: Literal["new", "best"] = "new",
    unsure: Literal["leave", "write"] = "leave",
) -> Reestimation:
    """Replace the running statistics of every norm layer by those of its input with dropout off.

    The whole model is in eval mode, so that every source of noise is off, and what each norm is fed is merged over all
    batches into the population's mean and (unbiased) variance, `var = within + between`, in float64: the update of
    Hendrycks & Gimpel (2016, section 3) and of Li et al. (2018, "adjust", Table 3) with the population's variance in
    place of a moving average. Norms are settled in order (see `settle`): each is measured on what it
    reads once the norms before it normalise by their own new statistics, as they will in eval mode, however small the
    batches. Small batches are merged into large ones, which is exact and faster, within `memory`.

    Norms in eval mode inside a model in train mode are frozen and stay as they are; so do norms that no batch reaches,
    and, unless told otherwise, those that were never updated though their weight and bias were trained.
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
        prior: how many samples the statistics found in the model count for, blended norm after norm, so that each is
            fed by norms that store the blend; 0 replaces them. One number, one for every norm, by path or in order, or
            "auto": as much as the standard errors of the new ones say (see `Prior`).
        samples: how many samples a batch holds, as a number or a function of the batch, where its tensors do not tell.
        progress: show a progress bar.
        group: the process group of torch.distributed that measures together, each process on batches of its own, all
            calling this; every process if None. They end with the same statistics, those of all their batches.
        memory: bytes that the largest input of a norm may take where batches are merged; 0 runs each by itself. They
            run apart, too, where merging is found to be wrong: samples of two batches, run apart and as one, do not
            feed every norm the same.
        held_out: pairs of inputs and targets, or mappings, iterated over twice, on which the model is scored before and
            after, run by `forward` too (see `evaluate`): did it help?
        score: what to judge held-out data by, `score(outputs, targets)`, lower is better; if None, log loss of class
            labels, squared error of floating targets, or the loss that the model returns.
        choose: "best" takes the new statistics back if the held-out loss is not lower with them; NaN is never lower,
            and anything finite is lower than NaN.
        unsure: what to do with norms that store mean 0 and variance 1 as built, beside trained weights. If training ran
            them in eval mode these are right, and others ruin the model; if the model is a copy made before training,
            such as an average of weights, they are wrong. "leave" leaves them, unless `choose="best"` lets held-out
            data decide; "write" replaces them.

    Returns:
        A `Reestimation`, whose `undo()` takes it all back.

    Raises:
        ModelError: the model has no norm with running statistics, or all of them are frozen, or left as they are; or
            one stores what is not finite where `stats` leaves it.
        BatchError: the batches raised, ran short, were empty or not finite; says which batch and layer.

    Warns:
        StretchWarning: dropout stands right before a norm, nothing says that the model is a classifier, and no held-out
            data judge: what the norm passes on has grown, and so may a regression's error.

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
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise EvenkeelError(f"tolerance must be above 0 and finite, not {tolerance}")
    if choose not in ("new", "best") or (choose == "best" and held_out is None):
        raise EvenkeelError(f"choose must be 'new', or, with held_out data to judge by, 'best', not {choose!r}")
    if unsure not in ("leave", "write"):
        raise EvenkeelError(f"unsure must be 'leave' or 'write', not {unsure!r}")
    if score is not None and held_out is None:
        raise EvenkeelError("score says how to judge held-out data, and there are none: pass held_out=")
    if isinstance(held_out, Iterator):
        what = type(held_out).__name__
        raise BatchError(f"held_out is scored twice, and a {what} is used up by then: pass a list or a DataLoader")
    judge = None if held_out is None else partial(evaluate, batches=held_out, score=score, forward=forward)
    with unwrapped(model) as plain:
        is_told = unsure == "write" or choose == "best" or any(isinstance(m, AveragedModel) for m in model.modules())
        free, untouched = _divide(plain, leave=not is_told)
        channels = [norm.num_features for norm in free.values()]
        ranks = Ranks(default_group(group), channels=channels, parts=MOST_PARTS)
        blend = Prior(free, prior, ranks)
        before = None if judge is None else ranks.collectively(partial(judge, plain))
        with restored(plain), torch.no_grad():
            measurement = Measurement(plain, free, forward=forward, ranks=ranks, memory=memory, count=_count(samples))
            _require_cured(free, _STORED[stats])
            _set_usable_(free.values())

            def store(path: str, population: Population, count: float) -> None:
                population.pool()
                _store(free[path], blend.blended(path, population, count), _STORED[stats])

            with closing(Bar(batches, "re-estimating", total=max_batches)) as bar:
                stream = bar if progress else batches
                settled = settle(measurement, stream, store, max_batches=max_batches, tolerance=tolerance)
        found = settled.populations
        populations = {path: blend.blended(path, p, measurement.samples) for path, p in found.items()}
        graph = _graph_of_a_regression(plain, measurement, forward) if _has_shrunk(populations, free) else None
    for path, population in found.items():
        if population.pooled and population.count < 2:
            raise BatchError(f"norm {path!r} saw one value per channel, which has no variance: more samples are needed")
    untouched |= {path: measurement.why_not(path) for path in free if path not in found}
    errors = {
        path: math.hypot(p.standard_error, settled.doubts[path].mean if path in settled.doubts else 0.0)
        for path, p in found.items()
    }
    chances = {path: p.chance(*_found_in(free[path])) for path, p in found.items()}
    shares: dict[nn.Module, float] = {
        free[path]: blend.share_of_new(path, p, measurement.samples) for path, p in found.items()
    }
    held = _write({free[path]: population for path, population in populations.items()}, _STORED[stats], shares)
    changes = [NormChange.of(path, free[path], held, errors[path], chances[path]) for path in found]
    stretch = "" if graph is None else stretched(graph, free, changes)
    no_say = _NO_SAY if prior == "auto" and math.isnan(largest(errors.values())) else ""
    done = Reestimation(
        changes,
        batches=measurement.batches,
        samples=measurement.samples,
        passes=settled.passes,
        untouched=untouched,
        unsure=dict.fromkeys(found if settled.held else (), _HELD.format(settled.held, measurement.samples))
        | {path: _RESTLESS.format(off) for path, off in settled.restless.items()},
        notes=[*_notes(measurement, settled), *filter(None, [no_say, stretch])],
        converged=tolerance is None or largest(errors.values()) <= tolerance,
        held=held,
        before=before,
    )
    if judge is not None and before is not None:
        return _scored(done, before, model, judge, choose, ranks)
    warn(stretch)
    return done


def _graph_of_a_regression(model: nn.Module, measurement: Measurement, forward: Forward | None) -> LayerGraph | None:
    """The graph of a model that may be no classifier, and has noise; None of others, and of what cannot be read."""
    batch, shapes = measurement.example, measurement.shapes
    has_classes = not shapes or any(len(shape) > 1 and max(shape[1:]) > 1 for shape in shapes)
    if batch is None or (has_classes and has_class_labels(batch)):
        return None
    try:
        return record(model, lambda inputs: (forward or call)(model, inputs), batch)
    except TraceError:
        return None


def _has_shrunk(populations: Mapping[str, Population], norms: Mapping[str, Norm]) -> bool:
    """Whether any norm is to store a variance smaller by a tenth."""
    return any(
        float(p.variance.mean()) < 0.9 * float(_found_in(norms[path])[1].mean()) for path, p in populations.items()
    )


def _count(samples: Callable[[Any], int] | int | None) -> Count:
    """How many samples a batch holds, from what the caller says."""
    if samples is None:
        return samples_in
    if callable(samples):
        return samples
    if samples < 1:
        raise EvenkeelError(f"samples must be a number of at least 1, or a function of a batch, not {samples}")
    return lambda batch: samples


def _found_in(norm: Norm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def _require_cured(norms: Mapping[str, Norm], names: Sequence[str]) -> None:
    for path, norm in norms.items():
        for name in faults_in(norm):
            if name not in names:
                raise ModelError(f"{name} of {path!r} is not usable, and stays so: pass stats='both'")


def _set_usable_(norms: Iterable[Norm]) -> None:
    """Give norms that store what is not finite, or negative variances, those of a new norm to begin with."""
    for norm in norms:
        if faults_in(norm):
            mean, variance = _found_in(norm)
            write_(mean, torch.zeros_like(mean))
            write_(variance, torch.ones_like(variance))


def _store(norm: Norm, population: Population, names: Sequence[str]) -> None:
    values = {"running_mean": population.mean, "running_var": population.variance}
    for name in names:
        write_(getattr(norm, name), values[name])


def _notes(measurement: Measurement, settled: Settled) -> list[str]:
    """What the reader must know of how the statistics were made."""
    notes = [f"batches ran one by one: {measurement.apart}"] if measurement.apart else []
    if settled.is_uneven:
        notes.append(
            f"all data were run {settled.passes} times: the first samples did not stand for those that followed, as in "
            "data sorted by class or length, or of few batches unlike each other; shuffled, one pass often does"
        )
    if settled.is_part:
        notes.append(
            f"only the first {measurement.batches} batches were read: this holds for the others, and so do the "
            "standard errors, only if the loader shuffles"
        )
    if settled.entangled:
        paths = sorted(settled.entangled)
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        notes.append(
            f"{paths[0]}{more}: read by other layers too, so settled by small steps on a sample, to {settled.left:.1%}"
        )
    if settled.is_random:
        notes.append(
            "the model draws at random in eval mode, too, as by dropout that stays on: statistics are those of one "
            "draw, and not settled any further"
        )
    if measurement.is_doubted:
        notes.append("batches had been merged before it was found that they must not be: pass memory=0")
    return notes


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


def _write(populations: dict[Norm, Population], names: Sequence[str], shares: Mapping[nn.Module, float]) -> Held:
    """Write the populations' statistics into the norms, all or none of them; return what was there before."""
    values: dict[tuple[nn.Module, str], Tensor] = {
        (norm, name): (population.mean if name == "running_mean" else population.variance).to(getattr(norm, name).dtype)
        for norm, population in populations.items()
        for name in names
    }
    for (norm, name), value in values.items():
        if not value.isfinite().all():
            raise BatchError(f"{name} of {norm} reaches {float(value.abs().max())}: it overflows {value.dtype}")
    return write_buffers_(values, shares)


def _divide(model: nn.Module, *, leave: bool) -> tuple[dict[str, Norm], dict[str, str]]:
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
