"""Of many samples only a part is run with noise on and off: from all over the stream, as many as slopes take."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masked import Masked, as_if_trained, norms_in, oracle, same_bits, statistics_in
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import evenkeel as ek
from evenkeel.reestimation import settling
from evenkeel.statistics.batch_merging import Piece
from evenkeel.statistics.thinning import thinned

IN_PART = "one of every"
MANY = 8192
SPECS = {
    "chain": Masked("vector", "chain", (("LADN", "module", 0.1), ("LADN", "path", 0.05)), "64", 3),
    "residual": Masked("vector", "residual", (("LNAD", "mask", 0.2), ("LNAD", "added", 0.3)), "64", 1),
    "images": Masked("image", "dense", (("LNAD", "channels", 0.1), ("LADN", "functional", 0.2)), "64", 2),
}


def data(count: int = MANY, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def net(noise: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), noise or nn.Dropout(0.2))
    return as_if_trained(nn.Sequential(*layers, nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), data(512, 1))


def is_in_part(done: ek.Reestimation) -> bool:
    assert (done.step > 1) == any(IN_PART in note for note in done.notes)
    return done.step > 1


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 20))
def test_one_of_every_run_of_samples_is_taken(sizes, step):
    starts = [0, *itertools.accumulate(sizes)]
    pieces = [
        Piece(number, torch.arange(start, start + size)[:, None] + torch.zeros(1, 65), size)
        for number, (start, size) in enumerate(zip(starts[:-1], sizes, strict=True), 1)
    ]
    found = list(thinned(pieces, step, is_divisible=True))
    taken = [int(row[0]) for piece in found for row in piece.batch]
    total = sum(sizes)
    assert [place // step for place in taken] == list(range(len(taken))) and len(taken) in (
        total // step,
        total // -step * -1,
    )
    assert all(piece.samples == len(piece.batch) and piece.places for piece in found)


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 20))
def test_batches_that_cannot_be_divided_are_taken_whole(sizes, step):
    pieces = [Piece(number, torch.ones(size, 65), size) for number, size in enumerate(sizes)]
    found = list(thinned(pieces, step, is_divisible=False))
    assert [piece.number // step for piece in found] == list(range(len(found)))
    assert all(piece in pieces for piece in found)


def test_both_views_of_a_loader_that_yields_them_in_turn_are_taken():
    views = [Piece(number, torch.arange(64.0)[:, None].expand(64, 65), 64) for number in range(1, 33)]
    taken = torch.cat([piece.batch[:, 0] for piece in thinned(views, 8, is_divisible=True)])
    assert 0.4 < float((taken % 2).mean()) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_a_part_tells_what_an_average_over_masks_of_all_data_tells(name):
    spec, model = SPECS[name], SPECS[name].build()
    as_trained, x = copy.deepcopy(model), spec.data(MANY)
    done = ek.reestimate_(model, list(x.split(64)), match="mean")
    assert is_in_part(done) and 1024 <= done.samples < MANY
    for path, answer in oracle(as_trained, x, masks=64).items():
        slope = done.slopes[path]
        z = (slope.value - answer.slope) / (slope.error**2 + answer.error**2).sqrt().clamp_min(1e-6)
        assert slope.is_known.all() and float(z.abs().max()) < 5 and float(z.square().mean().sqrt()) < 2.5
        assert float((slope.error / slope.value).square().mean().sqrt()) <= 0.03
        moved = (norms_in(model)[path].running_mean - answer.mean) / answer.variance.sqrt()
        assert float(moved.square().mean().sqrt()) < 0.1


def test_data_sorted_by_class_count_evenly():
    x = torch.cat([data() + 3 * place for place in range(4)])
    parts = {"sorted": x, "shuffled": x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]}
    found = {}
    for name, values in parts.items():
        model = as_if_trained(net(), x)
        done = ek.reestimate_(model, list(values.split(64)), match="mean")
        assert is_in_part(done) and not done.unsure
        found[name] = [norm.running_mean / norm.running_var.sqrt() for norm in norms_in(model).values()]
    for one, other in zip(*found.values(), strict=True):
        assert float((one - other).abs().max()) < 0.1


def test_all_samples_are_run_where_the_part_would_not_do():
    batches = list(data().split(64))
    everything = {
        "a generator": ({}, iter(batches)),
        "a prior": ({"prior": 100}, batches),
        "an automatic prior": ({"prior": "auto"}, batches),
        "a tolerance": ({"tolerance": 1e-6}, batches),
        "few samples": ({}, batches[:24]),
    }
    for name, (options, source) in everything.items():
        done = ek.reestimate_(net(), source, match="mean", **options)
        assert not is_in_part(done) and done.samples == (1536 if name == "few samples" else MANY), name


def test_noise_that_slopes_cannot_be_seen_through_takes_more_samples():
    counts = [ek.reestimate_(net(nn.Dropout(p)), list(data().split(64)), match="mean").samples for p in (0.1, 0.4, 0.8)]
    assert counts == sorted(counts) and counts[0] < counts[-1] == MANY


def test_a_channel_that_wakes_rarely_takes_all_samples():
    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:, :5], x[:, 5:] * (x[:, 4:5].abs() > 2.9)], 1)

    torch.manual_seed(0)
    model = as_if_trained(nn.Sequential(Rare(), nn.Dropout(0.1), nn.BatchNorm1d(6), nn.Linear(6, 1)), data())
    done = ek.reestimate_(model, list(data().split(64)), match="mean")
    assert done.samples == MANY and not is_in_part(done)


@pytest.mark.parametrize("relative", [False, True])
def test_without_noise_all_samples_are_run(relative):
    models = [net(nn.Identity()) for _ in range(2)]
    options = {"match": "variance", "relative": True} if relative else {"match": "mean"}
    done = ek.reestimate_(models[0], list(data().split(64)), **options)
    ek.reestimate_(models[1], list(data().split(64)), match="variance")
    assert done.samples == MANY and not is_in_part(done)
    assert same_bits(*map(statistics_in, models))


def test_batches_whose_samples_share_masks_are_taken_whole():
    class OfBatches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(x.shape[1]) > 0.02) / 0.98 if self.training else x

    x, sizes = data(), set()
    model = net(OfBatches())
    model.register_forward_pre_hook(lambda _, args: sizes.add(len(args[0])))
    done = ek.reestimate_(model, list(x.split(8)), match="mean")
    assert any("share masks" in note for note in done.notes)
    assert done.samples % 8 == 0 and done.samples == 8 * done.batches


def test_a_loader_of_torch_is_read_again_and_a_seed_repeats():
    loader = DataLoader(TensorDataset(data(), data()[:, :1]), batch_size=64)
    models = [net() for _ in range(3)]
    done = [
        ek.reestimate_(model, loader, match="mean", seed=seed) for model, seed in zip(models, (0, 0, 1), strict=True)
    ]
    assert all(map(is_in_part, done))
    assert same_bits(statistics_in(models[0]), statistics_in(models[1]))
    assert not same_bits(statistics_in(models[0]), statistics_in(models[2]))
    as_found = statistics_in(net())
    done[0].undo()
    assert same_bits(statistics_in(models[0]), as_found)


def test_a_progress_bar_changes_nothing():
    models = [net() for _ in range(2)]
    done = [
        ek.reestimate_(model, list(data().split(64)), match="mean", progress=shown)
        for model, shown in zip(models, (False, True), strict=True)
    ]
    assert is_in_part(done[0]) and is_in_part(done[1]) and same_bits(*map(statistics_in, models))


def test_a_part_that_is_run_again_is_the_same_part(monkeypatch):
    x = torch.cat([data(1 << 15, seed) for seed in range(4)])
    models = [net(nn.Dropout(0.5)) for _ in range(2)]
    once = ek.reestimate_(models[0], list(x.split(64)), match="mean", memory=1 << 14)
    monkeypatch.setattr(settling, "_worst", lambda doubts: math.inf)
    again = ek.reestimate_(models[1], list(x.split(64)), match="mean", memory=1 << 14)
    assert (once.passes, again.passes) == (1, 2) and is_in_part(once) and is_in_part(again)
    assert once.samples == again.samples and once.step == again.step
    for one, other in zip(*map(statistics_in, models), strict=True):
        assert torch.allclose(one, other, rtol=0.05, atol=0.05)
