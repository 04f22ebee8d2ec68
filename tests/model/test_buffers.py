"""Buffers written in place, and the marks that say what was written."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from snapshots import Snapshot
from torch import nn

from evenkeel.model.buffers import is_as_written, mark_, marks_of, put_back_, write_buffers_, written_left


def trained():
    norm = nn.BatchNorm1d(3)
    for _ in range(5):
        norm(1 + 2 * torch.randn(64, 3))
    return norm


def written():
    norm = trained()
    write_buffers_({(norm, "running_mean"): torch.zeros(3), (norm, "running_var"): torch.full((3,), 0.5)})
    return norm


def test_what_is_written_is_in_the_same_tensors_and_known():
    norm = trained()
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked.clone()
    assert not is_as_written(norm)
    write_buffers_({(norm, "running_var"): torch.full((3,), 0.5)})
    assert norm.running_mean is mean and norm.running_var is var
    assert var.tolist() == [0.5] * 3 and torch.equal(norm.num_batches_tracked, count)
    assert is_as_written(norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_are_known_in_every_dtype(dtype):
    norm = nn.BatchNorm1d(64).to(dtype)
    write_buffers_({(norm, name): torch.rand(64, dtype=torch.float64) for name in ("running_mean", "running_var")})
    assert is_as_written(norm)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_and_pickles_keep_the_mark_each_its_own(twin):
    norm = written()
    other = twin(norm)
    assert is_as_written(other)
    other.running_var.mul_(2)
    assert is_as_written(norm) and not is_as_written(other)


def test_a_state_dict_carries_no_mark_and_loading_one_clears_it():
    assert list(written().state_dict()) == list(nn.BatchNorm1d(3).state_dict())
    fresh = nn.BatchNorm1d(3)
    fresh.load_state_dict(written().state_dict())
    assert not is_as_written(fresh)
    norm = written()
    norm.load_state_dict(trained().state_dict())
    assert not is_as_written(norm)


def test_training_on_clears_the_mark_and_evaluation_does_not():
    norm = written().eval()
    norm(torch.randn(64, 3))
    assert is_as_written(norm)
    norm.train()(torch.randn(64, 3))
    assert not is_as_written(norm)


@pytest.mark.parametrize(
    "change", [lambda m: m.half().float(), lambda m: m.to("cpu"), lambda m: m.requires_grad_(False)]
)
def test_moves_and_casts_keep_it(change):
    assert is_as_written(change(written()))


def test_undoing_restores_every_bit_and_attribute():
    norm = trained()
    before = Snapshot(norm)
    held = write_buffers_({(norm, "running_mean"): torch.zeros(3), (norm, "running_var"): torch.ones(3)})
    assert before.changes() != []
    put_back_(held)
    assert before.changes() == [] and not is_as_written(norm)


def test_undoing_the_second_restores_the_first_with_its_mark():
    norm = written()
    before = Snapshot(norm)
    put_back_(write_buffers_({(norm, "running_mean"): torch.ones(3)}))
    assert before.changes() == [] and is_as_written(norm)


def test_what_two_writes_wrote_to_one_module_is_known_together():
    norm = trained()
    for name in ("running_mean", "running_var"):
        write_buffers_({(norm, name): torch.ones(3)})
    assert is_as_written(norm)
    norm.running_mean.add_(1)
    assert not is_as_written(norm)


def test_only_the_modules_written_to_are_marked():
    model = nn.Sequential(trained(), trained())
    write_buffers_({(model[0], "running_mean"): torch.zeros(3)})
    assert [is_as_written(norm) for norm in model] == [True, False]
    assert not is_as_written(model) and not is_as_written(nn.ReLU())


def test_tensors_of_inference_mode_are_written_and_put_back():
    with torch.inference_mode():
        norm = nn.BatchNorm1d(3)
    held = write_buffers_({(norm, "running_mean"): torch.ones(3)})
    assert is_as_written(norm)
    put_back_(held)
    assert norm.running_mean.tolist() == [0, 0, 0]


def test_it_is_known_which_buffers_were_among_them():
    norm = trained()
    write_buffers_({(norm, "running_mean"): torch.ones(3)})
    assert is_as_written(norm) and is_as_written(norm, "running_mean") and not is_as_written(norm, "running_var")
    assert not is_as_written(nn.ReLU(), "running_var")


@pytest.mark.parametrize(("momentum", "times", "left"), [(0.1, 3, 0.729), (None, 5, 0.5), (1.0, 1, 0), (0.5, 0, 1)])
def test_what_training_leaves_of_it_is_told_by_the_count(momentum, times, left):
    norm = trained()
    norm.momentum = momentum
    write_buffers_({(norm, "running_mean"): torch.zeros(3), (norm, "running_var"): torch.full((3,), 0.5)})
    for _ in range(times):
        norm(1 + 2 * torch.randn(64, 3))
    assert written_left(norm, "running_var") == pytest.approx(left)
    assert written_left(norm, "weight") == written_left(trained(), "running_var") == 0


def test_of_other_values_that_were_loaded_nothing_was_written():
    norm = written()
    norm.load_state_dict(trained().state_dict())
    assert written_left(norm, "running_var") == 0


def test_marks_go_by_paths_without_those_of_compilation():
    compiled, plain = nn.Module(), nn.Sequential(written())
    compiled._orig_mod = copy.deepcopy(plain)
    assert list(marks_of(compiled)) == list(marks_of(plain)) == ["0"]
    other = nn.Module()
    other._orig_mod = nn.Sequential(nn.BatchNorm1d(3))
    other._orig_mod.load_state_dict(plain.state_dict())
    mark_(other, marks_of(plain))
    assert is_as_written(other._orig_mod[0])


def test_a_blend_keeps_its_share_through_training_marks_and_undo():
    norm, other = nn.BatchNorm1d(2, momentum=0.5), nn.BatchNorm1d(2)
    held = write_buffers_({(norm, "running_var"): torch.full((2,), 9.0)}, {norm: 0.4})
    assert not is_as_written(norm, "running_var") and written_left(norm, "running_var") == 0.4
    other.load_state_dict(norm.state_dict())
    mark_(other, marks_of(norm))
    assert written_left(other, "running_var") == 0.4
    norm(torch.randn(8, 2))
    assert written_left(norm, "running_var") == pytest.approx(0.2)
    put_back_(held)
    assert written_left(norm, "running_var") == 0
    write_buffers_({(norm, "running_var"): torch.full((2,), 9.0)}, {norm: 0.99})  # as good as all
    assert is_as_written(norm, "running_var")


def test_a_blend_with_what_was_written_before_is_all_written():
    norm = nn.BatchNorm1d(2)
    write_buffers_({(norm, "running_var"): torch.full((2,), 9.0)})
    write_buffers_({(norm, "running_var"): torch.full((2,), 8.0)}, {norm: 0.2})
    assert is_as_written(norm, "running_var")
    other = nn.BatchNorm1d(2)
    for value in (9.0, 8.0):
        write_buffers_({(other, "running_var"): torch.full((2,), value)}, {other: 0.5})
    assert written_left(other, "running_var") == pytest.approx(0.75)
