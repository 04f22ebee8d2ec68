"""Random inputs: standardized, and smooth along positions."""

import pytest
import torch

from evenkeel.prediction.random_inputs import random_field


@pytest.mark.parametrize(
    "shape", [(4000, 6), (500, 3, 32), (300, 3, 16, 16), (50, 2, 8, 8, 8), (1000,), (200, 3, 1, 1)]
)
def test_random_inputs_are_standardized_and_smooth(shape):
    torch.manual_seed(0)
    x = random_field(shape)
    assert x.shape == shape and x.isfinite().all()
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-3)
    assert abs(float(x.mean())) < 0.15
    if x.shape[-1] > 1 and len(shape) > 2:
        neighbours = float((x[..., 1:] * x[..., :-1]).mean())
        assert neighbours > 0.3
    contrast = x.flatten(1).square().mean(1).sqrt() if x.dim() > 1 else x
    assert float(contrast.std() / contrast.mean()) > 0.2
