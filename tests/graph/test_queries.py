"""Questions to a graph: the norms behind a layer, the source of its signal, global averages."""

import pytest
import torch
from hypothesis import given, settings
from made import Made
from residuals import specs
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.graph.queries import (
    chunked,
    is_global_average,
    norms_behind,
    on_parameters,
    rescaling_between,
    source_of,
    stays_on,
)
from evenkeel.graph.tracing import record


def slow_norms_behind(graph, layer, *, through_weights):
    """The oracle: every path by itself, one layer at a time."""
    found, paths = set(), [[user] for user in layer.users]
    while paths:
        path = paths.pop()
        if path[-1].stores:
            found.add(path[-1])
        elif through_weights or path[-1].kind is not ek.Kind.WEIGHT:
            paths += [[*path, user] for user in path[-1].users]
    return tuple(layer for layer in graph if layer in found)


@pytest.mark.slow
@given(spec=specs)
@settings(max_examples=10)
def test_norms_behind_agrees_with_the_walk_of_every_path(spec):
    graph = ek.trace(spec.build(), spec.example())
    for layer in graph.of(ek.Kind.DROPOUT, ek.Kind.JOIN, ek.Kind.INPUT):
        for through in (True, False):
            expected = slow_norms_behind(graph, layer, through_weights=through)
            assert norms_behind(graph, layer, through_weights=through) == expected


def graph_of(run, shape=(2, 4, 8, 8)):
    return ek.trace(Made(lambda _, x: run(x)), torch.zeros(shape))


def test_a_source_is_found_behind_what_only_passes_it_on():
    graph = graph_of(lambda x: F.dropout(x.relu().flatten(1).view(2, -1).contiguous(), 0.5))
    assert source_of(graph["dropout"]) is graph["relu"]
    assert source_of(graph["relu"]).kind is ek.Kind.INPUT
    assert source_of(graph["dropout"], lambda layer: layer.kind is ek.Kind.ACTIVATION) is graph["contiguous"]


def test_inputs_and_what_reads_two_signals_have_no_source():
    graph = graph_of(lambda x: x.relu() + x.tanh())
    assert source_of(graph["add"]) is None
    assert source_of(graph.of(ek.Kind.INPUT)[0]) is None


POOLS = {
    "adaptive, 1": (lambda x: F.adaptive_avg_pool2d(x, 1), True),
    "adaptive, (1, 1)": (nn.AdaptiveAvgPool2d((1, 1)), True),
    "mean": (lambda x: x.mean((2, 3)), True),
    "mean, kept": (lambda x: x.mean((-2, -1), keepdim=True), True),
    "torch.mean": (lambda x: torch.mean(x, dim=(2, 3)), True),
    "mean of flat positions": (lambda x: x.flatten(2).mean(-1), True),
    "average of all that there is": (lambda x: F.avg_pool2d(x, 8), True),
    "module, of all that there is": (nn.AvgPool2d(8), True),
    "average of a part": (nn.AvgPool2d(4), False),
    "adaptive, 7": (nn.AdaptiveAvgPool2d(7), False),
    "maximum": (nn.AdaptiveMaxPool2d(1), False),
    "maximum of all that there is": (lambda x: F.max_pool2d(x, 8), False),
    "amax": (lambda x: x.amax((2, 3)), False),
    "of channels": (lambda x: x.mean(1, keepdim=True), False),
    "of positions in a row": (lambda x: x.mean(3), False),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_global_average_leaves_one_position(name):
    run, expected = POOLS[name]
    (pool,) = ek.trace(
        nn.Sequential(run if isinstance(run, nn.Module) else Made(lambda _, x: run(x))), torch.zeros(2, 4, 8, 8)
    ).of(ek.Kind.POOL)
    assert is_global_average(pool) is expected


def test_nothing_and_what_is_no_pool_are_no_average():
    assert not is_global_average(None)
    assert not any(is_global_average(layer) for layer in graph_of(lambda x: x.relu()))


def test_chunks_of_a_batch_are_told_from_other_parts():
    norm = nn.BatchNorm1d(4).eval()
    ghost = graph_of(lambda x: torch.cat([norm(part) for part in x.flatten(2).mean(2).chunk(2)]))
    assert {chunked(layer).function for layer in ghost.of(ek.Kind.NORM)} == {"mean"}
    halves = graph_of(lambda x: torch.cat([F.instance_norm(part) for part in x.chunk(2, 1)], 1))
    assert [chunked(layer) for layer in halves.of(ek.Kind.NORM)] == [None, None]


def test_what_stays_on_is_told_in_eval_mode():
    def forward(m, x):
        x = F.dropout(x, 0.1, m.training) + torch.randn_like(x)
        return F.dropout(x, 0.2) * (torch.rand_like(x) < 0.7)

    model = Made(forward)
    graph = record(model, model, torch.zeros(2, 4), training=False)
    assert [layer.function for layer in graph if stays_on(layer)] == ["add", "dropout", "mul"]


def test_dropout_on_a_parameter_reads_no_input():
    weight = nn.Parameter(torch.ones(4))
    model = Made(lambda m, x: F.dropout(x, 0.1) * F.dropout(m.weight.exp(), 0.2), weight=weight)
    graph = ek.trace(model, torch.zeros(2, 4))
    assert {d.p: d in on_parameters(graph) for d in graph.of(ek.Kind.DROPOUT)} == {0.1: False, 0.2: True}


@pytest.mark.parametrize("between", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), nn.BatchNorm1d(8), nn.ReLU()])
@pytest.mark.parametrize("residual", [False, True])
def test_norms_of_single_samples_between_two_layers_are_found(between, residual):
    def run(m, x):
        x = m.drop(x)
        y = m.weights(m.between(x))
        return m.last(x + y if residual else y)

    model = Made(run, drop=nn.Dropout(0.1), between=between, weights=nn.Linear(8, 8), last=nn.BatchNorm1d(8))
    graph = ek.trace(model, torch.zeros(2, 8))
    found = rescaling_between(graph, graph["drop"], graph["last"])
    assert (found is graph["between"]) is isinstance(between, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
    assert rescaling_between(graph, graph["weights"], graph["last"]) is None
