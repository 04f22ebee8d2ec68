"""EK107: a momentum that makes no sense.

## What it does
Finds norms whose momentum is 0 or less, or 0.9 and above.

## Why it matters
With 0 nothing of training is ever stored. With 0.9 and above the statistics are those of the last one or two batches
(1 / 0.9), dropout's noise and all. Most often that is the share to *keep*, as Keras and TensorFlow have it: torch's
momentum is the share that a new batch gets, so their 0.99 is 0.01 here.

## Who disagrees
Some set 0 to freeze statistics. Norms still normalise by each batch in train mode then: eval mode, for these modules
alone, freezes both.

## Known limits
A momentum that is decayed while training is read as it is now. Frozen norms, in eval mode inside a model in train mode,
are left out.

## References
Wu & Johnson 2021, arXiv 2105.07576, on what moving averages cost; Li et al. 2018, section 3: eval mode takes them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule
from evenkeel.model.flags import frozen_in

EXAMPLE = (2, 16)
_MOST = 0.9


@rule("EK107", guideline="hendrycks2016")
def momentum_out_of_sense(context: Context) -> Iterator[Finding]:
    """Momentums of 0 or nearly 1, each at the first norm that has it."""
    frozen = frozen_in(context.model)
    by_value: dict[float, list[str]] = {}
    for path, norm in context.norms.items():
        if norm.momentum is not None and norm not in frozen and not 0 < norm.momentum < _MOST:
            by_value.setdefault(norm.momentum, []).append(path)
    for momentum, paths in by_value.items():
        count = f"{len(paths)} of {len(context.norms)} norms {'has' if len(paths) == 1 else 'have'} momentum"
        if momentum <= 0:
            yield context.at_norm(
                paths[0],
                f"{count}={momentum:g}, by which their statistics are never updated.",
                "Set momentum=0.1; or call eval() on the norms, if their statistics are to stay as they are.",
            )
        else:
            keep = round(1 - momentum, 6)
            meant = f"momentum={keep:g} if {momentum:g} is meant as the share to keep, or " if keep > 0 else ""
            yield context.at_norm(
                paths[0],
                f"{count}={momentum:g}: their statistics are those of the last {1 / momentum:.1f} batches.",
                f"Set {meant}momentum=0.1, and re-estimate what is stored by reestimate_.",
            )


def bad() -> nn.Module:
    """The share to keep where torch wants the share of the new batch."""
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8, momentum=0.99), nn.ReLU(), nn.Linear(8, 2))


def good() -> nn.Module:
    """The share of the new batch."""
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8, momentum=0.01), nn.ReLU(), nn.Linear(8, 2))
