"""merge_parts_: statistics of all data, made of parts that were measured apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from evenkeel.errors import BatchError, EvenkeelError
from evenkeel.model.batches import Forward
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped
from evenkeel.parts.fingerprints import of_statistics, of_weights
from evenkeel.parts.merged_parts import NEAR, MergedParts
from evenkeel.parts.norm_sums import NormSums
from evenkeel.parts.part_measuring import in_order, write_start_
from evenkeel.parts.parts import Part, Start, load_part
from evenkeel.reestimation.attempt import KEPT, RANDOM, counter, graph_of_a_regression, has_shrunk
from evenkeel.reestimation.prior import Prior, Weight
from evenkeel.reestimation.sweeps import Doubt, Store, adjust
from evenkeel.shift.shift_causes import OTHERS, other_than_stored
from evenkeel.statistics.group_limits import MEMORY
from evenkeel.statistics.measurement import Measurement
from evenkeel.statistics.norm_buffers import (
    STORED,
    divide,
    found_in,
    require_cured,
    set_usable_,
    store_,
    values_of,
    write_populations_,
)
from evenkeel.statistics.norm_change import NormChange
from evenkeel.statistics.population import Population
from evenkeel.statistics.stretching import stretched, warn

_LEAST, _MOST = 256, 8192  # samples of the probe that run together
_CHANCE = 0.1  # of a squared distance between the probe and all data: below, they are not alike
_MARGIN = 3  # times as much may be left of a change as was left of the last one: rounds do not come nearer evenly
_STALLED = 0.5  # of what it was, how far off the next start may be
_SWEEPS, _STILL = 8, 1e-4  # over the probe, at most, and until what is left to change


def merge_parts_(
    model: nn.Module,
    parts: Iterable[Part | str | Path] | Part | str | Path,
    probe: Iterable[Any] | None = None,
    *,
    forward: Forward | None = None,
    stats: Literal["both", "var", "mean"] = "both",
    prior: Weight = 0,
    samples: Callable[[Any], int] | int | None = None,
    unsure: Literal["leave", "write"] = "leave",
    memory: int = MEMORY,
) -> MergedParts:
    """Give norms the statistics of all data, from parts of them that were measured apart (see `measure_part`).

    What parts add up to is exact, but it is what reaches the norms while these store the start. Once the first norms
    store something else, so must those behind them. How much else is seen in a few samples, the probe, that are run
    twice, before and after: of these, too, the change is known far better than the statistics. What an error is left is
    the change times how much the probe is unlike all data, so another round, of parts measured on `done.start`, leaves
    that of a far smaller change. Without a probe, norms store what was measured, which may be worse than what was
    there: errors of norms in a row grow from round to round before they vanish.

    Args:
        model: that the parts were measured on, changed in place: in a later round, too, as the checkpoint stores it.
        parts: those of one round, or files of them, in any order; or the only one.
        probe: some hundred samples in four batches or more, which need not be among the parts' data: of one site, or
            noise of the right shape where there are none, which takes some rounds more.
        forward: how to run a batch of the probe, as for `reestimate_`.
        stats: which statistics to write: both, var or mean.
        prior: how many samples the statistics found in the model count for, as for `reestimate_`.
        samples: how many samples a batch of the probe holds, where its tensors do not tell.
        unsure: what to do with norms that were never updated, as for `reestimate_`.
        memory: as for `reestimate_`, of the probe.

    Returns:
        A report, whose `undo()` takes it back: how far off each norm may still be, and the start of another round.

    Raises:
        EvenkeelError: there is no part; parts are of other weights or statistics than the model's, or of different
            rounds, or one was given twice.
        ModelError: as for `reestimate_`.
        BatchError: the probe raised, was empty or not finite; or a norm saw one value.

    Warns:
        StretchWarning: as for `reestimate_`, as far as the probe tells.

    >>> model, data = nn.BatchNorm1d(2), torch.randn(64, 2)
    >>> from evenkeel import measure_part
    >>> parts = [measure_part(model, [half]) for half in data.split(32)]
    >>> done = merge_parts_(model, parts)
    >>> done.samples, torch.allclose(model.running_var, data.var(0)), done.is_settled
    (64, True, True)
    """
    if stats not in STORED:
        raise EvenkeelError(f"stats must be 'both', 'var' or 'mean', not {stats!r}")
    if unsure not in ("leave", "write"):
        raise EvenkeelError(f"unsure must be 'leave' or 'write', not {unsure!r}")
    names = STORED[stats]
    found = sorted(_read(parts), key=_order)
    with unwrapped(model) as plain:
        is_average = any(isinstance(module, AveragedModel) for module in model.modules())
        free, untouched = divide(plain, leave=unsure == "leave" and not is_average)
        _require_mergeable(found, of_weights(plain), of_statistics(plain))
        sums, out_of_order = _added(found)
        first = next(iter(sums), "")
        others = "" if is_average or first not in free else other_than_stored(free[first], sums[first].population())
        start, total = found[0].start, sum(part.samples for part in found)
        blend = Prior(free, prior)
        kept = dict.fromkeys((path for path in free if blend.keeps(path)), KEPT)
        free, untouched = {path: norm for path, norm in free.items() if path not in kept}, untouched | kept
        if not free:
            raise EvenkeelError("prior=inf keeps what every norm stores, so that parts change nothing: pass a number")

        def blended(path: str, population: Population) -> Population:
            return blend.blended(path, population, total)

        with restored(plain), torch.no_grad():
            require_cured(free, names)
            measurement = Measurement(plain, free, forward=forward, memory=memory, count=counter(samples))
            fed = {path for part in found for path in (*part.repeated, *part.entangled)} | out_of_order
            round_ = _settled(measurement, sums, start, probe, blended, names, fed)
        settled = round_.populations
        new = {path: blended(path, population) for path, population in settled.items()}
        graph = graph_of_a_regression(plain, measurement, forward) if has_shrunk(new, free) else None
    errors = {path: math.hypot(p.standard_error, round_.doubts[path].mean) for path, p in settled.items()}
    chances = {path: p.chance(*found_in(free[path])) for path, p in settled.items()}
    shares: dict[nn.Module, float] = {free[path]: blend.share_of_new(path, p, total) for path, p in settled.items()}
    held = write_populations_({free[path]: population for path, population in new.items()}, names, shares, False)
    changes = [NormChange.of(path, free[path], held, errors[path], chances[path]) for path in settled]
    stretch = "" if graph is None else stretched(graph, free, changes)
    written = {path: values_of(free[path]) for path in settled}
    notes = [*_notes(found, sums), *_notes_of(round_, start)]
    notes += [f"norm {first} {others}: {OTHERS}"] if others else []
    done = MergedParts(
        changes,
        parts=[part.name for part in found],
        batches=sum(part.batches for part in found),
        samples=total,
        untouched=untouched | {path: _why_not(found, path) for path in free if path not in settled},
        entangled={path for part in found for path in part.entangled},
        notes=[*notes, stretch] if stretch else notes,
        stretch=stretch,
        held=held,
        changed=round_.changed,
        doubts={path: doubt.channels for path, doubt in round_.doubts.items()},
        start=Start(start.weights, start.round + 1, {**start.values, **written}, round_.off),
        other_data={first: others} if others else {},
    )
    warn(stretch)
    return done


class _Round(NamedTuple):
    """What a round finds, by path.

    Attributes:
        populations: what norms are to store.
        changed: how far what was measured is from what was stored meanwhile.
        doubts: how far off the populations may be.
        unlike: where the probe differs from all data by more than chance, how far.
    """

    populations: Mapping[str, Population]
    changed: Mapping[str, float]
    doubts: Mapping[str, Doubt]
    unlike: Mapping[str, float]

    @property
    def off(self) -> float:
        """The largest change."""
        return max(self.changed.values())


def _settled(
    measurement: Measurement,
    sums: Mapping[str, NormSums],
    start: Start,
    probe: Iterable[Any] | None,
    blended: Callable[[str, Population], Population],
    names: Sequence[str],
    fed: Collection[str],
) -> _Round:
    """What the norms of a model are to store, by sums measured on a start; the model is the caller's to restore.

    Norms are `fed` by what they or later ones store, too, as those called several times a pass.
    """
    norms = measurement.norms
    set_usable_(norms.values())
    write_start_(norms, start, start.weights)
    base = {path: one.population(found_in(norms[path])[0].device) for path, one in sums.items() if path in norms}
    if not base:
        raise BatchError(f"the parts reached none of the norms that are to be written, such as {next(iter(norms))!r}")
    if lone := [path for path, p in base.items() if p.pooled and p.count < 2]:
        raise BatchError(f"norm {lone[0]!r} saw one value per channel, which has no variance: more samples are needed")
    changed = {path: _between(blended(path, p), *found_in(norms[path]), names) for path, p in base.items()}

    def store(path: str, population: Population, _count: float) -> None:
        population.pool()
        store_(norms[path], blended(path, population), names)

    if probe is None:
        return _Round(base, changed, _doubts({}, changed, {}, fed), {})
    populations, seen, unlike = _adjusted(measurement, probe, base, store)
    return _Round(populations, changed, _doubts(seen, changed, _factors(start, changed, unlike), fed), unlike)


def _order(part: Part) -> tuple[str, str]:
    return part.name, part.fingerprint


def _require_mergeable(parts: Sequence[Part], weights: str, found: str) -> None:
    """Raise EvenkeelError where parts are not those of one round of one model's data, each given once."""
    if not parts:
        raise EvenkeelError("there is no part to merge: pass what measure_part returned for each piece of the data")
    first = parts[0]
    for part in parts:
        if part.start.weights != weights:
            raise EvenkeelError(
                f"{part.label} was measured on other weights than the model has: load the checkpoint that it was "
                "measured on, or measure it again"
            )
        if part.found != found:
            raise EvenkeelError(
                f"{part.label} was measured on a checkpoint that stores other statistics than the model: merge into "
                "the model as it was (undo() takes back an earlier merge), and hand on rounds by start= (--start)"
            )
        if part.start.fingerprint != first.start.fingerprint:
            raise EvenkeelError(_unlike_starts(part, first))
    names, sums = dict[str, Part](), dict[str, Part]()
    for part in parts:
        if part.name and part.name in names:
            raise EvenkeelError(f"two parts are named {part.name!r}: give each once, and a name of its own")
        if other := sums.get(part.fingerprint):
            raise EvenkeelError(f"{other.label} and {part.label} are of the same data: give each part once")
        names[part.name] = sums[part.fingerprint] = part


