"""EK109: a drop rate that the model's own code changes.

## What it does
Finds dropouts whose noise reaches a norm with running statistics, or would if their rate were above 0, and whose rate
is set by a method of the model other than its constructor, as by a schedule.

## Why it matters
All findings and predictions are of the rate as it is now. A schedule that ends at 0 leaves statistics that have
forgotten dropout: at momentum m a share (1 - m)^k of them is left after k steps without it. One that starts at 0 and
ends above it, "late dropout", shifts statistics in full, and looks clean before.

## Who disagrees
Liu et al. 2023 gain by schedules of both kinds. The finding asks when to look, not whether.

## Known limits
Of a `DropoutSchedule` that is on, rates are read as it ends with them, and those that it sets are no finding. Rates
that are set from outside of the model by anything else, such as a callback, are not seen: lint the model at the rate
that training ends with. Methods are read, not run: what they set is taken for a rate by the name of the attribute.

## References
Liu et al. 2023, Dropout reduces underfitting, arXiv 2303.01500; Li et al. 2018, equations 8 and 14, by which the shift
follows from the rate.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evenkeel.graph.drop_rates import is_scheduled
from evenkeel.graph.kinds import Kind
from evenkeel.graph.queries import norms_behind
from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import in_words
from evenkeel.linting.rate_setters import setters_of
from evenkeel.linting.rule import rule

EXAMPLE = (2, 16)


@rule("EK109", guideline="hendrycks2016")
def rate_set_while_training(context: Context) -> Iterator[Finding]:
    """Dropouts before norms, of a rate that is set."""
    modules = dict(context.model.named_modules())
    for layer, setter in setters_of(context.graph).items():
        if is_scheduled(modules[layer.path]):
            continue
        norms = norms_behind(context.graph, layer, through_weights=True) if layer.kind is Kind.DROPOUT else ()
        if norms:
            yield Finding.at(
                layer,
                f"the rate of {in_words(layer)}, which feeds the norm {norms[0].name}, is set by {setter.label}.",
                "Lint and repair at the rate that training ends with: findings and predictions are of the rate now.",
            )


class _Scheduled(nn.Module):
    """A network with a method that sets its rate."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.drop, self.linear2 = nn.Linear(16, 8), nn.Dropout(0.0), nn.Linear(8, 8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 2)

    def set_rate(self, p: float) -> None:
        """Set the rate."""
        self.drop.p = p

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.linear2(self.drop(torch.relu(self.linear1(x))))))


def bad() -> nn.Module:
    """Dropout that is off, until a schedule sets its rate."""
    return _Scheduled()


def good() -> nn.Module:
    """A rate that stays."""
    model = _Scheduled()
    return nn.Sequential(model.linear1, nn.ReLU(), model.drop, model.linear2, model.norm, model.head)
