"""correct_: the noise of dropout taken out of the running statistics, without data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from evenkeel.errors import EvenkeelError, ModelError, count_text
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.outline import outline
from evenkeel.graph.tracing import graph_of
from evenkeel.model.buffers import Held, is_as_written, put_back_, write_buffers_
from evenkeel.model.norms import norms_of
from evenkeel.model.quantizers import outgrown_notes, quantizers_of
from evenkeel.model.threads import single_threaded
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.tables import Cells, grouped
from evenkeel.prediction.doubts import departure
from evenkeel.prediction.replica_recorder import SamplingPlan
from evenkeel.prediction.settled_prediction import settle
from evenkeel.prediction.shift_prediction import prediction_inputs
from evenkeel.shift.shift_page import Repair
from evenkeel.statistics.noise import STATISTICS
from evenkeel.statistics.norm_change import NormChange, Paired
from evenkeel.statistics.pairs import Match
from evenkeel.statistics.stored_values import averaged_while_trained
from evenkeel.statistics.stretching import stretched, warn

_STORED = {"both": ("running_var", "running_mean"), "var": ("running_var",)}
_CLASSES = (
    "variances are matched, since the model returns more than one value a sample, as classifiers do: of a regression "
    "the error may grow, and match='mean' is the safe one"
)
_ELEMENTS, _FEWEST = 1 << 28, 16  # a larger sample than for a report: every channel counts


class Correction(Repair):
    """What `correct_` did, a row a norm in execution order, and the way back; `str()` is the table.

    Attributes:
        rows: one a norm corrected.
        untouched: norms left as they were, by path, each with the reason.
        match: what was matched: "variance" or "mean".
        unsure: norms written although that is right only if what is not known is as assumed, likewise.
        notes: what the repair may harm.
    """

    def __init__(
        self,
        rows: Iterable[NormChange],
        untouched: dict[str, str],
        before: Held | None = None,
        notes: Iterable[str] = (),
        unsure: Mapping[str, str] | None = None,
        *,
        match: Match = "variance",
    ) -> None:
        super().__init__(rows, untouched=untouched, unsure=unsure, notes=notes)
        self.match = match
        self._before = before or Held()

    def undo(self) -> None:
        """Put the statistics found before back, in place."""
        put_back_(self._before)

    @property
    def summary(self) -> str:
        """How many norms were corrected, and how many not, in words."""
        left = f", {len(self.untouched)} left as they were" if self.untouched else ""
        how = "" if self.match == "variance" else ", their mean matched"
        return f"{count_text(len(self), 'norm')} corrected without data{how}{left}"

    def __repr__(self) -> str:
        untouched = "".join(f"; {path!r} untouched: {reason}" for path, reason in self.untouched.items())
        return f"Correction({len(self)} norms{untouched})"

    @property
    def _said(self) -> str:
        return self.summary

    def _cells(self) -> Cells:
        rows = [
            (r.path, f"{r.before:.4g}", f"{r.after:.4g}", f"{r.ratio:.3f}", f"{r.moved:.2f}", *_slope(r)) for r in self
        ]
        columns = ("norm", "running var", "corrected", "ratio", "mean moved, deviations", "slope")
        caption = [
            self.summary,
            *grouped(self.untouched, "untouched"),
            *grouped(self.unsure, "unsure"),
            *self.notes,
        ]
        return Cells(columns, rows, caption, words=columns[:1])


def _slope(row: NormChange) -> tuple[str]:
    return ("",) if row.paired is None else (f"{row.paired.slope:.3f}",)


@single_threaded()
def correct_(
    model: nn.Module,
    example: Any,
    *,
    match: Match | None = None,
    stats: Literal["both", "var"] = "both",
    unsure: Literal["leave", "write"] = "leave",
    seed: int = 0,
) -> Correction:
    """Replace the running statistics of every norm layer by those predicted with dropout off, without data.

    Of the variance that training stored, the noise of dropout is taken out, and what it damped of the signal is given
    back: `predict_shift` says how, but here every norm normalises by its own new statistics, in execution order, as it
    will in eval mode (`predict_shift` predicts the shift of the checkpoint as it is). Running means are moved by what
    activations make of the noise.

    Nothing is written where the prediction contradicts what is known: norms that store nothing yet, statistics of
    several calls together, frozen norms, noise as large as all that is stored, eval mode feeding them otherwise than
    the replicas, seeds that disagree, and a norm moved further than the dropout on its way can move it:
    `Var_eval / Var_train >= (1 - n) prod 1 / (1 + s2 q)`, with s2 = p / (1 - p), q = E x^2 / Var x of what each dropout
    reads, and n the noise in what the norms before hand on. Nor is it, unless `unsure="write"`, where the prediction
    cannot be proven: where noise passes an operation that is not understood; behind norms whose statistics are not
    those of training; and where it matters how strong a signal is that no norm fixes: with V the variance stored and v
    that of random inputs, its noise is between N and N V / v, which is too wide, or leaves less than half of the shift.
    If more than a quarter of the norms that dropout moves cannot be proven, none behind them is written, for what they
    get wrong adds up. All these norms are named in `untouched`. On any error the model is exactly as it was.

    With `match="mean"` what is written is what `reestimate_` writes with it, of the same replicas: k is the slope of
    the train replicas on the one without noise, `v' = (v + eps) / k^2 - eps`, and right behind a dropout nothing
    changes. k does not depend on how strong the signal is.

    With data at hand, `reestimate_` is exact; this is for a checkpoint without.

    Args:
        model: the model, changed in place. What is taken out is what training with dropout put in, once: norms that
            `correct_` or `reestimate_` has written, and that were not trained since, are left as they are, and so are
            blends by `prior=` of which more than a tenth is new, and those of a checkpoint that `evenkeel repair`
            wrote. A state dict by itself does not tell.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments; shapes matter, values of
            floating tensors do not.
        match: what eval mode is to keep of train mode: "variance", of each norm's output over the data, or "mean", of
            each output over masks. None is "mean" where the model returns one value a sample, and so may be a
            regression, whose error the other may multiply, and "variance" otherwise, which is said in `notes`.
        stats: which statistics to write: both, or var.
        unsure: norms whose prediction is not wrong but cannot be proven: leave them, or write them and name them in
            `unsure`.
        seed: of the random inputs and masks that it is predicted by.

    Returns:
        A `Correction`, whose `undo()` takes it all back.

    Raises:
        ModelError: the model has no norm with running statistics, all were written before, or weights or statistics
            are not finite.
        TraceError: the forward pass raised, in train mode with a batch of random inputs.

    Warns:
        StretchWarning: variances were matched, and dropout stands right before a norm: what it passes on has grown, and
            so may the error of a regression.

    >>> import torch
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=1.0))
    >>> _ = model(torch.randn(4096, 8))
    >>> done = correct_(model, torch.zeros(1, 8))
    >>> torch.allclose(model[1].running_var, torch.ones(8), atol=0.2)
    True
    >>> done.undo()
    >>> model[1].running_var.mean().round()
    tensor(2.)
    """
    if stats not in _STORED:
        raise EvenkeelError(f"stats must be 'both' or 'var', not {stats!r}")
    if match not in (None, "variance", "mean"):
        raise EvenkeelError(f"match must be 'variance', 'mean' or None, not {match!r}")
    if unsure not in ("leave", "write"):
        raise EvenkeelError(f"unsure must be 'leave' or 'write', not {unsure!r}")
    with unwrapped(model) as whole:
        norms = norms_of(whole)
        if all(is_as_written(norm, "running_var") for norm in norms.values()):
            raise ModelError(
                "nothing is left to correct: reestimate_ or correct_ has taken the noise of dropout out of all "
                f"{len(norms)} norms since training; call undo() first, or load what training left"
            )
        graph = graph_of(whole, example)
        assumed = match is None and not _has_single_values(graph)
        match = match or ("variance" if assumed else "mean")
        given = prediction_inputs(whole, graph, norms)
        found = settle(
            given,
            SamplingPlan(stats=stats, match=match, elements=_ELEMENTS, fewest=_FEWEST, seed=seed),
            unproven=unsure == "write",
        )
        untouched = {path: doubt.reason for path, doubt in found.doubts.items() if doubt.wrong or unsure == "leave"}
        untouched |= given.beside
    averaged = averaged_while_trained(norms)  # before they are written
    channels = {path: moments for path, moments in found.channels.items() if path not in untouched}
    values: dict[tuple[nn.Module, str], Tensor] = {
        (norms[path], name): value.to(getattr(norms[path], name).dtype)
        for path, moments in channels.items()
        for name, value in zip(STATISTICS, moments.matched(match, norms[path].eps), strict=True)
        if name in _STORED[stats]
    }
    for (norm, name), value in values.items():
        if not value.isfinite().all():
            path = next(path for path, other in norms.items() if other is norm)
            raise ModelError(f"{name} of {path!r} is predicted to overflow {value.dtype}: nothing was changed")
    held = write_buffers_(values, mean_matched=match == "mean")
    slopes = {path: float(moments.slope.mean()) for path, moments in channels.items()}
    changes = [
        NormChange.of(path, norms[path], held, paired=Paired(slopes[path], math.exp(departure(moments))))
        for path, moments in channels.items()
    ]
    stretch = stretched(graph, norms, changes)
    warn(stretch)
    written = {path: reason for path, reason in found.unsure.items() if path not in untouched}
    notes = [
        *([stretch] if stretch else [_CLASSES] if assumed and changes else []),
        *averaged,
        *quantizers_of(whole).notes,
        *outgrown_notes(whole),
    ]
    done = Correction(changes, untouched, held, notes, written, match=match)
    return done.drawn_with(partial(outline, graph))


def _has_single_values(graph: LayerGraph) -> bool:
    """Whether a model returns one value a sample, and so may be a regression."""
    outputs = [x.shape for layer in graph.of(Kind.OUTPUT) for x in layer.inputs if x.shape]
    return bool(outputs) and all(math.prod(shape[1:]) == 1 for shape in outputs)
