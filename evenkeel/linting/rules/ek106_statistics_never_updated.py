"""EK106: running statistics that were never updated, beside trained weights.

## What it does
Finds norms that store mean 0 and variance 1, as they were built, though their weight and bias differ between channels,
as only trained ones do.

## Why it matters
There are two ways to get there, with opposite remedies. If training ran the norms in eval mode, mean 0 and variance 1
are what the weights were trained with: new statistics took the accuracy of a published network from 90 % to 0. If the
model is a copy that was made before training and given other weights since, such as an average of weights or a
converted checkpoint that lacks buffers, they are wrong, and so is what eval mode returns.

## Who disagrees
Nobody.

## Known limits
Norms without a weight and a bias say nothing of whether they were trained. Copies made later, whose statistics are
older than their weights, look like any others: with data, `variance_shift` says that weights have changed since.

## References
Ioffe & Szegedy 2015, algorithm 2, where inference takes the statistics of training; Hendrycks & Gimpel 2016, section 3,
where it takes new ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule
from evenkeel.statistics.stored_values import is_never_updated

EXAMPLE = (2, 16)


@rule("EK106", guideline="hendrycks2016")
def statistics_never_updated(context: Context) -> Iterator[Finding]:
    """The first norm whose statistics training has not touched, and how many there are."""
    never = [path for path, norm in context.norms.items() if is_never_updated(norm)]
    if never:
        yield context.at_norm(
            never[0],
            f"{len(never)} of {len(context.norms)} norms store mean 0 and variance 1, as built, though their weight "
            "and bias were trained.",
            "Leave them if training ran them in eval mode; if this is a copy made before training, such as an average "
            "of weights, call reestimate_ with unsure='write'.",
        )


def bad() -> nn.Module:
    """An average of weights, made before training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.normal_(model[1].weight, 1, 0.1)  # type: ignore[arg-type]
    nn.init.normal_(model[1].bias)  # type: ignore[arg-type]
    return model


def good() -> nn.Module:
    """The same, its statistics taken from data."""
    model = bad().train()
    for _ in range(100):
        model(torch.randn(64, 16))
    return model
