"""A verb traces once, and not at all if it is given the graph that `trace` made."""

import copy

import pytest
import torch
from torch import nn

import evenkeel as ek

X = torch.zeros(2, 4)


class Net(nn.Module):
    """Counts the forward passes of all its instances: copies count, too."""

    passes = 0

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.norm, self.head = (
            nn.Linear(4, 8),
            nn.Dropout(0.5),
            nn.BatchNorm1d(8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        Net.passes += 1
        return self.head(torch.relu(self.norm(self.drop(self.first(x)))))


def trained():
    torch.manual_seed(0)
    net = Net()
    for _ in range(50):
        net(torch.randn(64, 4))
    return net


# Each verb, and how many passes it needs beside the trace: in eval mode to check, with replicas, over normal inputs.
VERBS = {
    "predict_shift": (lambda net, x: ek.predict_shift(net, x).to_dict(), 3),
    "correct_": (lambda net, x: ek.correct_(net, x).to_dict(), 4),  # two seeds
    "init_": (lambda net, x: ek.init_(net, x, seed=0).to_dict(), 0),
    "check_signals": (lambda net, x: ek.check_signals(net, x, draws=2).samples, 4),
    "lint li2018": (lambda net, x: [f.to_dict() for f in ek.lint(net, x, guideline="li2018")], 3),
    "lint chen2019": (lambda net, x: [f.to_dict() for f in ek.lint(net, x, guideline="chen2019")], 0),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_traces_once_and_a_graph_given_spares_that(verb):
    run, beside = VERBS[verb]
    net, other = trained(), trained()
    Net.passes = 0
    found = run(net, X)
    assert Net.passes == 1 + beside
    graph = ek.trace(other, X)
    Net.passes = 0
    assert run(other, graph) == found
    assert Net.passes == beside


def test_fix_takes_a_graph():
    net = trained()
    fixed = ek.fix(net, ek.trace(net, X), guideline="li2018")
    assert str(ek.trace(fixed, X)) == "i W N A D W o"


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net.drop, "p", 0.1),
        lambda net: setattr(net, "drop", nn.Dropout(0.5)),
        lambda net: net.drop.eval(),
        lambda net: setattr(net.drop, "p", 0.0),
    ],
)
def test_a_graph_that_is_out_of_date_is_refused(change):
    net = trained()
    graph = ek.trace(net, X)
    change(net)
    with pytest.raises(ek.TraceError, match="out of date: 'drop'"):
        ek.predict_shift(net, graph)


def test_a_graph_of_other_parameters_is_refused():
    net = trained()
    graph = ek.trace(net, X)
    net.head.weight = nn.Parameter(torch.ones(2, 8))
    with pytest.raises(ek.TraceError, match="out of date: 'head'"):
        ek.init_(net, graph)
    assert net.head.weight.eq(1).all()


def test_a_graph_of_another_model_is_refused():
    net = trained()
    with pytest.raises(ek.TraceError, match="another model"):
        ek.predict_shift(copy.deepcopy(net), ek.trace(net, X))


def test_a_graph_of_a_wrapped_model_serves_it():
    net = nn.DataParallel(trained())
    assert ek.predict_shift(net, ek.trace(net, X)).to_dict() == ek.predict_shift(net.module, X).to_dict()


def test_train_and_eval_mode_of_the_whole_model_do_not_matter():
    net = trained()
    graph = ek.trace(net, X)
    assert ek.predict_shift(net.eval(), graph).to_dict() == ek.predict_shift(net, X).to_dict()
