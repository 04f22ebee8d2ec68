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


class Angled(Plain):
    """A factor of which nothing is known, divided by another."""

    def forward(self, x):
        x = self.linear(x)
        return self.norm(x * torch.rand(len(x), 1).cos() / torch.rand(()).exp() if self.training else 3 * x)


@pytest.mark.parametrize("kind", [Shared, Mixing, OfTheBatch, Angled])
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


class Parts(nn.Module):
    """A norm is fed parts of a batch behind dropout, chosen in some way."""

    def __init__(self, parts):
        super().__init__()
        self.first, self.linear = nn.BatchNorm1d(16), nn.Linear(16, 64)
        self.norm, self.parts = nn.BatchNorm1d(64, momentum=None), parts

    def forward(self, x, valid):
        x = self.linear(F.dropout(self.first(x).relu(), 0.4, self.training))
        return torch.cat([self.norm(part) for part in self.parts(x, valid)])


PARTS = {
    "by index": lambda x, valid: [x[torch.arange(i, len(x), 2)] for i in (0, 1)],
    "by a mask": lambda x, valid: [x[valid]],
}


@pytest.mark.parametrize("name", PARTS)
def test_norms_that_are_fed_parts_of_a_batch_are_predicted(name):
    torch.manual_seed(0)
    model = Parts(PARTS[name])
    data = [(torch.randn(128, 16), torch.rand(128) > 0.3) for _ in range(40)]
    for batch in data:
        model(*batch)
    (_, true) = ek.variance_shift(model, data, forward=lambda model, batch: model(*batch))
    predicted = ek.predict_shift(model, data[0])
    assert not predicted.unsure
    assert predicted[1].ratio == pytest.approx(true.ratio, rel=0.1)


class ByHand(nn.BatchNorm1d):
    def forward(self, x):
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt()


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.by_hand, self.idle = nn.BatchNorm1d(4), ByHand(4), nn.BatchNorm1d(4)
        self.last = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.last(self.by_hand(self.first(x)).reshape(-1, 8))


def test_why_a_norm_is_not_predicted_is_said():
    found = ek.predict_shift(Unreached(), torch.randn(8, 4)).unsure
    assert found["idle"] == "never reached" and "no call of torch's batch norm" in found["by_hand"]
    with pytest.raises(ek.ModelError, match=r"nothing is predicted of 1 norm; '0'.*no call of torch's batch norm"):
        ek.predict_shift(nn.Sequential(ByHand(4)), torch.randn(8, 4))
