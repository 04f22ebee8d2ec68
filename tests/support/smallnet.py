"""Networks with dropout before their norms, small enough to be trained in a test, and what is asked of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek


class SmallNet(nn.Sequential):
    """Shape (samples, 4) to (samples, 8); always the same."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = nn.Linear(4, 8), nn.Linear(8, 8)
        super().__init__(weights[0], nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), weights[1], nn.BatchNorm1d(8))


class TwoDrops(nn.Module):
    """Dropout as a module and as a function, then two norms."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.norm, self.after = (
            nn.Linear(4, 8),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.BatchNorm1d(8),
        )
        self.drop, self.off = nn.Dropout(0.5), nn.Dropout(0.0)

    def forward(self, x):
        x = self.off(self.drop(self.fc1(x)))
        x = F.dropout(self.fc2(x), 0.25, self.training)  # the line that the report names
        return self.after(self.norm(x))


def samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and labels that can be learnt."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(2))
    return x, (x[:, 0] > 0).long()


def worst_shift(model: nn.Module, x: torch.Tensor) -> float:
    return ek.variance_shift(model, [x]).worst


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same bits."""
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
