"""Lanes: passes in step on inputs of an example's own sizes show what one large batch shows, and what it cannot."""

import copy
import math
import threading
from dataclasses import dataclass

import pytest
import torch
from snapshots import Snapshot
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import evenkeel as ek
from evenkeel.errors import TraceError
from evenkeel.prediction.lanes import Turns
from evenkeel.prediction.random_inputs import random_field


class Store(dict):
    """What graph libraries hold a graph's tensors in."""


class Graph:
    """A graph as libraries pass it: nodes' features, edges, and the graph that each node is of."""

    def __init__(self, x, edges, of):
        self.store = Store(x=x, edge_index=edges)
        self.of = of


@dataclass
class Neighbours:
    x: torch.Tensor
    edges: torch.Tensor


class Nodes(nn.Module):
    """Two layers of messages, with dropout between them."""

    def __init__(self, around, p=0.5):
        super().__init__()
        self.first, self.norm1, self.drop = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(p)
        self.second, self.norm2 = nn.Linear(32, 32), nn.BatchNorm1d(32)
        self.around = around

    def forward(self, x, *edges):
        x, around = self.around(x, *edges)
        x = self.drop(F.relu(self.norm1(around(self.first(x)))))
        return self.norm2(around(self.second(x)))


def summed(edges):
    return lambda x: x.index_add(0, edges[1], x[edges[0]])


def attended(edges):
    """As GAT weighs neighbours: by a softmax over those of a node."""

    def around(x):
        weights = torch.exp((x[edges[0]] * x[edges[1]]).mean(1, keepdim=True).clamp(-5, 5))
        total = torch.zeros(len(x), 1).to(x).index_add(0, edges[1], weights)
        return x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]] * weights / total[edges[1]])

    return around


def of_graph(graph):
    return graph.store["x"], summed(graph.store["edge_index"])


N = 300
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 8, generator=generator)
EDGES = torch.randint(N, (2, 900), generator=generator)
WEIGHTS = torch.rand(900, generator=generator)
MATRIX = torch.eye(N).index_put((EDGES[1], EDGES[0]), torch.ones(900), accumulate=True)
BATCHED = (torch.rand(150, 10, 10, generator=generator) < 0.3).float()

GRAPHS = {
    "edge index": (lambda x, e: (x, summed(e)), (X, EDGES)),
    "edges' weights": (
        lambda x, e, w: (x, lambda h: h.index_add(0, e[1], h[e[0]] * w[:, None].sqrt())),
        (X, EDGES, WEIGHTS),
    ),
    "attention": (lambda x, e: (x, attended(e)), (X, EDGES)),
    "adjacency": (lambda x, a: (x, lambda h: a @ h), (X, MATRIX)),
    "sparse": (lambda x, a: (x, lambda h: torch.sparse.mm(a, h)), (X, MATRIX.to_sparse())),
    "an object": (of_graph, (Graph(X, EDGES, torch.zeros(N).long()),)),
    "a dataclass": (lambda g: (g.x, summed(g.edges)), (Neighbours(X, EDGES),)),
    "few nodes": (lambda x, e: (x, summed(e)), (X[:12], EDGES[:, :24] % 12)),
    "padded graphs": (
        lambda x, a: (x.flatten(0, 1), lambda h: (a @ h.view(-1, 10, h.shape[-1])).flatten(0, 1)),
        (torch.zeros(150, 10, 8), BATCHED),
    ),
}


