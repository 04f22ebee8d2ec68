"""evaluate against counting by hand."""

import math
from collections import namedtuple
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.model.evaluation import Score, evaluate, is_regression


def test_error_and_log_loss_over_unequal_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4), torch.randint(0, 4, (50,))
    score = evaluate(nn.Identity(), zip(logits.split(16), labels.split(16), strict=True))
    assert score.samples == 50 and score.name == "log loss"
    assert score.error == pytest.approx(float((logits.argmax(1) != labels).double().mean()))
    assert score.log_loss == pytest.approx(float(-logits.log_softmax(1)[range(50), labels].double().mean()), rel=1e-5)


def test_dropout_is_off_and_the_model_comes_back_as_found():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4, affine=False))
    data = [(torch.eye(4), torch.arange(4))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert evaluate(model, data).error == 0
    assert model.training and model[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(2, 4), "batch 1 holds no labels"),
        ((torch.ones(2, 4),), "batch 1 holds no labels"),
        ((torch.ones(2, 4), torch.tensor([0, 4])), "label 4, the model 4 classes"),
        ((torch.ones(2, 4), ["cat", "dog"]), "batch 1 holds no labels"),
        ({"input": torch.ones(2, 4)}, r"batch 1 holds no labels.*float32 \(2, 4\)"),
        ((torch.ones(2, 4, 2), torch.tensor([0, 1])), r"float32 \(2, 4, 2\) and targets int64 \(2,\)"),
        ((torch.ones(2, 1), torch.tensor([0, 1])), r"float32 \(2, 1\) and targets int64 \(2,\)"),
        ((torch.ones(2, 1), torch.tensor([0.0, 1])), r"float32 \(2,\) of all 2 samples are 0 or 1.*float32 \(2, 1\)"),
        ((torch.ones(2, 4), torch.eye(4)[:2]), r"targets float32 \(2, 4\) of all 2 samples are 0 or 1"),
    ],
)
def test_faults_say_which_batch(batch, message):
    with pytest.raises(ek.BatchError, match=message) as caught:
        evaluate(nn.Identity(), [batch])
    assert "score=" in str(caught.value) and "\n" not in str(caught.value)


def test_calibration_error_against_counting_by_bins():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(400, 4), torch.randint(0, 4, (400,))
    score = evaluate(nn.Identity(), zip(logits.split(37), labels.split(37), strict=True))
    confidence, chosen = logits.double().softmax(1).max(1)
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = confidence[inside].mean() - (chosen == labels)[inside].double().mean()
            total += float(inside.double().mean() * gap.abs())
    assert score.calibration_error == pytest.approx(total)


def test_a_model_that_is_always_right_and_sure_is_calibrated():
    data = [(100 * torch.eye(4), torch.arange(4))]
    assert evaluate(nn.Identity(), data).calibration_error == pytest.approx(0, abs=1e-9)


# --- beyond classes ---------------------------------------------------------------------------------------------------

X, Y = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


class Wants(nn.Module):
    """A model that takes its inputs by name, and labels if told so."""

    def forward(self, x, labels=None):
        logits = 2 * x
        return {"loss": None if labels is None else 3 * F.cross_entropy(logits, labels), "logits": logits}


def split(*tensors, size=4):
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


def test_squared_error_is_the_mean_over_all_samples():
    score = evaluate(nn.Identity(), split(X, X + 1 + Y[:, None]))
    assert score.loss == pytest.approx(float(((1 + Y) ** 2).double().mean()), rel=1e-6)
    assert (score.name, score.samples) == ("squared error", 10)
    assert score.error is None and score.calibration_error is None and score.log_loss is None


def test_a_few_targets_that_may_be_labels_are_no_doubt():
    score = evaluate(nn.Identity(), [(X[:2], torch.zeros(2, 3)), (X[2:], X[2:])])
    assert score.loss == pytest.approx(float((X[:2] ** 2).mean() / 5), rel=1e-6)


def test_labels_left_out_do_not_count():
    labels = torch.where(Y == 1, -100, Y)
    score, some = evaluate(nn.Identity(), split(X, labels)), evaluate(nn.Identity(), [(X[Y != 1], Y[Y != 1])])
    assert score.samples == 10 and score.loss == pytest.approx(some.loss)
    assert (score.error, score.calibration_error) == pytest.approx((some.error, some.calibration_error))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("labels", ("the model's own loss", 3.0)), *((name, ("log loss", 1.0)) for name in ("label", "target", "y"))],
)
def test_a_mapping_is_called_by_what_the_forward_takes(name, expected):
    data = [{"x": x, name: y, "path": ["a"] * len(x)} for x, y in split(X, Y)]
    score = evaluate(Wants(), data)
    assert score.name == expected[0] and score.samples == 10
    assert score.loss == pytest.approx(expected[1] * float(F.cross_entropy(2 * X, Y)), rel=1e-5)
    assert (score.error is None) is (name == "labels")


class Two(nn.Module):
    def forward(self, x):
        return x, x[:, 0]


@pytest.mark.parametrize("nested", [True, False])
def test_several_outputs_against_several_targets(nested):
    data = [(x, (y, z)) if nested else (x, y, z) for x, y, z in split(X, Y, 2 * X[:, 0])]
    score = evaluate(Two(), data)
    assert score.name == "log loss + squared error" and score.error is None
    assert score.loss == pytest.approx(float(F.cross_entropy(X, Y) + X[:, 0].square().mean()), rel=1e-5)


def test_what_follows_the_labels_is_left_alone():
    assert evaluate(nn.Identity(), split(X, Y, torch.arange(10))) == evaluate(nn.Identity(), split(X, Y))


