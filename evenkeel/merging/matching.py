"""match_: give a merged model's units the mean and deviation that interpolating those of its end points gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError, EvenkeelError, ModelError, brief
from evenkeel.graph.tracing import record
from evenkeel.merging.folds import Target, is_live, write_weights_
from evenkeel.merging.match_report import MatchReport, MatchRow
from evenkeel.merging.passes import Matched, Passes, settled_norms
from evenkeel.merging.units import Units, units_of, unlike
from evenkeel.model.batches import Forward, call, each
from evenkeel.model.buffers import Held, write_buffers_
from evenkeel.model.evaluation import Scorer
from evenkeel.model.flags import FROZEN, frozen_in
from evenkeel.model.norms import Norm, foreign_norms, has_running_statistics
from evenkeel.model.restoring import restored
from evenkeel.model.sharding import own_parameter
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.tables import grouped
from evenkeel.reestimation.judging import Judge, require_judging, scoring_on
from evenkeel.statistics.distributed import Ranks, default_group
from evenkeel.statistics.group_limits import MEMORY
from evenkeel.statistics.measurement import Measurement
from evenkeel.statistics.norm_change import NormChange
from evenkeel.statistics.population import Population

_FAR = 1e-2  # deviations off, that the reader must know of
_NOT_CALLED = "not reached by the batches in the model and in every reference"
_NO_BIAS = "no bias: its deviations were matched, not its means"
_OFF = (
    "its worst unit stays {:.2g} deviations off: weights of low precision, or what it is fed depends on itself, as "
    "where a layer is called several times a pass"
)
_RANDOM = "the model draws at random in eval mode, too, as by dropout that stays on: it was matched to one draw"
_DEAD = (
    "{} of {} units do not vary, and should: no scale can make them; their weights are zeros, or those of the units "
    "that they read"
)
_STILL = "units that do not vary keep their scale: {}, the first in {!r}"
_LONE = "every process matched its own replica to its own batches: what torch.distributed runs is not pooled here"


def match_(
    model: nn.Module,
    references: nn.Module | Iterable[nn.Module],
    batches: Iterable[Any],
    *,
    weights: Sequence[float] | None = None,
    forward: Forward | None = None,
    max_batches: int | None = None,
    memory: int = MEMORY,
    held_out: Iterable[Any] | None = None,
    score: Scorer | None = None,
    choose: Literal["new", "best"] = "new",
) -> MatchReport:
    """Rescale and shift every unit of a merged model to the mean and deviation that its end points' units have.

    A model whose weights are interpolated between others' loses variance, layer upon layer, since what units compute
    is not quite the same in each: with A and B of correlation c and deviation 1, the deviation of their mean is
    `sqrt((1 + c) / 2)`. REPAIR (Jordan et al., ICLR 2023, section 3) gives it back. For every unit, that is every
    output channel of a linear layer or convolution, with mean and standard deviation m, s over the batches,

        m_target = sum_i w_i m_i        s_target = sum_i w_i s_i        y' = (s_target / s) (y - m) + m_target

    over the end points i; this is folded into weight and bias, and nothing is added to the model. All is measured in
    eval mode, every source of noise off. Layers are matched in order, each on what it is fed once those before it are
    matched, by the passes that `reestimate_` makes; the paper matches all in one pass over batches in train mode.
    What is left is then measured with the new weights in place, and corrected until no unit is further than 1e-4
    deviations from its target, or nothing is gained.

    Layers directly followed by a norm with stored statistics, by which a unit's scale and shift are undone, are left
    as they are; the norms get the statistics of what they are fed, as by `reestimate_(match="variance")`, in the same
    passes, as the paper resets those of networks with batch norm. Sums of residual branches scale nothing themselves:
    the last layer of a branch is matched, and with it the branch. A layer without bias gets none: its deviations are
    matched, not its means (`unsure`). A layer called several times a pass is matched over all calls together. Weights
    that are shared with other parameters' layers, computed from others (weight norm), partly frozen, quantized, or
    inside attention and recurrent layers stay as they are and are named in `untouched`.

    Args:
        model: the merged model, changed in place.
        references: the networks that it was merged from, of the same architecture and with their units in the same
            order (aligned); or one network that units are to be like, as the one from which the model was pruned.
        batches: as for `reestimate_`; iterated over several times. A loader that draws from the global generators
            draws the same for all networks.
        weights: of the end points, not negative, of sum 1; equal if None.
        forward: how to run anything but the usual batches: `lambda model, batch: ...`.
        max_batches: how many batches to use; all if None.
        memory: bytes that the largest output of a layer may take where batches are merged; 0 runs each by itself.
        held_out: pairs of inputs and targets, or mappings, on which the model is scored before and after.
        score: what to judge held-out data by, as for `reestimate_`.
        choose: "best" takes it back if the held-out loss gets no lower.

    Returns:
        A `MatchReport`, a row a layer, whose `undo()` takes it all back.

    Raises:
        ModelError: the model has nothing to match; a reference has other weights; or the model is sharded.
        BatchError: the batches raised, ran short, were empty or not finite; says which batch and layer; or they can be
            iterated over only once.
        TraceError: the model could not be read.
        EvenkeelError: weights are not those of an interpolation.

    On any error the model is exactly as it was.

    >>> import torch
    >>> a, b, merged = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(3))
    >>> state = {name: (value + b.state_dict()[name]) / 2 for name, value in a.state_dict().items()}
    >>> _ = merged.load_state_dict(state)
    >>> done = match_(merged, [a, b], [torch.randn(64, 4) for _ in range(4)])
    >>> [row.path for row in done], all(row.off_after < 1e-3 for row in done)
    (['0', '2'], True)
    """
    require_judging(held_out, score, choose)
    if isinstance(batches, Iterator):
        what = type(batches).__name__
        raise BatchError(f"batches are run several times, and a {what} is used up by then: pass a list or a DataLoader")
    points = _points(references)
    shares = _shares(weights, len(points))
    passes = Passes(batches, forward, max_batches, memory)
    judge = Judge(model, scoring_on(held_out or (), score, forward), Ranks())
    before = judge.score() if held_out is not None else None
    with ExitStack() as stack:
        stack.callback(torch.clear_autocast_cache)  # which may hold casts of weights that were tried
        plain, *plain_points = (stack.enter_context(unwrapped(net)) for net in (model, *points))
        done = _matched(plain, plain_points, shares, passes)
    if before is not None:
        judge.judged(done, before)
        if choose == "best":
            judge.keep_better(done)
    return done


def _points(references: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    if isinstance(references, nn.Module) and not isinstance(references, nn.ModuleList):
        return [references]
    given: Any = references
    points: list[Any] = list(given) if isinstance(given, Iterable) else [given]
    if not points or not all(isinstance(point, nn.Module) for point in points):
        found = ", ".join(type(point).__name__ for point in points) or "none"
        raise ModelError(f"references are the networks that the model was merged from, at least one, not {found}")
    return points


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    try:
        shares = [float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise EvenkeelError(f"weights are numbers, one for each of the {count} references: {brief(error)}") from error
    is_whole = math.isclose(sum(shares), 1, abs_tol=1e-6)
    if len(shares) != count or not is_whole or not all(share >= 0 for share in shares):
        raise EvenkeelError(
            f"weights are {shares}, of sum {sum(shares):.6g}: there must be one for each of the {count} references, "
            "none negative, of sum 1"
        )
    return shares


def _matched(model: nn.Module, points: Sequence[nn.Module], shares: Sequence[float], passes: Passes) -> MatchReport:
    """Match a model without wrappers."""
    _require_whole(model)
    units, untouched = _units(model, passes)
    norms = settled_norms(model)
    untouched |= dict.fromkeys(_frozen_norms(model), FROZEN) | foreign_norms(model)
    if not units and not norms:
        raise ModelError(f"{type(model).__name__} has nothing to match; {'; '.join(grouped(untouched)) or 'no layer'}")
    for number, point in enumerate(points, 1):
        if reason := unlike(point, units):
            raise ModelError(f"reference {number} is of another architecture: {reason}")
    found = [_measured(point, units, passes, number) for number, point in enumerate(points, 1)] if units else []
    before = passes.measured(model, units)
    reached = [path for path in before.populations if path in units and all(path in one for one in found)]
    missed = [path for path in (*units, *norms) if path not in reached and path not in before.populations]
    untouched |= dict.fromkeys(missed, _NOT_CALLED)
    _require_variance({path: one[path] for one in (before.populations, *found) for path in reached})
    units = {path: units[path] for path in reached}
    targets = {path: Target.between([one[path] for one in found], shares) for path in reached}
    matched = passes.matched(model, units, targets)
    old, held = _write(matched, norms)
    rows = [
        MatchRow.of(path, before.populations[path], matched.after[path], targets[path], has_bias=one.has_bias)
        for path, one in units.items()
    ]
    return MatchReport(
        rows,
        norms=[NormChange.of(path, norms[path], held) for path in matched.populations],
        references=len(points),
        batches=before.batches,
        samples=before.samples,
        passes=1 + matched.passes,
        untouched=untouched,
        unsure=_unsure(rows),
        notes=_notes(before, matched, targets),
        weights=old,
        held=held,
    )


def _measured(point: nn.Module, units: Mapping[str, Units], passes: Passes, number: int) -> Mapping[str, Population]:
    """What a reference's units are, by path."""
    try:
        return passes.measured(point, units).populations
    except BatchError as error:
        raise BatchError(f"reference {number}: {error}") from error


