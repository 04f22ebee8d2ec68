"""Settling: norms that a bound or a second seed contradicts are left, and those after them predicted anew."""

import pytest
import torch
from test_shift_prediction import train_
from torch import nn

import evenkeel as ek
from evenkeel.model.norms import norms_of
from evenkeel.prediction import settled_prediction
from evenkeel.prediction.doubts import Doubt
from evenkeel.prediction.replica_recorder import SamplingPlan
from evenkeel.prediction.settled_prediction import settle
from evenkeel.prediction.shift_prediction import predict, prediction_inputs

PLAN = SamplingPlan(elements=1 << 22)


def given(width=64):
    torch.manual_seed(0)
    layers = [nn.Linear(8, width)]
    for _ in range(2):
        layers += [nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, width)]
    model = train_(nn.Sequential(*layers, nn.BatchNorm1d(width)), (8,))
    return prediction_inputs(model, ek.trace(model, torch.zeros(1, 8)), norms_of(model))


def test_where_nothing_speaks_against_it_all_are_settled():
    inputs = given()
    found = settle(inputs, PLAN, unproven=False)
    assert found.doubts == {}
    expected = predict(inputs, SamplingPlan(elements=1 << 22, settled=set(inputs.norms.values())))
    assert all(torch.equal(found.channels[path].eval_var, expected.channels[path].eval_var) for path in found.channels)


def test_a_variance_that_is_stored_too_small_is_beyond_what_dropout_can_do():
    inputs = given()
    norm = inputs.norms["5"]
    norm.running_var.mul_(0.62)
    found = settle(inputs, PLAN, unproven=True)
    assert found.doubts["5"].wrong
    assert "can make it" in found.doubts["5"].reason or "exceeds" in found.doubts["5"].reason


def test_seeds_that_disagree_leave_a_norm_and_change_those_after_it(monkeypatch):
    inputs, seen = given(), []

    def scattered(found, inputs, plan):
        seen.append(plan)
        return {"5": Doubt("seeds disagree", wrong=True)}

    monkeypatch.setattr(settled_prediction, "_scattered", scattered)
    found = settle(inputs, PLAN, unproven=False)
    assert found.unsure == {"5": "seeds disagree"} and len(seen) == 1
    left = {norm for path, norm in inputs.norms.items() if path != "5"}
    expected = predict(inputs, SamplingPlan(elements=1 << 22, settled=left))
    assert torch.equal(found.channels["9"].eval_var, expected.channels["9"].eval_var)


def test_narrow_nets_of_much_noise_disagree_by_themselves():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.9), nn.Linear(4, 4), nn.BatchNorm1d(4)]
    model = train_(nn.Sequential(*layers), (4,))
    inputs = prediction_inputs(model, ek.trace(model, torch.zeros(1, 4)), norms_of(model))
    found = settle(inputs, SamplingPlan(elements=1, fewest=4), unproven=True)
    assert found.doubts["5"].wrong


def test_what_is_left_stays_left_and_named(monkeypatch):
    """A bound that no longer speaks once a norm before it is left must not put a norm back."""
    inputs = given()
    monkeypatch.setattr(settled_prediction, "_scattered", lambda found, inputs, plan: {})
    reasons = {"5": Doubt("at first", wrong=True)}

    def beyond(found, inputs, settled):
        return reasons if len(settled) == 3 else {}

    monkeypatch.setattr(settled_prediction, "_beyond", beyond)
    assert settle(inputs, PLAN, unproven=False).doubts == reasons


class Branches(nn.Module):
    """Branches of dropout, a weight layer and a norm, the first few of which pass what is not understood."""

    def __init__(self, opaque, count):
        super().__init__()
        self.norm, self.opaque = nn.BatchNorm1d(32), opaque
        self.weights = nn.ModuleList(nn.Linear(32, 32) for _ in range(count))
        self.norms = nn.ModuleList(nn.BatchNorm1d(32) for _ in range(count))

    def forward(self, x):
        x = nn.functional.dropout(self.norm(x), 0.3, self.training)
        outputs = [weights(x) for weights in self.weights]
        return [
            norm(y.asinh() if i < self.opaque else y)
            for i, (y, norm) in enumerate(zip(outputs, self.norms, strict=True))
        ]


@pytest.mark.parametrize(("opaque", "left"), [(0, 0), (1, 1), (2, 4)])
def test_where_too_many_cannot_be_proven_none_is_written_unless_told(opaque, left):
    torch.manual_seed(0)
    model = train_(Branches(opaque, 4), (32,))
    done = ek.correct_(model, torch.zeros(1, 32))
    moved = {path for path in done.untouched if path.startswith("norms.")}
    assert len(moved) == left and len(done.untouched) == left
    beside = [reason for reason in done.untouched.values() if "errors add up" in reason]
    assert beside == ["2 of 4 norms cannot be proven, such as 'norms.0'; errors add up"] * (2 if left == 4 else 0)
    done.undo()
    told = ek.correct_(model, torch.zeros(1, 32), unsure="write")
    assert not told.untouched and set(told.unsure) == moved
