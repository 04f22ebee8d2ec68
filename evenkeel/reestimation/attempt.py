"""Attempt: one re-estimation of a model's statistics, not yet judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from evenkeel.errors import BatchError, EvenkeelError, ModelError, TraceError, listed
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.tracing import record
from evenkeel.model.batches import Forward, call, length
from evenkeel.model.batches import samples as samples_in
from evenkeel.model.norms import Norm
from evenkeel.model.quantizers import outgrown_notes
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.progress import Bar
from evenkeel.reestimation.prior import FEW, Prior, Weight
from evenkeel.reestimation.reestimation_report import Reestimation, largest
from evenkeel.reestimation.settling import Settled, settle, settle_paired
from evenkeel.reestimation.sweeps import Store
from evenkeel.statistics.batch_merging import MOST_PARTS, Count
from evenkeel.statistics.distributed import Ranks
from evenkeel.statistics.group_limits import MEMORY
from evenkeel.statistics.measurement import Measurement
from evenkeel.statistics.noise import Noise
from evenkeel.statistics.norm_buffers import (
    STORED,
    divide,
    found_in,
    require_cured,
    set_usable_,
    store_,
    write_populations_,
)
from evenkeel.statistics.norm_change import NormChange, Paired
from evenkeel.statistics.pairing import UNPAIRED, Pairing
from evenkeel.statistics.pairs import Match, Pairs
from evenkeel.statistics.population import Population
from evenkeel.statistics.stored_values import infinite_behind, is_never_updated
from evenkeel.statistics.stretching import has_class_labels, stretched

_HELD = (
    "settled on {} of {} samples, held from all over the stream: the first were not like the others, and {}; shuffle "
    "them, or pass batches that can be iterated over again, such as a list or a DataLoader"
)
_RESTLESS = (
    "off by {:.1%}: what it is fed depends on what it stores, as where weights are rounded that it scales, and no "
    "statistics were found that agree with themselves; train it on with its statistics fixed"
)
_NO_SAY = (
    "prior='auto': nothing tells the standard errors, as of a single sample, so the old statistics count for "
    f"{FEW} samples; pass several batches, or a number"
)
_BY_SAMPLE = "standard errors are those of {} independent samples: there is one batch; alike ones are less sure"
KEPT = "prior=inf: kept as it was"
RANDOM = (
    "the model draws at random in eval mode, too, as by dropout that stays on: statistics are those of one draw, and "
    "not settled any further"
)
_NO_NOISE = "no noise with the model in train mode: the statistics are those of the data, as match='variance' gives"
_STILL = (
    "{} channels do not vary, {} of them in {!r}, as behind filters of zeros: they store variance 0, so that whatever "
    "else reaches them one day is multiplied by 1 / sqrt(eps): remove them before training on"
)
_ZERO = 1e-6  # of a norm's eps: a variance that is rounding alone
_FAR = 1.5  # times what training left, noise on: more is worth telling


@dataclass(frozen=True)
class Attempt:
    """One re-estimation of a model's statistics; its attributes are the arguments of `reestimate_`.

    Attributes:
        leave: whether norms that were never updated are left as they are, but in averages of weights.
        by_sample: whether standard errors are those of samples, not of batches; None where there is but one batch, and
            they decide.
        is_traced: whether the model is read, where variances shrink, for whether its outputs stretch.
    """

    batches: Iterable[Any]
    forward: Forward | None = None
    stats: Literal["both", "var", "mean"] = "both"
    relative: bool = False
    tolerance: float | None = None
    max_batches: int | None = None
    prior: Weight = 0
    samples: Callable[[Any], int] | int | None = None
    progress: bool = False
    group: Any = None
    memory: int = MEMORY
    seed: int = 0
    leave: bool = True
    by_sample: bool | None = None
    is_traced: bool = True

    def __post_init__(self) -> None:
        if self.stats not in STORED:
            raise EvenkeelError(f"stats must be 'both', 'var' or 'mean', not {self.stats!r}")
        if self.memory < 0:
            raise EvenkeelError(f"memory must be a number of bytes, or 0, not {self.memory}")
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise EvenkeelError(f"tolerance must be above 0 and finite, not {self.tolerance}")

    def reestimated(self, model: nn.Module, match: Match | None) -> Reestimation:
        """Re-estimate a model's statistics in place; on any error it is as it was."""
        with unwrapped(model) as plain:
            is_average = any(isinstance(module, AveragedModel) for module in model.modules())
            free, untouched = divide(plain, leave=self.leave and not is_average)
            names, channels = STORED[self.stats], max(norm.num_features for norm in free.values())
            ranks = Ranks(self.group, channels=3 * channels, parts=MOST_PARTS)
            blend = Prior(free, self.prior, ranks)
            kept = {path: KEPT for path in free if blend.keeps(path)}
            free, untouched = {path: norm for path, norm in free.items() if path not in kept}, untouched | kept
            if not free:
                return Reestimation.nothing(untouched)
            with restored(plain), torch.no_grad():
                measurement = Measurement(
                    plain,
                    free,
                    forward=self.forward,
                    ranks=ranks,
                    memory=self.memory,
                    count=counter(self.samples),
                    pairing=self._pairing(plain, free, match, ranks),
                    by_sample=self._is_by_sample,
                )
                require_cured(free, names)
                set_usable_(free.values())

                def store(path: str, population: Population, count: float) -> None:
                    population.pool()
                    store_(free[path], blend.blended(path, _matched(population), count), names)

                with closing(Bar(self.batches, "re-estimating", total=self.max_batches)) as bar:
                    stream = bar if self.progress else self.batches
                    settled = self._settled(measurement, stream, store)
            unpaired = _unpaired(measurement, free)
            found = {p: _matched(population) for p, population in settled.populations.items() if p not in unpaired}
            new = {path: blend.blended(path, p, measurement.samples) for path, p in found.items()}
            is_traced = self.is_traced and has_shrunk(new, free)
            graph = graph_of_a_regression(plain, measurement, self.forward) if is_traced else None
            beside, others = measurement.strangers()
        shares = {path: blend.share_of_new(path, p, measurement.samples) for path, p in found.items()}
        for path, population in ((path, settled.populations[path]) for path in found):
            is_dead = isinstance(population, Pairs) and bool(population.slope.is_dead.all())
            if (
                population.pooled
                and shares[path] == 1
                and (population.count < 2 or (measurement.samples < 2 and is_dead))
            ):
                raise BatchError(
                    f"norm {path!r} saw one value per channel, which has no variance: more samples are needed"
                )
        doubts = {path: settled.doubts[path].mean for path in found if path in settled.doubts}
        errors = {path: math.hypot(p.standard_error, doubts.get(path, 0.0)) for path, p in found.items()}
        chances = {path: p.chance(*found_in(free[path])) for path, p in found.items()}
        is_mean = measurement.pairing is not None and not self.relative
        by_norm: dict[nn.Module, float] = {free[path]: share for path, share in shares.items()}
        held = write_populations_({free[path]: population for path, population in new.items()}, names, by_norm, is_mean)
        pairs = {path: p for path, p in settled.populations.items() if isinstance(p, Pairs) and path in found}
        changes = [
            NormChange.of(path, free[path], held, errors[path], chances[path], _paired(pairs.get(path)))
            for path in found
        ]
        stretch = "" if graph is None else stretched(graph, free, changes)
        notes = _notes(measurement, settled, pairs)
        still = {path: int((p.variance <= _ZERO * free[path].eps).sum()) for path, p in new.items()}
        if sum(still.values()) and "running_var" in names:
            notes.append(_STILL.format(sum(still.values()), max(still.values()), max(still, key=still.__getitem__)))
        notes += outgrown_notes(plain)
        if self.prior == "auto" and math.isnan(largest(errors.values())):
            notes.append(_NO_SAY)
        elif self._is_by_sample and measurement.pairing is None:
            notes.append(_BY_SAMPLE.format(measurement.samples))
        if measurement.pairing is None and (match == "mean" or self.relative):
            notes.append(_NO_NOISE)
        return Reestimation(
            changes,
            match="mean" if is_mean else "variance",
            batches=measurement.batches,
            samples=measurement.samples,
            passes=settled.passes,
            untouched=untouched
            | beside
            | {path: _why_not(measurement, path, unpaired) for path in free if path not in found},
            unsure=_unsure(measurement, settled, pairs) | {path: others[path] for path in found if path in others},
            notes=[*notes, stretch] if stretch else notes,
            stretch=stretch,
            step=measurement.step,
            slopes={path: population.slope for path, population in pairs.items()},
            converged=self.tolerance is None or largest(errors.values()) <= self.tolerance,
            held=held,
            measured=found,
        )

    @property
    def _is_by_sample(self) -> bool:
        """Whether standard errors are taken from between the samples of a batch."""
        if self.by_sample is not None:
            return self.by_sample
        return self.prior == "auto" and min(length(self.batches), self.max_batches or math.inf) == 1

    def _settled(self, measurement: Measurement, batches: Iterable[Any], store: Store) -> Settled:
        """What settling finds: on fewer than all samples only where the caller set no standard for their number."""
        if self.tolerance is None and self.prior == 0:
            measurement.is_repeatable = hasattr(self.batches, "__getitem__") or isinstance(self.batches, DataLoader)
            return settle_paired(measurement, batches, store, max_batches=self.max_batches)
        return settle(measurement, batches, store, max_batches=self.max_batches, tolerance=self.tolerance)

    def _pairing(
        self, model: nn.Module, norms: Mapping[str, Norm], match: Match | None, ranks: Ranks
    ) -> Pairing | None:
        """What runs groups with noise on, too, if that may be needed."""
        if match == "variance" and not self.relative:
            return None
        if match is None and any(isinstance(m, AveragedModel) for m in model.modules()):
            return None  # its statistics are those of no training
        if match is None and any(map(is_never_updated, norms.values())):
            return None
        try:
            noise = Noise(model)
            for path, norm in norms.items():
                mean, variance = noise.trained[norm]
                if bad := [*(["running_mean"] if not mean.isfinite().all() else []), *_unusable(variance)]:
                    raise ModelError(
                        f"{bad[0]} of {path!r}, as training left it, is not finite, or negative, and is to be kept but "
                        "for the noise: pass match='variance'"
                    )
        except ModelError:
            if match is not None:
                raise
            return None
        return Pairing(model, noise, norms, match, seed=self.seed, rank=ranks.rank)


