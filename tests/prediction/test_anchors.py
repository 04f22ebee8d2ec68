"""What running statistics tell of the layers before their norm."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import evenkeel as ek
from evenkeel.model.norms import norms_of
from evenkeel.prediction.anchors import Stored, distrust, is_untrained, stored_before


def trained(model, width=4):
    for norm in norms_of(model).values():
        norm.num_batches_tracked.fill_(100)
        norm.running_var.uniform_(1, 2)
        norm.running_mean.uniform_(-0.1, 0.1)
    return model


@given(st.floats(0.1, 10), st.floats(-2, 2), st.floats(0.01, 0.9))
def test_before_is_the_inverse_of_what_dropout_does_to_mean_and_variance(variance, mean, p):
    s2 = p / (1 - p)
    mean = torch.tensor([mean]).double()
    after = Stored(mean, variance + s2 * (variance + mean**2))  # Li et al. 2018, equation 7
    found = after.before(s2)
    assert torch.allclose(found.variance, torch.maximum(torch.tensor([variance]).double(), 1e-3 * after.variance))
    assert torch.equal(found.mean, mean)


def test_where_a_moving_average_contradicts_itself_a_little_is_left():
    found = Stored(torch.tensor([10.0]), torch.tensor([1.0])).before(1.0)
    assert found.variance.item() == pytest.approx(1e-3)


def test_known_are_the_inputs_of_dropouts_right_before_a_trusted_norm_however_many():
    model = trained(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.2), nn.BatchNorm1d(4)))
    graph = ek.trace(model, torch.zeros(2, 4))
    found = stored_before(graph, {model[3]})
    assert set(found) == {"1", "0"}
    once = Stored(model[3].running_mean.double(), model[3].running_var.double()).before(0.25)
    assert torch.equal(found["1"].variance, once.variance)
    assert torch.equal(found["0"].variance, once.before(1.0).variance)
    assert stored_before(graph, set()) == {}


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Linear(4, 4), nn.AlphaDropout(0.5), nn.Dropout(1.0)])
def test_nothing_is_known_through_anything_else(between):
    model = trained(nn.Sequential(nn.Linear(4, 4), between, nn.BatchNorm1d(4)))
    assert stored_before(ek.trace(model, torch.zeros(2, 4)), {model[2]}) == {}


def test_what_norms_do_not_tell_is_said_with_the_reason():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fresh, self.instance = nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)
            self.twice, self.frozen, self.good = (nn.BatchNorm1d(4) for _ in range(3))
            self.stale = nn.BatchNorm1d(4, momentum=0.01)

        def forward(self, x):
            x = self.fresh(self.instance(x))
            return self.stale(self.good(self.frozen(self.twice(self.twice(x)))))

    model = Twice()
    for name in ("twice", "frozen", "good", "instance", "stale"):
        getattr(model, name).num_batches_tracked.fill_(100)
        getattr(model, name).running_mean.fill_(0.1)
    model.frozen.eval()
    reasons = distrust(ek.trace(model, torch.zeros(2, 4, 3)), norms_of(model))
    assert set(reasons) == {"fresh", "instance", "twice", "frozen", "stale"}
    for name, word in (("fresh", "untrained"), ("instance", "instances"), ("twice", "2 calls"), ("frozen", "frozen")):
        assert word in reasons[name]
    assert reasons["stale"] == "stale: 37% of the initial statistics is left after 100 updates at momentum 0.01"


def test_untrained_means_as_built_whether_or_not_batches_are_counted():
    norm = nn.BatchNorm1d(2)
    assert is_untrained(norm)
    norm.running_mean[0] = 0.1
    assert not is_untrained(norm)
    norm.reset_running_stats()
    norm.num_batches_tracked = None
    assert is_untrained(norm)
    norm.num_batches_tracked = torch.tensor(3)
    assert not is_untrained(norm), "it may have been trained on standardized data"


class Beside(nn.Module):
    """Channels from a norm, from a dropout on an embedding, and from one before another rearrangement."""

    def __init__(self, dim=1):
        super().__init__()
        self.first, self.embedding, self.drop, self.last = (
            nn.BatchNorm1d(4),
            nn.Embedding(5, 3),
            nn.Dropout1d(0.2),
            nn.BatchNorm1d(7),
        )
        self.dim = dim

    def forward(self, x, ids):
        return self.last(torch.cat([self.first(x), self.drop(self.embedding(ids).transpose(1, 2))], dim=self.dim))


@pytest.mark.parametrize("dim", [1, -2])
def test_dropouts_beside_others_are_known_from_their_channels_of_the_norm_after(dim):
    model = trained(Beside(dim))
    model.last.running_var.copy_(torch.arange(1.0, 8.0))
    graph = ek.trace(model, (torch.zeros(2, 4, 6), torch.zeros(2, 6, dtype=torch.long)))
    known = stored_before(graph, {model.last})
    assert list(known) == ["transpose"]
    expected = Stored(model.last.running_mean[4:].double(), torch.arange(5.0, 8.0).double()).before(0.25)
    assert torch.equal(known["transpose"].variance, expected.variance)
