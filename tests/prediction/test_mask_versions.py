"""Versions of noisy parameters: balanced, and as training has them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.prediction.mask_versions import _own_sizes, _signs


@pytest.mark.parametrize("groups", [4, 8])
def test_signs_are_balanced_and_independent(groups):
    one, other = _signs(groups, (5, 3))
    assert one.shape == (groups, 5, 3)
    assert set(one.flatten().tolist()) == {-1.0, 1.0}
    for sum_ in (one.sum(0), other.sum(0), (one * other).sum(0)):
        assert not sum_.any()


def test_signs_of_different_elements_are_independent():
    one, other = _signs(8, (4000,))
    for left, right in ((one[:, ::2], one[:, 1::2]), (one[:, ::2], other[:, 1::2])):
        alike = (left * right).mean(0)  # 1 or -1 where chance gave both the same row, 0 elsewhere
        assert abs(float(alike.mean())) < 4 * float(alike.std()) / len(alike) ** 0.5


def test_a_mask_of_rows_is_one_of_rows():
    mask = (torch.rand(64, 1, 3) > 0.5).float()
    assert _own_sizes(mask.expand(64, 5, 3), (64, 5, 3)) == [64, 1, 3]
    assert _own_sizes(mask[:, 0], (7, 64, 3)) == [1, 64, 3]


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


def by_product(weight, p):
    return weight * torch.bernoulli(torch.full_like(weight, 1 - p)) / (1 - p)


def by_choice(weight, p):
    return torch.where(torch.rand_like(weight) > p, weight, torch.zeros_like(weight)) / (1 - p)


def of_rows(weight, p):
    return weight * torch.bernoulli(torch.full_like(weight[:, :1], 1 - p)).expand_as(weight) / (1 - p)


class Dropped(nn.Module):
    """A table of embeddings drops, by a mask."""

    def __init__(self, drop):
        super().__init__()
        self.table, self.norm, self.drop = nn.Embedding(50, 12), nn.BatchNorm1d(12, momentum=None), drop

    def forward(self, x):
        table = self.drop(self.table.weight, 0.4) if self.training else self.table.weight
        return self.norm(F.embedding(x, table).mean(1))


@pytest.mark.parametrize("drop", [by_product, by_choice, of_rows])
def test_masks_on_a_table_are_predicted_and_corrected(drop):
    torch.manual_seed(0)
    model = Dropped(drop)
    x = torch.randint(50, (60, 128, 4))
    for batch in x:
        model(batch)
    (true,) = ek.variance_shift(model, list(x))
    (predicted,) = ek.predict_shift(model, x[0])
    assert predicted.ratio == pytest.approx(true.ratio, rel=0.1)
    assert not ek.correct_(model, x[0]).untouched
