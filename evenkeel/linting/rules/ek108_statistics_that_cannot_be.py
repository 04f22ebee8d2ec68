"""EK108: running statistics that cannot be.

## What it does
Finds norms that store NaN, infinite values, or negative variances.

## Why it matters
In eval mode such a channel, and all that follows, is NaN; a negative variance that eps makes up for passes unseen, as a
channel scaled by chance. In train mode nothing shows, as the statistics are not read.

## Who disagrees
Nobody.

## Known limits
A variance that is finite and wrong is not told from a right one without data.

## References
Hendrycks & Gimpel 2016, section 3: statistics can be estimated anew from data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule
from evenkeel.statistics.stored_values import fault_of

EXAMPLE = (2, 16)


@rule("EK108", guideline="hendrycks2016")
def statistics_that_cannot_be(context: Context) -> Iterator[Finding]:
    """Every norm that stores them."""
    for path, norm in context.norms.items():
        if fault := fault_of(norm):
            yield context.at_norm(
                path,
                f"{fault}.",
                "Re-estimate it from data by reestimate_, and look for the batch of training that overflowed.",
            )


def bad() -> nn.Module:
    """A variance that half precision made infinite."""
    model = good()
    model.get_buffer("1.running_var")[0] = torch.inf
    return model


def good() -> nn.Module:
    """Finite statistics."""
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
