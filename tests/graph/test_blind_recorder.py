"""The law of small models: their pass on real tensors shows what one on fake tensors shows."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest
import torch
from snapshots import Snapshot
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO

from evenkeel.graph import tracing
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.tracing import record, record_call, runner


def told(graph: LayerGraph) -> list[dict[str, Any]]:
    """All that layers say, each other layer by its name."""

    def plain(value: Any) -> Any:
        if isinstance(value, attrgetter):
            return repr(value)
        if isinstance(value, Layer):
            return value.name
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            return [plain(item) for item in value]
        return value.tolist() if isinstance(value, Tensor) else value

    return [{name: plain(value) for name, value in vars(layer).items()} for layer in graph]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_real_tensors_show_what_fake_ones_show(entry, training):
    model, example = entry.build(), entry.example()
    before = Snapshot(model)
    graph = record_call(model, example, training=training)
    assert before.changes() == []
    assert told(graph) == told(record(model, *runner(model, example), training=training))


class Net(nn.Module):
    """Weights, then what a test makes of their outputs."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.weights, self.then = nn.Linear(4, 4), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.weights(x))


def masked(mask):
    return lambda m, x: F.dropout(x[mask(x)], 0.1, m.training)


BY_VALUES = {
    "a branch": lambda m, x: F.dropout(x, 0.1, m.training) if x.sum() > 0 else x.relu(),
    "a random branch": lambda m, x: x if m.training and torch.rand(1) < 0.5 else F.dropout(x, 0.1, m.training),
    "a number": lambda m, x: F.dropout(x * x.sum().item(), 0.1, m.training),
    "a comparison": lambda m, x: x if m.training and torch.equal(F.dropout(x), x) else x.relu(),
    "a mask": masked(lambda x: x[:, 0] > 0),
    "a random mask": lambda m, x: x[torch.rand(len(x)) > 0.5] if m.training else x,
    "places": masked(lambda x: (x > -9).nonzero()[:, 0]),
    "places by where": masked(lambda x: torch.where(x > -9)[0]),
    "selection": lambda m, x: F.dropout(x.masked_select(x > -9), 0.1, m.training),
    "unique": lambda m, x: F.dropout(torch.unique(x), 0.1, m.training),
    "repetition": lambda m, x: F.dropout(x.repeat_interleave((x[:, 0] > -9).long(), 0), 0.1, m.training),
}


@pytest.mark.parametrize("name", BY_VALUES)
def test_where_values_decide_the_pass_is_what_it_is_on_fake_tensors(name, monkeypatch):
    model, x, fallen_back = Net(BY_VALUES[name]), torch.randn(3, 4), []
    expected = told(record(model, *runner(model, x)))
    monkeypatch.setattr(tracing, "record", lambda *args, **kwargs: fallen_back.append(args) or record(*args, **kwargs))
    assert told(record_call(model, x)) == expected
    assert fallen_back


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: F.dropout(x.bool().float(), 0.1, m.training),
        lambda m, x: F.dropout(x[torch.tensor([0, 2])], float(len(x)) / 10, m.training),
        lambda m, x: F.dropout(torch.where(x > 0, x, 0.0), 0.1, m.training).masked_fill(x > 0, 1.0),
    ],
)
def test_nothing_but_shapes_and_types_may_decide(forward, monkeypatch):
    monkeypatch.setattr(tracing, "record", None)
    assert "D" in str(record_call(Net(forward), torch.randn(3, 4)))


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Linear(4, 4, device="meta"), torch.ones(2, 4)),
        (nn.Linear(5000, 1), torch.ones(1, 5000)),
        (nn.Linear(3000, 1000), torch.ones(1, 3000)),
    ],
    ids=["meta", "large example", "large model"],
)
def test_others_are_run_on_fake_tensors(model, example):
    seen = set()
    model.register_forward_pre_hook(lambda module, args: seen.add(type(args[0]).__name__))
    record_call(model, example)
    assert seen == {"FakeTensor"}
