"""EK103: weights drawn without regard to dropout.

## What it does
Predicts the variance of signals at every weight layer, in train and in eval mode, for weights of the size that they
have. Names the layer at which the train-mode variance has grown or shrunk most, if that is fourfold and twice what
it would be without dropout. Counted is from the first weight layer behind the norm, or the input, before.

## Why it matters
Dropout of rate p multiplies a signal's second moment by 1 / (1 - p). He's and Xavier's initializations do not know of
it, and the factors of all layers multiply: 20 layers at rate .5 make a million.

## Who disagrees
Nobody. Li et al. 2018 and Kim et al. 2023 study networks in which norms undo it.

## Known limits
In a trained network without norms it describes the trained weights, and nothing needs a fix: ignore EK103 there. The
fix draws new weights, so it needs `unsafe=True`.

## References
Hendrycks & Gimpel 2016, section 2, and their figures 1 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.init.initialization import init_
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Initialize
from evenkeel.linting.findings import Finding
from evenkeel.linting.rule import rule
from evenkeel.model.norms import Norm, has_running_statistics
from evenkeel.statistics.stored_values import is_untrained

EXAMPLE = (2, 32)
_DRIFT, _DUE = 4.0, 2.0  # of the variance in train mode; how much of that must be dropout's


@rule("EK103", guideline="hendrycks2016")
def initialization_ignores_dropout(context: Context) -> Iterator[Finding]:
    """The weight layer at which dropout has changed the variance of signals most."""
    norms = [m for m in context.model.modules() if isinstance(m, Norm) and has_running_statistics(m)]
    tensors = (*context.model.parameters(), *context.model.buffers())
    if any(t.is_meta for t in tensors) or not all(map(is_untrained, norms)):
        return
    drifts = {layer: drift for layer, drift in _drifts(context) if _is_dropouts(*drift)} if context.dropouts else {}
    if drifts:
        worst = max(drifts, key=lambda layer: abs(drifts[layer][0]))
        train, evaluation = (math.exp(drift) for drift in drifts[worst])
        yield Finding.at(
            worst,
            f"the variance of signals is x{train:.3g} here of what it is at the first layer in train mode, "
            f"x{evaluation:.3g} without dropout.",
            "Draw the weights by init_.",
            Initialize(),
        )


def _drifts(context: Context) -> Iterator[tuple[Layer, tuple[float, float]]]:
    """The logarithm of the variance at each weight layer over that at the first one, in train and in eval mode."""
    squares = context.mean_squares
    first: dict[Layer, Layer] = {}
    for layer in context.graph.of(Kind.WEIGHT):
        before = [x for x in context.graph.upstream(layer, until=(Kind.WEIGHT, Kind.NORM)) if x in first]
        first[layer] = first[before[-1]] if before else layer
        rates = [x.p or 0.0 for x in context.graph.upstream(layer, until=Kind.NORM) if x.drops]
        if layer not in squares or math.prod(1 - p for p in rates) * _DUE > 1:
            continue  # these dropouts cannot make that much
        here, there = squares[layer], squares[first[layer]]
        pairs = ((here.train_variance, there.train_variance), (here.eval_variance, there.eval_variance))
        if all(value > 0 for pair in pairs for value in pair):
            train, evaluation = (math.log(a / b) for a, b in pairs)
            yield layer, (train, evaluation)


def _is_dropouts(train: float, evaluation: float) -> bool:
    return abs(train) > math.log(_DRIFT) and abs(train) > abs(evaluation) + math.log(_DUE)


def bad() -> nn.Sequential:
    """Weights drawn by He's formula, with dropout in every layer."""
    model = nn.Sequential(nn.Linear(32, 64))
    for _ in range(3):
        model.extend([nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64)])
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return model


def good() -> nn.Module:
    """The same, its weights drawn by init_."""
    model = bad()
    init_(model, torch.zeros(2, 32))
    return model
