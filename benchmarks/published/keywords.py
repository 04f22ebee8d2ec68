"""Keyword spotting: the reference net of MLPerf Tiny, a depthwise separable CNN on 49 x 10 MFCC features, 12 classes.

Files of --folder:

- `kws_ref_model/variables/`: github.com/mlcommons/tiny, benchmark/training/keyword_spotting/trained_models; Apache 2.0.
- `kws01/`: github.com/eembc/energyrunner, datasets/kws01: the 1,000 test features of the benchmark, made from Speech
  Commands v2 (CC BY 4.0), and their labels.

Its training code (keras_model.py, "ds_cnn") drops p = 0.2 behind the first norm and activation, and p = 0.4 before the
pool of the head. Keras's batch norm: epsilon 0.001, momentum 0.99.

The test features are balanced. The data set trained on is not: 67,283 of its 105,829 recordings are of the 25 words
that are "unknown".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.published.study import Batch, Figure, Study, Task, outputs, required, write_norm
from benchmarks.published.tensor_bundle import read_bundle

WIDTH, BLOCKS, CLASSES = 64, 4, 12
SILENCE, UNKNOWN = 10, 11
UNKNOWN_SHARE, SILENCE_SHARE = 67_283 / 105_829, 0.01  # of the recordings (arXiv 1804.03209, table 1); about so much
ZERO_POINT, SCALE = 83, 0.5847029  # of the features, which are kept as int8
SOURCES = "github.com/mlcommons/tiny, benchmark/training/keyword_spotting/trained_models"


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(WIDTH, eps=1e-3, momentum=0.01)


class SeparableCNN(nn.Module):
    """DS-CNN with its training code's dropout."""

    def __init__(self) -> None:
        super().__init__()
        pad = nn.ZeroPad2d((1, 1, 4, 5))  # "same" of 49 x 10 at stride 2
        self.stem = nn.Sequential(pad, nn.Conv2d(1, WIDTH, (10, 4), 2), norm(), nn.ReLU(), nn.Dropout(0.2))
        self.blocks = nn.Sequential(*(self.block() for _ in range(BLOCKS)))
        self.head = nn.Sequential(nn.Dropout(0.4), nn.AvgPool2d((24, 5)), nn.Flatten(), nn.Linear(WIDTH, CLASSES))

    @staticmethod
    def block() -> nn.Sequential:
        depthwise, pointwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)
        return nn.Sequential(depthwise, norm(), nn.ReLU(), pointwise, norm(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def load_weights(net: SeparableCNN, prefix: Path) -> None:
    """Write the variables of the SavedModel, which are numbered in the order of layers."""
    variables = read_bundle(prefix)

    def get(layer: int, name: str) -> Tensor:
        return torch.from_numpy(variables[f"layer_with_weights-{layer}/{name}/.ATTRIBUTES/VARIABLE_VALUE"].copy())

    weighted = [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    with torch.no_grad():
        for number, layer in enumerate(weighted):
            if isinstance(layer, nn.BatchNorm2d):
                write_norm(layer, *(get(number, n) for n in ("gamma", "beta", "moving_mean", "moving_variance")))
                continue
            if isinstance(layer, nn.Linear):
                kernel = get(number, "kernel").T
            elif layer.groups > 1:
                kernel = get(number, "depthwise_kernel").permute(2, 3, 0, 1)
            else:
                kernel = get(number, "kernel").permute(3, 2, 0, 1)
            layer.weight.copy_(kernel)
            if layer.bias is not None:
                layer.bias.copy_(get(number, "bias"))


def load(folder: Path) -> Task:
    net = SeparableCNN()
    load_weights(net, required(folder, "kws_ref_model/variables", SOURCES) / "variables")
    data = required(folder, "kws01", "github.com/eembc/energyrunner, datasets/kws01")
    rows = [line.split(",") for line in (data / "y_labels.csv").read_text().split()]
    raw = np.stack([np.fromfile(data / name, np.int8) for name, _, _ in rows]).reshape(-1, 1, 49, 10)
    features = torch.from_numpy((raw.astype(np.float32) - ZERO_POINT) * SCALE)
    labels = torch.tensor([int(label) for _, _, label in rows])

    def score(candidate: nn.Module, units: Tensor) -> dict[str, float]:
        logits, truth = outputs(candidate, (features[units],), 250), labels[units]
        return {
            "accuracy": 100 * (logits.argmax(1) == truth).float().mean().item(),
            "log_loss": cross_entropy(logits, truth).item(),
            "unknown": 100 * (logits.argmax(1) == UNKNOWN).float().mean().item(),
        }

    def as_in_training(half: Tensor, generator: torch.Generator) -> Tensor:
        """Twice as many units as the half holds, drawn from it in the shares of classes trained on."""
        share = torch.full((CLASSES,), (1 - UNKNOWN_SHARE - SILENCE_SHARE) / (CLASSES - 2))
        share[UNKNOWN], share[SILENCE] = UNKNOWN_SHARE, SILENCE_SHARE
        weight = (share / labels[half].bincount(minlength=CLASSES))[labels[half]]
        return half[torch.multinomial(weight, 2 * len(half), replacement=True, generator=generator)]

    draws = {"classes as in training": as_in_training}
    return Task(net, len(rows), lambda units: (features[units],), score, 100, draws, few=(100, 25))


def example() -> Batch:
    return (torch.zeros(2, 1, 49, 10),)


STUDY = Study(
    "Keyword spotting: MLPerf Tiny's DS-CNN",
    SeparableCNN,
    example,
    load,
    {
        "accuracy": Figure("accuracy, %", 1),
        "log_loss": Figure("log loss", -1, 3),
        "unknown": Figure('says "unknown", %', 0),
    },
)
