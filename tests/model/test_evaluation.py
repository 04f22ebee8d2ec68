"""evaluate against counting by hand."""

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.model.evaluation import evaluate


def test_error_and_log_loss_over_unequal_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4), torch.randint(0, 4, (50,))
    score = evaluate(nn.Identity(), zip(logits.split(16), labels.split(16), strict=True))
    assert score.samples == 50
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
        ((torch.ones(2, 4, 2), torch.tensor([0, 1])), r"returned \(2, 4, 2\), not logits"),
    ],
)
def test_faults_say_which_batch(batch, message):
    with pytest.raises(ek.BatchError, match=message):
        evaluate(nn.Identity(), [batch])


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
