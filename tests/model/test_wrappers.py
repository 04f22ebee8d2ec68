"""Wrappers: what compiles or distributes a model is seen through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.model.wrappers import unwrapped


def test_unwrapped_gives_an_ordinary_model_itself():
    model = nn.Linear(2, 2)
    with unwrapped(model) as plain:
        assert plain is model


# the compiler's own import in torch 2.13
compiles = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


@compiles
def test_unwrapped_opens_a_compiled_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with unwrapped(torch.compile(model)) as plain:
        assert plain is model


@compiles
def test_compiled_models_and_parts_are_seen_through():
    x = torch.ones(3, 2)
    whole = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    assert str(ek.trace(torch.compile(whole), x)) == "i W D N o"
    part = nn.Sequential(torch.compile(nn.Linear(2, 2)), nn.ReLU())
    assert str(ek.trace(part, x)) == "i W A o"
    in_place = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    in_place[0].compile()
    assert str(ek.trace(in_place, x)) == "i W A o"
