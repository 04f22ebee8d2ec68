"""evaluate: error and log loss of a classifier in eval mode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenkeel.errors import BatchError
from evenkeel.model.batches import each, forward_pass
from evenkeel.model.restoring import restored

_BINS = 15


@dataclass(frozen=True)
class Score:
    """How a classifier does on labelled data.

    Attributes:
        error: share of samples whose most likely class is wrong, 0 to 1.
        log_loss: mean negative log-likelihood of the right class, in nats.
        samples: number of samples.
        calibration_error: by how much confidence, the probability of the most likely class, and accuracy differ, on
            average over samples in 15 bins of equal width (Guo et al. 2017); 0 to 1.
    """

    error: float
    log_loss: float
    samples: int
    calibration_error: float


def evaluate(model: nn.Module, batches: Iterable[Any]) -> Score:
    """Score a classifier in eval mode; the model is given back as found.

    Args:
        model: returns logits, shape (samples, classes).
        batches: yields pairs of inputs and labels, the labels of shape (samples,) and integer.

    Raises:
        BatchError: a batch is no such pair, or the model's output does not fit its labels.

    >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))]
    >>> evaluate(nn.Identity(), data).error
    0.5
    """
    wrong, loss, count = 0, 0.0, 0
    gaps = torch.zeros(_BINS, dtype=torch.float64)  # of each bin, confidences less hits
    with restored(model), torch.no_grad():
        model.eval()
        for number, batch in enumerate(each(batches, model, None), 1):
            labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
            if not isinstance(labels, Tensor):
                raise BatchError(f"batch {number} holds no labels: a batch to evaluate on is (inputs, labels)")
            logits = forward_pass(model, batch, number)
            if not (isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[0] == len(labels)):
                shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise BatchError(f"on batch {number} of {len(labels)} labels the model returned {shape}, not logits")
            if int(labels.max()) >= logits.shape[1]:
                raise BatchError(f"batch {number} has label {int(labels.max())}, the model {logits.shape[1]} classes")
            confidence, chosen = logits.double().softmax(1).max(1)
            hit = chosen == labels
            wrong += int((~hit).sum())
            bins = (confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)
            gaps.index_add_(0, bins.cpu(), (confidence - hit.double()).cpu())
            loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
            count += len(labels)
    return Score(wrong / count, loss / count, count, float(gaps.abs().sum()) / count)
