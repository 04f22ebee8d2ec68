"""reestimate_: give every norm layer statistics that suit its input with dropout off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.model.batches import Forward
from evenkeel.model.batches import samples as samples_in
from evenkeel.model.evaluation import Scorer, evaluate
from evenkeel.reestimation.attempt import Attempt
from evenkeel.reestimation.judging import Beginning, Judge, require_judging, scoring_on
from evenkeel.reestimation.prior import Weight
from evenkeel.reestimation.reestimation_report import Reestimation
from evenkeel.statistics.distributed import Ranks, default_group
from evenkeel.statistics.group_limits import MEMORY
from evenkeel.statistics.pairs import Match
from evenkeel.statistics.stretching import warn

_ONCE = "only match={!r} was tried: the batches can be iterated over only once; pass a list or a DataLoader"


def reestimate_(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    match: Match | None = None,
    forward: Forward | None = None,
    stats: Literal["both", "var", "mean"] = "both",
    relative: bool = False,
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
    seed: int = 0,
) -> Reestimation:
    """Give every norm layer running statistics that suit its input with dropout off.

    `match="variance"` replaces them by those of its input: the whole model is in eval mode, so that every source of
    noise is off, and what each norm is fed is merged over all batches into the population's mean and (unbiased)
    variance, `var = within + between`, in float64: the update of Hendrycks & Gimpel (2016, section 3) and of Li et al.
    (2018, "adjust", Table 3) with the population's variance in place of a moving average.

    `match="mean"` changes them so that eval mode gives, as nearly as two numbers a channel can, what train mode gives
    on average over masks. Each group of batches runs twice, with noise on, norms normalising by the statistics m, v
    that training left, and off: z_t and z_e. With `k = Cov(z_e, z_t) / Var(z_e)` a channel, a norm stores
    `v' = (v + eps) / k^2 - eps` and `m' = E z_e - (E z_t - m) / k`. Right behind a dropout k = 1, and nothing changes
    but what comes from norms before it. A k that is not known to within a standard error of .1 stays 1, and is named.
    Only noise is taken out: data of another mix than training's, and few of them, do little harm. Of a list or a
    DataLoader of 2,048 samples or more only as many run as the slopes need to be known to within .03, from all over
    it, unless `tolerance` or `prior` say how much they are to tell.

    Norms are settled in order (see `settle`): each is measured on what it reads once the norms before it normalise by
    their own new statistics, as they will in eval mode, however small the batches. Small batches are merged into large
    ones, which is exact and faster, within `memory`.

    Norms in eval mode inside a model in train mode are frozen and stay as they are; so do norms that no batch reaches,
    and, unless told otherwise, those that were never updated though their weight and bias were trained.
    Norms used more than once per pass get the statistics of all uses. Buffers are written in place, after the last
    batch. Train/eval flags, momentum, hooks, `num_batches_tracked` and random states are as found afterwards. On any
    error the model is exactly as it was. On a CPU images are laid out channels-last while measuring, which is faster.

    Args:
        model: the model, changed in place.
        batches: an iterable; a tensor b is run as `model(b)`, a tuple or list as `model(b[0])`, a mapping as
            `model(**b)`.
        match: what eval mode is to keep of train mode: "variance", of each norm's output over the data, or "mean", of
            each output over masks. Matching variances makes outputs larger where dropout stands right before a norm:
            the arg max of a classifier stays, and log losses of small ones got better, but the error of a regression
            grew, up to elevenfold (`benchmarks.matching`). So None is "variance" but for what looks like a regression:
            floating targets that its outputs fit, or one value a sample and no targets. There it is "mean", and taken
            back if the squared error by the batches' own targets falls by less than a twentieth: the model was fitted
            to them. Without any noise both are the same.
        forward: how to run anything else: `lambda model, batch: ...`.
        stats: which statistics to write: both, var (as the paper says) or mean.
        relative: with match="variance", multiply the stored variance by that with noise off over that with noise on,
            both measured on the batches: takes out dropout's part alone, as match="mean" does, where data are not those
            of training.
        tolerance: stop as soon as the relative standard error of every norm's mean variance, or the standard error of
            its slope k, is at most this.
        max_batches: how many batches to use; all if None.
        prior: how many samples the statistics found in the model count for, blended norm after norm, so that each is
            fed by norms that store the blend; 0 replaces them. One number, one for every norm, by path or in order, or
            "auto": as much as the standard errors of the new ones say (see `Prior`), of a single batch those between
            its samples; infinite keeps what is there.
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
        choose: "best" keeps what has the lowest held-out loss: the model as found, or `match`, or either match where
            that is None; NaN is never lower, and anything finite is lower than NaN.
        unsure: what to do with norms that store mean 0 and variance 1 as built, beside trained weights. If training ran
            them in eval mode these are right, and others ruin the model; if the model is a copy made before training,
            such as an average of weights, they are wrong. "leave" leaves them, unless `choose="best"` lets held-out
            data decide; "write" replaces them.
        seed: of the masks that match="mean" and relative=True draw.

    Returns:
        A `Reestimation`, whose `undo()` takes it all back.

    Raises:
        ModelError: the model has no norm with running statistics, or all of them are frozen, or left as they are; or
            one stores what is not finite where `stats` leaves it, or where its mean is to be matched; or its statistics
            were written by a repair, and those of training, which matching the mean needs, are not known.
        BatchError: the batches raised, ran short, were empty or not finite; says which batch and layer.

    Warns:
        StretchWarning: variances were matched, dropout stands right before a norm, nothing says that the model is a
            classifier, and no held-out data judge: what the norm passes on has grown, and so may a regression's error.

    >>> import torch
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2, momentum=1.0))
    >>> data = [torch.randn(256, 2) for _ in range(4)]
    >>> _ = model(data[0])
    >>> done = reestimate_(model, data)
    >>> torch.allclose(model[1].running_var, torch.cat(data).var(0))
    True
    """
    if match not in (None, "variance", "mean"):
        raise EvenkeelError(f"match must be 'variance', 'mean' or None, not {match!r}")
    if relative and match != "variance":
        raise EvenkeelError("relative=True is for match='variance'; match='mean' is relative to training as it is")
    if unsure not in ("leave", "write"):
        raise EvenkeelError(f"unsure must be 'leave' or 'write', not {unsure!r}")
    require_judging(held_out, score, choose)
    attempt = Attempt(
        batches,
        forward=forward,
        stats=stats,
        relative=relative,
        tolerance=tolerance,
        max_batches=max_batches,
        prior=prior,
        samples=samples,
        progress=progress,
        group=default_group(group),
        memory=memory,
        seed=seed,
        leave=unsure == "leave" and choose == "new",
    )
    ranks, is_once = Ranks(attempt.group), isinstance(batches, Iterator)
    if held_out is not None:
        judge = Judge(model, scoring_on(held_out, score, forward), ranks)
        before = judge.score()
        if match is None and choose == "best" and not is_once:
            return judge.best(attempt, before)
        done = judge.judged(attempt.reestimated(model, match), before)
        if choose == "best":
            judge.keep_better(done)
            done.notes = (*done.notes, *([_ONCE.format(done.match)] if match is None else []))
        return done
    done = attempt.reestimated(model, match)
    if match is None and done.match == "mean" and not is_once:
        own = Judge(model, partial(evaluate, batches=Beginning(batches, samples_in), forward=forward), ranks)
        return own.better_by_own_targets(done)
    warn(done.stretch)
    return done
