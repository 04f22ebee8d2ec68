"""Settling: what norms store is what they meet in eval mode, from any batches; and how runs are repeated safely."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from papernets import DenseNet, ResNet
from torch import nn

import evenkeel as ek
from evenkeel.reestimation.reservoir import Reservoir

pytestmark = pytest.mark.slow


def plain(depth=12, width=16, channels=8):
    """Convolutions, each with norm, activation and dropout."""
    layers = []
    for i in range(depth):
        conv = nn.Conv2d(width if i else channels, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers)


NETS = {"plain": plain, "residual": lambda: ResNet(norm=True, width=16), "dense": lambda: DenseNet(norm=True, growth=8)}


def images(count, channels=8, size=8):
    """Noise on a level of the image's own, which a batch of four images does not show."""
    torch.manual_seed(1)
    return (
        torch.randn(count, channels, 1, 1)
        + torch.randn(count, 1, 1, 1)
        + 0.5 * torch.randn(count, channels, size, size)
    )


def shifts(model, data):
    return [abs(row.ratio - 1) for row in ek.variance_shift(model, data.split(64))]


@pytest.mark.parametrize("batch_size", [4, 32])
@pytest.mark.parametrize("name", NETS)
def test_in_one_group_it_is_exact_from_small_batches(name, batch_size):
    torch.manual_seed(0)
    model, data = NETS[name](), images(256)
    ek.reestimate_(model, data.split(batch_size))
    assert max(shifts(model, data)) < 1e-5


@pytest.mark.parametrize("stats", ["var", "mean"])
def test_statistics_that_are_kept_count_as_they_are(stats):
    """Norms settle on what will be stored: of `stats="var"`, with the means that they have."""
    torch.manual_seed(0)
    model, data = plain(depth=5), images(128)
    for batch in data.split(32):
        model(batch)
    before = copy.deepcopy(model)
    ek.reestimate_(model, data.split(8), stats=stats)
    settled = copy.deepcopy(model)
    ek.reestimate_(settled, data.split(8), stats=stats)
    kept = "running_mean" if stats == "var" else "running_var"
    for name, found in model.named_buffers():
        assert torch.allclose(found, settled.get_buffer(name), rtol=1e-5, atol=1e-6)
        assert not name.endswith(kept) or torch.equal(found, before.get_buffer(name))
    assert stats == "mean" or max(shifts(model, data)) < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_in_several_groups_it_is_within_one_percent(name):
    torch.manual_seed(0)
    model, data = NETS[name](), images(1024)
    a_quarter = 256 * 8 * 8 * 4 * (16 if name != "dense" else 48)
    ek.reestimate_(model, data.split(4), memory=a_quarter)
    assert max(shifts(model, data)) < 0.01


@pytest.mark.parametrize("name", ["residual", "dense"])
def test_batches_that_cannot_be_merged_settle_as_well(name):
    torch.manual_seed(0)
    model, data = NETS[name](), images(256)
    ek.reestimate_(model, data.split(16), memory=0)
    assert max(shifts(model, data)) < 0.01


@pytest.mark.parametrize("name", NETS)
def test_where_many_samples_come_first_some_of_them_tell_of_the_change(name):
    torch.manual_seed(0)
    model, data = NETS[name](), images(4800, size=4)
    memory = 1100 * 16 * 16 * 4  # bytes of as many samples where they are largest: so many come first, and more later
    ek.reestimate_(model, data.split(50), memory=memory)
    assert max(shifts(model, data)) < 0.01


