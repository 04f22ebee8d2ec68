"""What replicas tell of channels, and matching them to what training stored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.prediction.replicas import (
    COUNT,
    channels_of,
    energies_of,
    match_,
    noise_free_rows,
    pooled,
    row_dim,
)


def replicas(samples=4096, channels=3, noise=0.5, damping=0.8, positions=(), seed=0):
    """A signal that noise has damped: in train mode its signal is `damping` times the one without noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, channels, *positions)
    noise_free = torch.randn(shape, generator=generator, dtype=torch.float64)
    trains = [
        damping * noise_free + noise * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    ]
    return torch.cat([noise_free, *trains])


def slow_moments(x):
    """The moments of channels, one at a time, by numpy's plain formulas."""
    rows = len(x) // COUNT
    result = []
    for channel in range(x.shape[1]):
        noise_free, one, two = (x[i * rows : (i + 1) * rows, channel].flatten() for i in range(COUNT))
        both = (one.var(correction=0) + two.var(correction=0)) / 2
        shared = ((one - one.mean()) * (two - two.mean())).mean()
        crossed = sum(((noise_free - noise_free.mean()) * (t - t.mean())).mean() for t in (one, two)) / 2
        result.append(
            [(one.mean() + two.mean()) / 2, both, noise_free.mean(), noise_free.var(correction=0), shared, crossed]
        )
    return torch.tensor(result, dtype=torch.float64).T


@pytest.mark.parametrize("positions", [(), (5,), (3, 4)])
def test_moments_are_those_of_the_plain_formulas(positions):
    x = replicas(64, positions=positions) + 3
    found = channels_of(x)
    names = ("train_mean", "train_var", "eval_mean", "eval_var", "covariance", "crossed")
    assert torch.allclose(torch.stack([getattr(found, name) for name in names]), slow_moments(x), atol=1e-12)