def _write(matched: Matched, norms: Mapping[str, Norm]) -> tuple[dict[nn.Parameter, Tensor], Held]:
    """Write new weights and statistics, all or none of them; return what was there before."""
    old = {parameter: parameter.detach().clone() for parameter in matched.weights}
    try:
        write_weights_(matched.weights)
        return old, write_buffers_(matched.statistics(norms))
    except BaseException:
        write_weights_(old)
        raise


def _require_whole(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if own_parameter(parameter) is not parameter:
            raise ModelError(f"{name!r} is sharded: load the weights into a plain model to match it")
        if parameter.is_meta:
            raise ModelError(f"{name!r} is on the meta device and holds no values: load the weights first")


def _units(model: nn.Module, passes: Passes) -> tuple[dict[str, Units], dict[str, str]]:
    """The layers to match, and those left, by what a pass on the first batch shows."""
    with restored(model):
        batch = next(each(passes.batches, model, 1))
        graph = record(model, lambda given: (passes.forward or call)(model, given), batch)
    return units_of(model, graph)


def _frozen_norms(model: nn.Module) -> list[str]:
    frozen = frozen_in(model)
    return [path for path, module in model.named_modules() if has_running_statistics(module) and module in frozen]


def _require_variance(populations: Mapping[str, Population]) -> None:
    for path, population in populations.items():
        if population.count < 2:
            raise BatchError(f"layer {path!r} returned one value a unit, which has no deviation: take more samples")


def _unsure(rows: Iterable[MatchRow]) -> dict[str, str]:
    """Layers whose units are not where they should be."""
    without = {row.path: _NO_BIAS for row in rows if not row.has_bias}
    off = {row.path: _OFF.format(row.off_after) for row in rows if row.off_after > _FAR}
    return without | off | {row.path: _DEAD.format(row.dead, row.units) for row in rows if row.dead}


def _notes(before: Measurement, matched: Matched, targets: Mapping[str, Target]) -> list[str]:
    """What the reader must know of how it was done."""
    notes: list[str] = []
    counts = {path: int((~is_live(before.populations[path], target)).sum()) for path, target in targets.items()}
    if still := [path for path, count in counts.items() if count]:
        notes.append(_STILL.format(sum(counts.values()), still[0]))
    if matched.is_random:
        notes.append(_RANDOM)
    if Ranks(default_group(None)).size > 1:
        notes.append(_LONE)
    return notes
