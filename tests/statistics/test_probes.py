"""Merging is proven: models that are no function of single samples get their batches as they are, and it is said."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek


class Net(nn.Module):
    """Two weight layers with norms, and something in between."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))

    def forward(self, x, *rest):
        x = F.relu(self.norms[0](self.weights[0](x)))
        return self.norms[1](self.weights[1](self.between(x, *rest)))

    def between(self, x, *rest):
        return x


class Branching(Net):
    def between(self, x, *rest):
        return x if x[0].sum() > x.mean() * 4 else 3 - x


class Centred(Net):
    def between(self, x, *rest):
        return x - x.mean(0)


class Attending(Net):
    def between(self, x, *rest):
        return torch.softmax(x @ x.T, 1) @ x


class Indexing(Net):
    def between(self, x, neighbours):
        return x + x[neighbours]


class Domains(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))

    def forward(self, x, domain):
        return self.norms[int(domain[0])](x)


class Seeing(Domains):
    """Tells the domain from the batch itself: by its first sample, or by all."""

    def forward(self, x):
        return self.norms[int(x[0].mean() > 0)](x)


class SeeingAll(Domains):
    def forward(self, x):
        return self.norms[int(x.mean() > 0)](x)


class Recurrent(Net):
    """Time first: what comes later in a batch depends on what came before."""

    def between(self, x, *rest):
        return x.cumsum(0) / 10


def rows(count=12, size=10):
    torch.manual_seed(1)
    return [(1 + 0.2 * i) * torch.randn(size, 4) + 0.1 * i for i in range(count)]


def in_turn(count=13, size=10):
    """Batches of two domains, of unlike means and spreads, one after the other."""
    torch.manual_seed(1)
    return [(1 - 2 * (i % 2)) * (4 + (1 + i % 2) * torch.rand(size, 4)) for i in range(count)]


def neighbours(x):
    return torch.randint(len(x), (len(x),))


KINDS = {
    "branching": (Branching, rows),
    "centred": (Centred, rows),
    "attending": (Attending, rows),
    "recurrent": (Recurrent, rows),
    "indexing": (Indexing, lambda: [{"x": x, "neighbours": neighbours(x)} for x in rows()]),
    "domains, in turn": (Domains, lambda: [(x, torch.full((10,), i % 2)) for i, x in enumerate(rows())]),
    "domains, in blocks": (Domains, lambda: [(x, torch.full((10, 1), i // 4 % 2)) for i, x in enumerate(rows())]),
    "domains, as floats": (Domains, lambda: [(x, torch.full((10,), float(i % 2))) for i, x in enumerate(rows())]),
    "seen by the first sample, in turn": (Seeing, in_turn),
    "seen by all samples, in turn": (SeeingAll, in_turn),
    "domains, one sample a batch": (
        Domains,
        lambda: [(x[:1], torch.tensor([i % 3 // 2])) for i, x in enumerate(rows(40))],
    ),
}


def run(model, batch):
    if isinstance(batch, dict):
        return model(batch["x"], batch["neighbours"])
    return model(*batch) if isinstance(batch, tuple) else model(batch)


@torch.no_grad()
def oracle(model, batches):
    """Norm after norm, on the loader's own batches."""
    model = copy.deepcopy(model).eval()
    for norm in model.norms:
        met = []
        handle = norm.register_forward_pre_hook(lambda _, args, met=met: met.append(args[0].double()))
        for batch in batches:
            run(model, batch)
        handle.remove()
        variance, mean = torch.var_mean(torch.cat(met), 0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_what_must_not_be_merged_is_not(name):
    kind, batches = KINDS[name]
    torch.manual_seed(0)
    model, batches = kind(), batches()
    right = oracle(model, batches)
    done = ek.reestimate_(model, batches, forward=run)
    for norm, other in zip(model.norms, right.norms, strict=True):
        assert torch.allclose(norm.running_mean, other.running_mean, atol=1e-3)
        assert torch.allclose(norm.running_var, other.running_var, rtol=1e-3)
    told = any(note.startswith("batches ran one by one: ") for note in done.notes)
    assert told or name.startswith("domains")  # which are merged domain by domain
    assert not done.untouched


def test_where_samples_are_independent_they_are_merged_and_nothing_is_said():
    sizes = []
    model = Net()
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert ek.reestimate_(model, rows()).notes == ()
    assert max(sizes) == 120
