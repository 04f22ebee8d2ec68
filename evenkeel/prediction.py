"""predict_shift: the variance shift of every norm layer, from weights and statistics alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from evenkeel.causes import Shares, causes_of
from evenkeel.errors import ModelError
from evenkeel.graph import LayerGraph
from evenkeel.kinds import Kind
from evenkeel.modes import restored, unwrapped
from evenkeel.norms import Norm, foreign_norms, norms_of
from evenkeel.replicas import Channels
from evenkeel.sampling import ELEMENTS, sample
from evenkeel.shift import ShiftReport, ShiftRow, feeding, mean_of
from evenkeel.stored import Stored, stored_before, unanchored, unknowing
from evenkeel.tracing import prepared, record, runner, set_modes

UNREACHED = "never reached, or not with samples first and channels second"
_GUESSED = 0.1  # share of a norm's shift that dropouts nothing is known of may cause
_DROWNED = 0.05  # share of a norm's channels in which noise may exceed what is stored
_SMALL = 0.005  # log ratio of a shift that needs no cause


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a model's norms.

    Attributes:
        graph: the model's layers.
        channels: of every norm reached, by path, what it is fed in train and in eval mode.
        causes: by path, the share of every dropout in what noise does to the norm's input.
        unsure: norms for which something had to be guessed, by path, each with the reason.
        unreached: norms that the pass did not reach, or not with the batch in front.
    """

    graph: LayerGraph
    channels: dict[str, Channels]
    causes: dict[str, Shares]
    unsure: dict[str, str]
    unreached: tuple[str, ...]


def predict_shift(model: nn.Module, example: Any, *, seed: int = 0) -> ShiftReport:
    """Predict the rows of `variance_shift` without data, and which dropouts cause each shift.

    Random inputs are sent through the model, each in three replicas: one without noise, as in eval mode, and two in
    train mode with dropout masks of their own, so that noise is what these two do not share (the two-replica picture
    of mean-field theory). At every norm, what it stored in training tells how strong the data's signal is there:
    `Var_eval = (Var_train - N) Var_calm / Var_shared`, with N the variance of the noise, and Var_calm / Var_shared
    above 1 where activations passed less of the signal for its noise. For one weight layer behind dropout this is the
    identity `Var_train(w.x) = Var_eval(w.x) + p / (1 - p) sum_i w_i^2 E x_i^2`, of which Li et al. (2018), equations 8
    and 14, are special cases. Norms that store nothing yet are predicted from the initialization: `running_var` is
    then what they would store of standardized inputs. The model is given back as found.

    What is assumed: that inputs are smooth random fields of varying contrast, as images are about; of what comes after
    the first norm that says little, since its statistics are those of the data.

    Args:
        model: the model, in train or eval mode.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments; shapes matter, values of
            floating tensors do not.
        seed: of the random inputs and masks; what several seeds make of a row shows how sure it is.

    Returns:
        A `ShiftReport` like that of `variance_shift`, each row with `causes`: the dropouts, and their share in percent
        of what noise does to the norm's input, the largest first. What had to be guessed is said in its notes.

    Raises:
        ModelError: the model has no norm with running statistics, or weights or statistics that are not finite.
        TraceError: the forward pass raised, in train mode with a batch of random inputs.

    >>> import torch
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=1.0))
    >>> _ = model(torch.randn(4096, 8))
    >>> row = predict_shift(model, torch.zeros(1, 8))[0]
    >>> round(row.ratio, 1), row.causes
    (0.5, ((Layer('0', DROPOUT, p=0.5), 100.0),))
    """
    with unwrapped(model) as plain:
        norms = norms_of(plain)
        found = predict(plain, example, norms, seed=seed)
    rows = [
        ShiftRow(
            path,
            mean_of(channels.train_var),
            mean_of(channels.eval_var),
            feeding(found.graph, norms[path]),
            tuple((layer, 100 * share) for layer, share in found.causes[path].items()),
        )
        for path, channels in found.channels.items()
    ]
    unreached = dict.fromkeys(found.unreached, UNREACHED)
    return ShiftReport(rows, _grouped({**found.unsure, **unreached, **foreign_norms(model)}))


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    """A line for every reason, with the norms that it holds for."""
    paths: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        paths.setdefault(reason, []).append(path)
    return [
        f"{found[0]}{f' and {len(found) - 1} more' if found[1:] else ''}: {reason}" for reason, found in paths.items()
    ]


def predict(
    model: nn.Module,
    example: Any,
    norms: Mapping[str, Norm],
    *,
    settled: bool = False,
    elements: int = ELEMENTS,
    seed: int = 0,
) -> Prediction:
    """Predict what every norm is fed in train and in eval mode; the model is given back as found.

    Args:
        model: the model.
        example: as for `trace`.
        norms: its norms with running statistics, by path.
        settled: in eval mode every norm normalises by what it is fed then; if not, by what it stores.
        elements: how large the sample is: of all signals of all replicas together.
        seed: of inputs and masks.

    Raises:
        ModelError: weights or statistics are not finite.
        TraceError: the forward pass raised.
    """
    run, inputs = runner(model, example)
    graph = record(model, run, inputs)
    unsure = unknowing(model, graph, norms)
    known = stored_before(graph, {norm for path, norm in norms.items() if path not in unsure})
    with restored(model):
        set_modes(model, training=True)
        sampler = sample(
            model,
            run,
            prepared(inputs, model),
            graph,
            norms=norms,
            known=known,
            settled=settled,
            elements=elements,
            seed=seed,
        )
    graph = LayerGraph(tuple(sampler.layers))
    causes = causes_of(graph, sampler.energies)
    calls = {layer.module: layer for layer in graph.of(Kind.NORM)}
    channels = {path: found[-1] for path, found in sampler.channels.items()}
    for path, found in channels.items():
        if not (found.eval_var + found.eval_mean).isfinite().all():
            raise ModelError(f"what {path!r} is fed is not finite: check weights, running statistics and their dtype")
    shares = {
        path: _by_size(causes[calls[norms[path]]].shares(float(found.noise.mean() / found.train_var.mean())))
        for path, found in channels.items()
    }
    for path, found in channels.items():
        reason = _guess(shares[path], found, graph, known)
        if reason and path not in unsure:
            unsure[path] = reason
    return Prediction(graph, channels, shares, unsure, tuple(path for path in norms if path not in channels))


def _guess(shares: Shares, found: Channels, graph: LayerGraph, known: Mapping[str, Stored]) -> str | None:
    """Why the prediction for a norm is no more than a guess, if so."""
    drowned = int((found.covariance < 0).sum())
    if drowned > _DROWNED * len(found.covariance):
        return f"the noise predicted exceeds the variance stored in {drowned} of {len(found.covariance)} channels"
    if abs(float((found.eval_var.mean() / found.train_var.mean()).log())) < _SMALL:
        return None
    loose = unanchored(graph, known)
    for layer, share in shares.items():
        where = f" ({layer.where})" if layer.where else ""
        if share > _GUESSED and layer in loose:
            return f"{share:.0%} of its shift comes from {layer.name}{where}, on a signal whose strength no norm tells"
        if share > _GUESSED and layer.kind is not Kind.DROPOUT and not layer.p:
            return (
                f"{share:.0%} of its shift comes from noise in {layer.name}{where}, which may not be off in eval mode"
            )
    return None


def _by_size(shares: Shares) -> Shares:
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
