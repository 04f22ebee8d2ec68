"""Small networks for the tests of `init_`, chains and residual ones, and one that it must leave alone in part."""

from itertools import pairwise

import torch
from torch import nn


def mlp(activation=nn.ReLU, widths=(40, 60, 80, 20), p=0.4):
    layers = []
    for index, (n_in, n_out) in enumerate(pairwise(widths)):
        layers += [activation(), nn.Dropout(p)] * (index > 0)
        layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


class Sum(nn.Module):
    """The sum of its branches."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        first, *others = [branch(x) for branch in self.branches]
        for other in others:
            first = first + other
        return first


class Odd(nn.Module):
    """Parameters that no weight layer reads as they are."""

    def __init__(self):
        super().__init__()
        self.stem, self.rnn, self.head = nn.Linear(4, 4), nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        self.position, self.scale = nn.Parameter(torch.randn(1, 5, 4)), nn.Parameter(torch.ones(4))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.normed(self.head(self.rnn(self.scale * self.stem(x) + self.position)[0]))


def residual_net(blocks, norm=False, width=64):
    def branch():
        layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
        return nn.Sequential(*layers, *[nn.BatchNorm1d(width)] * norm)

    return nn.Sequential(
        nn.Linear(width, width), *(Sum(nn.Identity(), branch()) for _ in range(blocks)), nn.Linear(width, 5)
    )