class Wide(nn.Module):
    """Features and logits."""

    def forward(self, x):
        return x.repeat(1, 3), x


@pytest.mark.parametrize("order", [torch.arange(10), Y.argsort()])
def test_logits_are_told_from_features_by_the_labels(order):
    score = evaluate(Wide(), split(X[order], Y[order]))
    assert score.name == "log loss of output 2 of 2" and score.log_loss == evaluate(nn.Identity(), [(X, Y)]).log_loss
    with pytest.raises(ek.BatchError, match=r"several of the outputs \[float32 \(4, 9\), float32 \(4, 3\)\].*score="):
        evaluate(Wide(), split(X[:8], Y[:8].clamp(max=1)))


def absolute(outputs, targets):
    return (outputs - targets).abs().mean()


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (absolute, "absolute"),
        (partial(absolute), "absolute"),
        (lambda outputs, targets: float(absolute(outputs, targets)), "score"),
        (nn.L1Loss(), "L1Loss"),
    ],
)
@pytest.mark.parametrize("data", [split(X, 2 * X), [{"input": x, "y": y} for x, y in split(X, 2 * X)]])
def test_any_score_is_averaged_over_samples(score, name, data):
    found = evaluate(nn.Identity(), data, score=score)
    assert found.loss == pytest.approx(float(X.abs().mean()), rel=1e-6)
    assert (found.name, found.samples, found.error) == (name, 10, None)


def test_without_targets_the_score_is_given_the_batch():
    assert evaluate(nn.Identity(), X.split(4), score=F.mse_loss).loss == 0
    data = split(X, X, Y)
    found = evaluate(
        nn.Identity(),
        data,
        score=lambda outputs, batch: F.cross_entropy(outputs, batch[2]),
        forward=lambda model, batch: model(batch[0] + batch[1]),
    )
    assert found.loss == pytest.approx(float(F.cross_entropy(2 * X, Y)), rel=1e-6)


def test_the_forward_may_return_the_loss():
    found = evaluate(
        nn.Identity(), split(X, Y), forward=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
    )
    assert found.name == "the model's own loss" and found.loss == pytest.approx(float(F.cross_entropy(X, Y)), rel=1e-6)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            lambda outputs, targets: outputs,
            r"must return a number, and returned float32 \(4, 3\) on batch 1, of outputs",
        ),
        (lambda outputs, targets: None, "must return a number, and returned None"),
        (lambda outputs: 0.0, "score raised TypeError"),
        ("mse", "called as score"),
    ],
)
def test_faults_of_a_score(score, message):
    with pytest.raises(ek.EvenkeelError, match=message):
        evaluate(nn.Identity(), split(X, Y), score=score)


def test_batches_judged_by_different_losses_are_refused():
    with pytest.raises(ek.BatchError, match=r"batch 2 is judged by squared error, those before by log loss.*score="):
        evaluate(nn.Identity(), [(X, Y), (X, X)])


@pytest.mark.parametrize("data", [split(X, Y), split(X, X + 1)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_scored(data, value):
    score = evaluate(nn.Identity(), [*data, (torch.full((2, 3), value), data[0][1][:2])])
    assert not math.isfinite(score.loss) and score.samples == 12


@pytest.mark.parametrize(
    ("before", "after", "better"),
    [
        (2.0, 1.0, True),
        (1.0, 1.0, False),
        (1.0, 2.0, False),
        (math.nan, 5.0, True),
        (math.inf, 5.0, True),
        (1.0, math.nan, False),
        (math.nan, math.nan, False),
        (math.nan, math.inf, False),
        (math.inf, math.nan, False),
    ],
)
def test_a_number_is_better_than_none(before, after, better):
    assert Score(after, "loss", 1).is_better_than(Score(before, "loss", 1)) is better


@dataclass
class Held:
    x: torch.Tensor
    y: torch.Tensor


class Graph:
    """An object that holds what belongs together, as libraries of graphs have."""

    def __init__(self, x, y):
        self.x, self.y = x, y


Named = namedtuple("Named", "x mask y")


@pytest.mark.parametrize(
    "held", [Held, Graph, lambda x, y: Named(x, x > 0, y)], ids=["dataclass", "object", "named tuple"]
)
def test_targets_are_found_by_name_in_objects_too(held):
    expected = evaluate(nn.Identity(), [(X, Y)])
    assert evaluate(nn.Identity(), [held(X, Y)], forward=lambda model, batch: model(batch.x)) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_targets_that_are_not_finite_are_refused_unless_a_score_knows_them(value):
    targets = X.clone()
    targets[1, 2] = value
    data = [(X, X + 1), (X, targets)]
    with pytest.raises(ek.BatchError, match=rf"1 of {X.numel()} targets of batch 2 are NaN or infinite.*score="):
        evaluate(nn.Identity(), data)

    def known(outputs, targets):
        return (outputs - targets)[targets.isfinite()].square().mean()

    assert evaluate(nn.Identity(), data, score=known).loss == pytest.approx(0.5)


@pytest.mark.parametrize("outputs", [lambda loss, x: {"loss": loss, "logits": x}, lambda loss, x: (loss, x)])
def test_a_regression_that_returns_its_loss_is_one(outputs):
    x = torch.rand(6, 1)
    loss = x.mean()
    assert is_regression({"x": x, "labels": 3 * x}, outputs(loss, x))
    assert not is_regression({"x": x, "labels": torch.arange(6) % 3}, outputs(loss, torch.rand(6, 3)))
    assert not is_regression({"x": x, "labels": (x > 0.5).float()}, outputs(loss, x))
