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
# Tests of what predictions are used for: what is said, left alone, written and restored, not how near they come.
WINGS = "cli graph integrations io linting model output rewriting".split()
PLACES = [f"tests/{wing}" for wing in WINGS] + [f"tests/test_{name}.py" for name in ("one_trace", "restore_law")]
SAMPLES = dict.fromkeys(PLACES, FEW)
# Tests of how near they come to what data show, by a bound that does not know of samples: fewer make it no easier.
SAMPLES |= {f"tests/prediction/test_{name}.py": 1024 for name in ("architectures", "inherited_shift", "quantization")}


@pytest.fixture(autouse=True)
def _seeded():
    seed_all(0)


@pytest.fixture
def few_samples(monkeypatch):
    """Predictions are made of few random inputs, where nothing is said of how near they come."""
    monkeypatch.setattr(sampling, "_MOST", FEW)


@pytest.fixture(autouse=True, scope="module")
def _few_samples(request):
    path = request.path.relative_to(request.config.rootpath)
    with pytest.MonkeyPatch.context() as patched:
        if samples := SAMPLES.get(path.as_posix(), SAMPLES.get(path.parent.as_posix())):
            patched.setattr(sampling, "_MOST", samples)
        yield
