"""Norms that train mode has store statistics of other values than eval mode normalises are named; others are not."""

import pytest
import torch
from snapshots import Snapshot
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.model.norms import norms_of
from evenkeel.model.other_values import of_other_values


class OwnNorm(nn.BatchNorm1d):
    """Normalises by itself in train mode, and by torch in eval mode."""

    def __init__(self, size, *, of_valid=False, correction=1, **options):
        super().__init__(size, **options)
        self.of_valid, self.correction = of_valid, correction

    def forward(self, x, mask):
        if not self.training:
            return super().forward(x)
        chosen = x.transpose(1, 2)[mask] if self.of_valid else x.transpose(1, 2).flatten(0, 1)
        mean, variance = chosen.mean(0), chosen.var(0, correction=self.correction)
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = self.momentum or 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share), self.running_var.lerp_(variance, share)
        return (x - mean[:, None]) / (variance[:, None] + self.eps).sqrt() * self.weight[:, None] + self.bias[:, None]


class Derived(nn.BatchNorm1d):
    """A class of its own that leaves normalising to torch."""

    def forward(self, x, mask):
        return super().forward(x)


class Still(nn.BatchNorm1d):
    """Stores nothing in train mode."""

    def forward(self, x, mask):
        return F.batch_norm(x, self.running_mean, self.running_var) if not self.training else x


class Net(nn.Module):
    def __init__(self, one, other):
        super().__init__()
        self.conv, self.norm, self.again, self.last = nn.Conv1d(5, 8, 3, padding=1), one, nn.Conv1d(8, 8, 1), other

    def forward(self, x, mask):
        x = F.dropout(F.relu(self.norm(self.conv(x), mask)), 0.3, self.training) * mask[:, None]
        return self.last(self.again(x), mask) * mask[:, None]


def sequences(count=6):
    for _ in range(count):
        mask = torch.arange(20) < torch.randint(5, 20, (16,))[:, None]
        yield {"x": (1.5 + torch.randn(16, 5, 20)) * mask[:, None], "mask": mask}


def trained(one, other):
    model, data = Net(one, other), list(sequences())
    for batch in data:
        model(**batch)
    return model, data


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_a_norm_of_valid_positions_alone_is_named(momentum):
    model, data = trained(OwnNorm(8, of_valid=True, momentum=momentum), OwnNorm(8, momentum=momentum))
    before = Snapshot(model)
    found = of_other_values(model, norms_of(model), lambda: model(**data[0]))
    assert list(found) == ["norm"] and "valid positions" in found["norm"]
    assert before.changes() == []


@pytest.mark.parametrize(
    "norm", [OwnNorm(8), OwnNorm(8, correction=0), Derived(8), Still(8), OwnNorm(8, momentum=None)]
)
def test_a_norm_that_stores_what_it_reads_or_nothing_is_not(norm):
    model, data = trained(norm, Derived(8))
    assert of_other_values(model, norms_of(model), lambda: model(**data[0])) == {}


def test_norms_of_torch_cost_no_pass():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.SyncBatchNorm(4))
    assert of_other_values(model, norms_of(model), lambda: pytest.fail("run")) == {}


def test_verbs_that_measure_say_so():
    model, data = trained(OwnNorm(8, of_valid=True), Derived(8))
    report, done = ek.variance_shift(model, data), ek.reestimate_(model, data)
    for said in (report, done):
        assert "other values" in said.unsure["norm"] and "other values" in str(said)
