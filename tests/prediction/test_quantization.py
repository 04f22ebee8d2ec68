"""Quantization-aware training: observers and fake quantization are understood, and shift nothing."""

import warnings

import pytest
import torch
from torch import nn

import evenkeel as ek

quantization = pytest.importorskip("torch.ao.quantization")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.leave = quantization.QuantStub(), quantization.DeQuantStub()
        self.first, self.norm1, self.drop = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Dropout(0.4)
        self.second, self.norm2, self.head = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.drop(self.norm1(self.first(self.enter(x))).relu())
        return self.leave(self.head(self.norm2(self.second(x)).relu().mean((2, 3))))


@pytest.mark.slow
def test_observers_are_not_noise_and_the_shift_is_that_of_dropout():
    torch.manual_seed(0)
    model = Net().train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = quantization.prepare_qat(model)
    with torch.no_grad():
        for _ in range(60):
            model(torch.randn(64, 3, 12, 12))
    example, data = torch.zeros(2, 3, 12, 12), torch.randn(256, 3, 12, 12)
    assert not ek.trace(model, example).of(ek.Kind.OPAQUE, ek.Kind.NOISE)
    predicted = ek.predict_shift(model, example)
    assert not predicted.unsure and not predicted.notes
    for found, row in zip(predicted, ek.variance_shift(model, [data]), strict=True):
        assert found.ratio == pytest.approx(row.ratio, abs=0.04)
    assert {f.code for f in ek.lint(model, example, ignore=["EK3"])} == {"EK102", "EK202"}
    assert [row.path for row in ek.correct_(model, example)] == ["norm1", "norm2"]
