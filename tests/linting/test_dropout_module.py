"""dropout_like: a module that makes the noise of a recorded dropout, or none where that noise is not known."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.linting.dropout_module import dropout_like

SHAPES = {2: (64, 8), 3: (16, 8, 4), 4: (16, 8, 3, 3), 5: (4, 8, 2, 2, 2)}


class Call(nn.Module):
    """A function of a signal and the mode."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, self.training)


def recorded(module, dims=4, kind=ek.Kind.DROPOUT):
    (layer,) = ek.trace(nn.Sequential(module), torch.ones(SHAPES[dims])).of(kind)
    return layer


MODULES = {
    "elements": (nn.Dropout(0.3), 4),
    "channels of a sequence": (nn.Dropout1d(0.3), 3),
    "channels of an image": (nn.Dropout2d(0.3), 4),
    "channels of a volume": (nn.Dropout3d(0.3), 5),
    "alpha": (nn.AlphaDropout(0.3), 2),
    "alpha of channels": (nn.FeatureAlphaDropout(0.3), 4),
}
FUNCTIONS = {
    "F.dropout": (lambda x, t: F.dropout(x, 0.3, t), 4, nn.Dropout),
    "F.dropout by keyword": (lambda x, t: F.dropout(training=t, p=0.3, input=x), 4, nn.Dropout),
    "torch.dropout": (lambda x, t: torch.dropout(x, 0.3, t), 4, nn.Dropout),
    "F.dropout1d": (lambda x, t: F.dropout1d(x, 0.3, t), 3, nn.Dropout1d),
    "F.dropout2d": (lambda x, t: F.dropout2d(x, 0.3, t), 4, nn.Dropout2d),
    "F.dropout3d": (lambda x, t: F.dropout3d(x, 0.3, t), 5, nn.Dropout3d),
    "F.alpha_dropout": (lambda x, t: F.alpha_dropout(x, 0.3, t), 4, nn.AlphaDropout),
}


@pytest.mark.parametrize("name", MODULES)
def test_of_a_module_it_is_one_of_its_class_that_makes_the_same_noise(name):
    module, dims = MODULES[name]
    twin = dropout_like(recorded(module, dims))
    assert type(twin) is type(module) and twin is not module and twin.p == module.p
    x = torch.randn(SHAPES[dims])
    outputs = []
    for dropout in (module, twin):
        torch.manual_seed(0)
        outputs.append(dropout(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_a_function_it_is_its_module(name):
    function, dims, cls = FUNCTIONS[name]
    module = dropout_like(recorded(Call(function), dims))
    assert type(module) is cls and module.p == pytest.approx(0.3)


def test_it_never_works_in_place():
    assert not dropout_like(recorded(nn.Dropout(0.5, inplace=True))).inplace


def test_another_rate_may_be_asked_for():
    layer = recorded(nn.Dropout2d(0.9))
    assert dropout_like(layer, p=0.1).p == 0.1 and layer.p == 0.9


@pytest.mark.parametrize("cls", [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
@pytest.mark.parametrize("dims", SHAPES)
def test_channels_are_dropped_only_where_torch_takes_the_shape_as_channels(cls, dims):
    layer = recorded(cls(0.5), {nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5}[cls])
    module = dropout_like(layer, shape=SHAPES[dims])
    assert type(module) is (cls if len(layer.shape) == dims else nn.Dropout)
    module(torch.ones(SHAPES[dims]))  # warnings, as of wrong dimensions, are errors


def test_of_a_scaled_mask_it_is_dropout():
    def mask(x, training):
        return x * (torch.empty_like(x).bernoulli_(0.7) / 0.7) if training else x

    module = dropout_like(recorded(Call(mask)))
    assert type(module) is nn.Dropout and module.p == pytest.approx(0.3)


UNKNOWN = {
    "a mask that is not scaled": lambda x, t: x * torch.empty_like(x).bernoulli_(0.7) if t else x,
    "a mask of unknown rate": lambda x, t: x * (torch.rand_like(x) > 0.5) if t else x,
    "whole samples": lambda x, t: x * (torch.empty(len(x), 1, 1, 1).bernoulli_(0.7) / 0.7) if t else x,
    "noise that is no mask": lambda x, t: x * (1 + torch.randn_like(x)) if t else x,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_of_noise_that_no_module_makes_there_is_none(name):
    assert dropout_like(recorded(Call(UNKNOWN[name]))) is None


def test_of_a_module_that_declares_itself_it_is_a_copy_at_its_own_rate_only():
    module = ek.Uout(0.5)
    twin = dropout_like(recorded(module))
    assert type(twin) is ek.Uout and twin is not module and twin.beta == 0.5
    assert dropout_like(recorded(module), p=0.1) is None


def test_of_what_is_no_dropout_there_is_none():
    assert dropout_like(recorded(nn.ReLU(), kind=ek.Kind.ACTIVATION)) is None
    assert dropout_like(recorded(nn.ReLU(), kind=ek.Kind.ACTIVATION), p=0.5) is None
