"""evaluate: how a model does on held-out data, in eval mode, by any loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError, EvenkeelError, brief
from evenkeel.model.batches import Forward, each, forward_pass, samples
from evenkeel.model.losses import ADVICE, Loss, losses, meant, without_loss
from evenkeel.model.nested import tensors
from evenkeel.model.quantizers import hold_quantizers_
from evenkeel.model.restoring import restored

Scorer = Callable[[Any, Any], Any]
TARGETS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Score:
    """How a model does on held-out data.

    Attributes:
        loss: what is compared, lower is better; may be infinite or NaN.
        name: what it is: "log loss", in nats, "squared error", "the model's own loss", or the name of `score`.
        samples: number of samples.
        error: of a classifier, the share of labels that are not the most likely class, 0 to 1; None of other models.
        calibration_error: of a classifier, by how much confidence, the probability of the most likely class, and
            accuracy differ, on average over labels in 15 bins of equal width (Guo et al. 2017); 0 to 1.

    >>> Score(0.3, "log loss", 100, 0.1).is_better_than(Score(math.nan, "log loss", 100, 0.9))
    True
    """

    loss: float
    name: str
    samples: int
    error: float | None = None
    calibration_error: float | None = None

    @property
    def log_loss(self) -> float | None:
        """Of a classifier, the loss: the mean negative log-likelihood of the right class, in nats."""
        return None if self.error is None else self.loss

    def is_better_than(self, other: Score) -> bool:
        """Whether the loss is lower, or a number where the other's is none; what is not finite is never better."""
        return math.isfinite(self.loss) and not self.loss >= other.loss

    def change_to(self, after: Score) -> str:
        """This score and a later one in words.

        >>> Score(0.3, "squared error", 100).change_to(Score(0.25, "squared error", 100))
        'squared error 0.3 to 0.25'
        """
        words = f"{self.name} {self.loss:.3g} to {after.loss:.3g}"
        if self.error is None or after.error is None:
            return words
        return f"error {self.error:.2%} to {after.error:.2%}, {words}"


def outcome(before: Score | None, after: Score | None, *, kept: bool) -> str:
    """What a repair has made of a model's score, in words; empty if it was not scored.

    >>> outcome(Score(0.3, "squared error", 100), Score(0.4, "squared error", 100), kept=False)
    'squared error 0.3 to 0.4, no better, so taken back'
    """
    if before is None or after is None:
        return ""
    return before.change_to(after) + ("" if kept else ", no better, so taken back")


def evaluate(
    model: nn.Module, batches: Iterable[Any], *, score: Scorer | None = None, forward: Forward | None = None
) -> Score:
    """Score a model in eval mode, observers of quantization off; it is given back as found.

    Targets are the second item of a pair or longer tuple, or all that follow the first where the model returns as many
    outputs; or what a mapping, named tuple, dataclass or other object calls labels, label, targets, target or y. Of a
    mapping the model is called with those entries that its forward takes.

    Args:
        model: the model.
        batches: yields pairs of inputs and targets, or mappings; with `score` or a model that returns its loss, any.
        score: called as `score(outputs, targets)` with what the model returned, and the whole batch where it is not
            clear what the targets are; returns a number, lower is better, of which the mean over samples is taken. If
            None, the loss that the model returns, or the log loss of class labels (those of -100 left out) by outputs
            that are logits or probabilities, or the squared error of floating targets of the outputs' shape, ones
            aside; where outputs and targets are several, the sum.
        forward: how to run a batch: `lambda model, batch: ...`; as `model(inputs)` or by name if None.

    Returns:
        The score; its loss may be NaN.

    Raises:
        BatchError: a batch has no targets, none of these losses fits without doubt, or `score` raised or returned no
            number.
        EvenkeelError: score cannot be called.

    >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))]
    >>> evaluate(nn.Identity(), data).error
    0.5
    >>> evaluate(nn.Identity(), [torch.ones(3, 2)], score=lambda outputs, batch: nn.functional.l1_loss(outputs, batch))
    Score(loss=0.0, name='score', samples=3, error=None, calibration_error=None)
    """
    if score is not None and not callable(score):
        raise EvenkeelError(f"score must be called as score(outputs, targets), and {score!r} cannot be")
    sums: list[list[Loss]] = []
    count, outputs, targets = 0, None, None
    with restored(model), torch.no_grad():
        model.eval()
        hold_quantizers_(model)
        for number, batch in enumerate(each(batches, model, None), 1):
            outputs = forward_pass(model, batch if forward else _taken(batch, model), number, forward)
            targets = _targets(batch, outputs, forward)
            size = len(targets) if isinstance(targets, Tensor) and targets.ndim else samples(batch) or 1
            found = (
                _guessed(outputs, targets, batch, size, number)
                if score is None
                else [[_scored(score, outputs, targets, size, number)]]
            )
            sums = _added(sums, found, number) if sums else found
            count += size
    chosen = [loss for several in sums if (loss := meant(several))]
    if len(chosen) < len(sums):
        raise BatchError(f"several of the outputs {_described(outputs)} may be meant for the targets: {ADVICE}")
    if any(loss.unclear for loss in chosen):
        raise BatchError(
            f"the targets {_described(targets)} of all {count} samples are 0 or 1, or probabilities of classes, "
            f"outputs are {_described(outputs)}: pass score=torch.nn.functional.binary_cross_entropy_with_logits, "
            "cross_entropy, mse_loss, or what else is meant"
        )
    first, name = chosen[0], " + ".join(loss.name for loss in chosen)
    if len(chosen) > 1 or first.wrong is None or first.gaps is None:
        return Score(sum(loss.mean for loss in chosen), name, count)
    labels = first.count or math.nan
    return Score(first.mean, name, count, first.wrong / labels, float(first.gaps.abs().sum()) / labels)


