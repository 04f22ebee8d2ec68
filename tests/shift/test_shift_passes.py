"""The passes that explain a shift leave no trace, in the model and in what is measured after them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import evenkeel as ek
from evenkeel.shift.shift_passes import compare
from evenkeel.statistics.measurement import Measurement


class Counting(nn.Module):
    """Adds how often it ran in train mode: state that passes in train mode change."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ran", torch.zeros(()))

    def forward(self, x):
        self.ran += self.training
        return x * (1 + self.ran)


def compared(model, batches, frozen=()):
    with torch.no_grad():
        norms = {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)}
        measurement = Measurement(model, norms)
        groups = [measurement.add(group) for group in measurement.groups(batches)]
        return compare(measurement, groups, frozen), measurement


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))


def test_passes_are_the_slow_and_obvious_ones():
    model, batches = net(), 1 + 2 * torch.randn(4, 2048, 8)
    slow = copy.deepcopy(model).train()
    passes, _ = compared(model, batches)
    x = batches.flatten(0, 1)
    with torch.no_grad():
        standing = model[2](model[0](x))
        quiet = model[2](slow[0](x))
        noisy = model[2](slow[1](slow[0](x)))
    assert passes.noisy is not None and passes.samples == 4 * 2048
    for found, right, tolerance in (
        (passes.standing, standing, 1e-3),
        (passes.quiet, quiet, 1e-3),
        (passes.noisy, noisy, 0.05),
    ):
        assert torch.allclose(found["3"].variance.float(), right.var(0), rtol=tolerance)
    assert [passes.is_noisy(path) for path in ("0", "3")] == [False, True]


def test_the_variance_within_samples_is_that_of_instances():
    model, batches = nn.Sequential(nn.BatchNorm1d(3)), 5 * torch.randn(2, 16, 3, 1) + torch.randn(2, 16, 3, 10)
    passes, _ = compared(model, batches)
    assert torch.allclose(passes.within["0"].variance.float(), batches.var(-1).mean((0, 1)))
    assert "0" not in compared(nn.Sequential(nn.BatchNorm1d(3)), torch.randn(2, 16, 3))[0].within


def test_model_and_measurement_are_as_they_were():
    model = nn.Sequential(Counting(), *net())
    state = copy.deepcopy(model.state_dict())
    batches, before = torch.randn(2, 32, 8), torch.get_rng_state()
    _, measurement = compared(model, batches)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert measurement.seen is None and measurement.batches == 2 and not any(m.training for m in model.modules())


def test_batches_after_them_run_in_eval_mode_on_what_the_model_stores():
    torch.manual_seed(0)
    batches = torch.randn(40, 64, 8)  # more than are looked at closely
    model = nn.Sequential(Counting(), nn.Dropout(0.5), *net())
    report = ek.variance_shift(model, batches)
    assert report[0].eval_var == pytest.approx(float(batches.flatten(0, 1).var(0).mean()), rel=1e-5)
    assert [row.to_dict() for row in report] == [row.to_dict() for row in ek.variance_shift(model, batches)]


def test_a_model_that_does_not_run_in_train_mode_is_explained_without_that_pass():
    class Eval(nn.Module):
        def forward(self, x):
            if self.training:
                raise ValueError("targets are needed")
            return x

    model = nn.Sequential(Eval(), *net())
    report = ek.variance_shift(model, torch.randn(2, 64, 8))
    assert [row.parts["dropout"] for row in report] == [1, 1] and report.other_data == {}
    assert "which part of a shift is dropout is not known" in report.notes[0] and "targets are needed" in str(report)


def test_frozen_modules_stay_frozen():
    model = net()
    model[1].eval()
    report = ek.variance_shift(model, torch.randn(2, 256, 8))
    assert report[1].parts["dropout"] == 1


class PackedNorm(nn.BatchNorm1d):
    """Is given (samples, frames, channels), and normalises the frames that count, (frames, channels)."""

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(PackedSequence(super().forward(packed.data), *packed[1:]), batch_first=True)[0]


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop, self.norm = nn.Linear(5, 8), nn.Dropout(0.5), PackedNorm(8)

    def forward(self, x, lengths):
        return self.norm(self.drop(self.linear(x)), lengths)


def test_positions_are_those_of_what_is_normalised_not_of_what_a_norm_is_given():
    torch.manual_seed(0)
    batches = [{"x": torch.randn(16, 20, 5), "lengths": torch.randint(3, 21, (16,))} for _ in range(4)]
    model = Sequences()
    ek.reestimate_(model, batches)
    assert ek.variance_shift(model, batches).worst == pytest.approx(1, abs=1e-4)


class Unbound(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop, self.norm = nn.Linear(5, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)

    def forward(self, x):
        return [self.norm(self.drop(self.linear(part))) for part in x.unbind()]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_batches(layout):
    torch.manual_seed(0)
    batches = [torch.nested.nested_tensor([torch.randn(n, 5) for n in (3, 7, 4)], layout=layout) for _ in range(4)]
    model = Unbound()
    done = ek.reestimate_(model, batches)
    rows = torch.cat([model.linear(part) for batch in batches for part in batch.unbind()])
    assert done.samples == 12
    assert torch.allclose(model.norm.running_var, rows.var(0), rtol=1e-4)
    assert ek.variance_shift(model, batches).worst == pytest.approx(1, abs=1e-4)


class Auxiliary(nn.Module):
    """Has a norm that only train mode calls."""

    def __init__(self):
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(5), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(x) + self.other(x) if self.training else self.norm(x)


def test_a_norm_that_train_mode_alone_calls_is_not_reached():
    report = ek.variance_shift(Auxiliary(), [torch.randn(16, 5) for _ in range(3)])
    assert "other: never reached by the batches" in report.notes
