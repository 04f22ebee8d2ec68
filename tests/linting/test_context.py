"""Context: a model is read once in each mode, its dropouts told from what only looks like them, and left as found."""

import pytest
import torch
from snapshots import Snapshot
from torch import nn

import evenkeel as ek
from evenkeel.linting import context as module
from evenkeel.linting.context import Context
from evenkeel.linting.rules.ek102_statistics_carry_dropout import statistics_carry_dropout

X = torch.zeros(2, 4)
READINGS = (
    "graph", "eval_graph", "branches", "dropouts", "reaches", "gating", "prediction", "distrusted", "mean_squares",
)  # fmt: skip


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("training", [True, False])
def test_every_reading_leaves_the_model_as_found_and_is_made_once(reading, training):
    model = net().train(training)
    before, context = Snapshot(model), Context(model, X)
    first = getattr(context, reading)
    assert before.changes() == []
    assert getattr(context, reading) is first


def test_nothing_is_read_before_it_is_asked_for(monkeypatch):
    for name in ("graph_of", "record_call", "predict", "predict_mean_squares"):
        monkeypatch.setattr(module, name, None)
    Context(net(), X)


def test_a_model_whose_norms_are_all_repaired_is_not_predicted(monkeypatch):
    rule = statistics_carry_dropout
    context = Context(rule.module.good(), torch.zeros(rule.module.EXAMPLE))
    monkeypatch.setattr(module, "predict", None)
    assert list(rule.findings(context)) == []


def test_the_graphs_are_of_both_modes_whatever_the_models():
    class Net(nn.Module):
        def forward(self, x):
            return x.relu() if self.training else x.tanh()

    for training in (True, False):
        context = Context(Net().train(training), X)
        activations = [graph.of(ek.Kind.ACTIVATION)[0].function for graph in (context.graph, context.eval_graph)]
        assert activations == ["relu", "tanh"]


class Samples(nn.Module):
    def forward(self, x):
        return x * (torch.rand(len(x), 1) > 0.5) if self.training else x


@pytest.mark.parametrize(
    ("dropout", "counts"),
    [
        (nn.Dropout(0.5), True),
        (nn.Dropout(0.0), False),
        (nn.Dropout(0.5).eval(), False),
        (nn.AlphaDropout(0.5), True),
        (ek.Uout(0.5), True),
        (ek.Uout(0.0), False),
        (Samples(), False),
    ],
)
def test_dropouts_are_those_that_drop_elements_or_channels(dropout, counts):
    assert len(Context(nn.Sequential(nn.Linear(4, 4), dropout, nn.Linear(4, 4)), X).dropouts) == counts


def test_a_shift_is_that_of_predict_shift():
    model = net()
    for _ in range(20):
        model(torch.randn(64, 4))
    context, (row,) = Context(model, X), ek.predict_shift(model, X)
    assert context.shift("2") == pytest.approx(row.ratio)
    assert context.shift("3") is None
    assert context.unpredicted == []


def test_without_norms_there_is_nothing_to_predict_and_no_complaint():
    context = Context(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.LayerNorm(4)), X)
    assert context.prediction is None and context.shift("2") is None
    assert context.unpredicted == []


def test_what_cannot_be_predicted_is_said():
    model = net()
    model[0].weight.data.fill_(float("nan"))
    context = Context(model, X)
    assert context.prediction is None and context.shift("2") is None
    (reason,) = context.unpredicted
    assert "'2'" in reason and "not finite" in reason


def test_distrusted_norms_are_named_with_the_reason():
    assert Context(net(), X).distrusted == {"2": "untrained: it stores no statistics yet"}


@pytest.mark.parametrize("example", [X, (X,), {"input": X}], ids=["tensor", "tuple", "dict"])
def test_examples_of_every_form(example):
    context = Context(net(), example)
    assert str(context.graph) == str(context.eval_graph) == "i W D N A W o"
    assert context.prediction is not None


def test_a_forward_that_raises_says_where():
    with pytest.raises(ek.TraceError, match="in layer '0'"):
        _ = Context(net(), torch.zeros(2, 3)).graph