def is_regression(batch: Any, outputs: Any, forward: Forward | None = None) -> bool:
    """Whether a model looks like a regression: by floating targets that its outputs fit, or by single values.

    Targets that are whole numbers, all 0 or 1, or probabilities of classes are labels. Where there are no targets, a
    model that returns one value a sample may be a regression.

    >>> x = torch.rand(4, 3)
    >>> is_regression((x, torch.tensor([0, 2, 1, 2])), x), is_regression((x, 2 * x), x), is_regression(x, x[:, :1])
    (False, True, True)
    """
    targets = _targets(batch, outputs, forward)
    if targets is batch or not tensors(targets):
        return all(tensor.shape[1:].numel() == 1 for tensor in tensors(outputs) if tensor.ndim)
    try:
        found = losses(without_loss(outputs), targets, samples(batch) or 1)
    except BatchError:  # of labels
        return False
    return any(loss.name.startswith("squared error") and not loss.unclear for several in found for loss in several)


def named_targets(batch: Any) -> Any:
    """What a mapping, named tuple, dataclass or other object holds as targets, by their name; None if nothing.

    >>> named_targets({"x": 1, "label": 2}), named_targets((1, 2))
    (2, None)
    """
    if isinstance(batch, Mapping):
        return next((batch[name] for name in TARGETS if batch.get(name) is not None), None)
    return next((found for name in TARGETS if (found := getattr(batch, name, None)) is not None), None)


def _targets(batch: Any, outputs: Any, forward: Forward | None) -> Any:
    """A batch's targets; the batch itself if it is not clear which they are."""
    if (named := named_targets(batch)) is not None:
        return named
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or (len(batch) > 2 and forward):
        return batch
    several = len(batch) > 2 and isinstance(outputs, (tuple, list)) and len(outputs) == len(batch) - 1
    return batch[1:] if several else batch[1]


def _taken(batch: Any, model: nn.Module) -> Any:
    """Of a mapping, the entries that the model's forward takes; any other batch as it is."""
    if not isinstance(batch, Mapping):
        return batch
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # of compiled code
        return batch
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return batch
    return {name: value for name, value in batch.items() if name in parameters}


def _guessed(outputs: Any, targets: Any, batch: Any, size: int, number: int) -> list[list[Loss]]:
    """The losses of a batch where no score is given."""
    try:
        found = losses(outputs, None if targets is batch else targets, size)
    except BatchError as error:
        raise BatchError(f"batch {number} {error}") from error
    if found:
        if any(loss.name.startswith("squared error") for several in found for loss in several):
            _require_finite(targets, number)
        return found
    if targets is batch or not tensors(targets):
        raise BatchError(
            f"batch {number} holds no labels, and the model returned no loss but {_described(outputs)}: a batch to "
            f"evaluate on is (inputs, targets), or has labels= in it; otherwise {ADVICE}"
        )
    raise BatchError(
        f"on batch {number} no loss fits without doubt outputs {_described(outputs)} and targets "
        f"{_described(targets)}: {ADVICE}"
    )


def _require_finite(targets: Any, number: int) -> None:
    found = torch.cat([tensor.flatten().isfinite() for tensor in tensors(targets)])
    if not found.all():
        raise BatchError(
            f"{int((~found).sum())} of {len(found)} targets of batch {number} are NaN or infinite: leave them out; "
            f"or {ADVICE}, that does"
        )


def _scored(score: Scorer, outputs: Any, targets: Any, size: int, number: int) -> Loss:
    """The loss of a batch by a score that was given."""
    function: Any = score.func if isinstance(score, partial) else score
    name = getattr(function, "__name__", type(function).__name__)
    shapes = f"on batch {number}, of outputs {_described(outputs)} and targets {_described(targets)}"
    try:
        value = score(outputs, targets)
    except Exception as error:
        raise BatchError(f"score raised {brief(error)} {shapes}") from error
    try:
        return Loss("score" if name == "<lambda>" else name, size * float(value), size)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BatchError(f"score must return a number, and returned {_described(value)} {shapes}") from error


def _added(sums: list[list[Loss]], found: list[list[Loss]], number: int) -> list[list[Loss]]:
    """The losses of the batches before with those of one more, as far as both have them."""
    both = [[(a, b) for a in before for b in now if a.name == b.name] for before, now in zip(sums, found, strict=False)]
    if len(sums) != len(found) or not all(both):
        before, now = (" + ".join(several[0].name for several in one) for one in (sums, found))
        raise BatchError(f"batch {number} is judged by {now}, those before by {before}: {ADVICE}")
    for pair in (pair for pairs in both for pair in pairs):
        pair[0].add(pair[1])
    return [[a for a, _ in pairs] for pairs in both]


def _described(value: Any) -> str:
    """A nested structure's shapes, in one line.

    >>> _described({"x": (torch.ones(2, 3), None)})
    '{x: [float32 (2, 3), None]}'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_described(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)) and len(value) < 9:
        return "[" + ", ".join(map(_described, value)) + "]"
    return "None" if value is None else type(value).__name__
