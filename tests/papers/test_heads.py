"""Heads: how much logits move from mask to mask, by the formula, by draws, and by hand."""

from __future__ import annotations

import pytest
import torch
from labs import WRN, a_training, images_of, noisy, trained_in
from torch import nn
from torch.nn import functional as F

from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab import heads
from evenkeel.papers.lab.specs import Net
from evenkeel.papers.lab.trials import Trial

DENSENET = Net("densenet", {"depth": 10, "growth": 4, "bottleneck": True})


def head_noise(folder, net, p):
    torch.manual_seed(0)
    return heads.head_noise(Trial({"p": p}, "smoke", 0, trained_in(folder, a_training(net)), images_of()))


# Rates


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("side", [4, 8])
def test_the_rate_of_equal_noise_makes_equal_noise_of_rectified_values(p, side):
    maps = torch.relu(torch.randn(4000, 4, side, side, generator=torch.Generator().manual_seed(1)))
    rate = heads.equal_noise_rate(p, side * side)
    before = F.dropout(maps, rate).mean((2, 3)) - maps.mean((2, 3))
    after = F.dropout(maps.mean((2, 3)), p) - maps.mean((2, 3))
    assert float(before.square().mean()) == pytest.approx(float(after.square().mean()), rel=0.05)
    assert p < rate < 1


def test_of_a_single_position_both_sides_are_the_same():
    assert heads.equal_noise_rate(0.3, 1) == pytest.approx(0.3)
    assert heads.equal_noise_rate(0.0, 64) == 0


# Logits


@pytest.mark.slow
@pytest.mark.parametrize("net", [WRN, DENSENET], ids=["wrn", "densenet"])
@pytest.mark.parametrize(("place", "p"), [("head-before", 0.5), ("head-after", 0.2)])
def test_drawn_noise_is_the_formulas_and_is_measured_where_the_dropout_is(tmp_path, net, place, p):
    figures = head_noise(tmp_path, noisy(net, place, p), p)
    assert figures["logit_noise"] == pytest.approx(figures["logit_noise_theory"], rel=0.1)
    side = place.removeprefix("head-")
    assert figures["logit_noise_theory"] == pytest.approx(figures[f"{side}_noise"])
    assert figures["before_noise"] < figures["after_noise"]
    assert figures["noise_ratio"] == pytest.approx(figures["before_noise"] / figures["after_noise"])
    assert 1 / figures["positions"] <= figures["noise_ratio"] <= 1


@pytest.mark.slow
def test_noise_is_that_of_whole_passes_with_dropout_on(tmp_path):
    """By hand: the whole net in eval mode but for its dropout, one image set, many masks."""
    training = a_training(noisy(WRN, "head-after", 0.5))
    trained, images = trained_in(tmp_path, training), images_of()
    net, inputs = trained.model(images).eval(), images.standardize(images.test.images)
    with torch.no_grad():
        clean = net(inputs).double()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        torch.manual_seed(1)
        drawn = torch.stack([net(inputs).double() for _ in range(400)])
    by_hand = float((drawn - clean).square().mean() / clean.var(0, correction=0).mean())
    figures = head_noise(tmp_path, noisy(WRN, "head-after", 0.5), 0.5)
    assert figures["logit_noise_theory"] == pytest.approx(by_hand, rel=0.05)
    assert figures["test_error"] == pytest.approx(float((clean.argmax(1) != images.test.labels).double().mean()))


@pytest.mark.slow
def test_a_head_without_dropout_makes_no_noise(tmp_path):
    figures = head_noise(tmp_path, WRN, 0.0)
    assert figures["logit_noise"] == figures["logit_noise_theory"] == figures["before_noise"] == 0
    assert 0 < figures["noise_ratio"] <= 1


def test_a_head_without_a_pool_is_refused():
    net = nn.Sequential()
    net.add_module("head", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(EvenkeelError, match="a head of 0 has no pool"):
        heads._split(net)
