"""The restore law: a read-only verb leaves a model, and the world, as found, also when the forward raises.

And what changes a model changes nothing if it fails.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from models import HABITS, Block, Spec, specs
from snapshots import Snapshot, places_of
from torch import nn
from zoo import ZOO

import evenkeel as ek

pytestmark = pytest.mark.samples(64)  # what they predict does not matter here


def fix(model: nn.Module, example: Any) -> nn.Module:
    """`ek.fix` without a word on what is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ek.UnappliedWarning)
        return ek.fix(model, example, guideline="li2018")


def adapt(model: nn.Module, batches: list[Any]) -> None:
    """`ek.adapted` entered and left; what a forward pass inside does is the caller's."""
    with ek.adapted(model, batches[0]):
        pass


# A new verb is one line: what it is called, how it is called on a model and its batches.
READ_ONLY: dict[str, Callable[[nn.Module, list[Any]], Any]] = {
    "trace": lambda model, batches: ek.trace(model, batches[0]),
    "variance_shift": ek.variance_shift,
    "predict_shift": lambda model, batches: ek.predict_shift(model, batches[0]),
    # without the predictions, which are those of predict_shift
    "lint": lambda model, batches: ek.lint(model, batches[0], ignore=["EK102", "EK103", "EK2", "EK40"]),
    "fix": lambda model, batches: fix(model, batches[0]),
    "adapted": adapt,
    "predict_adapted": lambda model, batches: list(ek.predict_adapted(model, batches, running=True)),
    "measure_part": ek.measure_part,
    "check_signals": lambda model, batches: ek.check_signals(model, batches[0], draws=1),
    "check_signals on batches": lambda model, batches: ek.check_signals(model, batches[0], batches),
}
# Verbs that change the model, and must not if they fail.
CHANGING: dict[str, Callable[[nn.Module, list[Any]], Any]] = {
    "reestimate_": ek.reestimate_,
    "merge_parts_": lambda model, batches: ek.merge_parts_(model, [ek.measure_part(model, batches)], batches),
    "reestimate_ with tolerance": lambda model, batches: ek.reestimate_(model, batches, tolerance=0.5),
}
# Those among them that need no data, but an example.
DATA_FREE: dict[str, Callable[[nn.Module, list[Any]], Any]] = {
    "correct_": lambda model, batches: ek.correct_(model, batches[0]),
}
EXPECTED_ERRORS = (ek.EvenkeelError, KeyboardInterrupt)

read_only = pytest.mark.parametrize("verb", READ_ONLY)
changing = pytest.mark.parametrize("verb", CHANGING | DATA_FREE)


def run(verb: Callable[[nn.Module, list[Any]], Any], spec: Spec) -> tuple[list[str], bool]:
    """What the verb changed of the model or the world, and whether it raised."""
    model, batches = spec.build(), spec.batches()
    kept = [batch.clone() for batch in batches]
    before = Snapshot(model)
    try:
        verb(model, batches)
        raised = False
    except EXPECTED_ERRORS:
        raised = True
    changes = before.changes()
    if spec.blocks[0].activation != "in place" and not all(map(torch.equal, batches, kept)):
        changes.append("batches")
    return changes, raised


@pytest.mark.slow
@read_only
@settings(max_examples=15)
@given(spec=specs(fails=False))
def test_a_read_only_verb_leaves_all_as_found(verb, spec):
    changes, _ = run(READ_ONLY[verb], spec)
    assert changes == []


@pytest.mark.slow
@read_only
@settings(max_examples=15)
@given(spec=specs(fails=True, running_statistics=True))
def test_so_it_does_when_the_forward_raises_half_way(verb, spec):
    changes, raised = run(READ_ONLY[verb], spec)
    assert changes == []
    assert raised or spec.fails_after > 0


