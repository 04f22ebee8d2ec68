"""Merging: groups hold every sample once and in order; what cannot be merged stays apart."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.model.batches import samples
from evenkeel.statistics.batch_merging import MOST_PARTS, Group, Groups, form_of, merged

Pair = namedtuple("Pair", "x y")


@dataclass
class Record:
    x: torch.Tensor
    name: str = "a"


FORMS = {
    "tensor": lambda n: torch.arange(n, dtype=torch.float32)[:, None],
    "tuple": lambda n: (torch.arange(n)[:, None], torch.arange(n)),
    "list": lambda n: [torch.arange(n)[:, None], torch.arange(n)],
    "named tuple": lambda n: Pair(torch.arange(n)[:, None], torch.arange(n)),
    "mapping": lambda n: {"x": torch.arange(n)[:, None], "scale": 0.5, "none": None},
    "ordered": lambda n: OrderedDict(x=torch.arange(n)[:, None]),
    "own mapping": lambda n: UserDict(x=torch.arange(n)[:, None]),
    "dataclass": lambda n: Record(torch.arange(n)[:, None]),
    "nested": lambda n: {"a": [(torch.arange(n)[:, None], {"b": torch.arange(n)})]},
    "with names": lambda n: (torch.arange(n)[:, None], [f"sample {i}" for i in range(n)]),
}
LOOSE = {
    "another length inside": lambda n: (torch.arange(n)[:, None], torch.arange(n + 1)),
    "a number that differs": lambda n: (torch.arange(n)[:, None], n),
    "a scalar tensor": lambda n: (torch.arange(n)[:, None], torch.tensor(3.0)),
    "an object": lambda n: (torch.arange(n)[:, None], object()),
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
    groups = list(Groups(batches, lambda batch: limit))
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
    assert first(both).tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("name", LOOSE)
def test_what_cannot_be_merged_stays_apart(name):
    batches = [LOOSE[name](n) for n in (2, 3, 4)]
    groups = list(Groups(batches, lambda batch: 100))
    assert [[batch for _, batch in group.held] for group in groups] == [[batch] for batch in batches]


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_written_into_a_groups_batch_is_gone_the_next_time(count):
    batches = [(torch.ones(2, 3), torch.zeros(2)) for _ in range(count)]
    (group,) = Groups(batches, lambda batch: 100)
    group.batch[0].zero_()
    assert group.batch[0].equal(torch.ones(2 * count, 3)) and batches[0][0].equal(torch.ones(2, 3))


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=9), count=st.integers(1, 30))
def test_a_head_holds_the_first_batches_that_are_enough(sizes, count):
    (group,) = Groups([torch.ones(n, 2) for n in sizes], lambda batch: 100)
    head = group.head(count)
    assert head.held == group.held[: len(head.held)]
    assert head.samples >= min(count, sum(sizes))
    assert len(head.held) == 1 or head.samples - head.sizes[-1] < count


def test_batches_of_other_form_end_a_group():
    wide, narrow, half = torch.ones(2, 8), torch.ones(2, 4), torch.ones(2, 8).half()
    groups = list(Groups([wide, wide, narrow, narrow, half, wide, wide], lambda batch: 100))
    assert [len(group.held) for group in groups] == [2, 2, 1, 2]
    assert form_of(wide) == form_of(torch.zeros(5, 8)) != form_of(narrow)


def test_a_group_taken_back_comes_out_batch_by_batch_and_so_does_the_rest():
    groups = Groups([torch.full((2, 1), i) for i in range(6)], lambda batch: 6)
    group = next(groups)
    assert [float(group.batch[0]), len(group.held)] == [0, 3]
    apart = [groups.split(group), *groups]
    assert [(float(one.batch[0]), one.first) for one in apart] == [(i, i + 1) for i in range(6)]


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30), per_sample=st.integers(1, 3))
def test_parts_are_runs_of_batches(sizes, per_sample):
    x = torch.arange(sum(sizes) * per_sample)[:, None]
    held = tuple((7 + i, torch.ones(n, 1)) for i, n in enumerate(sizes))
    parts = Group(held).parts(x)
    assert len(parts) <= max(MOST_PARTS, 1) and torch.cat([part for _, part in parts]).equal(x)
    starts = [sum(sizes[: number - 7]) * per_sample for number, _ in parts]
    assert [int(part[0]) for _, part in parts] == starts


def test_of_an_input_that_does_not_divide_by_samples_there_is_one_part():
    x = torch.ones(7, 1)
    assert len(Group(((1, torch.ones(2, 1)), (2, torch.ones(2, 1)))).parts(x)) == 1
