"""losses: what a batch costs by a loss that its outputs and targets leave no doubt about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evenkeel.errors import BatchError

ADVICE = "pass score=lambda outputs, targets: ..., lower is better"
OWN = "the model's own loss"
_BINS = 15
_IGNORED = -100  # torch's mark of labels that do not count
_OUTPUTS = ("logits", "out", "output", "outputs", "pred", "preds", "prediction", "predictions")


@dataclass
class Loss:
    """A loss, summed over batches.

    Attributes:
        name: what it is.
        total: the sum over what it is the mean of.
        count: of how much it is the mean: samples, or labels.
        wrong: of class labels, how many are not the most likely class; None of anything else.
        gaps: of class labels, in each of 15 bins of confidence, the sum of confidences less hits.
        unclear: whether the targets are floating, but may be labels: all 0 or 1, or probabilities of classes.
        classes: of class labels, how many classes the model tells apart.
        highest: the highest label.
    """

    name: str
    total: float
    count: int
    wrong: int | None = None
    gaps: Tensor | None = None
    unclear: bool = False
    classes: int = 0
    highest: int = -1

    @property
    def mean(self) -> float:
        """The loss; NaN of nothing."""
        return self.total / self.count if self.count else float("nan")

    def add(self, other: Loss) -> None:
        """Add another batch's."""
        self.total += other.total
        self.count += other.count
        self.unclear &= other.unclear
        self.highest = max(self.highest, other.highest)
        if self.wrong is not None and other.wrong is not None:
            self.wrong += other.wrong
        if self.gaps is not None and other.gaps is not None:
            self.gaps += other.gaps


def losses(outputs: Any, targets: Any, samples: int) -> list[list[Loss]]:
    """For each target of a batch the losses that may be meant, of which `meant` tells; none if there is a doubt.

    The model's own loss, if it returns one; of class labels the log loss, by outputs that are logits or
    probabilities; of floating targets of the outputs' shape
    the squared error. Several targets are compared with as many outputs, or with the outputs of their names; one is
    compared with "logits" or the like, or with the one output that fits; of a tuple's of one shape, with the first.

    Args:
        outputs: what the model returned.
        targets: tensors, of which those that are not floating are class labels; None if there are none.
        samples: how many samples the batch holds.

    Raises:
        BatchError: a label is beyond the classes.

    >>> [[(loss.name, loss.mean) for loss in several] for several in losses(torch.zeros(4, 1), 3 * torch.ones(4), 4)]
    [[('squared error', 9.0)]]
    """
    if (own := _own(outputs, targets)) is not None:
        return [[Loss(OWN, samples * float(own.double().mean()), samples)]]
    named = _named(outputs)
    if isinstance(targets, Mapping):
        pairs = [(named[key], target) for key, target in targets.items() if key in named]
    elif isinstance(targets, (tuple, list)):
        several = outputs if isinstance(outputs, (tuple, list)) else ()
        pairs = list(zip(several, targets, strict=False)) if len(several) == len(targets) else []
    else:
        return _one(outputs, named, targets) if isinstance(targets, Tensor) else []
    found = [_fitting(output, target) for output, target in pairs]
    return [[loss] for loss in found if loss] if len(found) == len(targets) and all(found) else []


def meant(several: list[Loss]) -> Loss | None:
    """Of losses of several outputs, after the last batch, the one with as many classes as there are labels.

    >>> meant([Loss("features", 9.0, 5, classes=32, highest=9), Loss("logits", 2.0, 5, classes=10, highest=9)]).name
    'logits'
    """
    fitting = [loss for loss in several if len(several) == 1 or loss.classes == loss.highest + 1]
    return fitting[0] if fitting else None


def _own(outputs: Any, targets: Any) -> Tensor | None:
    """The loss that a model returns: alone, as the first of a tuple, or as `loss`."""
    if isinstance(outputs, Tensor):
        loss = None if isinstance(targets, Tensor) and targets.numel() == 1 else outputs  # which is one prediction
    else:
        first = outputs[0] if type(outputs) in (tuple, list) and outputs else None
        loss = _named(outputs).get("loss", first)
        if loss is not first and isinstance(loss, Tensor) and loss.is_floating_point():
            return loss
    return loss if isinstance(loss, Tensor) and not loss.ndim and loss.is_floating_point() else None


