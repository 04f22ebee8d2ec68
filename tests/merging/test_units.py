"""Units: which weight layers a norm follows, and what other networks must have to be compared."""

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.merging.units import NORM_FOLLOWS, units_of, unlike


def found_in(*layers, example=None):
    net = nn.Sequential(*layers)
    return units_of(net, ek.trace(net, torch.ones(4, 6) if example is None else example))


def test_dropout_and_shapes_between_a_layer_and_its_norm_do_not_count():
    units, untouched = found_in(nn.Linear(6, 8), nn.Dropout(), nn.Unflatten(1, (8, 1)), nn.BatchNorm1d(8))
    assert not units and untouched == {"0": NORM_FOLLOWS}


@pytest.mark.parametrize(
    "between", [nn.ReLU(), nn.LayerNorm(8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 8)]
)
def test_other_layers_do(between):
    units, _ = found_in(nn.Linear(6, 8), between, nn.BatchNorm1d(8))
    assert list(units)[:1] == ["0"]


def test_a_layer_that_is_read_past_the_norm_too_is_matched():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            x = self.into(x)
            return x + self.norm(x)

    net = Both()
    assert list(units_of(net, ek.trace(net, torch.ones(4, 6)))[0]) == ["into"]


def test_quantized_layers_are_named():
    class Packed(nn.Module):
        __module__ = "torch.ao.nn.quantized.modules.linear"

        def forward(self, x):
            return x

    _, untouched = found_in(nn.Linear(6, 8), Packed())
    assert "quantized" in untouched["1"]


def test_networks_unlike_each_other_are_told_apart():
    units, _ = found_in(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert unlike(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), units) == ""
    assert "(8, 6) in the model" in unlike(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), units)
    assert "none there" in unlike(nn.Sequential(nn.Linear(6, 8)), units)
