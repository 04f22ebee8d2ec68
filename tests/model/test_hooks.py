"""Attachments: a child that runs by a hook does what the call written by hand would, and goes where its parent goes."""

import copy
import pickle

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.model.hooks import attach_, free_name

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


def attached(side, p=0.5, module=None):
    layer = module or nn.Linear(4, 4)
    name = attach_(layer, nn.Dropout(p), side, "drop")
    return layer, name


def by_hand(layer, side, x):
    """The slow twin: the child's call and the layer's, one after the other."""
    linear = nn.functional.linear
    return (
        linear(layer.drop(x), layer.weight, layer.bias)
        if side == "before"
        else layer.drop(linear(x, layer.weight, layer.bias))
    )


def seeded(function, *args, **kwargs):
    torch.manual_seed(0)
    return function(*args, **kwargs)


both = pytest.mark.parametrize("side", ["before", "after"])


@both
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_twin_written_by_hand(side, training):
    layer, _ = attached(side)
    layer.train(training)
    assert torch.equal(seeded(layer, X), seeded(by_hand, layer, side, X))


@both
def test_a_signal_given_by_name_is_found(side):
    layer, _ = attached(side)
    assert torch.equal(seeded(layer, input=X), seeded(layer, X))


def test_further_arguments_pass_untouched():
    class Scaled(nn.Module):
        def forward(self, x, scale, *, shift):
            return x * scale + shift

    layer = Scaled()
    attach_(layer, nn.Dropout(1.0), "before", "drop")
    assert torch.equal(layer(X, X, shift=X), X)


@both
def test_the_child_follows_the_mode_and_what_else_the_parent_does(side):
    layer, name = attached(side, module=nn.Linear(4, 4).eval())
    child = getattr(layer, name)
    assert not child.training
    assert layer.train() and child.training
    assert dict(layer.named_children()) == {name: child}


@both
def test_the_state_dict_keeps_its_keys(side):
    layer, _ = attached(side)
    assert list(layer.state_dict()) == ["weight", "bias"]
    layer.load_state_dict(nn.Linear(4, 4).state_dict())


@both
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_pickles_run_their_own_child(side, twin):
    layer, name = attached(side)
    other = twin(layer)
    assert torch.equal(seeded(other, X), seeded(layer, X))
    getattr(other, name).p = 0.0
    assert torch.equal(other(X), other.eval()(X))
    assert not torch.equal(layer(X), layer.eval()(X))


@both
def test_hooks_of_torch_do_not_push_it_out_not_even_after_a_pickle(side):
    layer = pickle.loads(pickle.dumps(attached(side, p=1.0)[0]))
    ran = []
    for _ in range(3):
        layer.register_forward_hook(lambda *_: ran.append("after"))
        layer.register_forward_pre_hook(lambda *_: ran.append("before"))
    expected = layer.bias.expand(64, 4) if side == "before" else torch.zeros(64, 4)
    assert torch.equal(layer(X), expected)
    assert sorted(ran) == ["after"] * 3 + ["before"] * 3


def test_several_run_in_the_order_in_which_they_came():
    class Affine(nn.Module):
        def __init__(self, digit):
            super().__init__()
            self.digit = digit

        def forward(self, x):
            return 10 * x + self.digit

    layer = nn.Identity()
    places = ("before", 1), ("after", 3), ("before", 2), ("after", 4)
    names = [attach_(layer, Affine(digit), side, "child") for side, digit in places]
    assert names == ["child", "child_2", "child_3", "child_4"]
    assert layer(torch.zeros(1)).item() == 1234


@pytest.mark.slow
@both
def test_compiled_it_returns_the_same_bits(side):
    layer, _ = attached(side)
    torch.compiler.reset()
    compiled = torch.compile(layer.eval(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), layer(X))


@both
def test_a_trace_shows_the_child_where_it_runs(side):
    layer, _ = attached(side)
    assert str(ek.trace(nn.Sequential(layer), X)) == {"before": "i D W o", "after": "i W D o"}[side]


def test_a_free_name_is_no_attribute_of_any_kind():
    layer = nn.Linear(2, 2)
    layer.note = layer.note_2 = None
    layer.register_buffer("table", torch.zeros(1))
    found = [free_name(layer, name) for name in ("new", "note", "weight", "table", "forward")]
    assert found == ["new", "note_3", "weight_2", "table_2", "forward_2"]