def without_loss(outputs: Any) -> Any:
    """What a model returns beside its own loss; all, if it returns none, or nothing else.

    >>> without_loss((torch.tensor(0.5), torch.ones(2, 1)))
    (tensor([[1.],
            [1.]]),)
    """
    named = _named(outputs)
    if "loss" in named:
        return {name: value for name, value in named.items() if name != "loss"}
    is_first = type(outputs) in (tuple, list) and len(outputs) > 1 and isinstance(outputs[0], Tensor)
    return outputs[1:] if is_first and not outputs[0].ndim else outputs


def _named(outputs: Any) -> dict[str, Any]:
    """The outputs by name; empty if they have none."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, Tensor):
        return {}
    return outputs._asdict() if hasattr(outputs, "_asdict") else getattr(outputs, "__dict__", {})


def _one(outputs: Any, named: Mapping[str, Any], targets: Tensor) -> list[list[Loss]]:
    """The losses of those of the outputs that the targets may be meant for."""
    first = next((named[name] for name in _OUTPUTS if name in named), None)
    if first is not None or isinstance(outputs, Tensor):
        loss = _fitting(outputs if first is None else first, targets)
        return [[loss]] if loss else []
    several = named or (dict(enumerate(outputs, 1)) if isinstance(outputs, (tuple, list)) else {})
    found: dict[int, Loss] = {}
    for key, output in several.items():
        try:
            loss = _fitting(output, targets)
        except BatchError:  # it has fewer classes
            continue
        if loss and loss.classes in found and named:
            return []
        if loss and loss.classes not in found:
            loss.name += f" of output {key}" + ("" if named else f" of {len(several)}")
            found[loss.classes] = loss
    return [list(found.values())] if found else []


def _fitting(outputs: Any, targets: Any) -> Loss | None:
    """The loss of one tensor of outputs; None where there is a doubt."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.is_floating_point()):
        return None
    targets = targets.to(outputs.device)
    if targets.is_floating_point():
        return _squared_error(outputs, targets)
    return None if targets.is_complex() else _log_loss(outputs, targets)


def _squared_error(outputs: Tensor, targets: Tensor) -> Loss | None:
    shape = _bare(targets)
    if _bare(outputs) != shape:
        return None
    difference = outputs.double().reshape(shape) - targets.double().reshape(shape)
    binary = bool(((targets == 0) | (targets == 1)).all())
    classes = targets.ndim > 1 and targets.shape[1] > 1 and bool((targets >= 0).all())
    shared = classes and bool(((targets.double().sum(1) - 1).abs() < 1e-3).all())
    return Loss("squared error", shape[0] * float(difference.square().mean()), shape[0], unclear=binary or shared)


def _bare(tensor: Tensor) -> list[int]:
    """A shape without its ones, but for the samples."""
    return [*(tensor.shape[:1] or (1,)), *(size for size in tensor.shape[1:] if size != 1)]


def _log_loss(logits: Tensor, labels: Tensor) -> Loss | None:
    if labels.ndim == logits.ndim and labels.ndim > 1 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    axes = [
        axis
        for axis in {1, logits.ndim - 1}
        if 0 < axis < logits.ndim and (*logits.shape[:axis], *logits.shape[axis + 1 :]) == labels.shape
        if logits.shape[axis] > 1
    ]
    if len(axes) != 1:
        return None
    rows, labels = logits.movedim(axes[0], -1).flatten(0, -2).double(), labels.flatten().long()
    known = labels != _IGNORED
    if not known.all():
        rows, labels = rows[known], labels[known]
    if (rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-3).all():
        rows = rows.log()  # they are probabilities
    beyond = labels[(labels < 0) | (labels >= rows.shape[1])]
    if len(beyond):
        raise BatchError(
            f"has label {int(beyond[0])}, the model {rows.shape[1]} classes: labels to leave out are {_IGNORED}; "
            f"otherwise {ADVICE}"
        )
    confidence, chosen = rows.softmax(1).max(1)
    hit = chosen == labels
    bins = (confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1).cpu()
    gaps = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, (confidence - hit.double()).cpu())
    total = float(F.cross_entropy(rows, labels, reduction="sum"))
    wrong, highest = int((~hit).sum()), int(labels.max()) if len(labels) else -1
    return Loss("log loss", total, len(labels), wrong, gaps, classes=rows.shape[1], highest=highest)