class Shared(nn.Module):
    """One norm on two paths of different strength, as in heads shared between scales."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu() + self.norm(3 * x + 1).relu())


@pytest.mark.parametrize("batch_size", [8, 64])
def test_a_norm_used_twice_settles_on_both_uses(batch_size):
    torch.manual_seed(0)
    model, data = Shared(), torch.randn(256, 8)
    ek.reestimate_(model, data.split(batch_size))
    assert max(shifts(model, data)) < 1e-3


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_how_samples_are_batched_makes_no_difference(sizes, seed):
    torch.manual_seed(seed)
    model, data = (
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)),
        torch.randn(sum(sizes), 4),
    )
    other = copy.deepcopy(model)
    ek.reestimate_(model, data.split(sizes))
    ek.reestimate_(other, [data])
    for found, expected in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


class Refuses(nn.Module):
    """Takes batches of one size only, as where a forward has it written in."""

    def __init__(self, *sizes):
        super().__init__()
        self.norm, self.sizes, self.seen = nn.BatchNorm1d(4), sizes, []

    def forward(self, x):
        if len(x) not in self.sizes:
            raise ValueError(f"{len(x)} samples")
        return self.norm(x)


@pytest.mark.parametrize("sizes", [(8,), (8, 1)])
def test_a_model_that_refuses_merged_batches_gets_them_as_they_are(sizes):
    model, data = Refuses(*sizes), torch.randn(64, 4)
    done = ek.reestimate_(model, data.split(8))
    assert (done.batches, done.samples) == (8, 64)
    assert torch.allclose(model.norm.running_var, data.var(0), rtol=1e-5)


def test_a_fault_in_a_merged_batch_is_reported_for_its_own():
    data = list(torch.randn(6, 8, 4))
    data[3] = torch.randn(8, 5)
    with pytest.raises(ek.BatchError, match="batch 4 raised"):
        ek.reestimate_(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), data)


def test_tolerance_takes_few_samples_and_says_how_sure_it_is():
    torch.manual_seed(0)
    model, data = plain(depth=4), images(4096)
    done = ek.reestimate_(model, data.split(32), tolerance=0.05)
    assert done.converged and done.standard_error <= 0.05 and done.samples < 2048
    assert max(shifts(model, data)) < 0.15


class Fused(nn.Module):
    """A weight layer that rounds what it multiplies by, scaled by its norm, as in training for few bits."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5), nn.BatchNorm1d(outputs)
        self.levels, self.step = None, None

    def forward(self, x):
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        weight = self.weight * scale[:, None]
        if self.levels:
            weight = (weight / self.step).round().clamp(-self.levels - 1, self.levels) * self.step
        return self.norm(x @ weight.T / scale)


