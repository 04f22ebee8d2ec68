"""Flags: what is frozen, and flags set and put back each by itself."""

import pytest
import torch
from torch import nn

from evenkeel.model.flags import flagged, frozen_in, set_modes


def test_frozen_is_what_is_in_eval_mode_in_a_model_in_train_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    assert frozen_in(model) == set()
    model[1].eval()
    assert frozen_in(model) == {model[1]}
    model[2].eval()
    assert frozen_in(model) == {model[1], model[2], model[2][0]}
    assert frozen_in(model.eval()) == set()


def test_flags_are_put_back_each_by_itself_also_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with pytest.raises(KeyError), flagged({model[0]: False, model[1]: True}):
        assert [m.training for m in model] == [False, True] and model.training
        raise KeyError
    assert [m.training for m in model] == [True, False]


class NormWithDropout(nn.BatchNorm1d):
    def __init__(self, features):
        super().__init__(features)
        self.drop = nn.Dropout()


def test_train_mode_leaves_norms_in_eval_mode_but_not_the_dropout_inside_them():
    model = nn.Sequential(NormWithDropout(2), nn.Dropout(), nn.LayerNorm(2)).eval()
    set_modes(model, training=True)
    assert not model[0].training and model[0].drop.training and model[1].training and model[2].training
    set_modes(model, training=False)
    assert not any(m.training for m in model.modules())


def test_train_mode_keeps_what_is_frozen():
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[0].eval()
    set_modes(model, training=True)
    assert [m.training for m in model] == [False, True]
    assert torch.equal(model[0](torch.ones(4)), torch.ones(4))
