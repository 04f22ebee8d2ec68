"""Blocks: curves are those of the reference, of closed forms and of a loop over units; stacks shift as said there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from evenkeel.papers.lab import blocks
from evenkeel.papers.lab.trials import Trial


@pytest.fixture(scope="module")
def curves():
    """Of the quick scale with fewer points, by drop rate."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(blocks._SIZES, "quick", blocks.Size(20_000, 3, 9, 10_000))
        return {p: _at(p) for p in (0.1, 0.5)}


def _at(p):
    torch.manual_seed(1)
    return blocks.module_tests(Trial({"p": p}, "quick", 1))


def _depth(design, p, scale="smoke"):
    torch.manual_seed(2)
    return blocks.depth(Trial({"design": design, "p": p}, scale, 2))


# Module tests


@pytest.mark.slow
def test_curves_are_those_simulated_for_the_reference(curves):
    """kim2023.md, sections 3 and 4, both by other code; one draw of weights each, so to some hundredths."""
    half, tenth = curves[0.5], curves[0.1]
    assert half["pre"] == pytest.approx([0.408, 0.406, 0.425], abs=0.03)
    assert half["post"] == pytest.approx([0.259, 0.406, 0.285], abs=0.06)
    assert half["branch"] == pytest.approx([0.406] * 3, abs=0.02)
    assert tenth["branch"] == pytest.approx([0.862] * 3, abs=0.01)
    assert (tenth["block"][0], tenth["block"][-1]) == pytest.approx((0.869, 0.996), abs=0.01)
    assert (half["block"][0], half["block"][-1]) == pytest.approx((0.420, 0.962), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_what_is_drawn_is_the_closed_form(curves, p):
    for name in ("pre", "post", "branch", "block"):
        assert curves[p][name] == pytest.approx(curves[p][f"{name}_theory"], abs=0.01)
    off = [abs(a - b) for n in ("pre", "post", "branch", "block") for a, b in zip(*_pair(curves[p], n), strict=True)]
    assert curves[p]["worst"] == max(off) < 0.01


def _pair(figures, name):
    return figures[name], figures[f"{name}_theory"]


@pytest.mark.slow
def test_the_named_points_are_those_of_the_curves(curves):
    figures = curves[0.5]
    for name in ("pre", "post"):
        assert figures[f"{name}_at_0"] == figures[name][1]
        assert figures[f"{name}_at_end"] == (figures[name][0] + figures[name][2]) / 2
    for name in ("branch", "block"):
        assert (figures[f"{name}_at_least"], figures[f"{name}_at_most"]) == (figures[name][0], figures[name][-1])
    assert figures["weight_mean"] == pytest.approx([-0.02, 0, 0.02])
    assert figures["deviation"] == pytest.approx([0.2, 2.6, 5])


def test_a_closed_form_is_the_mean_over_units_of_masks_drawn_one_by_one():
    """By a loop over many masks of few samples, unit by unit."""
    torch.manual_seed(0)
    x, weight, p = torch.randn(400, 6).double() + 0.5, torch.randn(3, 6).double() + 0.2, 0.4
    mean, covariance = blocks._moments(x)
    for unit in range(3):
        values = []
        for _ in range(400):
            mask = (torch.rand(400, 6) >= p).double() / (1 - p)
            values.append((mask * x) @ weight[unit])
        drawn = torch.stack(values)
        law = blocks.pre_dropout_variance(weight[unit], mean, covariance, p)
        assert float(drawn.var(correction=0)) == pytest.approx(float(law), rel=0.02)


# Stacks


@pytest.mark.parametrize(
    ("design", "shape"),
    [
        ("P3", "NADWNAW"),
        ("P4", "NAWDNAW"),
        ("P6", "NAWNADW"),
        ("P7", "NAWNAWD"),
        ("P3-P6", "NADWNADW"),
        ("ic", "ANDWANDW"),
        ("ic-last", "ANWANDW"),
    ],
)
def test_a_design_is_the_layers_of_its_branch(design, shape):
    letters = {nn.BatchNorm1d: "N", nn.ReLU: "A", nn.Dropout: "D", nn.Linear: "W"}
    net = blocks.stack(design, 2, 0.3, width=8)
    assert list(blocks.DESIGNS) and len(net) == 4
    for block in net[:2]:
        assert "".join(letters[type(layer)] for layer in block.branch) == shape
        assert all(layer.p == 0.3 for layer in block.branch if isinstance(layer, nn.Dropout))
    x = torch.randn(4, 8)
    assert torch.equal(net[0].eval()(x), x + net[0].branch(x))


def test_the_norms_of_a_stack_alternate_between_trunk_and_branch():
    """By hand: what every norm meets in eval mode over what it met in training, of the same net."""
    torch.manual_seed(0)
    net, inputs = blocks.stack("P6", 2, 0.4, width=32), torch.randn(4000, 32)
    met = {}

    def keep(name):
        return lambda _module, args, _out: met.setdefault(name, []).append(float(args[0].var(0).mean()))

    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm1d):
            module.register_forward_hook(keep(name))
    with torch.no_grad():
        net.train()(inputs)
        net.eval()(inputs)
    ratios = [after / before for before, after in met.values()]
    assert list(met) == ["0.branch.norm1", "0.branch.norm2", "1.branch.norm1", "1.branch.norm2", "2"]
    found = blocks._by_place(ratios)
    assert found["trunks"] == [ratios[2], ratios[4]] and found["in_branches"] == [ratios[1], ratios[3]]
    assert (found["trunk_first"], found["trunk"]) == (ratios[2], ratios[4])
    assert found["in_branch"] == pytest.approx(math.sqrt(ratios[1] * ratios[3]))
    assert ratios[0] == pytest.approx(1, abs=1e-3) and ratios[1] == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "p", "in_branch", "trunk"),
    [
        ("P6", 0.1, 0.859, 0.768),
        ("P6", 0.3, 0.629, 0.442),
        ("P3-P6", 0.1, 0.661, 0.624),
        ("ic", 0.05, 0.821, 0.794),
        ("ic-last", 0.1, 0.862, 0.790),
    ],
)
def test_nine_blocks_shift_as_simulated_for_the_reference(design, p, in_branch, trunk):
    """chen2019.md, section 7, by other code and other draws."""
    figures = _depth(design, p, "quick")
    assert figures["in_branch"] == pytest.approx(in_branch, abs=0.03)
    assert figures["trunk"] == pytest.approx(trunk, abs=0.03)
    assert len(figures["trunks"]) == len(figures["in_branches"]) == 9
    assert figures["log_error"] < 0.06


@pytest.mark.slow
def test_predictions_have_the_places_of_what_is_measured():
    figures = _depth("P6", 0.1)
    for name in ("trunk", "trunk_first", "in_branch"):
        assert figures[f"predicted_{name}"] == pytest.approx(figures[name], rel=0.1)
    assert len(figures["predicted_trunks"]) == len(figures["trunks"]) == 3
