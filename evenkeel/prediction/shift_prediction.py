"""predict_shift: the variance shift of every norm layer, from weights and statistics alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from evenkeel.errors import ModelError, count_text
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.outline import outline
from evenkeel.graph.queries import feeding
from evenkeel.graph.tracing import graph_of, prepared, runner
from evenkeel.model.flags import FROZEN, set_modes
from evenkeel.model.norms import Norm, norms_of
from evenkeel.model.own_statistics import statistics_beside
from evenkeel.model.quantizers import hold_quantizers_, unscalable
from evenkeel.model.restoring import restored
from evenkeel.model.threads import single_threaded
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.page import Histogram
from evenkeel.prediction.anchors import WRITTEN, Stored, distrust, is_repaired, stored_before
from evenkeel.prediction.attribution import Shares, causes_of
from evenkeel.prediction.doubts import Doubt, bounds_before, doubt_of, is_opaque, loose_dropouts
from evenkeel.prediction.mode_agreement import agreement
from evenkeel.prediction.replica_recorder import ReplicaRecorder, SamplingPlan
from evenkeel.prediction.replicas import Channels, pooled
from evenkeel.prediction.sampling import Sampled, sample
from evenkeel.shift.channel_ratios import histogram_of
from evenkeel.shift.shift_report import ShiftReport
from evenkeel.shift.shift_rows import ShiftRow
from evenkeel.statistics.measurement import NO_CALL
from evenkeel.statistics.stored_values import (
    averaged_while_trained,
    damage_of,
    fault_in_affine,
    fault_of,
    infinite_behind,
    initial_left,
)

_EVEN = 0.005  # log ratio up to which a norm passes nothing on
_LEAST = 1e-12  # of a ratio
_OUTDATED = "repaired, and a norm before it is off: what it is fed now is not known without data"
_PARTLY = "reached with part of the batch, or not with samples first and channels second"


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a model's norms.

    Attributes:
        graph: the model's layers.
        channels: of every norm reached, by path, what it is fed in train and in eval mode.
        causes: by path, the share of every dropout in what noise does to the norm's input, the largest first.
        doubts: norms whose figure is a guess or unknown, by path.
        bounds: by path, how far in nats dropout can lower a norm's variance once those before it are settled.
    """

    graph: LayerGraph
    channels: dict[str, Channels]
    causes: dict[str, Shares]
    doubts: dict[str, Doubt]
    bounds: dict[str, float]

    @property
    def unsure(self) -> dict[str, str]:
        """The doubts' reasons, by path."""
        return {path: doubt.reason for path, doubt in self.doubts.items()}

    def ratio(self, path: str) -> float:
        """The variance that a norm reads in eval mode over that in train mode."""
        return self.channels[path].ratio


