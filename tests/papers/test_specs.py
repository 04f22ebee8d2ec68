"""Specifications: data that stay the same through JSON, with names that tell all of them apart."""

import hashlib
import json
import pickle
from dataclasses import fields, replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.papers.lab.specs import ImageSource, Net, Recipe, Training, arm_name, digest, grid, plain

SHARES = st.lists(st.floats(0, 1), max_size=3).map(tuple)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
TRAINING = Training(
    Net("wrn", {"depth": 10, "places": "a", "noise": ["Dropout", 0.5]}),
    ImageSource("cifar10", train=100, size=16),
    Recipe(epochs=4, milestones=(0.5, 0.75), snapshots=(0.5,)),
)
# Another value of every field
OTHERS = {
    "net": Net("wrn", {"depth": 16}),
    "source": ImageSource("cifar100"),
    "recipe": Recipe(epochs=5),
    "init": "he",
    "epochs": 5,
    "batch": 64,
    "optimizer": "adam",
    "lr": 0.2,
    "momentum": 0.5,
    "weight_decay": 0.1,
    "milestones": (0.5,),
    "gamma": 0.2,
    "augment": True,
    "reset_momentum": 5,
    "snapshots": (),
    "watched": 0,
    "schedule": "one-cycle",
    "name": "other",
    "train": 99,
    "test": 10,
    "validation": 10,
    "size": 8,
    "arguments": {"depth": 10},
}


@given(epochs=st.integers(1, 300), shares=SHARES, gamma=st.sampled_from([0.1, 0.2, 1.0]))
def test_the_rate_falls_once_at_every_milestone(epochs, shares, gamma):
    recipe = Recipe(epochs=epochs, lr=2.0, milestones=shares, gamma=gamma)
    lr, passed = 2.0, sorted(round(share * epochs) for share in shares)
    for epoch in range(epochs):
        while passed and passed[0] == epoch:
            lr *= gamma
            passed.pop(0)
        assert recipe.lr_at(epoch) == pytest.approx(lr, rel=1e-12)


@given(epochs=st.integers(1, 300), shares=SHARES, epoch=st.integers(0, 299), part=st.floats(0, 1, exclude_max=True))
def test_within_an_epoch_steps_keep_the_rate(epochs, shares, epoch, part):
    recipe = Recipe(epochs=epochs, milestones=shares)
    assert recipe.lr_at(epoch + part) == recipe.lr_at(epoch) or epoch + part == epoch + 1  # part rounded away


@pytest.mark.parametrize("steps", [10, 1000])
def test_one_cycle_is_torchs(steps):
    recipe = Recipe(epochs=1, lr=0.2, schedule="one-cycle")
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # torch counts its steps to the last one, and so ends each half a step early
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=steps + 1, pct_start=(0.3 * steps + 1) / (steps + 1), final_div_factor=1e12,
        cycle_momentum=False,
    )  # fmt: skip
    for step in range(steps):
        assert recipe.lr_at(step / steps) == pytest.approx(cycle.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        cycle.step()


def test_what_was_added_later_is_told_only_where_it_differs():
    """So that records made before it still answer to their specification."""
    assert "schedule" not in plain(Recipe(epochs=1))
    assert plain(Recipe(epochs=1, schedule="one-cycle"))["schedule"] == "one-cycle"


@given(epochs=st.integers(1, 300), shares=SHARES)
def test_weights_are_kept_within_the_epochs_and_at_the_end(epochs, shares):
    kept = Recipe(epochs=epochs, snapshots=shares).kept()
    assert kept[-1] == epochs and kept[0] >= 1 and list(kept) == sorted(set(kept))
    assert all(max(1, round(share * epochs)) in kept for share in shares) and len(kept) <= len(shares) + 1


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(), max_size=3, unique=True).map(tuple)))
def test_a_grid_is_every_combination_and_names_tell_them_apart(levels):
    arms = grid(**levels)
    assert [tuple(arm.values()) for arm in arms] == list(product(*levels.values()))
    assert all(list(arm) == list(levels) for arm in arms)
    assert len({arm_name(arm) for arm in arms}) == len(arms)


def test_names_show_numbers_as_they_are_printed():
    assert arm_name({}) == ""
    assert arm_name({"a": 0.0, "b": 1.0, "c": 1e-4, "d": 2, "e": "x"}) == "0-1-0.0001-2-x"


@given(PLAIN, PLAIN)
def test_digests_are_equal_where_json_is_and_only_there(first, second):
    written = [json.dumps([value], sort_keys=True) for value in (first, second)]
    assert (digest(first) == digest(second)) == (written[0] == written[1])
    assert digest(first) == hashlib.sha256(written[0].encode()).hexdigest()[:16]


def test_digests_do_not_know_the_order_of_keys():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})


def test_every_field_of_a_training_is_in_its_digest():
    parts = {"net": TRAINING.net, "source": TRAINING.source, "recipe": TRAINING.recipe}
    others = [replace(TRAINING, **{field.name: OTHERS[field.name]}) for field in fields(Training)]
    for name, part in parts.items():
        for field in fields(part):
            others.append(replace(TRAINING, **{name: replace(part, **{field.name: OTHERS[field.name]})}))
    assert len({digest(plain(training)) for training in (TRAINING, *others)}) == 1 + len(others)


def test_a_training_comes_through_json_and_pickle():
    assert json.loads(json.dumps(plain(TRAINING))) == plain(TRAINING)
    assert pickle.loads(pickle.dumps(TRAINING)) == TRAINING
