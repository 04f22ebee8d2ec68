"""DropoutSchedule: which rate at which step, all put back, resumed as uninterrupted, and read by lint."""

import copy

import pytest
import torch
from smallnet import SmallNet, TwoDrops, same, samples
from torch import nn
from torch.nn import functional as F

import evenkeel as ek

X, Y = samples(64)
STEPS = 12


def net():
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.2))


def rates_of(schedule, model, steps=STEPS):
    found = []
    for _ in range(steps):
        found.append(model[0].p)
        assert model[2].p == pytest.approx(0.4 * model[0].p)
        schedule.step()
    return found


@pytest.mark.parametrize("last", [0, 1, 5, STEPS])
def test_a_quiet_end_leaves_exactly_so_many_steps_without_dropout(last):
    model = net()
    schedule = ek.DropoutSchedule.quiet_end(model, STEPS, last)
    assert rates_of(schedule, model) == [0.5] * (STEPS - last) + [0.0] * last
    schedule.step()
    assert model[0].p == (0.0 if last else 0.5), "behind the last step rates stay"


@pytest.mark.parametrize("steps", [1, 2, 7, 1000, 99_991])
def test_the_step_at_which_dropout_ends_is_exact_for_any_number_of_steps(steps):
    for until in {0, 1, steps // 3, steps - 1, steps}:
        model = net()
        schedule = ek.DropoutSchedule.early(model, steps, until)
        for step in {0, max(until - 1, 0), min(until, steps - 1), steps - 1}:
            schedule.step(step)
            assert model[0].p == (0.5 if step < until else 0.0), (steps, until, step)


def test_early_linear_and_late():
    model = net()
    with ek.DropoutSchedule.early(model, 8, 4, linear=True) as schedule:
        assert rates_of(schedule, model, 8) == [0.5, 0.375, 0.25, 0.125, 0, 0, 0, 0]
    with ek.DropoutSchedule.late(model, 8, 6) as schedule:
        assert rates_of(schedule, model, 8) == [0] * 6 + [0.5] * 2
    with ek.DropoutSchedule(model, 5, lambda progress: 1 - progress) as schedule:
        assert rates_of(schedule, model, 5) == [0.5, 0.375, 0.25, 0.125, 0]
    assert model[0].p == 0.5 and model[2].p == 0.2


def test_rates_are_put_back_also_after_an_exception():
    model = net()
    with pytest.raises(ArithmeticError), ek.DropoutSchedule.late(model, 8, 6):
        assert model[0].p == 0
        raise ArithmeticError
    assert [model[0].p, model[2].p] == [0.5, 0.2]


def test_a_factor_that_makes_no_sense_leaves_everything_as_it_was():
    model = net()
    with pytest.raises(ek.EvenkeelError, match=r"would be 1\.5"):
        ek.DropoutSchedule(model, 4, lambda progress: 3.0)
    schedule = ek.DropoutSchedule(model, 4, lambda progress: 3.0 if progress == 1 / 3 else 1.0)
    with pytest.raises(ek.EvenkeelError, match=r"0\.p would be 1.5"):
        schedule.step()
    assert schedule.now == 0 and [model[0].p, model[2].p] == [0.5, 0.2]
    schedule.undo()
    with pytest.raises(ek.EvenkeelError, match="undone"):
        schedule.step()
    with pytest.raises(ek.EvenkeelError, match="undone"):
        schedule.load_state_dict(schedule.state_dict())
    ek.DropoutSchedule.late(model, 8, 6).undo()


def broken_at(where):
    def factor(progress):
        if progress == where:
            raise ZeroDivisionError
        return 1.0

    return factor


@pytest.mark.parametrize("where", [0, 1])
def test_a_factor_that_raises_at_either_end_leaves_no_schedule_behind(where):
    model = net()
    with pytest.raises(ZeroDivisionError):
        ek.DropoutSchedule(model, 8, broken_at(where))
    assert [model[0].p, model[2].p] == [0.5, 0.2]
    ek.DropoutSchedule.early(model, 8, 4).undo()


def test_a_factor_that_goes_too_far_in_the_end_is_refused_at_the_beginning():
    model = net()
    with pytest.raises(ek.EvenkeelError, match=r"would be 1\.5"):
        ek.DropoutSchedule(model, 8, lambda progress: 1 + 2 * progress)
    ek.DropoutSchedule.early(model, 8, 4).undo()


def test_a_factor_that_raises_on_the_way_leaves_the_step_as_it_was():
    model = net()
    schedule = ek.DropoutSchedule(model, 5, broken_at(0.5))
    schedule.step()
    with pytest.raises(ZeroDivisionError):
        schedule.step()
    assert schedule.now == 1
    schedule.step(3)
    assert model[0].p == 0.5


@pytest.mark.parametrize("to", [-1, 1.5, float("nan")])
def test_a_step_that_there_is_not_is_refused(to):
    model = net()
    with ek.DropoutSchedule(model, 5, lambda progress: 1 - progress) as schedule:
        schedule.step(2)
        with pytest.raises(ek.EvenkeelError, match="whole number"):
            schedule.step(to)
        assert schedule.now == 2 and model[0].p == 0.25


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"now": 2},
        {"now": -2, "rates": {"0.p": 0.5, "2.p": 0.2}},
        {"now": 2, "rates": {"0.p": 2.0, "2.p": 0.2}},
        {"now": 2, "rates": {"0.p": "0.5", "2.p": 0.2}},
    ],
)
def test_a_state_that_makes_no_sense_leaves_everything_as_it_was(state):
    model = net()
    schedule = ek.DropoutSchedule(model, 5, lambda progress: 1 - progress)
    schedule.step()
    with pytest.raises(ek.EvenkeelError):
        schedule.load_state_dict(state)
    assert schedule.state_dict() == {"now": 1, "rates": {"0.p": 0.5, "2.p": 0.2}}
    assert model[0].p == 0.375
    schedule.undo()
    assert [model[0].p, model[2].p] == [0.5, 0.2]