@single_threaded()
def predict_shift(model: nn.Module, example: Any, *, seed: int = 0) -> ShiftReport:
    """Predict the rows of `variance_shift` without data, and which dropouts cause each shift.

    Random inputs are sent through the model, each in three replicas: one without noise, as in eval mode, and two in
    train mode with dropout masks of their own, so that noise is what these two do not share (the two-replica picture
    of mean-field theory). At every norm, the variance stored in training fixes the variance of the data's signal there:
    `Var_eval = (V - N) noise_free / shared`, with V the variance stored and N that of the noise; noise_free and
    shared are the variances of what random inputs give without noise and of what their train replicas share. The first
    is the larger one where activations pass less of the signal because of the noise. For one weight layer behind
    dropout this is the
    identity `Var_train(w.x) = Var_eval(w.x) + p / (1 - p) sum_i w_i^2 E x_i^2`, of which Li et al. (2018), equations 8
    and 14, are special cases. Norms that store nothing yet are predicted from the initialization: `running_var` is
    then what they would store of standardized inputs, and so are those that store what cannot be (NaN, infinite or
    negative), whose rows say so in `bad`. Norms that `reestimate_` or `correct_` has written are predicted as even. The
    model is restored.

    Inputs are assumed to be smooth random fields of varying contrast, roughly like images. Behind the first norm this
    matters little, since its statistics are those of the data. Observers of quantization are off, their ranges held.

    Args:
        model: the model, in train or eval mode.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments; shapes matter, values of
            floating tensors do not.
        seed: of the random inputs and masks; what several seeds make of a row shows how sure it is.

    Returns:
        A `ShiftReport` like that of `variance_shift`, each row with `causes`: the dropouts, and their share in percent
        of what noise does to the norm's input, the largest first; and with `parts`: "dropout", the shift that would be
        left if all norms upstream were corrected, caused by dropout since these, and "inherited", the rest, which
        comes through them (Huang et al. 2022 saw it add up). Norms for which something had to be guessed are in
        `unsure`, by path, each with the reason; operations that no table knows (OPAQUE), which are run as they are,
        are named in the notes.

    Raises:
        ModelError: the model has no norm with running statistics, or weights that are not finite.
        TraceError: the forward pass raised, in train mode with a batch of random inputs.

    >>> import torch
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=1.0))
    >>> _ = model(torch.randn(4096, 8))
    >>> row = predict_shift(model, torch.zeros(1, 8))[0]
    >>> round(row.ratio, 1), row.causes
    (0.5, ((Layer('0', DROPOUT, p=0.5), 100.0),))
    """
    with unwrapped(model) as plain:
        norms, graph = norms_of(plain), graph_of(plain, example)
        faults = {path: fault for path, norm in norms.items() if (fault := fault_of(norm))}
        stored = {path: float(Stored.of(norms[path]).variance.mean()) for path in faults}
        with restored(plain) if faults else nullcontext():
            for path in faults:
                norms[path].reset_running_stats()
            given, plan = prediction_inputs(plain, graph, norms), SamplingPlan(seed=seed)
            given = replace(given, distrusted={**given.distrusted, **faults})
            found = predict(given, plan)
            inherited = inherited_shifts(given, plan, found)
        written = given.repaired
        outdated = {path: _OUTDATED for path in behind_shifted(given, found) if norms[path] in written}
        unsure = found.unsure | outdated | given.beside | faults
        repaired = {path: float(Stored.of(norm).variance.mean()) for path, norm in norms.items() if norm in written}
    rows = [
        ShiftRow(
            path,
            (stored | repaired).get(path, float(channels.train_var.mean())),
            repaired.get(path, float(channels.eval_var.mean())),
            feeding(found.graph, norms[path]),
            () if path in repaired else tuple((layer, 100 * share) for layer, share in found.causes[path].items()),
            parts={} if path in faults or path in repaired else _parts(found.ratio(path), inherited[path]),
            slope=1.0 if path in repaired else float(channels.slope.mean()),
            initial_left=initial_left(norms[path]),
            bad=faults.get(path) or fault_in_affine(norms[path]),
            channels=None if path in faults or path in repaired else _spread(channels, norms[path].eps),
        )
        for path, channels in found.channels.items()
    ]
    notes = [*_opaque(found, norms), *infinite_behind(plain, norms), *averaged_while_trained(norms)]
    return ShiftReport(rows, notes, unsure=unsure).drawn_with(partial(outline, graph))


def _spread(channels: Channels, eps: float) -> Histogram | None:
    return histogram_of((channels.eval_var + eps) / (channels.train_var + eps))


def _parts(ratio: float, inherited: float) -> dict[str, float]:
    return {"inherited": inherited, "dropout": ratio / inherited}


def _opaque(found: Prediction, norms: Mapping[str, Norm]) -> list[str]:
    """A line for every operation that is not understood, with the norms that it feeds and that are not unsure."""
    paths: dict[nn.Module | None, str] = {norm: path for path, norm in norms.items() if path not in found.doubts}
    fed = {
        layer: [paths[n.module] for n in found.graph.downstream(layer, until=Kind.NORM) if n.module in paths]
        for layer in found.graph
        if is_opaque(layer)
    }
    return [
        f"{', '.join(to)}: fed by {layer.label}, not understood and run as it is" for layer, to in fed.items() if to
    ]


