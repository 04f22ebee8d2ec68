"""kim2023's specifications: every arm puts dropout where and as much as it says."""

from __future__ import annotations

import pytest

from evenkeel.papers import kim2023


def test_arms_of_every_scale_name_places_that_its_net_has():
    for scale, arms in kim2023.positions.arms.items():
        for arm in arms:
            training = kim2023.positions.training(scale, **arm)
            assert training.net.arguments.get("places", "none") == arm["place"]
            assert training.net.arguments.get("noise", ["Dropout", 0.0])[1] == arm["p"]


@pytest.mark.parametrize(("scale", "rate"), [("quick", 0.5908), ("full", 0.8403)])
def test_the_head_of_equal_noise_drops_more_where_maps_are_larger(scale, rate):
    """Of 4x4 and of 8x8 positions."""
    training = kim2023.head.training(scale, "cifar10", "preresnet", "before-equal-noise", 0.2)
    assert training.net.arguments["places"] == "head-before"
    assert training.net.arguments["noise"] == ["Dropout", pytest.approx(rate, abs=2e-3)]
