"""Merging: groups hold every sample once and in order; what cannot be merged stays apart."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.model.batches import samples
from evenkeel.model.nested import tensors
from evenkeel.statistics.batch_merging import MOST_PARTS, Group, Groups, Piece, form_of, merged

Pair = namedtuple("Pair", "x y")


def column(n):
    return torch.arange(n).float()[:, None] + 0.5


def pieces(batches):
    return [Piece(number, batch, samples(batch)) for number, batch in enumerate(batches, 1)]


@dataclass
class Record:
    x: torch.Tensor
    name: str = "a"


FORMS = {
    "tensor": column,
    "tuple": lambda n: (column(n), column(n)[:, 0]),
    "list": lambda n: [column(n), column(n)[:, 0]],
    "named tuple": lambda n: Pair(column(n), column(n)[:, 0]),
    "mapping": lambda n: {"x": column(n), "scale": 0.5, "none": None},
    "ordered": lambda n: OrderedDict(x=column(n)),
    "own mapping": lambda n: UserDict(x=column(n)),
    "dataclass": lambda n: Record(column(n)),
    "nested": lambda n: {"a": [(column(n), {"b": column(n)[:, 0]})]},
    "with names": lambda n: (column(n), [f"sample {i}" for i in range(n)]),
}
LOOSE = {
    "another length inside": lambda n: (column(n), torch.arange(n + 1)),
    "a number that differs": lambda n: (column(n), n),
    "a scalar tensor": lambda n: (column(n), torch.tensor(3.0)),
    "an object": lambda n: (column(n), object()),
    "no tensor": lambda n: "text",
}


def first(batch):
    while not isinstance(batch, torch.Tensor):
        batch = (
            next(iter(batch.values()))
            if hasattr(batch, "values")
            else batch.x
            if isinstance(batch, Record)
            else batch[0]
        )
    return batch.flatten()


@pytest.mark.parametrize("name", FORMS)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=9), limit=st.integers(0, 20))
def test_groups_hold_every_sample_once_and_in_order(name, sizes, limit):
    batches = [FORMS[name](n) for n in sizes]
    groups = list(Groups(pieces(batches), lambda batch: limit))
    assert torch.cat([first(group.batch) for group in groups]).equal(torch.cat([first(batch) for batch in batches]))
    assert [size for group in groups for size in group.sizes] == sizes
    assert [group.first for group in groups] == [1 + sum(len(g.held) for g in groups[:i]) for i in range(len(groups))]
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        assert type(group.batch) is type(batches[0]) and samples(group.batch) == group.samples
        assert group.samples <= limit or len(group.held) == 1
        assert following is None or group.samples + following.sizes[0] > limit  # no group is smaller than need be


@pytest.mark.parametrize("name", FORMS)
def test_merged_holds_all_that_the_batches_hold(name):
    both = merged([FORMS[name](3), FORMS[name](2)])
    if name == "with names":
        assert both[1] == ["sample 0", "sample 1", "sample 2", "sample 0", "sample 1"]
    if name == "mapping":
        assert both["scale"] == 0.5 and both["none"] is None
    assert first(both).tolist() == [0.5, 1.5, 2.5, 0.5, 1.5]


@pytest.mark.parametrize("name", LOOSE)
def test_what_cannot_be_merged_stays_apart(name):
    batches = [LOOSE[name](n) for n in (2, 3, 4)]
    groups = list(Groups(pieces(batches), lambda batch: 100))
    assert [[piece.batch for piece in group.held] for group in groups] == [[batch] for batch in batches]


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_written_into_a_groups_batch_is_gone_the_next_time(count):
    batches = [(torch.ones(2, 3), torch.zeros(2)) for _ in range(count)]
    (group,) = Groups(pieces(batches), lambda batch: 100)
    group.batch[0].zero_()
    assert group.batch[0].equal(torch.ones(2 * count, 3)) and batches[0][0].equal(torch.ones(2, 3))


def test_batches_of_other_form_end_a_group():
    wide, narrow, half = torch.randn(2, 8), torch.randn(2, 4), torch.randn(2, 8).half()
    groups = list(Groups(pieces([wide, wide, narrow, narrow, half, wide, wide]), lambda piece: 100))
    assert [len(group.held) for group in groups] == [2, 2, 1, 2]
    assert form_of(wide, 2) == form_of(torch.randn(5, 8), 5) != form_of(narrow, 2)


@pytest.mark.parametrize(
    "value",
    [
        lambda domain, n: torch.full((n,), domain),
        lambda domain, n: torch.full((n, 2), float(domain)),
        lambda domain, n: torch.full((n,), domain % 2 == 0),
        lambda domain, n: [f"site {domain}"] * n,
        lambda domain, n: {"nested": (torch.full((n, 1), domain),)},
    ],
    ids=["numbers", "floats", "flags", "names", "nested"],
)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_what_a_whole_batch_has_in_common_must_agree(value, n):
    order = [0, 0, 1, 1, 0]
    groups = list(Groups(pieces([(torch.randn(n, 3), value(d, n)) for d in order]), lambda piece: 100))
    tells = n > 1 or (not any(t.is_floating_point() for t in tensors(value(0, n))[:1]) and value(0, n) != ["site 0"])
    assert [len(group.held) for group in groups] == ([2, 2, 1] if tells else [5])


def test_a_group_taken_back_comes_out_batch_by_batch_and_so_does_the_rest():
    groups = Groups(pieces([torch.tensor([[i + 0.5], [i]]) for i in range(6)]), lambda piece: 6)
    group = next(groups)
    assert [float(group.batch[1]), len(group.held)] == [0, 3]
    apart = [groups.split(group), *groups]
    assert [(float(one.batch[1]), one.first) for one in apart] == [(i, i + 1) for i in range(6)]


def test_the_proof_is_asked_of_the_first_group_and_then_ever_more_rarely():
    asked = []
    groups = list(Groups(pieces(torch.randn(40, 2, 3)), lambda piece: 4, lambda group: asked.append(group) or True))
    assert len(groups) == 20 and [groups.index(group) for group in asked] == [0, 1, 3, 7, 15]


@pytest.mark.parametrize("when", [0, 3])
def test_where_the_proof_fails_all_that_follows_stays_apart(when):
    asked = iter([True] * when + [False])
    groups = list(Groups(pieces(torch.randn(40, 2, 3)), lambda piece: 4, lambda group: next(asked)))
    before = {0: 0, 3: 7}[when]  # groups given out by then
    assert [len(group.held) for group in groups] == [2] * before + [1] * (40 - 2 * before)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30), per_sample=st.integers(1, 3))
def test_parts_are_runs_of_batches(sizes, per_sample):
    x = torch.arange(sum(sizes) * per_sample)[:, None]
    held = tuple(Piece(7 + i, torch.ones(n, 1), n) for i, n in enumerate(sizes))
    parts = Group(held).parts(x)
    assert len(parts) <= max(MOST_PARTS, 1) and torch.cat([part for _, part in parts]).equal(x)
    starts = [sum(sizes[: number - 7]) * per_sample for number, _ in parts]
    assert [int(part[0]) for _, part in parts] == starts


def test_of_an_input_that_does_not_divide_by_samples_there_is_one_part():
    assert len(Group(tuple(pieces([torch.ones(2, 1), torch.ones(2, 1)]))).parts(torch.ones(7, 1))) == 1


@given(n=st.integers(1, 20), step=st.integers(1, 7))
def test_a_thinned_piece_holds_every_so_many_th_sample_of_its_own(n, step):
    x = torch.arange(n).float()
    (piece,) = pieces([{"x": x, "name": [f"{i}" for i in range(n)], "scale": 2}])
    few = piece.thinned(step)
    assert few.samples == samples(few.batch) == len(few.batch["name"]) and few.number == 1
    assert few.batch["x"].equal(x[::step]) and few.batch["scale"] == 2
    few.batch["x"].fill_(-1)
    assert x.equal(torch.arange(n).float())
