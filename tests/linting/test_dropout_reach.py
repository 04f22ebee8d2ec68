"""DropoutReach: which dropouts reach norms, directly or through weights, and where li2018 has them instead."""

import pytest
import torch
from made import Made
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Insert, Move, Remove


def linear():
    return nn.Linear(8, 8)


def norm():
    return nn.BatchNorm1d(8)


def images(*layers):
    """A sequence, its input seen as one image of a channel each position."""
    return nn.Sequential(nn.Unflatten(1, (8, 1, 1)), *layers, nn.Flatten())


def reaches(model):
    return Context(model, torch.zeros(2, 8)).reaches


def shown(model):
    """Of every reach: the dropout, whether it is direct, the first norms and the edits."""
    found = reaches(model)
    return [
        (e.dropout.name, e.direct, [n.name for n in e.norms], [str(edit).split(" (")[0] for edit in e.edits])
        for e in found
    ]


BETWEEN = {
    "nothing": nn.Identity(),
    "an activation": nn.Tanh(),
    "reshaping": nn.Sequential(nn.Unflatten(1, (4, 2)), nn.Flatten()),
    "a pool": nn.Sequential(nn.Unflatten(1, (1, 8)), nn.MaxPool1d(3, 1, 1), nn.Flatten()),
    "a join": Made(lambda m, x: x + F.relu(x)),
    "a concatenation": Made(lambda m, x: torch.cat([x, x.relu()], 1)[:, :8]),
    "another norm without running statistics": nn.LayerNorm(8),
    "a norm that tracks none": nn.BatchNorm1d(8, track_running_stats=False),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_without_weights_in_between_it_is_direct(name):
    model = nn.Sequential(linear(), nn.Dropout(0.5), BETWEEN[name], norm(), linear())
    ((dropout, direct, norms, edits),) = shown(model)
    assert (dropout, direct, norms, edits) == ("1", True, ["3"], ["move 1 to before 4"])


@pytest.mark.parametrize("name", BETWEEN)
def test_with_weights_in_between_it_is_not(name):
    model = nn.Sequential(linear(), nn.Dropout(0.5), BETWEEN[name], linear(), norm(), linear())
    ((_, direct, norms, edits),) = shown(model)
    assert (direct, norms, edits) == (False, ["4"], ["move 1 to before 5"])


UNMOVED = {
    "layer norm": nn.LayerNorm(8),
    "group norm": nn.GroupNorm(2, 8),
    "batch norm that tracks nothing": nn.BatchNorm1d(8, track_running_stats=False),
    "functional batch norm of the batch": Made(lambda m, x: F.batch_norm(x, None, None, training=True)),
    "instance norm": nn.Sequential(nn.Unflatten(1, (4, 2)), nn.InstanceNorm1d(4), nn.Flatten()),
}


@pytest.mark.parametrize("name", UNMOVED)
def test_norms_without_running_statistics_do_not_count(name):
    assert reaches(nn.Sequential(linear(), nn.Dropout(0.5), UNMOVED[name], linear())) == ()


COUNTED = {
    "batch norm": norm,
    "without affine": lambda: nn.BatchNorm1d(8, affine=False),
    "synchronized": lambda: nn.SyncBatchNorm(8),
    "instance norm that tracks": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 2)), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten()
    ),
    "functional": lambda: Made(
        lambda m, x: F.batch_norm(x, m.m, m.v, None, None, m.training), m=torch.zeros(8), v=torch.ones(8),
    ),
    "functional, by keyword": lambda: Made(
        lambda m, x: F.batch_norm(input=x, running_mean=m.m, running_var=m.v, training=m.training),
        m=torch.zeros(8), v=torch.ones(8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_norms_with_running_statistics_count(name):
    ((_, direct, norms, _),) = shown(nn.Sequential(linear(), nn.Dropout(0.5), COUNTED[name](), linear()))
    assert direct and len(norms) == 1 and norms[0].startswith("2")


QUIET = {
    "rate 0": nn.Dropout(0.0),
    "frozen": nn.Dropout(0.5).eval(),
    "Uout": ek.Uout(0.3),
    "stochastic depth": Made(lambda m, x: x * (torch.rand(len(x), 1) > 0.3) / 0.7 if m.training else x),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_drops_nothing_or_is_meant_to_stand_there_is_exempt(name):
    assert reaches(nn.Sequential(linear(), QUIET[name], norm(), linear())) == ()


def test_dropout_behind_the_last_norm_is_free():
    assert (
        reaches(nn.Sequential(linear(), norm(), nn.Dropout(0.5), linear(), nn.ReLU(), nn.Dropout(0.5), linear())) == ()
    )


def test_the_first_moves_and_the_others_go():
    model = nn.Sequential(
        nn.Dropout(0.1), linear(), nn.Dropout(0.5), norm(), linear(), nn.Dropout(0.3), norm(), linear()
    )
    assert [(e.dropout.name, [type(edit) for edit in e.edits]) for e in reaches(model)] == [
        ("0", [Move]), ("2", [Remove]), ("5", [Remove]),
    ]  # fmt: skip


def test_all_go_where_the_head_has_a_dropout_already():
    model = nn.Sequential(linear(), nn.Dropout(0.5), norm(), nn.ReLU(), nn.Dropout(0.2), linear())
    ((_, _, _, edits),) = shown(model)
    assert edits == ["remove 1"]


def test_of_several_weight_layers_behind_the_norms_it_is_the_last():
    ((_, _, _, edits),) = shown(nn.Sequential(linear(), nn.Dropout(0.5), norm(), linear(), nn.ReLU(), linear()))
    assert edits == ["move 1 to before 5"]


def test_of_several_heads_each_gets_one():
    model = Made(
        lambda m, x: (m.a(y := m.norm(m.drop(m.stem(x)))), m.b(y)),
        stem=linear(), drop=nn.Dropout(0.5), norm=norm(), a=linear(), b=linear(),
    )  # fmt: skip
    (reach,) = reaches(model)
    assert [(type(edit), edit.target.name) for edit in reach.edits] == [(Move, "a"), (Insert, "b")]
    assert reach.advice == "Move it behind the last norm, to before a and b."


@pytest.mark.parametrize("tail", [(), (nn.ReLU(),), (nn.LayerNorm(8),)], ids=["nothing", "activation", "layer norm"])
def test_without_weights_behind_the_last_norm_there_is_no_edit(tail):
    (reach,) = reaches(nn.Sequential(linear(), nn.Dropout(0.5), linear(), norm(), *tail))
    assert reach.edits == ()