@dataclass(frozen=True)
class PredictionInputs:
    """What every prediction of one model needs, however often it is made.

    Attributes:
        sampled: the model, and how it is run.
        anchors: the statistics known of other layers, by name.
        distrusted: norms whose statistics are not those of training, by path, each with the reason.
        contradicted: norms that eval mode feeds something else than the noise-free replica, likewise.
        beside: modules with statistics that are no norms of torch's, likewise.
    """

    sampled: Sampled
    anchors: Mapping[str, Stored]
    distrusted: Mapping[str, str]
    contradicted: Mapping[str, str]
    beside: dict[str, str]

    @property
    def graph(self) -> LayerGraph:
        """The model's layers."""
        return self.sampled.graph

    @property
    def norms(self) -> Mapping[str, Norm]:
        """The model's norms with running statistics, by path."""
        return self.sampled.norms

    @property
    def repaired(self) -> set[Norm]:
        """The norms that store what `reestimate_` or `correct_` wrote, or mostly that: eval mode feeds them that."""
        return set(filter(is_repaired, self.norms.values()))


@single_threaded()
def prediction_inputs(model: nn.Module, graph: LayerGraph, norms: Mapping[str, Norm]) -> PredictionInputs:
    """Read what predictions of a model need, and check it against one pass in eval mode.

    Args:
        model: the model, without wrappers; it is restored.
        graph: what `trace` made of it.
        norms: its norms with running statistics, by path.

    Raises:
        ModelError: a norm stores what cannot be.
        TraceError: the forward pass raised.
    """
    for path, norm in norms.items():
        if fault := fault_of(norm):
            raise ModelError(f"the norm {path!r} is damaged: {fault}; reestimate_ repairs it from data")
    run, example = runner(model, graph.example)
    distrusted = distrust(graph, norms)
    anchors = stored_before(graph, {norm for path, norm in norms.items() if path not in distrusted})
    sampled = Sampled(model, graph, norms, run, prepared(example, model))
    with restored(model):
        hold_quantizers_(model)
        sampled, contradicted = agreement(sampled)
    beside = statistics_beside(model, lambda: run(prepared(example, model)))
    return PredictionInputs(sampled, anchors, distrusted, contradicted, beside)


@single_threaded()
def predict(given: PredictionInputs, plan: SamplingPlan) -> Prediction:
    """Predict what every norm reads in train and in eval mode; the model is restored.

    Norms behind repaired ones are fed by these as they are by now.

    Raises:
        ModelError: no norm is reached, or weights or statistics are not finite.
        TraceError: the forward pass raised.
    """
    seen, graph, channels = _sampled(given, plan)
    norms = given.norms
    shares = _shares(seen, graph, channels)
    unreached = {path: _why_unreached(graph, norm, path) for path, norm in norms.items() if path not in channels}
    loose = loose_dropouts(graph, given.anchors, seen.rootless)
    faults = {**given.contradicted, **given.distrusted, **unreached}
    own = {
        path: doubt
        for path, call in seen.calls.items()
        if path not in faults and (doubt := doubt_of(seen.arrivals[path], call, shares[path], seen, graph, loose))
    }
    resting = _behind_wrong(given, own, graph, seen.calls)
    doubted = resting | own | {path: Doubt(reason, wrong=True) for path, reason in faults.items()}
    doubts = {path: doubted[path] for path in norms if path in doubted}
    before = bounds_before(graph, seen)
    bounds = {path: before[call.inputs[0]] for path, call in seen.calls.items()}
    return Prediction(graph, channels, shares, doubts, bounds)


@single_threaded()
def _sampled(given: PredictionInputs, plan: SamplingPlan) -> tuple[ReplicaRecorder, LayerGraph, dict[str, Channels]]:
    """What a sample showed, the graph that it recorded, and what every norm reached reads, by path.

    Raises:
        ModelError, TraceError: as for `predict`.
    """
    model, norms = given.sampled.model, given.norms
    plan = replace(plan, settled={*plan.settled, *given.repaired})
    with restored(model):
        hold_quantizers_(model)
        set_modes(model, training=True)
        seen, graph = sample(given.sampled, plan, given.anchors)
    channels = {path: pooled([arrival.channels for arrival in seen.arrivals[path]]) for path in seen.calls}
    if not channels:
        path, norm = next(iter(norms.items()))
        reason = _why_unreached(graph, norm, path)
        raise ModelError(f"nothing is predicted of {count_text(len(norms), 'norm')}; {path!r}: {reason}")
    for path, found in channels.items():
        if not (found.eval_var + found.eval_mean).isfinite().all():
            if damage := damage_of(model):
                raise ModelError(f"{damage} is not finite, as shows at norm {path!r}: load a checkpoint from before")
            if fault := unscalable(model):
                raise ModelError(f"what {path!r} reads is not finite: {fault}")
            raise ModelError(
                f"with random inputs of both signs, what {path!r} reads is not finite, though all weights are: if the "
                "model takes the logarithm or root of its input, or holds half precision, measure on data: "
                "variance_shift, reestimate_"
            )
    return seen, graph, channels


