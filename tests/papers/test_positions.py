"""Positions: norms inside branches and on the trunk are told apart, and equal places are equal to the bit."""

from __future__ import annotations

import pytest
import torch
from labs import CPU, a_training, images_of, noisy, same, trained_in

from evenkeel.papers.lab import measures
from evenkeel.papers.lab.nets import build
from evenkeel.papers.lab.positions import positions, reads_branch
from evenkeel.papers.lab.specs import Net
from evenkeel.papers.lab.trials import Trial
from evenkeel.prediction import correction

BASIC = Net("preresnet", {"depth": 8, "block": "basic", "width": 4})


@pytest.mark.parametrize(
    ("net", "arguments", "inside"),
    [
        ("preresnet", {"depth": 8, "block": "basic"}, 3),
        ("preresnet", {"depth": 11}, 6),
        ("wrn", {"depth": 10, "widen": 1}, 3),
    ],
)
def test_norms_behind_a_weight_of_their_branch_are_inside(net, arguments, inside):
    paths = [
        path for path, _ in build(net, width=2, **arguments).named_modules() if path.rpartition(".")[2][:4] == "norm"
    ]
    assert sum(map(reads_branch, paths)) == inside
    assert len(paths) - inside == 4  # three blocks' first, and the head's


@pytest.mark.slow
def test_the_measure_is_shift_and_adjust_with_norms_by_place(tmp_path, monkeypatch):
    monkeypatch.setattr(correction, "_ELEMENTS", 1 << 20)
    training = a_training(noisy(BASIC, "P4"), lr=0.05)
    trial = Trial({}, "smoke", 0, trained_in(tmp_path, training), images_of())
    torch.manual_seed(0)
    figures = positions(trial)
    expected = measures.shift(trial)
    assert {key: figures[key] for key in expected} == expected
    folded = dict(zip(figures["paths"], figures["folded"], strict=True))
    product = 1.0
    for stage in (1, 2, 3):
        product *= folded[f"stage{stage}.0.branch.norm2"]
    assert figures["in_branch"] == pytest.approx(product ** (1 / 3))
    rest = [value for path, value in folded.items() if not path.endswith("norm2")]
    assert figures["at_trunk"] == pytest.approx(torch.tensor(rest).log().mean().exp().item(), rel=1e-5)
    assert {"test_error", "adjusted_error"} <= set(figures)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "twin"), [("P2", "P3"), ("P5", "P6")])
def test_before_and_behind_a_relu_dropout_trains_to_the_same_bits(place, twin, tmp_path):
    first, second = (trained_in(tmp_path, a_training(noisy(BASIC, at)), hardware=CPU) for at in (place, twin))
    third = trained_in(tmp_path, a_training(noisy(BASIC, "P4")), hardware=CPU)
    renamed = [type(one)(second.training, one.history, 0.0, one.weights) for one in (first, second, third)]
    assert same(renamed[0], renamed[1]) and not same(renamed[1], renamed[2])