def _unusable(variance: Tensor) -> list[str]:
    return [] if (variance.isfinite() & (variance >= 0)).all() else ["running_var"]


def _matched(population: Population) -> Population:
    """What a norm is to store, of what was measured."""
    return population.matched() if isinstance(population, Pairs) else population


def _paired(pairs: Pairs | None) -> Paired | None:
    """What pairs say in a row of the report."""
    return None if pairs is None else Paired.of(pairs)


def _unpaired(measurement: Measurement, norms: Mapping[str, Norm]) -> set[str]:
    """Norms that were not fed the same with noise on, on any rank."""
    if measurement.pairing is None:
        return set()
    flags = torch.tensor([path in measurement.pairing.unpaired for path in norms], dtype=torch.float64)
    rows = measurement.ranks.gather(flags) if measurement.ranks.size > 1 else [flags]
    return {path for path, flag in zip(norms, torch.stack(rows).amax(0), strict=True) if flag}


def _why_not(measurement: Measurement, path: str, unpaired: set[str]) -> str:
    return UNPAIRED if path in unpaired else measurement.why_not(path)


def _unsure(measurement: Measurement, settled: Settled, pairs: Mapping[str, Pairs]) -> dict[str, str]:
    """Norms whose statistics may be off by more than their standard errors, each with the reason."""
    found = {path: reason for path, p in pairs.items() if (reason := p.slope.doubt)}
    if settled.held:
        why = "all can be had only once" if settled.passes == 1 else f"{settled.passes} passes over all brought no rest"
        found |= dict.fromkeys(settled.populations, _HELD.format(settled.held, measurement.samples, why))
    return found | {path: _RESTLESS.format(off) for path, off in settled.restless.items()}