def _why_unreached(graph: LayerGraph, norm: Norm, path: str) -> str:
    """Why nothing is known of what reaches a norm, as far as a graph tells."""
    if any(layer.module is norm for layer in graph.of(Kind.NORM)):
        return _PARTLY
    is_called = any(layer.path == path or layer.path.startswith(f"{path}.") for layer in graph)
    return NO_CALL if is_called else "never reached"


def inherited_shifts(given: PredictionInputs, plan: SamplingPlan, found: Prediction) -> dict[str, float]:
    """By path, the factor of each norm's shift that comes through norms upstream, because these are off; 1 if none is.

    Args:
        given: of the model.
        plan: how `found` was sampled.
        found: the prediction.

    Returns:
        The ratio over that of a second, smaller prediction, in which all norms store what eval mode feeds them.
    """
    behind = behind_shifted(given, found) - {path for path, norm in given.norms.items() if norm in given.repaired}
    if not behind:
        return dict.fromkeys(found.channels, 1.0)
    settled = {norm for path, norm in given.norms.items() if given.distrusted.get(path) != FROZEN}
    smaller = replace(plan, settled=settled, elements=plan.elements // 4, fewest=plan.fewest // 2, energies=False)
    *_, corrected = _sampled(given, smaller)
    ratios = {path: (found.ratio(path), corrected[path].ratio) for path in behind}
    known = {path: whole / own for path, (whole, own) in ratios.items() if 0 < whole < math.inf and 0 < own < math.inf}
    return dict.fromkeys(found.channels, 1.0) | known


def behind_shifted(given: PredictionInputs, found: Prediction) -> set[str]:
    """The norms, by path, that a norm which is off comes before; frozen ones act alike in both modes."""
    repaired = given.repaired
    paths: dict[nn.Module | None, str] = {norm: path for path, norm in given.norms.items() if path in found.channels}
    shifted = {
        norm
        for norm, path in paths.items()
        if norm not in repaired
        and given.distrusted.get(path) != FROZEN
        and abs(math.log(max(found.ratio(path), _LEAST))) > _EVEN
    }
    calls = (call for call in given.graph.of(Kind.NORM) if call.module in paths)
    return {paths[call.module] for call in calls if any(x.module in shifted for x in given.graph.upstream(call))}


def _behind_wrong(
    given: PredictionInputs, own: Mapping[str, Doubt], graph: LayerGraph, calls: Mapping[str, Layer]
) -> dict[str, Doubt]:
    """Norms right behind others whose statistics are not those of training, or are predicted wrongly, by path."""
    reasons = {path: reason for path, reason in given.distrusted.items() if reason not in (FROZEN, WRITTEN)}
    reasons |= {path: doubt.reason for path, doubt in own.items() if doubt.wrong}
    paths: dict[nn.Module | None, str] = {given.norms[path]: path for path in reasons}
    found: dict[str, Doubt] = {}
    for path, call in calls.items():
        before = [paths[x.module] for x in graph.upstream(call, until=Kind.NORM) if x.module in paths]
        if before:
            found[path] = Doubt(f"it rests on {before[0]!r} ({reasons[before[0]]})", wrong=False)
    return found


def _shares(seen: ReplicaRecorder, graph: LayerGraph, channels: Mapping[str, Channels]) -> dict[str, Shares]:
    causes = causes_of(graph, seen.energies, seen.unresolved)
    shares = {
        path: causes[seen.calls[path]].shares(float(found.noise.mean() / found.train_var.mean()))
        for path, found in channels.items()
    }
    return {path: dict(sorted(found.items(), key=lambda item: -item[1])) for path, found in shares.items()}
