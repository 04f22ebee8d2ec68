"""Which dropouts a shift comes from."""

import math

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.prediction.attribution import causes_of
from evenkeel.prediction.replicas import Energies


def shares(model, energies, noise=0.5, shape=(2, 4)):
    """Shares by name at the graph's output, its layers having these energies (noise, shared, noise_free, second)."""
    graph = ek.trace(model, torch.zeros(shape))
    found = causes_of(graph, {graph[name]: Energies(*values) for name, values in energies.items()})
    return {layer.name: share for layer, share in found[graph.layers[-1]].shares(noise).items()}


def test_new_noise_is_the_new_dropouts_and_old_noise_stays_its_own():
    model = nn.Sequential(nn.Dropout(0.1), nn.Identity(), nn.Dropout(0.2))
    energies = {"input": (0, 1, 1, 1), "0": (1, 1, 1, 2), "2": (4, 1, 1, 5)}
    assert shares(model, energies) == pytest.approx({"0": 0.25, "2": 0.75})


def test_where_branches_meet_each_brings_its_noise():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Dropout(0.1), nn.Dropout(0.2)

        def forward(self, x):
            return self.a(x) + self.b(x)

    energies = {"input": (0, 1, 1, 1), "a": (1, 1, 1, 2), "b": (3, 1, 1, 4), "add": (4, 4, 4, 8)}
    assert shares(Fork(), energies) == pytest.approx({"a": 0.25, "b": 0.75})


def test_in_a_concat_the_sizes_count():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Dropout(0.1), nn.Dropout(0.2)

        def forward(self, x):
            return torch.cat([self.a(x[:, :1]), self.b(x[:, :3])], 1)

    energies = {"input": (0, 1, 1, 1), "a": (1, 1, 1, 2), "b": (1, 1, 1, 2), "cat": (1, 1, 1, 2)}
    assert shares(Wide(), energies) == pytest.approx({"a": 0.25, "b": 0.75})


def test_damping_belongs_to_the_noise_that_met_the_activation():
    model = nn.Sequential(nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.2))
    growth = math.log(2)
    energies = {"input": (0, 1, 1, 1), "0": (1, 1, 1, 2), "1": (1, 0.5, 1, 2), "2": (2, 0.5, 1, 3)}
    lost = -math.log1p(-0.5)
    expected = {"0": (lost / 2 + growth) / (lost + growth), "2": lost / 2 / (lost + growth)}
    assert shares(model, energies) == pytest.approx(expected)


def test_shares_sum_to_one_and_there_are_none_without_noise():
    model = nn.Sequential(nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.0))
    energies = {"input": (0, 1, 1, 1), "0": (0.1, 1, 1, 1.1), "1": (0.1, 0.9, 1, 1), "2": (0.1, 0.9, 1, 1)}
    assert shares(model, energies) == pytest.approx({"0": 1.0})
    quiet = dict.fromkeys(energies, (0.0, 1, 1, 1))
    assert shares(model, quiet, noise=0.0) == {}


def test_noise_from_nowhere_is_laid_at_the_layer_that_shows_it_first():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    energies = {"input": (0, 1, 1, 1), "0": (0.5, 1, 1, 1.5), "1": (0.5, 1, 1, 1.5)}
    assert shares(model, energies) == pytest.approx({"0": 1.0})


def test_in_a_product_noise_counts_by_how_much_of_its_own_factor_it_is():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Dropout(0.1), nn.Dropout(0.2)

        def forward(self, x):
            return self.a(10 * x) * self.b(x)

    energies = {"input": (0, 1, 1, 1), "mul": (0, 100, 100, 100), "a": (10, 100, 100, 110), "b": (0.3, 1, 1, 1.3)}
    found = shares(Product(), energies | {"mul#2": (1, 1, 1, 2)})
    parts = 10 / 110, 0.3 / 1.3
    assert found["a"] == pytest.approx(parts[0] / sum(parts))


def test_a_signal_that_is_repeated_brings_no_more_noise_for_that():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Dropout(0.1), nn.Dropout(0.2)

        def forward(self, x):
            return self.a(x) + self.b(x[:, :1])

    energies = {
        "input": (0, 1, 1, 1),
        "getitem": (0, 1, 1, 1),
        "a": (1, 1, 1, 2),
        "b": (1, 1, 1, 2),
        "add": (2, 2, 2, 4),
    }
    assert shares(Repeated(), energies) == pytest.approx({"a": 0.5, "b": 0.5})
