"""Versions of noisy parameters: balanced, and as training has them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.prediction.mask_versions import _signs


@pytest.mark.parametrize("groups", [4, 8])
def test_signs_are_balanced_and_independent(groups):
    one, other = _signs(groups, (5, 3))
    assert one.shape == (groups, 5, 3)
    assert set(one.flatten().tolist()) == {-1.0, 1.0}
    for sum_ in (one.sum(0), other.sum(0), (one * other).sum(0)):
        assert not sum_.any()


class DropConnect(nn.Module):
    """Weights drop, behind a ReLU, whose output has a mean that masks move from batch to batch."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.weight = nn.Parameter(torch.randn(24, 12, *(3, 3) * conv) / 10)
        self.first = (nn.BatchNorm2d if conv else nn.BatchNorm1d)(12)
        self.norm = (nn.BatchNorm2d if conv else nn.BatchNorm1d)(24, momentum=None)

    def forward(self, x):
        weight = F.dropout(self.weight, 0.5, self.training).abs()
        x = (self.first(x) + 1).relu()
        return self.norm(F.conv2d(x, weight) if self.conv else F.linear(x, weight))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_masks_do_to_means_is_no_variance_of_a_batch(conv, dtype):
    torch.manual_seed(0)
    model = DropConnect(conv).to(dtype)
    x = torch.randn(60, 64, 12, *(6, 6) * conv, dtype=dtype)
    for batch in x:
        model(batch)
    predicted = ek.predict_shift(model, x[0, :2])
    measured = ek.variance_shift(model, list(x[:8]))
    assert predicted[1].ratio == pytest.approx(measured[1].ratio, rel=0.12)
    assert not predicted.unsure