def graph_of_a_regression(model: nn.Module, measurement: Measurement, forward: Forward | None) -> LayerGraph | None:
    """The graph of a model that may be no classifier, and has noise; None of others, and of what cannot be read."""
    batch, shapes = measurement.example, measurement.shapes
    has_classes = not shapes or any(len(shape) > 1 and max(shape[1:]) > 1 for shape in shapes)
    if batch is None or (has_classes and has_class_labels(batch)):
        return None
    try:
        return record(model, lambda inputs: (forward or call)(model, inputs), batch)
    except TraceError:
        return None


def has_shrunk(populations: Mapping[str, Population], norms: Mapping[str, Norm]) -> bool:
    """Whether any norm is to store a variance smaller by a tenth."""
    return any(
        float(p.variance.mean()) < 0.9 * float(found_in(norms[path])[1].mean()) for path, p in populations.items()
    )


def counter(samples: Callable[[Any], int] | int | None) -> Count:
    """How many samples a batch holds, from what the caller says."""
    if samples is None:
        return samples_in
    if callable(samples):
        return samples
    if samples < 1:
        raise EvenkeelError(f"samples must be a number of at least 1, or a function of a batch, not {samples}")
    return lambda batch: samples


def _notes(measurement: Measurement, settled: Settled, pairs: Mapping[str, Pairs]) -> list[str]:
    """What the reader must know of how the statistics were made."""
    notes = [f"batches ran one by one: {measurement.limits.apart}"] if measurement.limits.apart else []
    notes += measurement.quantizers.notes
    notes += infinite_behind(measurement.model, {})
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
        notes.append(
            f"{listed(paths)}: read by other layers too, so settled by small steps on a sample, to {settled.left:.1%}"
        )
    if settled.is_random:
        notes.append(RANDOM)
    far = {path: Paired.of(p).data for path, p in pairs.items()}
    worst = max(far, key=lambda path: abs(math.log(far[path])) if far[path] > 0 else 0.0, default="")
    if worst and not 1 / _FAR < far[worst] < _FAR:
        notes.append(
            f"{worst!r} meets x{far[worst]:.2f} of the variance that it stored, noise on, and that stays as it is: "
            "other data, or statistics that were stale; match='variance' makes them those of the data"
        )
    if dead := {path: count for path, p in pairs.items() if (count := int(p.slope.is_dead.sum()))}:
        notes.append(
            f"{sum(dead.values())} channels do not vary with noise off, {max(dead.values())} of them in "
            f"{max(dead, key=dead.__getitem__)!r}: they store the variance that they stored"
        )
    if measurement.limits.is_doubted:
        notes.append("batches had been merged before it was found that they must not be: pass memory=0")
    return notes
