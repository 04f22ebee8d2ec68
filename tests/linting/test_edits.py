"""Edits: data that say in words what is to be done, to which layer, in which line."""

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.linting.edits import Correct, Initialize, Insert, Move, Remove, Swap, described


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.drop(x).relu())


LINE = Net.forward.__code__.co_firstlineno + 1
GRAPH = ek.trace(Net(), torch.ones(1, 2))
DROP, FC, RELU = (GRAPH[name] for name in ("drop", "fc", "relu"))
IN_A_SEQUENCE = ek.trace(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))["0"]


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Insert(nn.Dropout(0.2), FC), f"insert Dropout(p=0.2) before fc (test_edits.py:{LINE})"),
        (Insert(ek.IC(2, ndim=0), FC, "after"), f"insert IC after fc (test_edits.py:{LINE})"),
        (Remove(DROP), "remove drop"),
        (Move(DROP, FC), f"move drop to before fc (test_edits.py:{LINE})"),
        (Move(DROP, RELU, "after"), f"move drop to after relu (test_edits.py:{LINE})"),
        (Move(DROP, IN_A_SEQUENCE), "move drop to before 0"),
        (Swap(DROP, ek.Uout(0.3)), "swap drop for Uout(beta=0.3)"),
        (Correct(), "correct the running statistics"),
        (Initialize(), "draw the weights anew by init_"),
    ],
    ids=str,
)
def test_an_edit_in_words(edit, text):
    assert str(edit) == text


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Dropout(0.5, inplace=True), "Dropout(p=0.5)"),
        (nn.Dropout2d(0), "Dropout2d(p=0)"),
        (ek.Uout(0.1), "Uout(beta=0.1)"),
        (nn.Identity(), "Identity"),
    ],
)
def test_a_module_in_a_word(module, text):
    assert described(module) == text


def test_what_moves_dropout_is_safe_and_what_changes_statistics_or_weights_is_not():
    assert all(edit.safe for edit in (Insert(nn.Dropout(), FC), Remove(DROP), Move(DROP, FC), Swap(DROP, ek.Uout())))
    assert not Correct().safe and not Initialize().safe
    assert not Remove(DROP, safe=False).safe and not Insert(nn.ReLU(), FC, safe=False).safe


def test_edits_of_one_layer_are_each_its_own_and_verbs_are_equal():
    assert Remove(DROP) != Remove(DROP) and len({Remove(DROP), Remove(DROP)}) == 2
    assert Correct() == Correct() and len({Initialize(), Initialize()}) == 1


def test_edits_cannot_be_changed():
    with pytest.raises(AttributeError):
        Remove(DROP).layer = FC
