"""NormChange: how far a norm's statistics moved."""

import pytest
import torch
from torch import nn

from evenkeel.model.buffers import write_buffers_
from evenkeel.statistics.norm_change import NormChange


@pytest.mark.parametrize("variance", [0.0, -1e-9, -3.0])
def test_means_of_channels_that_store_no_variance_move_by_what_the_norm_makes_of_them(variance):
    norm = nn.BatchNorm1d(2, eps=1e-4)
    norm.running_var[0] = variance
    held = write_buffers_({(norm, "running_mean"): torch.tensor([0.03, 0.5])})
    assert NormChange.of("bn", norm, held).moved == pytest.approx(3.0)
