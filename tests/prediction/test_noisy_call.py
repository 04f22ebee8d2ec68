"""A call with noise, made again."""

import pytest
import torch
from torch.nn import functional as F

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.randomness import Law
from evenkeel.prediction.noisy_call import NoisyCall
from evenkeel.prediction.replicas import COUNT

SAMPLES = 5
X = torch.arange(COUNT * SAMPLES * 2.0).reshape(-1, 2)


def call_of(function, *args, noise=(), **kwargs):
    copies = {}

    def copied(tensor):
        copies[id(copy := tensor.clone())] = any(tensor is one for one in noise)
        return copy

    return NoisyCall.of(function, args, kwargs, copied, lambda t: Law() if copies[id(t)] else None)


def layer_of(kind, **details):
    return Layer("layer", kind, "", **details)


def test_quiet_is_the_call_without_its_noise():
    noise = torch.randn_like(X)
    added = call_of(torch.addcmul, X, X, noise, noise=[noise])
    assert torch.equal(added.quiet(layer_of(Kind.NOISE)), X)
    assert torch.equal(call_of(F.dropout, X, p=0.5, training=True).quiet(layer_of(Kind.DROPOUT, p=0.5)), X)
    assert torch.equal(call_of(torch.dropout, X, 0.5, True).quiet(layer_of(Kind.DROPOUT, p=0.5)), X)
    mask = (torch.rand_like(X) < 0.8).float()
    unscaled = layer_of(Kind.DROPOUT, p=0.2, scaled=False, noise=Law(0.8, 0.16, 1.0))
    assert torch.allclose(call_of(torch.mul, X, mask, noise=[mask]).quiet(unscaled), 0.8 * X)


def test_it_leaves_what_it_was_given_as_it_was():
    x, noise = X.clone(), torch.randn_like(X)
    call = call_of(torch.Tensor.add_, x, noise, noise=[noise])
    x.add_(noise)
    for _ in range(2):
        assert torch.equal(call.quiet(layer_of(Kind.NOISE)), X)


@pytest.mark.parametrize("calm", [False, True])
def test_alike_gives_all_replicas_the_same_noise(calm):
    ones, noise = torch.ones_like(X), torch.randn_like(X)
    for call in (call_of(F.dropout, ones, p=0.5), call_of(torch.add, ones, noise, noise=[noise])):
        first, *others = call.alike(ones, SAMPLES, calm=calm).chunk(COUNT)
        assert all(torch.equal(first, other) for other in others)
        part = call_of(F.dropout, ones[:SAMPLES], p=0.5) if call.name == "dropout" else None
        assert part is None or not calm or torch.equal(part.calmed(), first)
