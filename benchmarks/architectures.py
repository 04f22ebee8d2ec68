"""Architectures that benchmarks time, and the bare pass that times are over; nothing here needs evenkeel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.torchvision_cpu import import_torchvision

Batches = Sequence[Any]


def mlp(widths: tuple[int, ...] = (784, 256, 256, 256), p: float = 0.5) -> nn.Sequential:
    hidden = [
        layer
        for inputs, outputs in pairwise(widths)
        for layer in (nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(p))
    ]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], 10))


def resnet18() -> nn.Module:
    model = import_torchvision().models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # the usual form for 32 pixels
    for block in (block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer):
        block.conv2 = nn.Sequential(nn.Dropout(0.3), block.conv2)  # as in wide residual nets; nothing in eval mode
    return model


def densenet121() -> nn.Module:
    return import_torchvision().models.densenet121(num_classes=10, drop_rate=0.2)


class Block(nn.Module):
    """Of a transformer: attention and two layers, with batch norm over tokens before each."""

    def __init__(self, width: int = 192, heads: int = 3, p: float = 0.1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(p), nn.Linear(4 * width, width))
        self.heads, self.drop = heads, nn.Dropout(p)

    def normed(self, place: int, x: Tensor) -> Tensor:
        return self.norms[place](x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.normed(0, x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.drop(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return x + self.drop(self.layers(self.normed(1, x)))


class Transformer(nn.Module):
    """Twelve blocks on 8 x 8 patches of a 32-pixel image."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(12)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def resnet50() -> nn.Module:
    model = import_torchvision().models.resnet50()
    for block in (block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer):
        block.conv3 = nn.Sequential(nn.Dropout(0.3), block.conv3)
    return model


def bare(model: nn.Module, batches: Batches) -> None:
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
