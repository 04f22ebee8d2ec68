"""LayerGraph: its walks against slow, obvious oracles on random graphs, and its shapes on known models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import BY_NAME, PreActivationBlock

import evenkeel as ek
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph

WALKED = [Kind.WEIGHT, Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT, Kind.JOIN]


@st.composite
def graphs(draw: st.DrawFn) -> LayerGraph:
    """Random layers, each reading any of those before it: none, several, one of them twice."""
    layers: list[Layer] = []
    for i in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(WALKED))
        inputs = tuple(draw(st.lists(st.sampled_from(layers), max_size=3))) if layers else ()
        layers.append(Layer(f"layer{i}", kind, f"layer{i}", inputs=inputs))
    return LayerGraph(layers)


untils = st.lists(st.sampled_from(WALKED), max_size=3)


def paths(start: Layer, end: Layer) -> list[tuple[Layer, ...]]:
    """Every path along the signal from start to end, both included."""
    if start is end:
        return [(end,)]
    return [(*path, end) for source in set(end.inputs) for path in paths(start, source)]


def between(start: Layer, end: Layer, until: list[Kind]) -> bool:
    """Whether a path leads from start to end with no layer of those kinds strictly inside."""
    return start is not end and any(all(layer.kind not in until for layer in path[1:-1]) for path in paths(start, end))


@given(graphs(), untils)
def test_upstream_is_all_with_an_open_path_latest_first(graph, until):
    for layer in graph:
        expected = [other for other in graph if between(other, layer, until)]
        assert list(graph.upstream(layer, until)) == expected[::-1]


@given(graphs(), untils)
def test_downstream_is_all_with_an_open_path_earliest_first(graph, until):
    for layer in graph:
        expected = [other for other in graph if between(layer, other, until)]
        assert list(graph.downstream(layer, until)) == expected


@given(graphs())
def test_branch_is_what_each_input_comes_from_but_not_all_of_them(graph):
    for layer in graph:

        def feeds(other: Layer, source: Layer) -> bool:
            return bool(paths(other, source))

        expected = [
            [other for other in graph if feeds(other, source) and not all(feeds(other, s) for s in layer.inputs)]
            for source in layer.inputs
        ]
        assert [list(branch) for branch in graph.branch(layer)] == expected


@given(graphs())
def test_users_are_the_inverse_of_inputs(graph):
    for layer in graph:
        assert list(layer.users) == [other for other in graph if layer in other.inputs]


@given(graphs(), st.lists(st.sampled_from(WALKED), max_size=3))
def test_of_picks_kinds_in_order(graph, kinds):
    assert list(graph.of(*kinds)) == [layer for layer in graph if layer.kind in kinds]


@given(graphs())
def test_reads_as_a_sequence_with_names(graph):
    assert len(graph) == len(graph.layers) == len(list(graph))
    assert all(graph[layer.name] is layer for layer in graph)
    assert str(graph).split() == [layer.kind.value for layer in graph]
    assert str(graph) in repr(graph)


@given(graphs(), st.sampled_from(WALKED))
@settings(max_examples=20)
def test_one_kind_is_a_collection_of_one(graph, kind):
    for layer in graph:
        assert graph.upstream(layer, kind) == graph.upstream(layer, [kind]) == graph.upstream(layer, {kind})
        assert graph.downstream(layer, kind) == graph.downstream(layer, (kind,))


def test_unknown_name_is_a_key_error():
    with pytest.raises(KeyError):
        LayerGraph([])["nothing"]


def test_an_empty_graph_prints_nothing():
    assert str(LayerGraph([])) == ""
    assert len(LayerGraph([])) == 0


# Shapes of branches


def traced(forward: Any, *shape: int, **modules: nn.Module) -> LayerGraph:
    module = type("Model", (nn.Module,), {"forward": forward})()
    for name, child in modules.items():
        setattr(module, name, child)
    return ek.trace(module, torch.ones(shape or (2, 4)))


def names(branches: tuple[tuple[Layer, ...], ...]) -> list[list[str]]:
    return [[layer.name for layer in branch] for branch in branches]


def fc() -> nn.Linear:
    return nn.Linear(4, 4)


def test_identity_shortcut_is_the_empty_branch():
    graph = ek.trace(nn.Sequential(nn.Conv2d(3, 4, 1), PreActivationBlock(4)), torch.ones(1, 3, 4, 4))
    residual = "bn1 relu conv1 bn2 relu#2 drop conv2"
    assert names(graph.branch(graph["1.add"])) == [[], [f"1.{name}" for name in residual.split()]]


def test_projection_shortcut():
    graph = ek.trace(BY_NAME["ProjectionResNet"].build(), BY_NAME["ProjectionResNet"].example())
    (join,) = graph.of(Kind.JOIN)
    assert names(graph.branch(join)) == [[f"long.{i}" for i in range(5)], ["short.0", "short.1"]]


def test_nested_branches():
    def forward(m, x):
        x = m.stem(x)
        inner = m.a(x)
        inner = inner + m.b(inner)
        return x + m.c(inner)

    graph = traced(forward, stem=fc(), a=fc(), b=fc(), c=fc())
    inner, outer = graph.of(Kind.JOIN)
    assert names(graph.branch(inner)) == [[], ["b"]]
    assert names(graph.branch(outer)) == [[], ["a", "b", inner.name, "c"]]


def test_concat_of_three():
    graph = traced(lambda m, x: torch.cat([x, m.a(x), m.b(m.a(x))], 1), a=fc(), b=fc())
    (concat,) = graph.of(Kind.CONCAT)
    assert names(graph.branch(concat)) == [[], ["a"], ["a#2", "b"]]


def test_a_second_input_belongs_to_its_branch():
    model = BY_NAME["Tuples"].build()
    graph = ek.trace(model, (torch.ones(4, 6), torch.ones(4, 3)))
    (concat,) = graph.of(Kind.CONCAT)
    assert names(graph.branch(concat)) == [["input", "left"], ["input#2", "right"]]


def test_a_signal_joined_with_itself_has_empty_branches():
    graph = traced(lambda m, x: x + x)
    assert names(graph.branch(graph["add"])) == [[], []]
    assert graph["input"].users == (graph["add"],)


def test_an_input_has_no_branch():
    graph = traced(lambda m, x: m.a(x), a=fc())
    assert graph.branch(graph["input"]) == ()
    assert names(graph.branch(graph["a"])) == [[]]
