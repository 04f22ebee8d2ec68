"""Networks in the shapes of the papers' families, small enough for Monte Carlo."""

from itertools import pairwise

import torch
from torch import nn


def deep_net(activation, p, widths=(500,) * 16 + (250,) * 5):
    """hendrycks2016's Figure 1: 15 layers of 500, then 5 of 250."""
    layers = []
    for index, (n_in, n_out) in enumerate(pairwise(widths)):
        layers += [activation(), nn.Dropout(p)] * (index > 0)
        layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


def vgg(activation=nn.ReLU, dropout=nn.Dropout, p=0.4, width=32):
    """Stacks of convolutions with dropout, each closed by a max-pool, then fully connected layers."""

    def convolution(n_in, n_out):
        return [nn.Conv2d(n_in, n_out, 3, padding=1), activation(), dropout(p)]

    return nn.Sequential(
        *convolution(8, width),
        *convolution(width, width),
        nn.MaxPool2d(2),
        *convolution(width, 2 * width),
        *convolution(2 * width, 2 * width)[:2],
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(p),
        nn.Linear(2 * width * 16, 128),
        activation(),
        nn.Dropout(0.5),
        nn.Linear(128, 100),
    )


class Residual(nn.Module):
    """A pre-activation block, with or without norms; a projection where the width changes."""

    def __init__(self, n_in, n_out, activation, dropout, norm):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=1 if n_in == n_out else 2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.act, self.drop = activation(), dropout
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride=2, bias=False)

    def forward(self, x):
        out = self.conv1(self.act(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.drop(self.act(self.norm2(out))))


class ResNet(nn.Module):
    def __init__(self, activation=nn.ReLU, dropout=None, norm=False, width=32, blocks=2):
        super().__init__()
        dropout = dropout or nn.Dropout(0.3)
        self.stem = nn.Conv2d(8, width, 3, padding=1)
        plan = [(width, width)] * blocks + [(width, 2 * width)] + [(2 * width, 2 * width)] * (blocks - 1)
        self.blocks = nn.Sequential(*(Residual(a, b, activation, dropout, norm) for a, b in plan))
        self.act = activation()
        self.head = nn.Linear(2 * width, 100)

    def forward(self, x):
        return self.head(self.act(self.blocks(self.stem(x))).mean((2, 3)))


class DenseNet(nn.Module):
    """Dense blocks: every layer reads all before it; a transition with average pooling between the blocks."""

    def __init__(self, activation=nn.ReLU, p=0.2, norm=False, growth=24, depth=4):
        super().__init__()
        self.stem = nn.Conv2d(8, 2 * growth, 3, padding=1)
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        width = 2 * growth
        for block in range(2):
            for _ in range(depth):
                self.norms.append(nn.BatchNorm2d(width) if norm else nn.Identity())
                self.convs.append(nn.Conv2d(width, growth, 3, padding=1))
                width += growth
            if block == 0:
                self.transition = nn.Conv2d(width, width // 2, 1)
                width //= 2
        self.depth, self.act, self.drop = depth, activation(), nn.Dropout(p)
        self.head = nn.Linear(width, 100)

    def forward(self, x):
        x = self.stem(x)
        for index, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            if index == self.depth:
                x = nn.functional.avg_pool2d(self.drop(self.transition(self.act(x))), 2)
            x = torch.cat([x, self.drop(conv(self.act(norm(x))))], 1)
        return self.head(nn.functional.adaptive_avg_pool2d(self.act(x), 1).flatten(1))
