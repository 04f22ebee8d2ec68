"""What modes do not see: what torch.jit has scripted, and laws that look at their values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evenkeel.graph.unseen_calls import hidden_calls, noisy_calls_in, scripted_calls, unchecked_laws

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def dropping(x: torch.Tensor, training: bool) -> torch.Tensor:
    if training:
        x = F.dropout(x, 0.5)
    return x.relu()


def test_dropout_inside_a_branch_of_a_scripted_function_is_found():
    with pytest.warns(DeprecationWarning):
        assert noisy_calls_in(torch.jit.script(dropping)) == ["dropout"]


def test_calls_of_scripted_modules_are_told_once_and_calls_are_put_back():
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    before, seen = (torch.jit.ScriptModule.__call__, torch.jit.ScriptFunction.__call__), []
    with scripted_calls(lambda called, given, output: seen.append((called, output))):
        output = scripted(torch.ones(1, 2))
    assert seen == [(scripted, output)]
    assert before == (torch.jit.ScriptModule.__call__, torch.jit.ScriptFunction.__call__)


def test_vmap_of_values_is_told_whole_and_put_back():
    before, seen = torch._functorch.apis.vmap_impl, []
    with hidden_calls(lambda called, given, output: seen.append((called.name, output))):
        torch.vmap(torch.sum)(torch.ones(2, 3, dtype=torch.int64))
        output = torch.vmap(torch.sum)(torch.ones(2, 3))
    assert torch._functorch.apis.vmap_impl is before
    assert output.tolist() == [3, 3] and seen == [("vmap", output)]


def test_laws_are_not_checked_and_then_checked_again():
    asked = torch.distributions.Distribution._validate_args
    with unchecked_laws():
        torch.distributions.Normal(0.0, torch.tensor(-1.0))
    assert torch.distributions.Distribution._validate_args is asked