@given(st.floats(0.01, 1), st.floats(0.5, 1), st.floats(0.5, 50), st.floats(0, 0.5), st.integers(0, 5))
def test_matching_gives_what_is_stored_and_keeps_the_noise(noise, damping, share, unlike, seed):
    x = replicas(noise=noise, damping=damping, seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    own = unlike * torch.randn(len(x) // COUNT, 3, generator=generator, dtype=x.dtype)
    x += torch.cat([0 * own, own, own])  # what train replicas share, and the noise_free one has no part in
    before = channels_of(x)
    variance, mean = before.noise * (1 + share), torch.tensor([1.0, -2.0, 0.0]).double()
    returned, drowned = match_(x, mean, variance)
    after = channels_of(x)
    for name in ("train_mean", "eval_mean"):
        assert torch.allclose(getattr(after, name), getattr(returned, name), atol=1e-6)
    for name in ("train_var", "eval_var", "covariance"):
        assert torch.allclose(getattr(after, name), getattr(returned, name), rtol=0.02), name
    assert torch.allclose(after.train_mean, mean, atol=1e-6) and torch.allclose(after.train_var, variance, rtol=0.02)
    assert torch.allclose(after.noise, before.noise, rtol=0.1) and not drowned.any()
    expected = (variance - before.noise) * before.eval_var / before.covariance
    assert torch.allclose(returned.eval_var.mean(), expected.mean(), rtol=0.1)


def test_without_noise_eval_mode_has_what_is_stored():
    x = replicas(noise=0.0, damping=1.0)
    found, _ = match_(x, torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(found.eval_var, torch.tensor([1.0, 2.0, 3.0]).double(), rtol=1e-6)
    noise_free, one, two = x.chunk(COUNT)
    assert torch.allclose(noise_free, one) and torch.equal(one, two)


def test_more_noise_than_is_stored_is_told_and_leaves_a_little_signal():
    x = replicas(noise=2.0)
    found, drowned = match_(x, torch.zeros(3), torch.full((3,), 0.5))
    assert drowned.all()
    assert (found.eval_var > 0).all() and (found.eval_var < 0.05).all()


def test_a_channel_that_no_input_excites_varies_as_is_stored_in_all_replicas_alike():
    x = torch.zeros(3000, 2)
    torch.manual_seed(0)
    found, _ = match_(x, torch.tensor([0.0, 5.0]), torch.tensor([1.0, 4.0]))
    noise_free, one, two = x.chunk(COUNT)
    assert torch.equal(one, two) and torch.equal(noise_free, one)
    assert torch.allclose(one.var(0), torch.tensor([1.0, 4.0]), rtol=0.2)
    assert torch.allclose(found.eval_var, torch.tensor([1.0, 4.0]).double())


def test_few_samples_lean_on_all_channels_together():
    generator = torch.Generator().manual_seed(1)
    noise_free = torch.randn(4, 200, generator=generator)
    x = torch.cat([noise_free, *(noise_free + torch.randn(4, 200, generator=generator) for _ in range(2))])
    found, _ = match_(x, torch.zeros(200), torch.full((200,), 2.0))
    assert found.eval_var.std() / found.eval_var.mean() < 0.8  # 5 and more, were every channel by itself
    assert found.eval_var.mean() == pytest.approx(1.0, rel=0.35)


@pytest.mark.parametrize(("shape", "dim"), [((12, 5), 0), ((5, 24, 7), 1), ((5, 7), None), ((0, 12), 1), ((), None)])
def test_replicas_lie_along_the_first_dimension_that_holds_them_all(shape, dim):
    assert row_dim(torch.zeros(shape), samples=4) == dim


def test_calm_rows_are_a_view():
    x = torch.zeros(12, 2)
    noise_free_rows(x, 4).fill_(1)
    assert x[:4].eq(1).all() and not x[4:].any()
    assert noise_free_rows(torch.zeros(5), 4) is None


def test_energies_are_means_over_channels_also_of_a_part_of_the_places():
    x = replicas(512, channels=4, positions=(16, 16)).float() + 1
    found = energies_of(x, 512)
    assert found.noise == pytest.approx(0.25, rel=0.05)
    assert found.shared == pytest.approx(0.64, rel=0.05)
    assert found.noise_free == pytest.approx(1.0, rel=0.05)
    assert found.second == pytest.approx(1.89, rel=0.05)
    assert energies_of(torch.zeros(7, 3), 512) is None
    assert energies_of(torch.zeros(1536, 3, dtype=torch.long), 512) is None


def test_channels_without_noise_stay_exact_beside_noisy_ones_however_few_the_samples():
    generator = torch.Generator().manual_seed(2)
    noise_free = torch.randn(4, 64, generator=generator)
    noises = [torch.randn(4, 64, generator=generator) * (torch.arange(64) % 2) for _ in range(2)]
    x = torch.cat([noise_free, *(noise_free + noise for noise in noises)])
    found, _ = match_(x, torch.zeros(64), torch.full((64,), 2.0))
    assert torch.allclose(found.eval_var[::2], torch.full((32,), 2.0).double())
    assert torch.allclose(found.eval_mean[::2], torch.zeros(32).double(), atol=1e-6)
    assert (found.eval_var < 100).all()


def test_means_that_differ_by_chance_alone_stay():
    generator = torch.Generator().manual_seed(3)
    noise_free = torch.randn(16, 200, generator=generator)
    x = torch.cat([noise_free, *(noise_free + torch.randn(16, 200, generator=generator) for _ in range(2))])
    found, _ = match_(x, torch.zeros(200), torch.full((200,), 2.0))
    assert float(found.eval_mean.square().mean().sqrt()) < 0.1, "half of 1 / sqrt(2 16), were they not shrunk"
    x = torch.cat([noise_free, *(noise_free - 1 + torch.randn(16, 200, generator=generator) for _ in range(2))])
    moved, _ = match_(x, torch.zeros(200), torch.full((200,), 2.0))
    assert float(moved.eval_mean.mean()) == pytest.approx(1, abs=0.1)


def test_half_precision_is_matched_as_float32_is():
    x = replicas(256).half()
    wide = x.float()
    match_(x, torch.zeros(3), torch.full((3,), 2.0))
    match_(wide, torch.zeros(3), torch.full((3,), 2.0))
    assert torch.allclose(x.float(), wide, rtol=1e-3, atol=1e-3)


def test_calls_together_have_the_moments_of_both():
    x, y = replicas(256, seed=1), 2 * replicas(256, seed=2) + 1
    both = channels_of(torch.cat([torch.cat(pair) for pair in zip(x.chunk(COUNT), y.chunk(COUNT), strict=True)]))
    found = pooled([channels_of(x), channels_of(y)])
    for name in ("train_mean", "eval_mean", "eval_var", "train_var", "covariance", "crossed"):
        assert torch.allclose(getattr(found, name), getattr(both, name), rtol=1e-2, atol=1e-2), name
