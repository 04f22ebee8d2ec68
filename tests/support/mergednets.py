"""Networks averaged from others, and batches for them."""

import copy
import itertools

import torch
from torch import nn

from evenkeel.statistics.population import Population, batch_statistics


def mlp(widths=(6, 16, 16, 4), bias=True, activation=nn.ReLU):
    layers = [
        layer
        for inputs, outputs in itertools.pairwise(widths)
        for layer in (nn.Linear(inputs, outputs, bias=bias), activation())
    ]
    return nn.Sequential(*layers[:-1])


def averaged(nets, weights=None):
    """A network of the nets' weighted mean."""
    weights = weights or [1 / len(nets)] * len(nets)
    merged, states = copy.deepcopy(nets[0]), [net.state_dict() for net in nets]
    state = {
        name: sum(w * one[name] for w, one in zip(weights, states, strict=True)) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    merged.load_state_dict(state)
    return merged


def pair(build=mlp, count=2, weights=None, seed=0):
    """A merged network and its end points."""
    torch.manual_seed(seed)
    nets = [build() for _ in range(count)]
    return averaged(nets, weights), nets


def batches(count=4, size=32, *shape):
    torch.manual_seed(1)
    return [torch.randn(size, *(shape or (6,))) + 0.3 * i for i in range(count)]


def normed():
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Dropout(0.3)]
    net = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4))
    for _ in range(30):
        net(torch.randn(32, 3, 7, 7))
    return net


def population(x):
    found = Population()
    found.add([(1, batch_statistics(x))])
    found.merge()
    return found
