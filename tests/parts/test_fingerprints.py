"""Fingerprints: weights and statistics apart, whatever wraps the model."""

import torch
from torch import nn

from evenkeel.parts.fingerprints import fingerprint, of_statistics, of_weights


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_statistics_and_weights_are_told_apart():
    model, other = build(), build()
    assert of_weights(model) == of_weights(other) and of_statistics(model) == of_statistics(other)
    other(torch.randn(8, 3))
    assert of_weights(model) == of_weights(other) and of_statistics(model) != of_statistics(other)
    other = build()
    with torch.no_grad():
        other[2].bias[0] += 1e-6
    assert of_weights(model) != of_weights(other) and of_statistics(model) == of_statistics(other)


def test_order_does_not_count_and_dtype_shape_and_sign_of_zero_do():
    one, two = torch.zeros(2), torch.ones(3)
    assert fingerprint([("a", one), ("b", two)]) == fingerprint([("b", two), ("a", one)])
    found = {
        fingerprint([("a", t)]) for t in (one, -one, one.half(), one[:, None], one.bfloat16(), one.to(torch.cfloat))
    }
    assert len(found) == 6 and fingerprint([("a", torch.tensor(1.0))]) != fingerprint([("a", torch.ones(1))])


def test_compiled_parts_have_the_same_names():
    model, other = build(), build()
    other[1] = torch.compile(other[1], backend="eager")
    assert of_weights(model) == of_weights(other) and of_statistics(model) == of_statistics(other)
