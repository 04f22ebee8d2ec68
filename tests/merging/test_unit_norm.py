"""UnitNorm: the identity until it is filled, then scale and shift of every unit, for outputs of any shape."""

import pytest
import torch
from mergednets import population
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.merging.folds import Fold
from evenkeel.merging.unit_norm import UnitCalls, UnitNorm, watch_
from evenkeel.merging.units import units_of

SHAPES = {
    "vectors": (lambda: nn.Linear(4, 6), (5, 4)),
    "one vector": (lambda: nn.Linear(4, 6), (4,)),
    "sequences": (lambda: nn.Linear(4, 6), (5, 3, 4)),
    "pairs": (lambda: nn.Bilinear(4, 4, 6), (5, 4)),
    "maps": (lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 4, 5, 5)),
    "one map": (lambda: nn.Conv2d(4, 6, 3), (4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2), (5, 4, 5)),
    "volumes": (lambda: nn.Conv3d(4, 6, 2, bias=False), (2, 4, 3, 3, 3)),
}


class One(nn.Module):
    """A layer, given its input as often as it takes one."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x) if isinstance(self.layer, nn.Bilinear) else self.layer(x)


def made(build, shape):
    torch.manual_seed(0)
    model, x = One(build()), torch.randn(shape)
    units, untouched = units_of(model, ek.trace(model, x))
    assert not untouched
    return model, x, units["layer"]


@pytest.mark.parametrize(("build", "shape"), SHAPES.values(), ids=SHAPES)
def test_it_does_to_outputs_what_folding_does(build, shape):
    model, x, units = made(build, shape)
    norm, found = UnitNorm(units), model(x)
    assert torch.equal(norm(found), found) and units.count == 6
    scale, shift = torch.rand(6).double() + 0.5, torch.randn(6).double()
    if not units.has_bias:
        shift = torch.zeros(6).double()
    norm.fill_(population(torch.randn(9, 6)), Fold(scale, shift))
    with UnitCalls({model.layer.weight: norm}):
        wanted = model(x)
    assert wanted.shape == found.shape and not torch.allclose(wanted, found)
    new = units.folded({p: p.detach().clone() for p in units.parameters}, Fold(scale, shift))
    with torch.no_grad():
        for parameter, value in new.items():
            parameter.copy_(value)
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)


def test_other_weights_pass():
    _, x, units = made(*SHAPES["vectors"])
    norm, other = UnitNorm(units), nn.Linear(4, 6)
    norm.fill_(population(torch.randn(9, 6)), Fold(torch.full((6,), 2.0).double(), torch.zeros(6).double()))
    with UnitCalls({units.weights.parameter: norm}):
        assert torch.equal(other(x), F.linear(x, other.weight, other.bias))


@pytest.mark.parametrize("forward", [None, lambda model, batch: model(batch)])
def test_passes_are_watched_however_batches_are_run(forward):
    model, x, units = made(*SHAPES["vectors"])
    norm, found = UnitNorm(units), model(x)
    norm.fill_(population(torch.randn(9, 6)), Fold(torch.full((6,), 2.0).double(), torch.zeros(6).double()))
    run = watch_(model, {model.layer.weight: norm}, forward)
    torch.testing.assert_close(run(model, x) if run else model(x), 2 * found)
