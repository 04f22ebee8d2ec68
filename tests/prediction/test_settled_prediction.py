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


def chain(opaque, count=4):
    """Norms behind dropout, one after the other; at the places given, what is not understood comes before them."""
    layers = [nn.BatchNorm1d(32)]
    for i in range(count):
        layers += [nn.Dropout(0.3), nn.Linear(32, 32), *([Opaque()] if i in opaque else []), nn.BatchNorm1d(32)]
    return nn.Sequential(*layers)


class Opaque(nn.Module):
    def forward(self, x):
        return x.asinh()


@pytest.mark.parametrize(
    ("opaque", "left", "behind"), [((), 0, 0), ((1,), 1, 0), ((1, 2), 2, 1), ((2, 3), 2, 0), ((0, 1), 2, 2)]
)
def test_where_too_many_cannot_be_proven_those_behind_them_are_left_unless_told(opaque, left, behind):
    torch.manual_seed(0)
    model = train_(chain(opaque), (32,))
    done = ek.correct_(model, torch.zeros(1, 32))
    added = [reason for reason in done.untouched.values() if "adds up" in reason]
    assert len(added) == behind and len(done.untouched) == left + behind
    unproven = [path for path, reason in done.untouched.items() if "asinh" in reason]
    assert all(any(f"behind {path!r}" in reason for path in unproven) for reason in added)
    done.undo()
    told = ek.correct_(model, torch.zeros(1, 32), unsure="write")
    assert not told.untouched and set(told.unsure) == set(done.untouched)


def test_a_frozen_norm_that_stores_too_little_does_not_excuse_those_behind_it():
    """It acts alike in both modes, so that the bound of those behind it holds."""
    torch.manual_seed(0)
    layers = [(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3)) for _ in range(4)]
    model = nn.Sequential(*(layer for block in layers for layer in block))
    train_(model, (32,))
    model[5].eval()
    model[5].running_var.mul_(0.1)
    model[5].running_mean.add_(0.5)
    train_(model, (32,))
    done = ek.correct_(model, torch.zeros(1, 32))
    assert {"5", "9"} <= set(done.untouched)
