"""The theorem: enumeration gate by gate and draws say what the formulas say."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from evenkeel.papers.lab import theorems
from evenkeel.papers.lab.trials import Trial


def found(p, seed=0, scale="quick"):
    torch.manual_seed(seed)
    return theorems.theorem(Trial({"p": p}, scale, seed))


def by_gates(joint, p, zero):
    """The law behind dropout, one gate at a time; value 0 is dropout's, and the first neuron's value if `zero`."""
    law, shift = {}, 0 if zero else 1
    for (i, j), (g, h) in product(product(range(len(joint)), repeat=2), product((0, 1), repeat=2)):
        pair = (g * (i + shift), h * (j + shift))
        mass = float(joint[i, j]) * (1 - p if g else p) * (1 - p if h else p)
        law[pair] = law.get(pair, 0.0) + mass
    return law


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_the_law_behind_dropout_is_that_of_gates_one_by_one(p, zero):
    joint = torch.rand(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    joint /= joint.sum()
    law = theorems._dropped(joint, p, zero=zero)
    assert float(law.sum()) == pytest.approx(1)
    for pair, mass in by_gates(joint, p, zero).items():
        assert float(law[pair]) == pytest.approx(mass)
    plain = -sum(float(m) * math.log(m) for m in joint.flatten())
    assert theorems._entropy(joint) == pytest.approx(plain)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("p", [0.0, 0.05, 0.5])
def test_ratios_are_those_of_the_formulas(p, seed):
    figures, keep = found(p, seed), 1 - p
    assert figures["information"] == pytest.approx(keep**2, abs=1e-12)
    assert figures["information_theory"] == figures["information_drawn_theory"] == keep**2
    assert figures["entropy"] == pytest.approx(figures["entropy_theory"], abs=1e-12)
    assert figures["correlation"] == pytest.approx(keep, abs=0.01)
    assert figures["correlation_mean"] == pytest.approx(keep / (1 + p), abs=0.01)
    assert figures["information_drawn"] == pytest.approx(keep**2, abs=0.01)
    assert figures["enumerated_off"] < 1e-12 and figures["drawn_off"] < 0.01


def test_with_mass_at_zero_the_square_of_keep_is_a_bound():
    for seed in range(5):
        figures = found(0.2, seed, "smoke")
        assert figures["information_zero"] < figures["information_theory"]


def test_bins_of_normal_neurons_have_nearly_all_of_their_information():
    torch.manual_seed(0)
    neurons = theorems._normal_pair(200_000)
    assert float(neurons.T.corrcoef()[0, 1]) == pytest.approx(0.6, abs=0.01)
    assert theorems._drawn_information(neurons, torch.ones(200_000, 2, dtype=torch.bool)) == pytest.approx(1)