def _unlike_starts(part: Part, first: Part) -> str:
    """In what two parts' starts differ, in words."""
    apart = sorted(part.start.values.keys() ^ first.start.values.keys())
    if apart:
        there, other = (part, first) if apart[0] in part.start.values else (first, part)
        return (
            f"norm {apart[0]!r} is measured in {there.label} and not in {other.label}, where it was frozen, in eval "
            "mode while the model was in train mode: measure all parts on models whose norms are in one mode"
        )
    rounds = f"{part.label} in round {part.start.round + 1}, {first.label} in round {first.start.round + 1}"
    return f"parts were measured while norms stored different statistics: {rounds}: use one start"


def _read(parts: Any) -> list[Part]:
    """Parts as they are given, or in files."""
    listed: Any = [parts] if isinstance(parts, (Part, str, Path)) else parts
    if isinstance(listed, Mapping) or not isinstance(listed, Iterable):
        raise EvenkeelError(f"parts are a list of what measure_part returned, or of files of it, not {_kind(listed)}")
    found = list[Part]()
    for part in listed:
        if not isinstance(part, (Part, str, Path)):
            raise EvenkeelError(f"a part is what measure_part returned, or a file of it, not {_kind(part)}")
        found.append(part if isinstance(part, Part) else load_part(part))
    return found


