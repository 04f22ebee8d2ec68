"""Statistics of other weights: what a model shows of them without data, and what a shift measured on data says."""

import copy

import pytest
import torch
from snapshots import Snapshot
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel

import evenkeel as ek
from evenkeel.statistics.other_weights import changes_of, left_behind, of_other_weights

DRAW = torch.Generator().manual_seed(0)
DATA = [torch.randn(32, 3, 6, 6, generator=DRAW) + 0.3 for _ in range(4)]


def trained(bias=True):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 4)),
    )
    for norm in (net[1], net[4]):
        nn.init.normal_(norm.weight, 1, 0.1)
        nn.init.normal_(norm.bias, 0, 0.1)
    for x in DATA * 15:
        net(x)
    return net


def found(net):
    norms = {path: m for path, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}
    return of_other_weights(ek.trace(net, DATA[0]), norms)


def halved(net):
    for layer in (net[0], net[3]):
        prune.ln_structured(layer, "weight", 0.5, 1, 0)


def halved_for_good(net):
    halved(net)
    for layer in (net[0], net[3]):
        prune.remove(layer, "weight")


@pytest.mark.parametrize("change", [halved, halved_for_good])
def test_a_variance_stored_behind_a_filter_of_zeros_is_of_other_weights(change):
    net = trained()
    assert not found(net)
    change(net)
    assert found(net)["1"].startswith("statistics of other weights: all weights of 4 of 8 channels of '0' are 0")
    finding = next(finding for finding in ek.lint(net, DATA[0]) if finding.code == "EK108")
    assert finding.path == "1" and "4 of 8 channels" in finding.message
    assert "4 of 8 channels" in ek.predict_shift(net, DATA[0]).unsure["1"]
    done = ek.correct_(net, DATA[0])
    assert set(done.untouched) == {"1", "4"} and not len(done)
    assert any("4 of 8 channels" in note for note in ek.variance_shift(net, DATA).notes)
    ek.reestimate_(net, DATA)
    assert not found(net)
    assert not [finding for finding in ek.lint(net, DATA[0]) if finding.code == "EK108"]


def test_pruned_and_trained_on_is_no_offence():
    net = trained()
    halved(net)
    for x in DATA * 20:
        net(x)
    assert not found(net)
    ones = trained()
    prune.l1_unstructured(ones[0], "weight", 0.5)
    assert not found(ones)


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose2d(3, 8, 3), nn.Conv2d(3, 8, 3, groups=1), nn.ConvTranspose2d(4, 8, 3, groups=2)]
)
def test_channels_of_layers_that_keep_them_elsewhere(layer):
    layer = copy.deepcopy(layer)
    net = nn.Sequential(layer, nn.BatchNorm2d(8))
    net[1].num_batches_tracked += 1
    transposed = isinstance(layer, nn.ConvTranspose2d)
    (layer.weight.data.transpose(0, 1) if transposed else layer.weight.data)[1] = 0
    x = torch.randn(2, layer.in_channels, 6, 6)
    norms = {"1": net[1]}
    reasons = of_other_weights(ek.trace(net, x), norms)
    assert bool(reasons) == (layer.groups == 1)
    assert not reasons or "all weights of 1 of 8 channels of '0'" in reasons["1"]


def test_weights_that_begin_at_0_by_design_are_no_offence():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    nn.init.zeros_(net[0].weight)
    assert not found(net)
    assert not [finding for finding in ek.lint(net, DATA[0]) if finding.code == "EK108"]


class Words(nn.Module):
    """As many words as numbers in each, the first one padding."""

    def __init__(self):
        super().__init__()
        self.words, self.mix, self.norm = nn.Embedding(8, 8, padding_idx=0), nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.mix(self.words(x)))


