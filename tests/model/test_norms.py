"""Which layers store statistics."""

import pytest
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
