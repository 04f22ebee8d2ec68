"""Thai word segmentation: deepcut, a CNN over the 21 characters around each, which says whether a word begins there.

Files of --folder:

- `deepcut/`, from the wheel deepcut 0.7.0.0 (PyPI, MIT), unpacked. Its weights are HDF5: h5py must be installed.
- `wisesight-1000-samples-tokenised.label`: github.com/PyThaiNLP/wisesight-sentiment, word-tokenization (CC0): texts of
  social media, cut into words by hand.

Its training code (deepcut/model.py) drops whole channels, p = 0.15, of both embeddings, each right before a norm.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad, relu

from benchmarks.published.study import Batch, Figure, Study, Task, outputs, required, write_norm
from evenkeel.errors import EvenkeelError

WINDOW, CHARACTERS, KINDS, TEXTS = 21, 178, 12, 160
WIDTHS = [200] * 8 + [150] * 3 + [100]  # of the convolutions over 1, 2, ... 12 characters
WHEEL = "the wheel deepcut 0.7.0.0 on PyPI, unpacked"
CORPUS = "github.com/PyThaiNLP/wisesight-sentiment, word-tokenization"


class DeepCut(nn.Module):
    """Characters and their kinds, (batch, 21) each, to the logit that a word begins."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.kinds = nn.Embedding(CHARACTERS, 32), nn.Embedding(KINDS, 12)
        self.drop_characters, self.drop_kinds = nn.Dropout1d(0.15), nn.Dropout1d(0.15)
        self.norm1, self.norm2 = (nn.BatchNorm1d(width, eps=1e-3, momentum=0.01) for width in (32, 49))
        self.convs = nn.ModuleList(nn.Conv1d(32, width, size) for size, width in enumerate(WIDTHS, 1))
        self.dense = nn.ModuleList(nn.Linear(width, 5) for width in WIDTHS)
        self.fc1, self.fc2 = nn.Linear(49 * WINDOW, 100), nn.Linear(100, 1)

    def forward(self, characters: Tensor, kinds: Tensor) -> Tensor:
        read = self.norm1(self.drop_characters(self.characters(characters).transpose(1, 2)))
        words = [
            pad(dense(relu(conv(read)).transpose(1, 2)), (0, 0, 0, size))
            for size, (conv, dense) in enumerate(zip(self.convs, self.dense, strict=True))
        ]
        kinds = self.drop_kinds(self.kinds(kinds).transpose(1, 2))
        x = self.norm2(torch.cat([read, torch.stack(words).amax(0).transpose(1, 2), kinds], 1))
        return self.fc2(relu(self.fc1(x.transpose(1, 2).flatten(1))))[:, 0]


def load_weights(net: DeepCut, path: Path) -> None:
    """Write the layers of the file, which Keras numbers by kind."""
    if importlib.util.find_spec("h5py") is None:
        raise EvenkeelError(f"{path} is HDF5: install h5py to read it")
    file: Any
    with importlib.import_module("h5py").File(path, "r") as file, torch.no_grad():

        def get(layer: str, *names: str) -> list[Tensor]:
            # Keras names a variable after its layer twice: conv1d_1/conv1d_1/kernel:0.
            return [torch.from_numpy(file[f"{layer}/{layer}/{name}:0"][()]) for name in names]

        for module, number in ((net.characters, 1), (net.kinds, 2)):
            module.weight.copy_(get(f"embedding_{number}", "embeddings")[0])
        layers: list[tuple[str, Any]] = [(f"conv1d_{k}", layer) for k, layer in enumerate(net.convs, 1)]
        layers += [(f"time_distributed_{k}", layer) for k, layer in enumerate(net.dense, 1)]
        layers += [("dense_13", net.fc1), ("dense_14", net.fc2)]
        for name, layer in layers:
            kernel, bias = get(name, "kernel", "bias")
            layer.weight.copy_(kernel.movedim(-1, 0).transpose(1, -1))  # Keras: size x inputs x outputs
            layer.bias.copy_(bias)
        for number, norm in enumerate((net.norm1, net.norm2), 1):
            write_norm(norm, *get(f"batch_normalization_{number}", "gamma", "beta", "moving_mean", "moving_variance"))


def load(folder: Path) -> Task:
    net = DeepCut()
    load_weights(net, required(folder, "deepcut/weight/cnn_without_ne_ab.h5", WHEEL))
    tables = module_of(required(folder, "deepcut/utils.py", WHEEL))
    lines = required(folder, "wisesight-1000-samples-tokenised.label", CORPUS).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip()]
    random.Random(0).shuffle(lines)
    texts = [[word for word in line.split("|") if word] for line in lines[:TEXTS]]
    windows = [tables.create_feature_array("".join(words)) for words in texts]
    features = [tuple(torch.from_numpy(part).long() for part in window) for window in windows]
    begins = [starts(words) for words in texts]

    def inputs(units: Tensor) -> Batch:
        return tuple(torch.cat(parts) for parts in zip(*(features[i] for i in units), strict=True))

    def score(candidate: nn.Module, units: Tensor) -> dict[str, float]:
        logits, truth = outputs(candidate, inputs(units), 1000), torch.cat([begins[i] for i in units])
        first = torch.cat([torch.arange(len(begins[i])) == 0 for i in units])  # a text begins with a word
        found, there = (words_of(where | first) for where in (logits > 0, truth))
        return {
            "words": 200 * len(found & there) / (len(found) + len(there)),
            "log_loss": binary_cross_entropy_with_logits(logits, truth.float()).item(),
            "size": logits.abs().mean().item(),
        }

    return Task(net, len(texts), inputs, score, 500)


def module_of(path: Path) -> Any:
    """A module by its file: the wheel's tables of characters, without what its package imports."""
    spec = importlib.util.spec_from_file_location("deepcut_tables", path)
    if spec is None or spec.loader is None:
        raise EvenkeelError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def starts(words: list[str]) -> Tensor:
    """Whether a word begins at each character."""
    return torch.tensor([at == 0 for word in words for at in range(len(word))])


def words_of(begins: Tensor) -> set[tuple[int, int]]:
    """Words by their first and last border."""
    return set(pairwise([*begins.nonzero().flatten().tolist(), len(begins)]))


def example() -> Batch:
    return torch.zeros(8, WINDOW, dtype=torch.long), torch.zeros(8, WINDOW, dtype=torch.long)


STUDY = Study(
    "Thai word segmentation: deepcut",
    DeepCut,
    example,
    load,
    {
        "words": Figure("F1 of words, %", 1, 2),
        "log_loss": Figure("log loss", -1, 3),
        "size": Figure("mean size of logits", 0),
    },
    splits=5,
    passes=2,
)