def test_rows_that_are_no_channels_of_the_norm_are_not_taken_for_them():
    net, x = Words(), torch.arange(16).view(2, 8) % 8
    net.norm.num_batches_tracked += 1
    net.mix.weight.data[3] = 0  # of the last dimension; the norm's channels are the second
    assert not of_other_weights(ek.trace(net, x), {"norm": net.norm})
    direct = nn.Sequential(net.words, net.norm)
    assert not of_other_weights(ek.trace(direct, x[0]), {"1": net.norm})


def test_a_mask_counts_as_it_is_in_the_state_dict():
    """The product that a pruned layer holds is of its last pass; its mask may have been loaded since."""
    net, pruned = trained(), trained()
    halved(pruned)
    prune.identity(net[0], "weight")
    prune.identity(net[3], "weight")
    net.load_state_dict(pruned.state_dict())
    assert set(found(net)) == {"1", "4"}


def test_a_weight_that_writes_buffers_when_it_is_read_leaves_the_model_as_found():
    """Spectral norm takes a step of its power iteration whenever a weight is read in train mode."""
    net = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten())
    for x in DATA * 5:
        net(x)
    before = Snapshot(net)
    ek.variance_shift(net, DATA), ek.predict_shift(net, DATA[0]), ek.lint(net, DATA[0])
    assert before.changes() == []
    ek.correct_(net, DATA[0], unsure="write").undo()
    assert not [change for change in before.changes() if "parametrizations" in change]


def test_counts_that_differ_are_told_where_statistics_are_off():
    net, early = trained(), None
    early = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net[3].weight *= 2
    for x in DATA * 15:
        net(x)
    assert not left_behind(ek.trace(net, DATA[0]), {"1": net[1], "4": net[4]})
    net.load_state_dict(net.state_dict() | {key: value for key, value in early.items() if key.startswith("4.")})
    note = "4: updated 60 times, where '1' was 120 times: statistics of other weights, unless it is a newer layer"
    assert note in ek.variance_shift(net, DATA).notes
    ek.reestimate_(net, DATA)
    assert not any("updated 60 times" in note for note in ek.variance_shift(net, DATA).notes)


def test_a_norm_called_twice_is_not_ahead_of_the_others():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.b(self.a(x)) + self.b(2 * x)

    net = Twice()
    for _ in range(10):
        net(torch.randn(8, 4))
    assert not left_behind(ek.trace(net, torch.ones(8, 4)), {"a": net.a, "b": net.b})


def test_an_average_is_named_where_its_statistics_are_off():
    net = trained()
    averaged = AveragedModel(net)
    averaged.update_parameters(net)
    assert not any("AveragedModel" in note for note in ek.variance_shift(averaged, DATA).notes)
    with torch.no_grad():
        net[0].weight *= 3
    averaged.update_parameters(net)
    assert changes_of(averaged) == [
        "the weights are averages over 2 updates (AveragedModel), which never ran in training"
    ]
    assert any(
        "statistics of other weights: the weights are averages" in n for n in ek.variance_shift(averaged, DATA).notes
    )
    ek.reestimate_(averaged, DATA)
    assert not any("AveragedModel" in note for note in ek.variance_shift(averaged, DATA).notes)


def test_a_copy_whose_buffers_were_forgotten_is_not_called_untrained():
    net = trained()
    for norm in (net[1], net[4]):
        norm.reset_running_stats()
    report = ek.variance_shift(net, DATA)
    assert all("a copy made before training" in row.why for row in report)
    assert not any("untrained" in note for note in report.notes)
    assert [f.code for f in ek.lint(net, DATA[0]) if f.code == "EK106"] == ["EK106"]


@pytest.mark.parametrize("size", [16, 32])
def test_a_norm_called_on_parts_of_a_batch_is_as_often_updated_whatever_the_batch(size):
    class Ghost(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return torch.cat([self.b(part) for part in self.a(x).split(8)])

    net = Ghost()
    for _ in range(10):
        net(torch.randn(16, 4))
    assert not left_behind(ek.trace(net, torch.ones(size, 4)), {"a": net.a, "b": net.b})
