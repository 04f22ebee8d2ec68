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


class Recurrent(nn.Module):
    """A recurrent layer or attention whose output goes through weights to a norm."""

    def __init__(self, inner, head=True):
        super().__init__()
        self.inner, self.linear, self.norm, self.head = inner, linear(), norm(), linear() if head else nn.Identity()

    def forward(self, x):
        x = x[:, None].expand(-1, 3, -1)
        attention = isinstance(self.inner, nn.MultiheadAttention)
        out = self.inner(x, x, x, need_weights=False)[0] if attention else self.inner(x)[0]
        return self.head(self.norm(self.linear(out.mean(1))))


HIDDEN = {
    "lstm": lambda p: nn.LSTM(8, 8, 2, dropout=p, batch_first=True),
    "gru": lambda p: nn.GRU(8, 8, 3, dropout=p, batch_first=True),
    "rnn_tanh": lambda p: nn.RNN(8, 8, 2, dropout=p, batch_first=True),
    "scaled_dot_product_attention": lambda p: nn.MultiheadAttention(8, 2, dropout=p, batch_first=True),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_dropout_inside_calls_reaches_norms_and_is_not_moved(name):
    for head in (True, False):
        (reach,) = reaches(Recurrent(HIDDEN[name](0.3), head))
        assert reach.dropout.p == 0.3
        assert (reach.direct, reach.must_stay, reach.edits) == (False, not head, ())
        assert f"dropout in {name} to 0" in reach.advice
        codes = [f.code for f in ek.lint(Recurrent(HIDDEN[name](0.3), head), torch.zeros(2, 8), guideline="li2018")]
        assert codes == ["EK202" if head else "EK203"]
    assert reaches(Recurrent(HIDDEN[name](0.0))) == ()


def test_dropout_on_weights_and_gates_reaches_norms_and_is_not_moved():
    on_weights = Made(lambda m, x: F.linear(x, F.dropout(m.fc.weight, 0.3, m.training)), fc=linear())
    on_gate = Made(lambda m, x: m.fc(x) * F.dropout(m.fc.bias.sigmoid(), 0.3, m.training), fc=linear())
    for model, direct in ((on_weights, False), (on_gate, True)):
        (reach,) = reaches(nn.Sequential(model, norm(), linear()))
        assert (reach.dropout.p, reach.direct, reach.on_parameter, reach.edits) == (0.3, direct, True, ())
        assert "on the parameter to 0" in reach.advice


def test_a_product_of_two_signals_counts_as_weights():
    """It sums over features: of two dropouts, what each leaves of the sum is a matter of the other factor."""

    def product(m, x):
        return m.last(m.norm(torch.bmm(m.drop(x)[:, None], m.other(x).unflatten(1, (8, 8)))[:, 0]))

    model = Made(product, drop=nn.Dropout(0.3), other=nn.Linear(8, 64), norm=norm(), last=linear())
    assert [(reach.dropout.name, reach.direct) for reach in reaches(model)] == [("drop", False)]
    assert [finding.code for finding in ek.lint(model, torch.zeros(2, 8), guideline="li2018")] == ["EK202"]
    gate = Made(
        lambda m, x: m.last(m.norm(m.drop(x) * m.other(x))),
        drop=nn.Dropout(0.3),
        other=linear(),
        norm=norm(),
        last=linear(),
    )
    assert [reach.direct for reach in reaches(gate)] == [True]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_behind_the_last_norm_is_a_head(kind):
    def run(m, x):
        return m.read(m.norm(m.weights(m.drop(x)))[:, None])[0]

    model = Made(run, drop=nn.Dropout(0.3), weights=linear(), norm=norm(), read=kind(8, 8, batch_first=True))
    (reach,) = reaches(model)
    assert not reach.must_stay and [type(edit) for edit in reach.edits] == [Move]
    assert reach.edits[0].target.name.startswith("read")
    fixed = ek.fix(model, torch.zeros(2, 8), guideline="li2018")
    assert ek.lint(fixed, torch.zeros(2, 8), guideline="li2018") == []
    x = torch.randn(4, 8)
    assert all(map(torch.equal, (model.eval()(x),), (fixed.eval()(x),)))