@pytest.mark.slow
@changing
@settings(max_examples=15)
@given(spec=specs(fails=True, running_statistics=True))
def test_a_verb_that_changes_the_model_changes_nothing_if_it_fails(verb, spec):
    changes, raised = run((CHANGING | DATA_FREE)[verb], spec)
    # the first failing call may be the second batch, or a repetition of the first one in another layout
    assert changes == [] if raised else set(changes) <= statistics_of(spec)


@pytest.mark.slow
@changing
@settings(max_examples=15)
@given(spec=specs(fails=False, running_statistics=True))
def test_a_verb_that_changes_the_model_changes_statistics_only(verb, spec):
    changes, raised = run((CHANGING | DATA_FREE)[verb], spec)
    assert set(changes) <= (set() if raised else statistics_of(spec))


def statistics_of(spec: Spec) -> set[str]:
    """The places where a snapshot sees the running statistics, and the mark that they were written."""
    norms = [f"blocks.{i}.norm" for i in range(len(spec.blocks))]
    return places_of([f"{path}.{name}" for path in norms for name in ("running_mean", "running_var")])


# The law again without chance: every habit, every model of the zoo, every fault of the batches


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("fails_in", [None, 1])
@read_only
def test_every_habit_is_undone(verb, habit, fails_in):
    for in_eval in (0, 2**24 - 1):
        block = Block("batch", "relu", "module", residual=True, habit=habit)
        changes, raised = run(READ_ONLY[verb], Spec("image", (block, block), 0.1, in_eval, True, fails_in))
        assert changes == []
        assert raised == (fails_in is not None)


# a reentrant checkpoint warns wherever no gradient is asked for, in any evaluation
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
@read_only
def test_on_the_zoo(verb, entry):
    for training in (True, False):
        model, example = entry.build().train(training), entry.example()
        before = Snapshot(model)
        with suppress(ek.EvenkeelError):  # not every one has a norm, takes its example as a batch, or has a gradient
            READ_ONLY[verb](model, [example])
        assert before.changes() == []


def _raising():
    yield torch.ones(4, 4)
    raise OSError("disk gone")


FAULTS: dict[str, Callable[[], Any]] = {
    "empty": lambda: [],
    "raises": _raising,
    "not finite": lambda: [torch.randn(4, 4), torch.full((4, 4), float("nan"))],
    "wrong shape": lambda: [torch.randn(4, 4), torch.randn(4, 3)],
    "no batch at all": lambda: [torch.randn(4, 4), "text"],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", [READ_ONLY["variance_shift"], *CHANGING.values()], ids=["variance_shift", *CHANGING])
def test_faulty_batches_change_nothing(verb, fault):
    block = Block("batch", "relu", "functional", residual=False, habit="buffer in place")
    model = Spec("vector", (block, block), None, 0b100, hooks=True).build()
    batches = FAULTS[fault]()
    before = Snapshot(model)
    with pytest.raises(ek.BatchError):
        verb(model, batches)
    assert before.changes() == []


@pytest.mark.slow
@given(spec=specs(fails=False, running_statistics=True))
@settings(max_examples=15)
def test_a_second_look_sees_the_same(spec):
    """Not even other random numbers, where a forward wakes its own dropout."""
    model, batches = spec.build(), spec.batches()
    first = str(ek.trace(model, batches[0])), str(ek.variance_shift(model, batches))
    assert (str(ek.trace(model, batches[0])), str(ek.variance_shift(model, batches))) == first


def test_global_modes_come_back_when_a_fake_pass_fails():
    class NeedsData(nn.Module):
        def forward(self, x):
            return x * float(x.sum()) if float(x.sum()) > 1e9 else x.relu()

    model = NeedsData()
    logging.getLogger("torch._subclasses.fake_tensor").disabled = False
    before = Snapshot(model)
    with torch.enable_grad():
        assert "A" in str(ek.trace(model, torch.ones(2)))
    assert before.changes() == []
    with torch.no_grad():
        ek.trace(model, torch.ones(2))
        assert not torch.is_grad_enabled()