def trained(model, features, *edges, rounds=20):
    """The model with statistics of its train mode on random features, and the log shift that eval mode then shows."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = None

    def example():
        if isinstance(features, torch.Tensor):
            return random_field(features.shape), *edges
        return (
            (
                Neighbours(random_field((N, 8)), EDGES)
                if isinstance(features, Neighbours)
                else Graph(random_field((N, 8)), EDGES, None)
            ),
        )

    with torch.no_grad():
        for _ in range(rounds):
            model.train()(*example())
        report = ek.variance_shift(model, [example() for _ in range(16)], forward=lambda m, batch: m(*batch))
    return {row.path: math.log(row.ratio) for row in report}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_predicted_and_corrected_on_the_edges_that_they_have(name):
    torch.manual_seed(0)
    around, example = GRAPHS[name]
    model = Nodes(around)
    true = trained(model, *example)
    found = {row.path: math.log(row.ratio) for row in ek.predict_shift(model, example)}
    assert found["norm1"] == pytest.approx(0, abs=1e-3)
    few = name == "few nodes"
    assert few or (found["norm2"] == pytest.approx(true["norm2"], abs=0.1) and true["norm2"] < -0.05)
    if name == "an object":
        assert [row.path for row in ek.correct_(model, example)] == ["norm1", "norm2"]


@pytest.mark.parametrize("name", ["an object", "sparse"])
def test_model_and_example_are_left_as_they_were(name):
    torch.manual_seed(0)
    around, example = GRAPHS[name]
    model = Nodes(around)
    trained(model, *example, rounds=20)
    before, given, threads = Snapshot(model), copy.deepcopy(example), threading.active_count()
    ek.predict_shift(model, example)
    assert before.changes() == [] and threading.active_count() == threads
    if name == "an object":
        assert torch.equal(example[0].store["x"], given[0].store["x"])
    ratios = [ek.predict_shift(model, example, seed=seed)[1].ratio for seed in (0, 0, 1)]
    assert ratios[0] == ratios[1] != ratios[2]


def test_values_of_features_do_not_matter_and_those_of_edges_do():
    torch.manual_seed(0)
    model = Nodes(lambda x, e: (x, summed(e)))
    trained(model, X, EDGES, rounds=20)
    rows = [ek.predict_shift(model, (x, EDGES))[1].ratio for x in (X, torch.zeros(N, 8))]
    assert rows[0] == rows[1] != ek.predict_shift(model, (X, EDGES % 5))[1].ratio


class Reader(nn.Module):
    """A recurrent net on packed sequences, with dropout before, in and behind it."""

    def __init__(self, kind=nn.LSTM, p=0.4, *, mask=False):
        super().__init__()
        self.norm, self.drop, self.mask = nn.BatchNorm1d(8), nn.Dropout(p), mask
        self.read = kind(8, 16, 2, batch_first=True, dropout=p)
        self.last = nn.BatchNorm1d(16)

    def forward(self, x, lengths):
        x = self.drop(self.norm(x.transpose(1, 2)).relu().transpose(1, 2))
        if self.mask:
            inside = torch.arange(x.shape[1]) < lengths[:, None]
            outputs = self.read(x.masked_fill(~inside[..., None], 0.0))[0] * inside[..., None]
        else:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            outputs = pad_packed_sequence(self.read(packed)[0], batch_first=True)[0]
        return self.last(outputs.sum(1) / lengths[:, None])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"kind": nn.GRU}, {"kind": nn.RNN}, {"mask": True}])
def test_sequences_of_different_lengths(options):
    torch.manual_seed(0)
    x, lengths = random_field((256, 9, 8)), torch.randint(3, 10, (256,))
    lengths[0] = 9
    model = Reader(**options)
    for norm in (model.norm, model.last):
        norm.momentum = None
    with torch.no_grad():
        for _ in range(20):
            model.train()(random_field((256, 9, 8)), lengths)
        true = ek.variance_shift(model, [(x, lengths)], forward=lambda m, batch: m(*batch))[1].ratio
    example = (x[:16], lengths[:16])
    report = ek.predict_shift(model, example)
    assert report.unsure == {} and not report.notes
    assert math.log(report[1].ratio) == pytest.approx(math.log(true), abs=0.15)


class Fixed(nn.Sequential):
    """A model that takes one size of batches."""

    def forward(self, x):
        return super().forward(x.view(6, 8))


def test_models_of_one_batch_size_are_predicted_at_that_size():
    torch.manual_seed(0)
    model = Fixed(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.BatchNorm1d(32)
    )
    for norm in (model[1], model[5]):
        norm.momentum = None
    with torch.no_grad():
        for _ in range(400):
            model(random_field((6, 8)))
    plain = nn.Sequential(*copy.deepcopy(model))
    expected = ek.predict_shift(plain, torch.zeros(6, 8))[1].ratio
    assert ek.predict_shift(model, torch.zeros(6, 8))[1].ratio == pytest.approx(expected, rel=0.1)


def test_what_does_not_run_is_refused_in_one_line_that_says_what_the_example_must_be():
    class Targets(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x, edges, y=None):
            return F.mse_loss(self.norm(x), y) if self.training else self.norm(x)

    threads = threading.active_count()
    with pytest.raises(
        TraceError, match=r"on random inputs of the example's sizes.*must be in the example, with the ind"
    ):
        ek.predict_shift(Targets(), (X, EDGES))
    assert threading.active_count() == threads


def test_passes_that_part_are_refused():
    class Parting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x, edges):
            if self.training and torch.rand(()) < 0.5:
                x = x.tanh()
            return self.norm(x)

    with pytest.raises(TraceError, match=r"passes part, at .*what runs.* is left to chance"):
        ek.predict_shift(Parting(), (X, EDGES))


def test_threads_take_turns_whatever_they_do_between_meetings():
    turns, order, sums = Turns(3), [], []

    def run(lane):
        turns.wait(lane)
        for step in range(4):
            order.append((step, lane))
            sums.append(turns.meet(lane, f"step {step}", lane + step, sum))
        turns.meet(lane, "the end", None, len)
        turns.leave(lane)

    threads = [threading.Thread(target=run, args=(lane,)) for lane in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == [(step, lane) for step in range(4) for lane in range(3)]
    assert sums == [3 + 3 * step for step in range(4) for _ in range(3)]
