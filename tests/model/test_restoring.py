"""restored and unwrapped: what is lent out comes back as it was."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from snapshots import Snapshot
from torch import nn

import evenkeel as ek
from evenkeel.model.restoring import restored


class Keeper(nn.Module):
    """A module with every sort of state that a forward pass may write to."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(3, dtype=torch.bfloat16), persistent=False)
        self.register_buffer("absent", None)
        self.calls, self.last = 0, None
        self.record, self.seen, self.table = [1], {1}, {"a": 1}
        self.ordered, self.counts, self.groups = OrderedDict(a=1), Counter(a=1), defaultdict(list, a=[1])
        self.recent, self.nested = deque([1, 2], maxlen=2), {"a": [1, {"b": {2}}]}
        self.average = torch.zeros(3)
        self.averages = [torch.zeros(3)]
        self.generator = torch.Generator().manual_seed(3)


CHANGES = {
    "flag": lambda m: m.drop.eval(),
    "flag of the whole": lambda m: m.eval(),
    "momentum": lambda m: setattr(m.norm, "momentum", None),
    "buffer in place": lambda m: m.norm.running_var.fill_(7.0),
    "integer buffer in place": lambda m: m.steps.add_(1),
    "buffer with NaN": lambda m: m.scratch.fill_(float("nan")),
    "buffer replaced": lambda m: setattr(m, "steps", m.steps + 1),
    "buffer that was None": lambda m: setattr(m, "absent", torch.ones(1)),
    "buffer removed": lambda m: delattr(m, "scratch"),
    "parameter replaced": lambda m: setattr(m.fc, "weight", nn.Parameter(torch.ones(3, 3))),
    "parameter added": lambda m: m.register_parameter("extra", nn.Parameter(torch.ones(1))),
    "module added": lambda m: setattr(m, "late", nn.Linear(3, 3)),
    "module replaced": lambda m: setattr(m, "drop", nn.Identity()),
    "module removed": lambda m: delattr(m, "drop"),
    "counter": lambda m: setattr(m, "calls", m.calls + 1),
    "cache": lambda m: setattr(m, "last", torch.ones(2)),
    "new attribute": lambda m: setattr(m, "cached", torch.ones(2)),
    "removed attribute": lambda m: delattr(m, "calls"),
    "list": lambda m: m.record.append(2),
    "set": lambda m: m.seen.add(2),
    "dict": lambda m: m.table.update(a=2, b=3),
    "ordered dict": lambda m: m.ordered.update(b=2),
    "Counter": lambda m: m.counts.update("ab"),
    "defaultdict": lambda m: m.groups["b"],
    "deque": lambda m: m.recent.append(3),
    "nested containers": lambda m: (m.nested["a"].append(3), m.nested["a"][1]["b"].add(4)),
    "tensor attribute in place": lambda m: m.average.add_(1),
    "tensor in a list in place": lambda m: m.averages[0].add_(1),
    "forward hook": lambda m: m.fc.register_forward_hook(lambda *_: None),
    "forward pre-hook with kwargs": lambda m: m.fc.register_forward_pre_hook(lambda *_: None, with_kwargs=True),
    "generator of torch": lambda m: torch.rand(3),
    "generator of numpy": lambda m: np.random.rand(3),
    "generator of Python": lambda m: random.random(),
    "generator of the module": lambda m: torch.rand(3, generator=m.generator),
    "seed": lambda m: torch.manual_seed(99),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_everything_is_restored(change, raises):
    model = Keeper()
    model.norm.eval()
    model.fc.register_forward_hook(lambda *_: None)
    before = Snapshot(model)
    if raises:
        with pytest.raises(KeyboardInterrupt), restored(model):
            CHANGES[change](model)
            raise KeyboardInterrupt
    else:
        with restored(model):
            CHANGES[change](model)
            assert before.changes() != []  # the snapshot sees what is to be restored
    assert before.changes() == []


def test_all_changes_at_once_twice():
    model = Keeper()
    before = Snapshot(model)
    for _ in range(2):
        with restored(model):
            for name, change in CHANGES.items():
                if "removed" not in name:
                    change(model)
        assert before.changes() == []


def test_nested_use():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with restored(model):
        model[1].running_mean.fill_(1.0)
        with restored(model):
            model[1].running_mean.fill_(2.0)
        assert torch.equal(model[1].running_mean, torch.ones(2))
    assert torch.equal(model[1].running_mean, torch.zeros(2))


def test_hooks_keep_their_order_and_still_run():
    model, ran = nn.Linear(2, 2), []
    for i in range(3):
        model.register_forward_hook(lambda *_, i=i: ran.append(i))
    with restored(model):
        model.register_forward_hook(lambda *_: ran.append("guest"), prepend=True)
    model(torch.ones(1, 2))
    assert ran == [0, 1, 2]


def test_buffers_shared_between_modules_stay_shared():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].running_var = model[0].running_var
    with restored(model):
        model[0].running_var.fill_(3.0)
        model[1].running_var = torch.ones(2)
    assert model[1].running_var is model[0].running_var
    assert torch.equal(model[0].running_var, torch.ones(2))


def test_sparse_and_empty_buffers():
    """Such as a graph's adjacency matrix."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.register_buffer("adjacency", torch.eye(3).to_sparse(), persistent=False)
    model.register_buffer("empty", torch.zeros(0, 3))
    adjacency = model.adjacency
    with restored(model):
        model.adjacency = None
    assert model.adjacency is adjacency
    assert torch.equal(adjacency.to_dense(), torch.eye(3))
    assert str(ek.trace(model, torch.ones(2, 3))) == "i W N o"


def test_model_without_state():
    with restored(nn.Identity()):
        torch.rand(2)


@pytest.mark.parametrize("lazy", [lambda: nn.LazyLinear(3), nn.LazyBatchNorm1d])
def test_lazy_modules_are_refused_by_name(lazy):
    model = nn.Sequential(nn.Flatten(), lazy())
    with pytest.raises(ek.ModelError, match=r"'1\.\w+'.*forward pass"), restored(model):
        pytest.fail("lent out")


def test_parameters_written_by_the_body_are_restored():
    """A forward that clips its own weights writes to the state dict: the law names no exception."""
    model = nn.Linear(2, 2)
    before = Snapshot(model)
    with restored(model), torch.no_grad():
        model.weight.clamp_(-0.01, 0.01)
    assert before.changes() == []


def test_tensors_that_were_resized_come_back():
    model = nn.BatchNorm1d(2)
    model.register_buffer("range", torch.zeros(0))
    with restored(model):
        model.range.resize_(4).fill_(1.0)
    assert model.range.shape == (0,)


def test_tensors_made_in_inference_mode_come_back():
    with torch.inference_mode():
        model = nn.BatchNorm1d(2)
    with restored(model), torch.inference_mode():
        model.running_mean.fill_(3.0)
    assert model.running_mean.tolist() == [0, 0]


def test_what_cannot_come_back_keeps_nothing_else_from_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].kept = torch.zeros(1).expand(3)  # writing to it is refused: its elements share one place
    with pytest.raises(ek.ModelError, match="1 parts of the model's state"), restored(model):
        model.eval()
        model[0].kept._base.fill_(1.0)
    assert model.training and model[1].training