def test_two_schedules_of_one_model_are_refused():
    model = net()
    first = ek.DropoutSchedule.late(model, 8, 6)
    with pytest.raises(ek.EvenkeelError, match="already"):
        ek.DropoutSchedule.early(model, 8, 6)
    first.undo()
    ek.DropoutSchedule.early(model, 8, 6).undo()


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("steps", 2.5), ("last", -1), ("last", 9)])
def test_numbers_of_steps_are_checked(name, value):
    with pytest.raises(ek.EvenkeelError, match=f"{name} is {value}"):
        ek.DropoutSchedule.quiet_end(net(), **{"steps": 8, "last": 2} | {name: value})


def test_what_stays_on_is_named():
    schedule = ek.DropoutSchedule.quiet_end(TwoDrops(), 8, 2, example=torch.zeros(2, 4))
    assert len(schedule.untouched) == 1 and not schedule.notes
    assert "pass example=" in ek.DropoutSchedule.quiet_end(net(), 8, 2).notes[0]


def trained(stop=None, resume=None):
    """A net after all steps, or the state after so many, in the midst of a schedule."""
    torch.manual_seed(7)
    model = SmallNet().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule, first = ek.DropoutSchedule.early(model, STEPS, 8, linear=True), 0
    if resume is not None:
        first, weights, moments, own, generator = resume
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        schedule.load_state_dict(own)
        torch.set_rng_state(generator)
    for step in range(first, STEPS):
        if step == stop:
            states = (model.state_dict(), optimizer.state_dict(), schedule.state_dict())
            return step, *copy.deepcopy(states), torch.get_rng_state()
        rows = slice(4 * step, 4 * step + 16)
        optimizer.zero_grad()
        F.cross_entropy(model(X[rows]), Y[rows]).backward()
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("stop", [0, 3, 8, 11])
def test_resumed_equals_uninterrupted(stop):
    assert same(trained(resume=trained(stop)), trained())


def test_a_state_brings_the_rates_that_a_model_was_built_with():
    model = net()
    schedule = ek.DropoutSchedule.quiet_end(model, 8, 4)
    schedule.step(6)
    pickled = copy.deepcopy(model)  # its rates are 0 now
    again = ek.DropoutSchedule.quiet_end(pickled, 8, 4)
    again.load_state_dict(schedule.state_dict())
    assert pickled[0].p == 0 and again.now == 6
    again.undo()
    assert [pickled[0].p, pickled[2].p] == [0.5, 0.2]
    with pytest.raises(ek.EvenkeelError, match="another model"):
        ek.DropoutSchedule.quiet_end(SmallNet(), 8, 4).load_state_dict(schedule.state_dict())


# what lint reads


def codes(model, **options):
    return {finding.code for finding in ek.lint(model, torch.zeros(2, 4), **options)}


def risky(p=0.9):
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(p), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def test_lint_reads_the_rates_that_a_schedule_ends_with():
    model, asked = risky(), {"select": ["EK105", "EK201"]}
    assert codes(model, **asked) == {"EK105", "EK201"}
    graph = ek.trace(model, torch.zeros(2, 4))
    with ek.DropoutSchedule.quiet_end(model, 8, 2):
        assert model[1].p == 0.9
        found = ek.lint(model, torch.zeros(2, 4), **asked)
        assert found == [] and "DropoutSchedule" in found.notes[0] and model[1].p == 0.9
        assert ek.lint(model, graph, **asked) == []
        assert codes(copy.deepcopy(model), **asked) == {"EK105", "EK201"}, "a copy is under no schedule"
    with ek.DropoutSchedule.late(model, 8, 2):
        assert model[1].p == 0
        assert codes(model, **asked) == {"EK105", "EK201"}
    assert ek.lint(model, torch.zeros(2, 4), **asked).notes == ()


class Own(nn.Module):
    """A model with a method that sets its rate."""

    def __init__(self):
        super().__init__()
        self.net = risky(0.3)

    def set_rate(self, p):
        self.net[1].p = p

    def forward(self, x):
        return self.net(x)


def test_a_rate_of_which_the_end_is_known_is_not_one_that_may_change():
    model, asked = Own(), {"select": ["EK109"]}
    assert codes(model, **asked) == {"EK109"}
    with ek.DropoutSchedule.quiet_end(model, 8, 2):
        assert codes(model, **asked) == set()
    assert codes(model, **asked) == {"EK109"}