def _kind(value: object) -> str:
    return type(value).__name__


def _added(parts: Sequence[Part]) -> tuple[dict[str, NormSums], set[str]]:
    """The parts' sums, by path in the order in which passes reach them, and those in whose order parts differ."""
    sums: dict[str, NormSums] = {}
    for part in parts:
        for path, one in part.sums.items():
            if path not in sums:
                sums[path] = NormSums(one.center, pooled=one.pooled)
            sums[path].add_all(one)
    paths, is_agreed = in_order(tuple(part.sums) for part in parts)
    return {path: sums[path] for path in paths}, set() if is_agreed else set(paths)


def _adjusted(
    measurement: Measurement, probe: Iterable[Any], base: Mapping[str, Population], store: Store
) -> tuple[dict[str, Population], dict[str, Doubt], dict[str, float]]:
    """What norms are fed once those before them store it, as far as the probe tells.

    Returns:
        That; how far off the change may be; and of norms where the probe differs from all data by more than chance,
        how far.
    """
    measurement.limits.least, measurement.limits.most = _LEAST, _MOST
    groups = [measurement.add(group) for group in measurement.groups(probe)]
    groups = measurement.regrouped(piece for group in groups if group for piece in group.held)
    measurement.arrive(groups)
    unlike = {
        path: _between(one, base[path].mean, base[path].variance, STORED["both"])
        for path, one in measurement.populations.items()
        if path in base and one.chance(base[path].mean, base[path].variance) < _CHANCE
    }
    doubts, unrest = adjust(measurement, groups, base, store, _SWEEPS, _STILL)
    return measurement.populations, {p: Doubt(max(d.channels, unrest), d.mean) for p, d in doubts.items()}, unlike


