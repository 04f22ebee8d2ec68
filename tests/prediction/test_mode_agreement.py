"""What replicas cannot show is found by one look at eval mode."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 64), nn.BatchNorm1d(64, momentum=1.0)


class Shared(Plain):
    """One mask for the whole batch, at a rate that the mask does not tell."""

    def forward(self, x):
        mask = (torch.rand(16) > 0.3).float() / 0.7 if self.training else 1.0
        return self.norm(self.linear(x * mask))


class Mixing(Plain):
    """Every sample is fed its neighbour, too, as nodes of a graph are."""

    def forward(self, x):
        x = F.dropout(self.linear(x), 0.5, self.training)
        return self.norm(x + x.roll(1, 0))


class OfTheBatch(Plain):
    """A norm in the middle that tracks nothing normalises all replicas together."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(16, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.linear(self.first(F.dropout(x, 0.5, self.training)).relu()))


@pytest.mark.parametrize("kind", [Shared, Mixing, OfTheBatch])
def test_what_replicas_cannot_show_is_found_by_a_look_at_eval_mode(kind):
    torch.manual_seed(0)
    model, x = kind(), torch.randn(4096, 16)
    model(x)
    before = model.norm.running_var.clone()
    assert "eval mode" in ek.predict_shift(model, x[:2]).unsure["norm"]
    done = ek.correct_(model, x[:2])
    assert set(done.untouched) == {"norm"} and torch.equal(model.norm.running_var, before)


ALWAYS = {
    "dropout": lambda m, x: F.dropout(m.linear(x).relu(), 0.5),
    "dropout of channels": lambda m, x: F.dropout1d(m.linear(x)[..., None].relu(), 0.5)[..., 0],
    "a mask": lambda m, x: m.linear(x * (torch.rand_like(x) < 0.5) / 0.5),
    "added noise": lambda m, x: (m.linear(x) + torch.randn_like(x[:, :1])).relu(),
    "a sample": lambda m, x: torch.distributions.Normal(m.linear(x), 0.1 + x.std()).rsample(),
    "states": lambda m, x: torch.bernoulli(m.linear(x).sigmoid()),
}


class Always(Plain):
    """Noise that stays on in eval mode, beside dropout that does not."""

    def __init__(self, noise, p=0.0):
        super().__init__()
        self.noise, self.drop = noise, nn.Dropout(p)

    def forward(self, x):
        return self.norm(self.drop(self.noise(self, x)))


@pytest.mark.parametrize("noise", ALWAYS)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_noise_that_stays_on_is_part_of_the_signal(noise, p):
    torch.manual_seed(0)
    model, x = Always(ALWAYS[noise], p), torch.randn(4096, 16)
    model(x)
    predicted = ek.predict_shift(model, x[:2])
    assert predicted[0].ratio == pytest.approx(ek.variance_shift(model, [x])[0].ratio, rel=0.08)
    assert not predicted.unsure or noise == "added noise"
