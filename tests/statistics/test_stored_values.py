"""What stored statistics say of themselves, beside what training did to them."""

import copy
import math

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.statistics.stored_values import batches_in, fault_of, history_of, initial_left


def updated(momentum, times, variance=0.25):
    """A norm after so many updates by batches of that variance."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, momentum=momentum)
    for _ in range(times):
        norm(3 + math.sqrt(variance) * torch.randn(256, 8))
    return norm


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5, 1.0, None])
@pytest.mark.parametrize("times", [1, 7, 60])
def test_what_is_left_is_what_explains_the_values(momentum, times):
    norm = updated(momentum, times)
    left = initial_left(norm)
    assert left is not None and norm.running_var is not None and norm.running_mean is not None
    assert float(norm.running_var.mean()) == pytest.approx(left + (1 - left) * 0.25, rel=0.1)
    assert float(norm.running_mean.mean()) == pytest.approx((1 - left) * 3, rel=0.1)


def test_statistics_never_updated_are_all_initial_however_counted():
    norm = nn.BatchNorm1d(3)
    assert initial_left(norm) == 1
    norm.num_batches_tracked.fill_(9)
    assert initial_left(norm) == 1
    norm.num_batches_tracked = None
    assert initial_left(norm) == 1
    assert initial_left(nn.InstanceNorm1d(3, track_running_stats=True)) == 1


def test_statistics_loaded_without_a_count_are_not_taken_for_initial_ones():
    norm = updated(0.01, 60)
    norm.num_batches_tracked.zero_()
    assert initial_left(norm) is None
    norm.num_batches_tracked = None
    assert initial_left(norm) is None and "not counted" in history_of(norm)
    norm = updated(0.01, 60)
    norm.momentum = 0.0
    assert initial_left(norm) is None


def test_statistics_written_by_evenkeel_are_not_initial_whatever_the_count_says():
    model, data = nn.Sequential(updated(0.01, 60)), [3 + 0.5 * torch.randn(256, 8)]
    ek.reestimate_(model, data)
    assert initial_left(model[0]) == 0
    loaded = nn.Sequential(nn.BatchNorm1d(8, momentum=0.01))
    loaded.load_state_dict(model.state_dict())  # which keeps no mark, but the values are below what would be left
    assert initial_left(loaded[0]) == 0


@pytest.mark.parametrize(("momentum", "times"), [(0.1, 1), (0.1, 5), (0.1, 300), (1.0, 20), (None, 12)])
def test_the_batches_in_an_average_are_those_that_its_variance_shows(momentum, times):
    """The variance of an average of independent values, of one each batch, is one over their number."""
    norm = nn.BatchNorm1d(20_000, momentum=momentum)
    torch.manual_seed(0)
    for _ in range(times):
        value = torch.randn(20_000)
        norm(torch.stack([value - 1, value + 1]))  # of mean `value`
    left = initial_left(norm)
    spread = float((norm.running_mean / (1 - left)).var())
    assert 1 / spread == pytest.approx(batches_in(norm), rel=0.05)


def test_it_is_not_known_how_many_batches_uncounted_statistics_are_of():
    assert batches_in(nn.BatchNorm1d(2)) == math.inf


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_values_that_are_not_finite_are_faults(name, value, word):
    norm = updated(0.1, 5)
    assert fault_of(norm) == ""
    getattr(norm, name)[2:4] = value
    assert fault_of(norm) == f"{name} holds {word}{' values' if word == 'infinite' else ''} in 2 of 8 channels"


def test_negative_variances_are_faults_and_negative_means_are_not():
    norm = updated(0.1, 5)
    norm.running_mean.fill_(-3.0)
    norm.running_var[0] = 0.0  # a dead channel
    assert fault_of(norm) == ""
    broken = copy.deepcopy(norm)
    broken.running_var[1] = -1e-9
    assert fault_of(broken) == "running_var holds negative values in 1 of 8 channels"


def gated(path, name):
    """A net that has been trained, of which one value of a parameter is none, with its data."""
    torch.manual_seed(0)
    data = [torch.randn(64, 4) for _ in range(60)]
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 4), nn.BatchNorm1d(4))
    net.append(nn.Linear(4, 2))
    for x in data:
        net(x)
    net.get_submodule(path).get_parameter(name).data.flatten()[1] = math.nan
    return net, data[:4]


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_norm_whose_weight_is_no_number_is_the_worst(name):
    net, data = gated("4", name)
    for report in (ek.variance_shift(net, data), ek.predict_shift(net, data[0])):
        assert report.worst == math.inf and report.worst_row.path == "4"
        assert report.worst_row.bad == f"{name} holds NaN in 1 of 4 values"


def test_what_no_norm_shows_is_said():
    net, data = gated("5", "weight")
    reports = ek.variance_shift(net, data), ek.predict_shift(net, data[0]), ek.reestimate_(net, data)
    for report in reports:
        assert any(note.startswith("5.weight holds NaN in 1 of 8 values") for note in report.notes)


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_averages_over_all_of_training_are_said_to_lag(momentum):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.BatchNorm1d(4, momentum=momentum))
    for _ in range(60):
        net(torch.randn(64, 4))
    assert not ek.predict_shift(net, torch.zeros(2, 4)).notes
    nn.init.normal_(net[2].weight)  # as if trained
    for _ in range(2):
        notes = ek.predict_shift(net, torch.zeros(2, 4)).notes
        assert any("60 updates alike" in note and "lag behind" in note for note in notes) is (momentum is None)
    done = ek.correct_(net, torch.zeros(2, 4), match="mean", unsure="write")
    assert any("lag behind" in note for note in done.notes) is (momentum is None)
