"""chen2019's specifications: every arm is the order of layers that it says."""

from __future__ import annotations

import pytest
import torch

import evenkeel as ek
from evenkeel.papers import chen2019
from evenkeel.papers.lab.nets import build
from evenkeel.papers.lab.specs import CIFAR, SCALES

IMAGES = torch.linspace(-1, 1, 4 * 3 * 64).view(4, 3, 8, 8).sin()


def picture(experiment, **arm):
    net = experiment.training("smoke", "synthetic", **arm).net
    return str(ek.trace(build(net.name, **net.arguments), IMAGES))


def repeated(stem, branch, head):
    """Three blocks, the first with the identity for a shortcut, the others with a convolution."""
    first, *rest = [f"{branch} +", *[f"W {branch} +"] * 2]
    return " ".join(["i", stem, first, *rest, head, "o"])


@pytest.mark.parametrize(
    ("order", "p", "expected"),
    [
        ("bn-relu-conv", 0.0, repeated("W", "N A W N A W", "N A P . W")),
        ("bn-relu-conv", 0.05, repeated("W", "N A D W N A D W", "N A D P . W")),
        ("relu-ic-conv", 0.05, repeated("W", "A N D W A N D W", "A N D P . W")),
    ],
)
def test_the_arms_of_the_ablation_differ_in_order_or_in_dropout(order, p, expected):
    assert picture(chen2019.ablation, order=order, p=p) == expected


def test_ic_layers_without_dropout_have_it_at_rate_0():
    """So that the two nets draw the same weights, and are told apart by the masks alone."""
    bare, noisy = (chen2019.ablation.training("smoke", "synthetic", "relu-ic-conv", p).net for p in (0.0, 0.1))
    assert bare.arguments["noise"] == ["Dropout", 0.0]
    assert {**bare.arguments, "noise": 0} == {**noisy.arguments, "noise": 0}


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        ("ic", repeated("W", "A N D W A N D W", "A N D P . W")),
        ("ic-last", repeated("W", "A N W A N D W", "A N P . W")),
        ("P6", repeated("W", "N A W N A D W", "N A P . W")),
    ],
)
def test_the_designs_of_the_compromise(design, expected):
    assert picture(chen2019.compromise, design=design, p=0.1) == expected


def test_the_baselines_of_the_orders_have_no_dropout():
    assert picture(chen2019.orders, order="conv-bn-relu", p=0.0).count("D") == 0
    assert picture(chen2019.orders, order="bn-relu-conv", p=0.0).count("D") == 0
    assert [arm["p"] for arm in chen2019.orders.arms["quick"]] == [0, 0, 0.05, 0.05, 0.05]


@pytest.mark.parametrize("scale", SCALES)
def test_experiments_share_what_they_train_alike(scale):
    data = next(iter(CIFAR[scale]))
    chosen = [
        experiment.training(scale, data, "relu-ic-conv", 0.05) for experiment in (chen2019.orders, chen2019.ablation)
    ]
    assert chosen[0] == chosen[1]
    assert chen2019.compromise.training(scale, data, "ic", 0.05) == chosen[0]
    assert chen2019.compromise.training(scale, data, "P6", 0.0) == chen2019.orders.training(
        scale, data, "bn-relu-conv", 0.0
    )
