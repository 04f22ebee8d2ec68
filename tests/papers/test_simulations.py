"""Simulations: signals and moments are those of the theory."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from evenkeel.papers import hendrycks2016
from evenkeel.papers.lab import simulations
from evenkeel.papers.lab.trials import Trial

TAIL = math.erfc(2 / math.sqrt(2)) / 2  # of a standard normal, above 2: E exp(2 z) for z < 0, over exp(2)


@pytest.fixture(scope="module")
def found():
    """Signals by init, of nets half as wide whose dropout keeps 0.6, and of two without dropout."""

    def signal(init, keep):
        torch.manual_seed(0)
        return simulations.signal(Trial({"keep": keep, "init": init}, "quick", 0))

    arms = [(init, 0.6) for init in ("forward", "backward", "xavier", "he")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(simulations._SIGNAL, "quick", ([250] * 16 + [125] * 5, 1000))
        return {(init, keep): signal(init, keep) for init, keep in [*arms, ("he", 1.0), ("forward", 1.0)]}


def growth(values):
    """By how much a series grows from one layer to the next, where all layers are as wide."""
    ratios = [later / before for before, later in pairwise(values[1:15])]
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("init", "keep", "forward", "eval_mode", "backward"),
    [
        ("forward", 0.6, 1, 0.6, 0.6 / 0.6),
        ("backward", 0.6, 0.6 / 0.6, 0.6, 1),
        ("he", 0.6, 1 / 0.6, 1, 1 / 0.6),
        ("xavier", 0.6, 0.5 / 0.6, 0.5, 0.5 / 0.6),
        ("he", 1.0, 1, 1, 1),
        ("forward", 1.0, 1, 1, 1),
    ],
)
def test_signals_grow_as_the_theory_says(found, init, keep, forward, eval_mode, backward):
    """Under ReLU and dropout a layer of gain g gives g / (2 keep) of what comes in, and of errors; in eval g / 2."""
    figures = found[init, keep]
    assert growth(figures["forward_var"]) == pytest.approx(forward, rel=0.05)
    assert growth(figures["eval_var"]) == pytest.approx(eval_mode, rel=0.05)
    assert 1 / growth(figures["backward_var"]) == pytest.approx(backward, rel=0.05)


def test_the_forward_correction_keeps_the_variance_near_one_at_every_layer(found):
    assert all(value == pytest.approx(1, rel=0.3) for value in found["forward", 0.6]["forward_var"])
    for other in ("he", "xavier"):
        assert found["forward", 0.6]["forward_distance"] < 0.3 < found[other, 0.6]["forward_distance"]


def test_figures_are_of_every_weight_layer_and_of_the_ends(found):
    for (_, keep), figures in found.items():
        series = [figures[f"{name}_var"] for name in ("forward", "eval", "backward")]
        assert [len(values) for values in series] == [20, 20, 20]
        assert (figures["last_forward"], figures["last_eval"], figures["first_backward"]) == (
            series[0][-1],
            series[1][-1],
            series[2][0],
        )
        assert figures["forward_distance"] == abs(math.log(series[0][-1]))
        assert figures["backward_distance"] == abs(math.log(series[2][0]))
        assert series[2][-1] == pytest.approx(1, rel=0.02)  # of what was put in
        assert series[0][0] == series[1][0]  # before the first dropout
        assert (series[0] == series[1]) == (keep == 1)


def test_densities_are_of_layers_from_a_quarter_of_the_way_to_the_end(found):
    bins = simulations._BINS
    for figures in found.values():
        for name in ("forward", "backward"):
            assert list(figures[name]) == ["5", "10", "15", "20"]
            for density in figures[name].values():
                edges, counts = density["edges"], density["density"]
                assert (len(edges), len(counts), edges[0], edges[-1]) == (bins + 1, bins, -4, 4)
                assert 0 <= sum(counts) * 8 / bins <= 1.001
    edges, counts = (found["forward", 1.0]["forward"]["5"][key] for key in ("edges", "density"))
    middle = [(low + high) / 2 for low, high in pairwise(edges)]
    assert sum(counts) * 8 / bins == pytest.approx(1, abs=0.01)
    assert sum(c * x * x for c, x in zip(counts, middle, strict=True)) * 8 / bins == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("activation", list(hendrycks2016.moments.published))
def test_moments_by_quadrature_are_those_drawn_and_those_printed(activation):
    figures = simulations.moments(Trial({"activation": activation}, "quick", 0))
    errors = figures["standard_errors"]
    for name, error in zip(("second", "derivative_second"), errors, strict=True):
        assert abs(figures[f"drawn_{name}"] - figures[name]) <= 4 * error + 1e-12
    assert figures["derivative_squared"] == figures["derivative_second"] ** 2
    assert figures["second"] == pytest.approx(hendrycks2016.moments.published[activation]["second"], abs=6e-4)


@pytest.mark.parametrize(
    ("activation", "exact"), [("identity", (1, 1)), ("relu", (0.5, 0.5)), ("elu", (None, 0.5 + math.exp(2) * TAIL))]
)
def test_moments_known_in_closed_form(activation, exact):
    figures = simulations.moments(Trial({"activation": activation}, "smoke", 0))
    for name, value in zip(("second", "derivative_second"), exact, strict=True):
        assert value is None or figures[name] == pytest.approx(value, rel=1e-6)


def test_standard_errors_are_of_the_mean():
    torch.manual_seed(3)
    errors = simulations.moments(Trial({"activation": "identity"}, "smoke", 0))["standard_errors"]
    assert errors == pytest.approx([math.sqrt(2 / 10_000), 0], rel=0.1)  # z^2 has variance 2
