"""adapted, predict_adapted: statistics of the batch at hand blended with the model's own, for as long as it takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from evenkeel.errors import BatchError, SortedStreamWarning
from evenkeel.model.batches import Forward, each, forward_pass
from evenkeel.model.buffers import Held, put_back_
from evenkeel.model.flags import flagged
from evenkeel.model.quantizers import held_quantizers, hold_quantizers_
from evenkeel.model.restoring import restored
from evenkeel.reestimation.attempt import Attempt
from evenkeel.reestimation.prior import Weight
from evenkeel.reestimation.reestimation_report import Reestimation
from evenkeel.reestimation.stream_mix import StreamMix, classes_of


@contextmanager
def adapted(
    model: nn.Module,
    batch: Any,
    *,
    prior: Weight = "auto",
    forward: Forward | None = None,
    samples: Callable[[Any], int] | int | None = None,
) -> Generator[Reestimation]:
    """Norms on a blend of their own statistics and a batch's, while entered: a few samples of another domain.

    The batch runs once, dropout off, each norm fed by norms that store the blend (a second and further times only in
    nets that call a norm twice in a pass). Inside, the model is in eval mode: run it on the batch, or on others of the
    same domain. Observers of quantization are off meanwhile. On leaving, also after an exception, statistics and flags
    are as found, bit for bit. Norms that are frozen, or never updated, are left as `reestimate_` leaves them. Each
    process of torch.distributed adapts to its own batch.

    `prior=0` is batch statistics at test time (Nado et al. 2020), a number n the blend of Schneider et al. (2020),
    `n / (n + samples)` old and the rest new. "auto" weighs each norm by the standard errors of its new statistics,
    taken from how the batch's samples differ (see `Prior`). It takes them as drawn from the domain: a batch of one
    class is not, and no single batch tells; `predict_adapted` notices in a stream.

    Args:
        model: the model.
        batch: what `reestimate_` takes as one of its batches.
        prior: how many samples the statistics found in the model count for, as for `reestimate_`.
        forward: how to run anything else: `lambda model, batch: ...`.
        samples: how many samples the batch holds, where its tensors do not tell.

    Yields:
        What was done, as a `Reestimation`.

    Raises:
        ModelError, BatchError: as `reestimate_`; the model is as it was.

    >>> model, batch = nn.BatchNorm1d(2).eval(), 3 + torch.randn(64, 2)
    >>> with adapted(model, batch, prior=0):
    ...     outputs = model(batch)
    >>> bool(outputs.mean().abs() < 1e-5), model.running_mean
    (True, tensor([0., 0.]))
    """
    done = _attempt(batch, prior, forward, samples).reestimated(model, "variance")
    try:
        with _evaluating(model), held_quantizers(model):
            yield done
    finally:
        done.undo()


def predict_adapted(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    prior: Weight = "auto",
    running: bool = False,
    forward: Forward | None = None,
    samples: Callable[[Any], int] | int | None = None,
    watched: bool = True,
) -> Iterator[tuple[Any, Any]]:
    """Run a stream, batch after batch as they come, each by the model adapted to it; between batches it is as found.

    That is bit for bit, and random states, too: what a model counts or remembers from batch to batch, it forgets.

    Each batch runs twice, to be measured and to be predicted. A stream sorted by class misleads: a batch of one class
    has that class's statistics, and normalising by them takes away what tells it from others, so that what is predicted
    looks well mixed, and is wrong. So of a classifier each batch runs a third time by the model as found, and the
    classes predicted then are compared between batches by the chi-squared statistic; of other models, what norms are
    fed is, by its variance between batches over that within them. A stream that is unlike a shuffled one is warned of,
    once, with the batch that is farthest off. Where that is because the domain changes, all is well: none of this can
    tell one from the other.

    Args:
        model: the model, in eval mode while a batch runs.
        batches: the stream, read once.
        prior: how many samples the statistics found count for, as for `adapted`.
        running: blend with what the batch before left, not with the model's own: statistics follow the stream, and of
            each batch weigh n / (n + prior).
        forward: how to run anything else: `lambda model, batch: ...`.
        samples: how many samples a batch holds, where its tensors do not tell.
        watched: whether batches are compared.

    Yields:
        Each batch, on the model's device, and what the model returned.

    Raises:
        ModelError, BatchError: as `reestimate_`, with the batch's number; the model is as it was.

    Warns:
        SortedStreamWarning: batches are unlike each other.

    >>> model, batches = nn.BatchNorm1d(2).eval(), [3 + torch.randn(64, 2), 9 + torch.randn(64, 2)]
    >>> [bool(outputs.mean().abs() < 1e-5) for _, outputs in predict_adapted(model, batches, prior=0)]
    [True, True]
    """
    mix, left = StreamMix() if watched else None, Held()

    def predicted() -> Any:
        with restored(model, parameters=False), torch.no_grad():
            model.eval()
            hold_quantizers_(model)
            return forward_pass(model, batch, number, forward)

    for number, batch in enumerate(each(batches, model, None), 1):
        attempt = _attempt(batch, prior, forward, samples, by_sample=watched or None)
        found = put_back_(left) if running else Held()
        try:
            done = attempt.reestimated(model, "variance")
            try:
                outputs = predicted()
            finally:
                left = done.taken_back()
        except BatchError as error:
            what = str(error).replace("batch 1 ", f"batch {number} ")  # to be measured it was the first
            raise BatchError(f"in the stream: {what}") from error
        finally:
            put_back_(found)
        if mix is not None and (message := mix.add(classes_of(outputs) and predicted(), done.measured)):
            warnings.warn(message, SortedStreamWarning, stacklevel=2)
        yield batch, outputs


def _attempt(
    batch: Any,
    prior: Weight,
    forward: Forward | None,
    samples: Callable[[Any], int] | int | None,
    *,
    by_sample: bool | None = None,
) -> Attempt:
    return Attempt(
        [batch],
        forward=forward,
        prior=prior,
        samples=samples,
        memory=0,
        by_sample=by_sample,
        is_traced=False,
    )


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode; flags are as found afterwards."""
    was_training = model.training
    with flagged({module: module.training for module in model.modules()}):
        try:
            model.eval()
            yield
        finally:
            model.train(was_training)  # some modules do more than to set their flag
