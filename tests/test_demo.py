"""The demo's net is of the kind it says, and its result tells the truth of the scores it holds."""

import pytest
import torch

import evenkeel as ek
from evenkeel.demo import TREATMENTS, DemoResult, build_net, run_demo
from evenkeel.model.evaluation import Score

pytestmark = pytest.mark.slow


def test_the_net_is_a_pre_activation_residual_net_with_dropout_before_each_last_norm():
    net = build_net(widths=(4, 4, 8))
    graph = ek.trace(net, torch.ones(2, 1, 8, 8))
    same, wider = "N A W D N A W +", "N A W D N W A W +"  # a wider block's shortcut is a weight layer
    assert str(graph) == f"i W {same} {same} {wider} N A P . W o"
    for drop in graph.of(ek.Kind.DROPOUT):
        assert drop.p == 0.5 and [user.kind for user in drop.users] == [ek.Kind.NORM]


def test_the_count_of_better_seeds_is_counted():
    report = ek.ShiftReport([ek.ShiftRow("norm", 2.0, 1.0)])
    scores = [
        [Score(0.1, "log loss", 100, error, 0.05) for error in errors]
        for errors in ((0.5, 0.2, 0.3), (0.5, 0.5, 0.5), (0.4, 0.2, 0.4))
    ]
    result = DemoResult(report, dict(zip(TREATMENTS, scores, strict=True)))
    assert result.better == 1
    expected = {"loss": 0.1, "name": "log loss", "samples": 100, "error": 0.5, "calibration_error": 0.05}
    assert result.to_dict()["scores"]["torch update_bn"][1] == expected


def test_one_seed_is_the_same_twice():
    pytest.importorskip("sklearn")
    first, again = (run_demo(seeds=1, epochs=1).to_dict() for _ in range(2))
    assert first == again
