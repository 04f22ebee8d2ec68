"""EK108: running statistics that cannot be.

## What it does
Finds norms that store NaN, infinite values, or negative variances; weights that are not finite; and norms that store a
variance where the weights right before them are all 0, as of a filter that was pruned, so that nothing varies.

## Why it matters
In eval mode such a channel, and all that follows, is NaN; a negative variance that eps makes up for passes unseen, as a
channel scaled by chance. In train mode nothing shows, as the statistics are not read. Behind a pruned filter the norm
passes on `bias - weight * mean / deviation`, a constant that training never saw, and the norms after it meet other
inputs, too.

## Who disagrees
Nobody.

## Known limits
A variance that is finite and wrong is not told from a right one without data, unless the weights before it are 0. Of
weights pruned one by one nothing is said: they may have been trained on since.

## References
Hendrycks & Gimpel 2016, section 3: statistics can be estimated anew from data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule
from evenkeel.statistics.other_weights import of_other_weights
from evenkeel.statistics.stored_values import fault_of, infinite_parameters

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
    held = {f"{path}.{name}" for path in context.norms for name in ("weight", "bias")}
    for name, what in infinite_parameters(context.model).items():
        path, _, last = name.rpartition(".")
        layers = (layer for layer in context.graph if layer.path == path)
        found = f"{last} {what}.", "Load a checkpoint from before, and look for the batch of training that overflowed."
        yield (
            context.at_norm(path, *found)
            if name in held
            else Finding.at(next(layers, Layer(path, Kind.OPAQUE, path)), *found)
        )
    for path, reason in of_other_weights(context.graph, context.norms).items():
        yield context.at_norm(
            path, f"{reason}.", "Re-estimate it from data by reestimate_: weights have changed since."
        )


def bad() -> nn.Module:
    """A variance that half precision made infinite."""
    model = good()
    model.get_buffer("1.running_var")[0] = torch.inf
    return model


def good() -> nn.Module:
    """Finite statistics."""
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
