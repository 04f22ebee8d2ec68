"""How the ratios of a norm's channels spread: a histogram small enough to be kept in every row."""

from __future__ import annotations

import torch
from torch import Tensor

from evenkeel.output.page import Histogram

_BINS = 24


def histogram_of(ratios: Tensor) -> Histogram | None:
    """Channels' ratios in bins that are even in the logarithm; None if no channel has a ratio that is finite and not 0.

    >>> histogram_of(torch.tensor([0.5, 0.5, 1.0, 2.0])).counts[::23]
    (2, 1)
    """
    known = ratios[ratios.isfinite() & (ratios > 0)].double()
    if not len(known):
        return None
    low, high = float(known.min()), float(known.max())
    counts = torch.histc(known.log().float().cpu(), _BINS) if high > low else torch.tensor([len(known)])
    return Histogram(low, high, tuple(int(count) for count in counts))
