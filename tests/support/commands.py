"""The program run in this process, and nets to run it on."""

import sys

import pytest

from evenkeel import cli

NETS = """
import torch
from torch import nn
from torch.nn import functional as F


class Text(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.embed = nn.Embedding(100, 16)
        self.lin = nn.Linear(16, 32)
        self.drop = nn.Dropout(0.3)
        self.norm = nn.BatchNorm1d(32)
        self.out = nn.Linear(32, classes)

    def forward(self, tokens, mask):
        h = (self.embed(tokens) * mask[..., None]).mean(1)
        return self.out(F.relu(self.norm(self.drop(self.lin(h)))))


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.drop, self.norm = nn.Linear(8, 16), nn.Dropout(0.4), nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 2)

    def forward(self, x, edges):
        h = self.lin(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]) + x)
        return self.out(self.norm(self.drop(h)).relu())


def text_example():
    return {"tokens": torch.arange(96).view(8, 12), "mask": torch.ones(8, 12)}


def text_batches():
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randint(100, (64, 12), generator=draw) for _ in range(6)]
    return [{"tokens": t, "mask": torch.ones(64, 12), "labels": t[:, 0] % 3} for t in tokens]


def run_text(model, batch):
    return model(batch["tokens"], batch["mask"])


def first_loss(outputs, targets):
    return outputs.square().mean()


def no_loss(outputs, targets):
    return float(outputs.shape[0])


def graph_example():
    return torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.arange(100).view(2, 50) % 50


def graph_batches():
    draw = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(50, 8, generator=draw), "edges": graph_example()[1]} for _ in range(8)]


def whole():
    return torch.load("whole.pt", weights_only=False)


number = 3
"""


def run(capsys, *arguments):
    """Run the program in this process; return its exit code and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evenkeel", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err
