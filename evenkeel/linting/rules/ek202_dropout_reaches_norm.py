"""EK202: dropout that reaches a norm through weights.

## What it does
Finds dropouts with a weight layer, and behind it a norm with running statistics: also dropout on the weights
themselves, and the dropout inside attention and between the layers of an LSTM, GRU or RNN. A product of two signals
that sums over features, such as attention's, counts as a weight layer.

## Why it matters
`Var_train(w x) = Var_eval(w x) + p / (1 - p) sum_i w_i^2 E x_i^2`: the norm stores the sum and meets the first term.
How much it is depends on the weights, least in wide layers, so read the predicted shift before you act: Wide ResNets
do well with .1 to .3 here.

Through a LayerNorm, GroupNorm or RMSNorm it turns round: it gives signal and noise together one strength, so that the
signal is weaker in training. Behind weights that favour the signal the norm then stores too little, not too much:
`Var_eval / Var_train = 1 / (1 - p + p g)`, g being what the weights pass of the noise relative to the signal, 1 if they
are random. With a signal of rank 16 among 256 features, and weights that read it, it is 1.10, 1.39 and 1.88 at p = .1,
.3 and .5, where without the LayerNorm it is .99, .97 and .94.

## Who disagrees
kim2023 prescribes this very place in residual branches, after the last norm and before the last weight layer, where
the shortcut dilutes the shift. chen2019 has a dropout before each weight layer, at the small rate of .05.

## Known limits
As for EK201.

## References
Li et al. 2018, section 3, case (b), equations 12 and 14, and section 5: dropout after all norms, before the softmax.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evenkeel.graph.queries import rescaling_between
from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import in_words
from evenkeel.linting.rule import rule

EXAMPLE = (2, 4)


@rule("EK202", guideline="li2018")
def dropout_reaches_norm(context: Context) -> Iterator[Finding]:
    """Dropouts with weights between them and a norm."""
    for reach in context.reaches:
        if not reach.direct and not reach.must_stay:
            dropout, norm = reach.dropout, reach.norms[0]
            between = rescaling_between(context.graph, dropout, norm)
            turned = (
                ""
                if between is None
                else f" {between.name} in between rescales signal and noise together: the norm may store too little."
            )
            yield Finding.at(
                dropout,
                f"{in_words(dropout)} reaches the norm {norm.name} through weights.{turned}",
                reach.advice,
                *reach.edits,
                norm=norm.path,
            )


def bad() -> nn.Module:
    """Dropout, weights, norm."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)
    )


def good() -> nn.Module:
    """Dropout behind the last norm."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
    )
