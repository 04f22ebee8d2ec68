"""Every run draws the same examples and the same numbers."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

from benchmarks.torchvision_cpu import declare_operators

settings.register_profile("evenkeel", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("evenkeel")

declare_operators()  # Lightning and transformers import torchvision


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
