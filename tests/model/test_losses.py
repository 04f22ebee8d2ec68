"""losses: which loss fits which outputs and targets, and what it comes to."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.model.losses import OWN, losses, meant

torch.manual_seed(0)
N = 6
LOGITS, LABELS = torch.randn(N, 3), torch.tensor([0, 1, 2, 2, 1, 0])
MAPS, PIXELS = torch.randn(N, 3, 4, 5), torch.randint(0, 3, (N, 4, 5))
MASKED = PIXELS.clone()
MASKED[:, 0] = -100
WORDS, TAGS = torch.randn(N, 7, 4), torch.randint(0, 4, (N, 7))
VALUES, TARGETS = torch.randn(N, 1), torch.randn(N)
IMAGES, COPIES = torch.randn(N, 1, 4, 4), torch.randn(N, 4, 4)
FEATURES = torch.randn(N, 2, 8)
Named = namedtuple("Named", "logits aux")

LOG, SQUARED = F.cross_entropy(LOGITS, LABELS), F.mse_loss(VALUES[:, 0], TARGETS)
CASES = {
    "classes": (LOGITS, LABELS, "log loss", LOG),
    "classes, probabilities": (LOGITS.softmax(1), LABELS, "log loss", LOG),
    "pixels, probabilities": (MAPS.softmax(1), MASKED, "log loss", F.cross_entropy(MAPS, MASKED)),
    "classes, labels (N, 1)": (LOGITS, LABELS[:, None], "log loss", LOG),
    "classes, labels of a byte": (LOGITS, LABELS.byte(), "log loss", LOG),
    "two classes, labels of a bit": (
        LOGITS[:, :2],
        LABELS > 0,
        "log loss",
        F.cross_entropy(LOGITS[:, :2], 1 * (LABELS > 0)),
    ),
    "pixels": (MAPS, PIXELS, "log loss", F.cross_entropy(MAPS, PIXELS)),
    "pixels, labels (N, 1, H, W)": (MAPS, PIXELS[:, None], "log loss", F.cross_entropy(MAPS, PIXELS)),
    "pixels, some left out": (MAPS, MASKED, "log loss", F.cross_entropy(MAPS, MASKED)),
    "words, classes last": (WORDS, TAGS, "log loss", F.cross_entropy(WORDS.mT, TAGS)),
    "outputs (N, 1), targets (N,)": (VALUES, TARGETS, "squared error", SQUARED),
    "outputs (N,), targets (N, 1)": (VALUES[:, 0], TARGETS[:, None], "squared error", SQUARED),
    "images, a channel or none": (IMAGES, COPIES, "squared error", F.mse_loss(IMAGES[:, 0], COPIES)),
    "half precision": (LOGITS.bfloat16(), LABELS, "log loss", F.cross_entropy(LOGITS.bfloat16().double(), LABELS)),
    "one number": (VALUES[0, 0], TARGETS[:1], "squared error", (VALUES[0, 0] - TARGETS[0]) ** 2),
    "by name": ({"features": FEATURES, "logits": LOGITS}, LABELS, "log loss", LOG),
    "by a tuple's name": (Named(LOGITS, LOGITS + 1), LABELS, "log loss", LOG),
    "by an attribute": (SimpleNamespace(logits=LOGITS), LABELS, "log loss", LOG),
    "the only one that fits": ({"features": FEATURES, "scores": LOGITS}, LABELS, "log loss of output scores", LOG),
    "first of a tuple": ((LOGITS, LOGITS + 1), LABELS, "log loss of output 1 of 2", LOG),
    "second of a tuple": ([FEATURES, VALUES], TARGETS, "squared error of output 2 of 2", SQUARED),
    "logits, then features": ((LOGITS, FEATURES[:, 0]), LABELS, "log loss of output 1 of 2", LOG),
    "features, then logits": ((FEATURES[:, 0], LOGITS), LABELS, "log loss of output 2 of 2", LOG),
    "fewer classes than labels": ((LOGITS[:, :2], LOGITS), LABELS, "log loss of output 2 of 2", LOG),
    "two tasks": ((LOGITS, VALUES), (LABELS, TARGETS), "log loss + squared error", LOG + SQUARED),
    "two tasks by name": (
        {"b": VALUES, "a": LOGITS},
        {"a": LABELS, "b": TARGETS},
        "log loss + squared error",
        LOG + SQUARED,
    ),
    "its own loss": ({"loss": torch.tensor(0.5), "logits": LOGITS}, LABELS, OWN, 0.5),
    "its own loss, of many devices": ({"loss": torch.tensor([0.25, 0.75])}, None, OWN, 0.5),
    "its own loss, first": ((torch.tensor(0.5), LOGITS), LABELS, OWN, 0.5),
    "its own loss, alone": (torch.tensor(0.5), LABELS, OWN, 0.5),
    "no loss of its own after all": ({"loss": None, "logits": LOGITS}, LABELS, "log loss", LOG),
}
DOUBTS = {
    "one logit, labels": (VALUES, LABELS % 2),
    "one logit, no axis for it": (VALUES[:, 0], LABELS % 2),
    "one logit, labels (N, 1)": (VALUES, LABELS[:, None] % 2),
    "several logits, labels of each": (LOGITS, torch.ones(N, 3, dtype=torch.long)),
    "classes in floats": (LOGITS, LABELS.float()),
    "other shapes": (LOGITS, torch.randn(N, 2)),
    "would broadcast": (LOGITS, torch.randn(N, 1)),
    "another number of samples": (LOGITS, LABELS[:4]),
    "classes second or last": (torch.randn(N, 4, 4), TAGS[:, :4]),
    "classes, not logits": (LABELS, LABELS),
    "complex": (torch.ones(N, dtype=torch.complex64), TARGETS),
    "two that fit": ({"a": LOGITS, "b": LOGITS}, LABELS),
    "none that fits": ((FEATURES, IMAGES), LABELS),
    "more targets than outputs": ((LOGITS,), (LABELS, TARGETS)),
    "one output, two targets": (LOGITS, (LABELS, LABELS)),
    "targets of unknown names": ({"a": LOGITS}, {"c": LABELS}),
    "one of two tasks in doubt": ((LOGITS, VALUES), (LABELS, LABELS)),
    "no targets": (LOGITS, None),
    "no outputs": (None, LABELS),
    "words for targets": (LOGITS, ["a", "b"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_that_fits(case):
    outputs, targets, name, value = CASES[case]
    found = [meant(several) for several in losses(outputs, targets, N)]
    assert " + ".join(loss.name for loss in found) == name
    assert sum(loss.mean for loss in found) == pytest.approx(float(value), rel=1e-5)
    assert all((loss.wrong is not None) is loss.name.startswith("log loss") for loss in found)


@pytest.mark.parametrize("case", DOUBTS)
def test_where_in_doubt_none(case):
    assert losses(*DOUBTS[case], N) == []


@pytest.mark.parametrize(
    ("targets", "unclear"),
    [
        (torch.eye(3), True),
        (torch.tensor([[1.0, 1, 0], [0, 0, 0]]), True),
        (torch.tensor([[0.2, 0.3, 0.5]]), True),
        (torch.tensor([[0.2], [1.0]]), False),
        (torch.tensor([[0.2, 0.3, 0.6]]), False),
        (torch.tensor([[0.5, -0.5, 1.0]]), False),
    ],
)
def test_floats_that_may_be_labels_are_told(targets, unclear):
    ((loss,),) = losses(torch.zeros_like(targets), targets, len(targets))
    assert loss.unclear is unclear


@pytest.mark.parametrize("label", [3, 255, -1])
def test_labels_beyond_the_classes_are_refused(label):
    with pytest.raises(ek.BatchError, match=rf"has label {label}, the model 3 classes.*-100.*score="):
        losses(LOGITS[:2], torch.tensor([0, label]), 2)


def test_nothing_labelled_is_nan_and_adds_nothing():
    ((none,),), ((some,),) = losses(LOGITS, torch.full((N,), -100), N), losses(LOGITS, LABELS, N)
    assert none.mean != none.mean
    none.add(some)
    assert none.mean == some.mean and none.wrong == some.wrong and torch.equal(none.gaps, some.gaps)
