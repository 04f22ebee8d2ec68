"""Train/eval flags: which modules are frozen, and how flags are set and put back."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from torch import nn

from evenkeel.model.norms import has_running_statistics

FROZEN = "frozen: in eval mode while the model is in train mode"  # as reports give it for a reason


@contextmanager
def flagged(flags: Mapping[nn.Module, bool]) -> Generator[None]:
    """Set modules' train/eval flags, each by itself, and put back those found.

    >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).eval()
    >>> with flagged({net[1]: True}):
    ...     print(net.training, net[0].training, net[1].training)
    False False True
    >>> net[1].training
    False
    """
    found = {module: module.training for module in flags}
    try:
        for module, flag in flags.items():
            module.training = flag
        yield
    finally:
        for module, flag in found.items():
            module.training = flag


def set_modes(model: nn.Module, training: bool) -> None:
    """Train mode with the norms in eval mode, since in train mode they refuse single values; or eval mode."""
    if not (training and model.training):
        model.train(training)
    for module in model.modules():
        if has_running_statistics(module):
            module.training = False  # on the object itself: .eval() would reach a dropout nested in it


def frozen_in(model: nn.Module) -> frozenset[nn.Module]:
    """The modules in eval mode of a model in train mode: frozen ones. Of a model in eval mode, none."""
    return frozenset(module for module in model.modules() if model.training and not module.training)
