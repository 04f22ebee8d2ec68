"""EK201: dropout right before a norm.

## What it does
Finds dropouts whose output reaches a norm with running statistics without a weight layer in between: directly, or
through activations, pools, joins and concatenations, as in a DenseNet whose layers end with dropout. Dropout on a
parameter that scales the signal, such as a gate, counts, too.

## Why it matters
The norm stores the variance that dropout makes, `((c^2 + v) / keep - c^2)` for a signal of mean c and variance v, and
meets v in eval mode: for c = 0 the ratio is keep itself, whatever the width. Only p near 0 helps (Li et al. 2018).

## Who disagrees
kim2023 allows it at the end of a branch whose last layer is a norm: the shortcut dilutes what the next norm sees. An
IC layer (chen2019) is norm, then dropout, and the next norm comes behind a weight layer: EK202.

## Known limits
Uout is exempt, being made for this place. So is stochastic depth, which none of the papers treats. Norms without
running statistics (LayerNorm, GroupNorm) do not shift, nor do frozen ones, in eval mode in a model in train mode. Where
no weight layer follows the last norm, see EK203. Noise that is no dropout (added, or a sample in a signal's place, as
in a variational autoencoder) shifts norms, too, if it is off in eval mode, but belongs where it is: `variance_shift`,
`predict_shift` and EK102 name it.

## References
Li et al. 2018, section 3, case (a), equations 7 and 8; figure 4 shows about x2 at drop rate .5.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import in_words
from evenkeel.linting.rule import rule

EXAMPLE = (2, 4)


@rule("EK201", guideline="li2018")
def dropout_before_norm(context: Context) -> Iterator[Finding]:
    """Dropouts with no weight layer between them and a norm."""
    for reach in context.reaches:
        if reach.direct and not reach.must_stay:
            dropout, norm = reach.dropout, reach.norms[0]
            yield Finding.at(
                dropout,
                f"{in_words(dropout)} is fed to the norm {norm.name} with no weight layer in between.",
                reach.advice,
                *reach.edits,
                norm=norm.path,
            )


def bad() -> nn.Module:
    """Dropout, then norm."""
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def good() -> nn.Module:
    """Dropout behind the last norm."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