def quantized(bits, data):
    """Settled without rounding, on other data, and calibrated there."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for i in range(4) for layer in (Fused(16 if i else 8, 16), nn.ReLU())))
    ek.reestimate_(model, data.split(50))
    for layer in model[::2]:
        layer.levels = 2 ** (bits - 1) - 1
        layer.step = (layer.weight.abs() / layer.norm.running_var.sqrt()[:, None]).amax(1, keepdim=True) / layer.levels
    return model


@pytest.mark.parametrize(("bits", "near"), [(8, 0.003), (4, 0.05), (3, 0.1)])
@pytest.mark.parametrize("count", [1000, 5000])
def test_norms_whose_input_depends_on_what_they_store_agree_with_themselves(bits, near, count):
    data = torch.randn(count, 8)
    model = quantized(bits, data / 1.3)
    done = ek.reestimate_(model, data.split(50))
    assert max(shifts(model, data)) < near
    assert [note for note in done.notes if "read by other layers too" in note]
    assert bits < 8 or not done.unsure


def test_where_none_agree_it_is_said():
    model, data = quantized(2, torch.randn(1000, 8)), 5 * torch.randn(1000, 8)
    for layer in model[::2]:
        layer.step = layer.step * 3
    done = ek.reestimate_(model, data.split(50))
    far = [row.path for row in ek.variance_shift(model, data.split(50)) if abs(row.ratio - 1) > 0.1]
    assert far and set(far) <= set(done.unsure)


def sorted_stream(count=3000):
    """Rows whose level and spread grow, more of them than are held."""
    torch.manual_seed(3)
    level = torch.linspace(-2, 2, count)[:, None]
    return (torch.randn(count, 8) * (1.5 + level / 2) + level).split(30)


def net():
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())))


def worst(model, data):
    return max(abs(row.ratio - 1) for row in ek.variance_shift(model, [torch.cat(data)]))


def test_a_sorted_stream_is_run_again_and_this_is_said(monkeypatch):
    monkeypatch.setattr(Reservoir.__init__, "__defaults__", (8000,))
    torch.manual_seed(0)
    model, data = net(), sorted_stream()
    done = ek.reestimate_(model, data, memory=8000)
    assert done.passes > 1 and any(f"all data were run {done.passes} times" in note for note in done.notes)
    assert worst(model, data) < 0.01 and not done.unsure


def test_of_a_sorted_stream_that_comes_only_once_it_is_said_how_far_off_it_may_be(monkeypatch):
    monkeypatch.setattr(Reservoir.__init__, "__defaults__", (8000,))
    torch.manual_seed(0)
    model, data = net(), sorted_stream()
    done = ek.reestimate_(model, iter(data), memory=8000)
    assert done.passes == 1 and done.batches == 100
    assert done.unsure and all("settled on 200 of 3000 samples" in reason for reason in done.unsure.values())
    assert worst(model, data) < 3 * done.standard_error


def test_shuffled_data_are_run_once():
    torch.manual_seed(0)
    model, data = net(), torch.cat(sorted_stream())[torch.randperm(3000)].split(30)
    done = ek.reestimate_(model, data, memory=8000)
    assert done.passes == 1 and not done.unsure and worst(model, data) < 0.01


class Domains(nn.Module):
    """Each domain has norms of its own."""

    def __init__(self, domains, depth=3):
        super().__init__()
        self.weights = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm1d(8) for _ in range(domains)) for _ in range(depth))

    def forward(self, x, domain):
        for weight, norms in zip(self.weights, self.norms, strict=True):
            x = norms[domain](weight(x)).relu()
        return x


@pytest.mark.parametrize("order", ["in turn", "in blocks", "one of them rare"])
@pytest.mark.parametrize("domains", [2, 5])
def test_norms_that_few_batches_reach_are_settled_and_called_so(domains, order):
    torch.manual_seed(0)
    labels = {
        "in turn": [i % domains for i in range(25)],
        "in blocks": [i * domains // 25 for i in range(25)],
        "one of them rare": [(i < 24) * (i % (domains - 1)) + (i == 24) * (domains - 1) for i in range(25)],
    }[order]
    data = [{"x": (1 + d) * torch.randn(40, 8) + d, "domain": d} for d in labels]
    model = Domains(domains)
    done = ek.reestimate_(model, data)
    assert not done.unsure and not done.untouched and done.passes <= 4
    assert max(abs(row.ratio - 1) for row in ek.variance_shift(model, data)) < 1e-3


def test_data_that_few_batches_tell_are_not_run_again_once_they_agree(monkeypatch):
    """A rare domain in more data than are held: nothing tells how far its norms may be off, but another pass."""
    monkeypatch.setattr(Reservoir.__init__, "__defaults__", (20_000,))
    torch.manual_seed(0)
    labels = [1 if i in (50, 90) else 0 for i in range(120)]
    data = [{"x": (1 + d) * torch.randn(20, 8) + d, "domain": d} for d in labels]
    model = Domains(2)
    done = ek.reestimate_(model, data, memory=8000)
    assert not done.unsure and done.passes <= 5
    assert max(abs(row.ratio - 1) for row in ek.variance_shift(model, data)) < 1e-3


def test_a_tolerance_that_is_met_early_says_what_it_takes_for_granted():
    torch.manual_seed(0)
    done = ek.reestimate_(net(), sorted_stream(), tolerance=0.2)
    assert done.batches < 100 and any("only if the loader shuffles" in note for note in done.notes)
    assert not ek.reestimate_(net(), sorted_stream()[:8]).notes


@pytest.mark.parametrize(("depth", "most"), [(2, 1.15), (12, 1.7)])
def test_of_shuffled_data_as_many_are_run_twice_as_the_doubts_ask_for(depth, most):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(depth)]
    model, data, run = nn.Sequential(nn.Dropout(0.5), *layers), torch.randn(4096, 16).exp(), []
    model.register_forward_pre_hook(lambda _, args: run.append(len(args[0])))
    assert ek.reestimate_(model, data.split(64)).passes == 1
    assert len(data) < sum(run) < most * len(data)
    assert max(shifts(model, data)) < 0.03
