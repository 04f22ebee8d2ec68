"""Every run draws the same examples and the same numbers."""

import pytest
from hypothesis import settings

from benchmarks.torchvision_cpu import declare_operators
from evenkeel.model.restoring import seed_all
from evenkeel.prediction import sampling

settings.register_profile("evenkeel", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("evenkeel")

declare_operators()  # Lightning and transformers import torchvision

FEW = 64  # random inputs of a prediction, in place of up to 4096


@pytest.fixture(autouse=True)
def _seeded():
    seed_all(0)


@pytest.fixture
def few_samples(monkeypatch):
    """Predictions are made of few random inputs, where nothing is said of how near they come."""
    monkeypatch.setattr(sampling, "_MOST", FEW)


@pytest.fixture(autouse=True, scope="module")
def _samples(request):
    """Of how many random inputs at most the predictions of a file are made, if it is marked."""
    with pytest.MonkeyPatch.context() as patched:
        if (mark := request.node.get_closest_marker("samples")) is not None:
            patched.setattr(sampling, "_MOST", *mark.args)
        yield
