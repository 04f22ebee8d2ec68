"""Convergence: how fast and how steadily, of histories whose answer is known."""

from __future__ import annotations

import math
import random
from statistics import mean

import pytest
import torch
from labs import WRN, a_training, images_of, trained_in

from evenkeel.papers.lab.convergence import LEVELS, convergence, epochs_to, spread
from evenkeel.papers.lab.specs import SCALES
from evenkeel.papers.lab.trials import Trial


def history(errors, rates=None):
    return [
        {"lr": lr, "test_eval_error": error} for error, lr in zip(errors, rates or [0.1] * len(errors), strict=True)
    ]


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_a_level(scale):
    assert 0 < LEVELS[scale] < 1


def test_epochs_are_counted_to_where_the_line_between_two_of_them_crosses_the_level():
    for level, expected in ((0.8, 1), (0.7, 1.5), (0.6, 2), (0.45, 2.75), (0.4, 3), (0.3, 4 + 1)):
        assert epochs_to(level, [0.8, 0.6, 0.4, 0.5], 4) == pytest.approx(expected)
    assert epochs_to(0.5, [math.nan, 0.4], 9) == 2, "from no number there is no line"
    assert epochs_to(0.5, [], 3) == 4


def test_the_spread_of_noise_about_a_line_is_its_deviation():
    draw = random.Random(0)
    errors = [0.9 - 0.0001 * epoch + draw.gauss(0, 0.01) for epoch in range(3000)]
    assert spread(history(errors)) == pytest.approx(0.01, rel=0.05)
    assert spread(history([value * 2 for value in errors])) == pytest.approx(0.02, rel=0.05)


def test_a_spread_leaves_out_the_beginning_and_where_the_rate_falls():
    steady = [0.9, 0.2, 0.5, 0.5, 0.5, 0.5]
    assert spread(history(steady)) == 0
    falling = [0.9, 0.9, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1]
    assert spread(history(falling, [0.1] * 5 + [0.01] * 4)) == 0
    assert spread(history(falling)) > 0.05


def test_of_two_epochs_the_spread_is_that_of_their_difference():
    assert spread(history([0.6, 0.4])) == pytest.approx(0.2 / math.sqrt(2))
    assert spread(history([0.6])) == 0
    assert math.isnan(spread([{"lr": 0.1}, {"lr": 0.1}]))


@pytest.mark.slow
def test_the_measure_reads_the_history_and_keeps_what_it_is_told(tmp_path):
    torch.manual_seed(0)
    training = a_training(WRN, epochs=4, watched=32)
    trained = trained_in(tmp_path, training)
    figures = convergence(Trial({}, "smoke", 0, trained, images_of()))
    errors = [epoch["test_eval_error"] for epoch in trained.history]
    assert figures["mean_error"] == pytest.approx(mean(errors))
    assert figures["epochs_to_level"] == epochs_to(LEVELS["smoke"], errors, 4)
    assert figures["spread"] == spread(trained.history)
    assert {"test_error", "median", "worst"} <= set(figures)
