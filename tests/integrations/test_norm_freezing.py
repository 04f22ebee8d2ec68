"""freeze_norms_: statistics settle, and then stay, whoever calls train(); everything else is trained; the way back."""

import copy
import pickle

import pytest
import torch
from smallnet import SmallNet, TwoDrops, same, samples, worst_shift
from snapshots import Snapshot
from torch import nn
from torch.nn import functional as F

import evenkeel as ek

X, Y = samples(64)


def train(model, steps=6):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps):
        model.train()  # as loops do
        optimizer.zero_grad()
        F.cross_entropy(model(X[8 * step :]), Y[8 * step :]).backward()
        optimizer.step()
        model.eval()(X)
    return model.train()


def started():
    torch.manual_seed(1)
    return train(SmallNet())


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_training_leaves_the_buffers_and_changes_the_parameters():
    model = started()
    expected = ek.reestimate_(copy.deepcopy(model), [X], match="variance")
    frozen = ek.freeze_norms_(model, [X])
    assert worst_shift(model, X) < 1 + 1e-5 and frozen.reestimation.to_dict() == expected.to_dict()
    settled, weights = buffers(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model)
    assert all(torch.equal(buffer, settled[name]) for name, buffer in model.named_buffers())
    assert not any(torch.equal(p, weights[name]) for name, p in model.named_parameters() if name != "4.bias")
    assert model.training and model[3].training and not model[1].training and not model[5].training
    assert frozen.paths == ("1", "5") and frozen.untouched == {}


def test_train_mode_is_eval_mode_but_for_dropout():
    model = started()
    with ek.freeze_norms_(model, [X]), ek.DropoutSchedule.quiet_end(model, 1, 1):
        noiseless = model.train()(X)
        assert torch.equal(noiseless, model.eval()(X))


def test_thawed_norms_follow_train_and_keep_the_statistics():
    model = started()
    with ek.freeze_norms_(model, [X]):
        settled = buffers(model)
    assert model[1].training and "train" not in vars(model[1])
    assert all(torch.equal(buffer, settled[name]) for name, buffer in model.named_buffers())
    assert not model.eval()[1].training and model.train()[1].training
    model(X)
    assert not torch.equal(model[1].running_mean, settled["1.running_mean"])


@pytest.mark.parametrize("training", [True, False])
def test_undo_puts_everything_back(training):
    model = started().train(training)
    found = copy.deepcopy(model)
    ek.freeze_norms_(model, [X]).undo()
    assert same(model, found)
    assert [m.training for m in model.modules()] == [m.training for m in found.modules()]
    assert [set(vars(m)) for m in model.modules()] == [set(vars(m)) for m in found.modules()]


def test_an_error_leaves_the_model_as_it_was():
    model = started()
    found = copy.deepcopy(model)
    with pytest.raises(ek.BatchError):
        ek.freeze_norms_(model, [X, X[:, :3]])
    assert same(model, found) and model[1].training and "train" not in vars(model[1])


def test_without_batches_norms_stay_on_what_they_store():
    model = started()
    found = buffers(model)
    with ek.freeze_norms_(model) as frozen:
        train(model)
        assert all(torch.equal(buffer, found[name]) for name, buffer in model.named_buffers())
    assert frozen.reestimation is None


def test_resumed_equals_uninterrupted():
    model = started()
    ek.freeze_norms_(model, [X])
    resumed = SmallNet()
    resumed.load_state_dict(model.state_dict())
    ek.freeze_norms_(resumed)
    for one in (model, resumed):
        torch.manual_seed(5)
        train(one)
    assert same(model, resumed)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_frozen_by_itself(copied):
    model = started()
    frozen = ek.freeze_norms_(model, [X])
    other = copied(model)
    frozen.thaw()
    assert model.train()[1].training and not other.train()[1].training
    assert vars(other[1])["train"]() is other[1]


def test_a_dropout_inside_of_a_norm_still_follows():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].add_module("inner", nn.Dropout(0.5))
    with ek.freeze_norms_(model, [X]):
        assert model.train()[1].inner.training and not model.eval()[1].inner.training


def test_norms_that_are_frozen_already_are_left_and_named():
    model = started()
    model[1].eval()
    frozen = ek.freeze_norms_(model, [X])
    assert frozen.paths == ("5",) and "frozen" in frozen.untouched["1"]
    with pytest.raises(ek.EvenkeelError, match="'5' is frozen already"):
        ek.freeze_norms_(model, [X])
    frozen.thaw()
    assert not model[1].training and model[5].training
    model[5].eval()
    with pytest.raises(ek.ModelError, match="none left"):
        ek.freeze_norms_(model, [X])
    with pytest.raises(ek.ModelError, match="no norm"):
        ek.freeze_norms_(nn.Linear(2, 2))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["dp", "compile"])
def test_wrapped_models(wrap):
    model = TwoDrops()
    wrapped = wrap(model)
    wrapped.train()(X)
    with ek.freeze_norms_(wrapped, [X]):
        settled = buffers(model)
        wrapped.train()(X).sum().backward()
        assert all(torch.equal(buffer, settled[name]) for name, buffer in model.named_buffers())
    wrapped.train()(X)
    assert not torch.equal(model.norm.running_mean, settled["norm.running_mean"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("batches", [None, [X]])
def test_a_copy_can_be_thawed_and_does_not_thaw_the_model(copied, batches):
    model = started()
    first = ek.freeze_norms_(model, [X])
    other = copied(model).train()
    settled = buffers(other)
    second = ek.freeze_norms_(other, batches)
    assert second.paths == first.paths and not other[1].training and second.untouched == {}
    second.thaw()
    assert other.train()[1].training and not model.train()[1].training
    second.undo()
    assert all(torch.equal(buffer, settled[name]) for name, buffer in other.named_buffers())
    first.thaw()
    assert model[1].training


def test_a_copy_is_as_it_was_where_its_batches_fail():
    model = started()
    first = ek.freeze_norms_(model, [X])
    other = copy.deepcopy(model)
    before = Snapshot(other)
    with pytest.raises(ek.BatchError):
        ek.freeze_norms_(other, [X * torch.nan])
    assert before.changes() == [] and not other.train()[1].training
    first.thaw()


def test_norms_can_be_thawed_where_the_first_handle_is_lost():
    model = started()
    ek.freeze_norms_(model, [X])
    ek.freeze_norms_(model).thaw()
    assert model[1].training


def test_what_is_over_thaws_nothing_that_was_frozen_later():
    model = started()
    with ek.freeze_norms_(model, [X]) as first:
        first.thaw()
        second = ek.freeze_norms_(model)
    first.undo()
    assert not model.train()[1].training
    second.thaw()
    assert model[1].training
