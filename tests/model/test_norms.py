"""Which layers store statistics."""

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.model.norms import norms_of, pools_batch


def test_every_norm_with_statistics_is_found_once_and_no_other():
    shared = nn.BatchNorm2d(3)
    model = nn.ModuleDict(
        {
            "batch": nn.BatchNorm1d(3),
            "sync": nn.SyncBatchNorm(3),
            "instance": nn.InstanceNorm2d(3, track_running_stats=True),
            "again": nn.ModuleList([shared, shared]),
            "batch_without": nn.BatchNorm3d(3, track_running_stats=False),
            "instance_without": nn.InstanceNorm1d(3),
            "layer": nn.LayerNorm(3),
            "group": nn.GroupNorm(1, 3),
        }
    )
    assert list(norms_of(model)) == ["batch", "sync", "instance", "again.0"]
    assert [pools_batch(norm) for norm in norms_of(model).values()] == [True, True, False, True]


def test_a_model_without_is_refused():
    with pytest.raises(ek.ModelError, match="LayerNorm has no norm layer with running statistics"):
        norms_of(nn.LayerNorm(3))


class ByOtherNames(nn.Module):
    """Keeps its statistics under names of its own, and a weight."""

    def __init__(self, buffers):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        for name in ("m", "s2"):
            if buffers:
                self.register_buffer(name, torch.ones(3))
            else:
                setattr(self, name, torch.ones(3))


@pytest.mark.parametrize("buffers", [True, False])
def test_a_model_without_is_refused_by_what_may_be_norms_of_its_own(buffers):
    with pytest.raises(ek.ModelError, match=r"'1' is of class ByOtherNames.* holds m, s2: if these are statistics"):
        norms_of(nn.Sequential(nn.Linear(3, 3), ByOtherNames(buffers)))


def sharing(module_too):
    """Two calls of one norm, or of two norms that store their statistics in the same buffers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    if module_too:
        net[4] = net[1]
    else:
        net[4].running_mean, net[4].running_var = net[1].running_mean, net[1].running_var
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(64, 4, generator=generator) for _ in range(20)]
    for x in data:
        net(x)
    return net, data


def test_norms_that_share_their_buffers_are_one_norm_called_twice():
    (net, data), (oracle, _) = sharing(False), sharing(True)
    for name in ("running_mean", "running_var"):
        getattr(net[1], name).copy_(getattr(oracle[1], name))
    reports = [ek.variance_shift(model, data) for model in (net, oracle)]
    assert [(row.path, row.ratio) for row in reports[0]] == [(row.path, row.ratio) for row in reports[1]]
    assert ek.predict_shift(net, data[0]).unsure == {"1": "its statistics are of 2 calls together"}
    done = [ek.reestimate_(model, data, match="variance") for model in (net, oracle)]
    assert not done[0].untouched and torch.equal(net[1].running_var, oracle[1].running_var)
    assert net[4].running_var is net[1].running_var
