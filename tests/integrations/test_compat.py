"""compat: what torch tests of its function holds of ours, and what its function gets wrong does not."""

import inspect

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import evenkeel as ek
from evenkeel.integrations.compat import update_bn

DEEP = {
    "fully connected": (
        lambda: nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7), nn.BatchNorm1d(7)),
        (40, 5),
    ),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)),
        (24, 3, 8, 8),
    ),
}
LOADERS = {
    "tensors": lambda data: data.split(8),
    "pairs": lambda data: [(x, torch.zeros(len(x))) for x in data.split(8)],
    "lists": lambda data: [[x, torch.zeros(len(x))] for x in data.split(8)],
    "a DataLoader": lambda data: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), 8),
}


def test_the_signature_is_torchs():
    ours, theirs = (list(inspect.signature(f).parameters) for f in (update_bn, swa_utils.update_bn))
    assert ours == theirs


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", DEEP)
def test_statistics_are_those_of_the_data(name, loader):
    build, shape = DEEP[name]
    model, data = build(), torch.randn(shape)
    update_bn(LOADERS[loader](data), model)
    model.eval()
    for place in (1, 4):
        x = model[:place](data).detach().double().transpose(0, 1).flatten(1)
        assert torch.allclose(model[place].running_mean.double(), x.mean(1), atol=1e-5)
        assert torch.allclose(model[place].running_var.double(), x.var(1), rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_momentum_and_mode_come_back(training):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.37)).train(training)
    update_bn([torch.randn(16, 4)], model)
    assert model[1].momentum == 0.37 and model.training is model[1].training is training


def test_a_model_without_norms_is_left_alone_and_its_loader_unread():
    def loader():
        raise AssertionError("read")
        yield

    update_bn(loader(), nn.Linear(2, 2))


def test_averaged_weights_get_statistics_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
    averaged, data = swa_utils.AveragedModel(model), torch.randn(256, 4)
    for _ in range(3):
        nn.init.normal_(model[0].weight)
        averaged.update_parameters(model)
    update_bn(data.split(32), averaged)
    assert ek.variance_shift(averaged, data.split(32)).worst < 1 + 1e-5
    swa_utils.update_bn(data.split(32), averaged)
    assert ek.variance_shift(averaged, data.split(32)).worst > 1.2  # dropout left on
