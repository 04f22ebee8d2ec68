"""blame: a batch or the model is at fault where something not finite reaches a norm."""

import pytest
import torch
from torch import nn

from evenkeel.statistics.batch_merging import Group, Piece
from evenkeel.statistics.blame import blame


def told(model, batch):
    group = Group((Piece(3, batch, len(batch)),))
    return blame(model, {"1": model[1]}, "1", group, 3)


@pytest.fixture
def model():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net(torch.randn(8, 2))
    return net


def test_of_a_batch_that_is_not_finite(model):
    batch = torch.full((4, 2), torch.nan)
    assert told(model, batch) == "batch 3 is not finite at norm '1': its mean or variance is NaN or infinite"


def test_of_a_model_that_is_not_finite(model):
    model[0].weight.data[0, 0] = torch.inf
    said = told(model, torch.ones(4, 2))
    assert said.startswith("'0.weight' of the model (1 of its 4 values) is not finite") and "not the data" in said


def test_of_norms_that_were_never_updated():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert told(net, torch.ones(4, 2)).endswith("load the weights first")
