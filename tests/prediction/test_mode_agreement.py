"""What replicas cannot show is found by one look at eval mode."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek


class Bayesian(nn.Module):
    """Dropout stays on in eval mode."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 64), nn.BatchNorm1d(64, momentum=1.0)

    def forward(self, x):
        return self.norm(F.dropout(self.linear(x), 0.5))


class Shared(Bayesian):
    """One mask for the whole batch, at a rate that the mask does not tell."""

    def forward(self, x):
        mask = (torch.rand(16) > 0.3).float() / 0.7 if self.training else 1.0
        return self.norm(self.linear(x * mask))


class Mixing(Bayesian):
    """Every sample is fed its neighbour, too, as nodes of a graph are."""

    def forward(self, x):
        x = F.dropout(self.linear(x), 0.5, self.training)
        return self.norm(x + x.roll(1, 0))


class DropConnect(Bayesian):
    def forward(self, x):
        return self.norm(F.linear(x, F.dropout(self.linear.weight, 0.5, self.training)))


class OfTheBatch(Bayesian):
    """A norm in the middle that tracks nothing normalises all replicas together."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(16, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.linear(self.first(F.dropout(x, 0.5, self.training)).relu()))


@pytest.mark.parametrize("kind", [Bayesian, Shared, Mixing, DropConnect, OfTheBatch])
def test_what_replicas_cannot_show_is_found_by_a_look_at_eval_mode(kind):
    torch.manual_seed(0)
    model, x = kind(), torch.randn(4096, 16)
    model(x)
    before = model.norm.running_var.clone()
    assert "eval mode" in ek.predict_shift(model, x[:2]).unsure["norm"]
    done = ek.correct_(model, x[:2])
    assert set(done.untouched) == {"norm"} and torch.equal(model.norm.running_var, before)
