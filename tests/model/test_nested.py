"""Tensors in nested structures: found in order, and mapped without a change of the structure."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.model.nested import map_tensors, tensors

X, Y = torch.ones(3, 2), torch.zeros(3)
Pair = namedtuple("Pair", "x y")


@dataclass
class Sample:
    x: torch.Tensor
    note: str = ""
    extra: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor


leaves = st.one_of(
    st.integers(), st.none(), st.text(max_size=2), st.builds(lambda i: torch.tensor([i]), st.integers(0, 9))
)


structures = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(OrderedDict),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        inner.map(lambda value: Sample(torch.tensor([1]), "note", [value])),
    ),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Equal in structure, in types and in values."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, Sample):
        return same(vars(left), vars(right))
    return left == right


@given(structures)
def test_map_tensors_keeps_the_structure(structure):
    assert same(map_tensors(lambda t: t, structure), structure)
    assert same(map_tensors(lambda t: t - 1, map_tensors(lambda t: t + 1, structure)), structure)


@given(structures)
def test_tensors_are_those_that_map_tensors_meets_in_order(structure):
    met: list[torch.Tensor] = []
    map_tensors(lambda t: met.append(t) or t, structure)
    assert [id(t) for t in tensors(structure)] == [id(t) for t in met]


def test_map_tensors_sets_entries_one_by_one():
    """The outputs of the transformers library are mappings that refuse update."""

    class Outputs(OrderedDict):
        def update(self, *args, **kwargs):
            raise TypeError("set the entries one by one")

    outputs = Outputs()
    outputs["x"] = X
    mapped = map_tensors(lambda t: t + 1, outputs)
    assert type(mapped) is Outputs
    assert torch.equal(mapped["x"], X + 1)
    assert outputs["x"] is X


def test_looking_for_tensors_makes_nothing_anew():
    """A dataclass may count its instances or check them; outputs are looked at after every module."""
    made = []

    @dataclass
    class Counted:
        x: torch.Tensor

        def __post_init__(self):
            made.append(self)

    counted = Counted(X)
    assert tensors([counted]) == [X]
    assert made == [counted]


def test_map_tensors_leaves_its_argument_alone():
    structure = {"x": [X, (Y, 3)], "s": Sample(X)}
    mapped = map_tensors(lambda t: t + 1, structure)
    assert structure["x"][0] is X
    assert structure["s"].x is X
    assert torch.equal(mapped["x"][1][0], Y + 1)
    assert torch.equal(mapped["s"].x, X + 1)


def test_map_tensors_enters_frozen_dataclasses_and_leaves_other_objects():
    other = object()
    assert torch.equal(map_tensors(lambda t: t + 1, Frozen(X)).x, X + 1)
    assert map_tensors(lambda t: t + 1, other) is other
    assert map_tensors(lambda t: t + 1, Sample) is Sample
    assert map_tensors(lambda t: t + 1, torch.Size([2])) == torch.Size([2])


class Graph:
    """An object that holds tensors as a graph's batch does: by name, and in a store."""

    def __init__(self):
        self.x, self.store, self.name = X, OrderedDict(index=Y, deeper={"y": Y}, count=3), "graph"


def test_objects_are_entered_where_asked_for_and_copied():
    graph = Graph()
    assert map_tensors(lambda t: t + 1, {"g": graph})["g"] is graph
    mapped = map_tensors(lambda t: t + 1, {"g": graph}, objects=True)["g"]
    assert type(mapped) is Graph and mapped is not graph and mapped.name == "graph"
    for found, expected in zip(tensors(mapped), tensors(graph), strict=True):
        assert torch.equal(found, expected + 1)
    assert type(mapped.store) is OrderedDict and mapped.store["count"] == 3
    assert graph.x is X and graph.store["index"] is Y and graph.store["deeper"]["y"] is Y


def test_modules_and_objects_without_tensors_are_left_as_they_are():
    for value in (torch.nn.Linear(2, 2), object(), Graph, len):
        assert map_tensors(lambda t: t + 1, [value], objects=True)[0] is value