def _doubts(
    seen: Mapping[str, Doubt], changed: Mapping[str, float], factors: Mapping[str, float], fed: Collection[str]
) -> dict[str, Doubt]:
    """How far off norms may be, by path.

    As the probe tells, but no less than a part of what norms before have changed, and no more than that.

    Args:
        seen: what the probe tells.
        changed: how far norms were off, in execution order.
        factors: the part.
        fed: norms fed by any, themselves among them: all changes count as before.
    """
    most = max(changed.values())
    found, before, nothing = dict[str, Doubt](), 0.0, Doubt(math.inf, math.inf)
    for path, off in changed.items():
        told, part, cause = seen.get(path, nothing), factors.get(path, 0.0), most if path in fed else before
        found[path] = Doubt(*(min(max(doubt, part * cause), cause) for doubt in told))
        before = max(before, off)
    return found


def _factors(start: Start, changed: Mapping[str, float], unlike: Mapping[str, float]) -> dict[str, float]:
    """Which part of a change is left after a round: what was left of the last one, or how unlike the data the probe is.

    In the first round nothing is known of the former.
    """
    if start.off is None:
        worst = accumulate((unlike.get(path, 0.0) for path in changed), max)
        return dict(zip(changed, (min(one, 1.0) for one in worst), strict=True))
    left = max(changed.values()) / max(start.off, 1e-300)
    return dict.fromkeys(changed, min(_MARGIN * left, 1.0))


def _between(population: Population, mean: Tensor, variance: Tensor, names: Sequence[str]) -> float:
    """How far a population is from statistics: log variances, or means in deviations, root mean square."""
    mean, variance = mean.to(population.mean), variance.to(population.mean)
    scale = population.variance.mean().clamp_min(1e-300)
    least = 0.01 * scale
    moved = (population.mean - mean).square().mean() / scale
    changed = ((population.variance + least).log() - (variance + least).log()).square().mean()
    apart = {"running_mean": moved, "running_var": changed}
    return math.sqrt(max(float(apart[name]) for name in names))


def _notes_of(found: _Round, start: Start) -> list[str]:
    """What the reader must know of the probe, and of how rounds go on."""
    notes = list[str]()
    if found.unlike:
        worst = max(found.unlike, key=found.unlike.__getitem__)
        far = "more than 1,000 %" if found.unlike[worst] > 10 else f"{found.unlike[worst]:.0%}"
        notes.append(f"the probe is unlike the data, by {far} at {worst!r}: it may take more rounds")
    if start.off is not None and found.off > NEAR and found.off >= _STALLED * start.off:
        notes.append(
            f"rounds do not come nearer: the last start was off by {found.off:.1%}, the one before by {start.off:.1%}: "
            "pass as probe= (--data) samples that are more like the data, or more of them"
        )
    return notes


def _why_not(parts: Sequence[Part], path: str) -> str:
    return next((part.untouched[path] for part in parts if path in part.untouched), "never reached by the batches")


def _notes(parts: Sequence[Part], sums: Mapping[str, NormSums]) -> list[str]:
    """What the reader must know of the parts."""
    notes = [RANDOM] if any(part.is_random for part in parts) else []
    for path in sums:
        if missing := [part.label for part in parts if path not in part.sums]:
            notes.append(f"{path!r} was not reached by {len(missing)} of {len(parts)} parts: {', '.join(missing[:3])}")
    return notes
