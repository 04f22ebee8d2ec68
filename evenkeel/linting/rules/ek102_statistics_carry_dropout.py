"""EK102: running statistics that carry dropout's variance.

## What it does
Predicts, from weights and statistics alone, the variance that every norm reads in eval mode, and compares it with the
one that the norm stored in training, with dropout, and noise that is no dropout, on. Above a ratio of 1.1 either way
it names the worst norm.

## Why it matters
Eval mode normalizes by what was stored, so signals come out too small or too large, at each norm anew.

## Who disagrees
Nobody for classifiers: wherever dropout is, statistics should be those of the network that is tested. In a regression,
with dropout right before a norm, eval mode with the statistics of training already gives what training gave on average;
with the smaller variance of eval mode outputs are too large. There, match the mean, which keeps that average, or judge
by held-out data, and keep what is better.

## Known limits
Ignores norms that store nothing yet, those whose prediction is a guess, and those that a repair has written, also in a
file of `evenkeel repair` that `--weights` or `load_` reads. Loaded by `load_state_dict`, statistics that were
re-estimated or corrected look like any others: ignore EK102 there.

## References
Hendrycks & Gimpel 2016, section 3; Li et al. 2018, section 4, whose figures have healthy norms at 1.07 or less.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenkeel.graph.kinds import Kind
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Correct
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule
from evenkeel.model.buffers import is_as_written
from evenkeel.prediction.attribution import Shares
from evenkeel.prediction.correction import correct_

EXAMPLE = (2, 16)
_EVEN = 1.1  # folded ratio


@rule("EK102", guideline="hendrycks2016")
def statistics_carry_dropout(context: Context) -> Iterator[Finding]:
    """The norm whose statistics are furthest from what it reads in eval mode."""
    norms = [x for x in context.graph.of(Kind.NORM) if x.module and not is_as_written(x.module, "running_var")]
    noisy = any(layer.drops or layer.p or layer.kind is Kind.NOISE for layer in context.graph)
    if not norms or not noisy or context.prediction is None:
        return
    unsure = {*context.distrusted, *context.prediction.unsure}
    calls = {path: layer for layer in norms if (path := layer.path) not in unsure}
    folded = {path: max(ratio, 1 / ratio) for path in calls if (ratio := context.shift(path))}
    off = [path for path, ratio in folded.items() if ratio > _EVEN]
    if off:
        worst = max(off, key=folded.__getitem__)
        yield Finding.at(
            calls[worst],
            f"{len(off)} of {len(folded)} norms store a variance off by more than {_EVEN - 1:.0%} because of "
            f"{_cause(context.prediction.causes[worst])}, this one by x{folded[worst]:.2f}.",
            "Re-estimate the statistics by reestimate_, or by correct_ if there are no data; of a regression with "
            "match='mean', since its error may grow otherwise. Where you have held-out data, let them decide.",
            Correct(),
            norm=worst,
        )


def _cause(shares: Shares) -> str:
    """What makes the noise: dropout, unless most of it is noise of another kind, which is named."""
    layer = next(iter(shares), None)
    return f"the noise of {layer.label}" if layer is not None and layer.kind is Kind.NOISE else "dropout"


def bad() -> nn.Module:
    """Trained with dropout before the norm, and not repaired."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64))
    model.append(nn.BatchNorm1d(64))
    for _ in range(100):
        model(torch.randn(256, 16))
    return model


def good() -> nn.Module:
    """The same, repaired."""
    model = bad()
    correct_(model, torch.zeros(2, 16))
    return model
