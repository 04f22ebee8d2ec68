"""EK105: a drop rate that makes no sense.

## What it does
Finds dropouts of a rate of 0.8 and above.

## Why it matters
Rate 1 drops everything, and 0.8 multiplies the second moment of a signal by 5. Most often that is the rate to *keep*,
as papers and older libraries have it: torch's `p` is the rate to drop.

## Who disagrees
Nobody: the four papers keep at least 30 % (Li et al. 2018, Hendrycks & Gimpel 2016).

## Known limits
Rates that are set while training are read as they are now, but for those of a `DropoutSchedule` that is on: as it ends
with them. Those of stochastic depth, of attention and of recurrent layers are edited by hand. The fix takes the rate
for the one to keep, which is a guess and needs `unsafe=True`.

## References
Li et al. 2018 and Hendrycks & Gimpel 2016 both write p for the rate to keep.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenkeel.linting.context import Context
from evenkeel.linting.dropout_module import dropout_like
from evenkeel.linting.edits import Swap
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule

EXAMPLE = (2, 4)
_MOST = 0.8


@rule("EK105", guideline="hendrycks2016")
def rate_out_of_sense(context: Context) -> Iterator[Finding]:
    """Dropouts that drop nearly everything."""
    for layer in context.graph:
        if layer.p is not None and not 0 <= layer.p < _MOST:
            keep = round(1 - layer.p, 6)
            module = dropout_like(layer, p=keep)
            yield Finding.at(
                layer,
                f"p={layer.p:g} drops {'everything' if layer.p == 1 else f'{layer.p:.0%} of what it reads'}.",
                f"Set p={keep:g} if {layer.p:g} is meant as the rate to keep, or a rate below {_MOST}.",
                *([Swap(layer, module, safe=False)] if module else []),
            )


def bad() -> nn.Module:
    """The rate to keep where torch wants the rate to drop."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.9), nn.Linear(8, 2))


def good() -> nn.Module:
    """The rate to drop."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
