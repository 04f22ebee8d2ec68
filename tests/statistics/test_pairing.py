"""Pairing: whether there is noise, what is paired with what, and what is left unpaired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from masked import Added, Functional, Mask, Path, as_if_trained, norms_in
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.statistics.batch_merging import MOST_PARTS, Group, Piece
from evenkeel.statistics.noise import Noise
from evenkeel.statistics.pairing import Pairing
from evenkeel.statistics.pairs import Match

DATA = torch.randn(64, 6, generator=torch.Generator().manual_seed(7))


def net(noise: nn.Module, outputs: int = 1) -> nn.Module:
    torch.manual_seed(5)
    layers = nn.Linear(6, 8), noise, nn.BatchNorm1d(8), nn.Linear(8, outputs)
    return as_if_trained(nn.Sequential(*layers), DATA)


def pairing_of(model: nn.Module, match: Match | None = "mean", **options: Any) -> Pairing:
    return Pairing(model, Noise(model), norms_in(model), match, **options)  # type: ignore[arg-type]


def is_needed(model: nn.Module, match: Match | None = "mean", batch: Any = DATA) -> bool:
    with torch.no_grad():
        return pairing_of(model, match).is_needed(
            lambda given: model(given[0] if isinstance(given, tuple) else given), batch, None, is_divisible=True
        )


class Rarely(nn.Module):
    """Drops the whole batch, in one of two calls."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 if self.training and torch.rand(()) < 0.5 else x


class Draws(nn.Module):
    """Draws numbers, and does nothing with them."""

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        return x


class OfItsOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(0.5, generator=self.generator) if self.training else x


NOISY: dict[str, Callable[[], nn.Module]] = {
    "dropout": nn.Dropout,
    "functional": lambda: Functional(0.1),
    "alpha": nn.AlphaDropout,
    "uout": lambda: ek.Uout(0.1),
    "whole samples": lambda: Path(0.2),
    "by hand": lambda: Mask(0.1),
    "added": lambda: Added(0.1),
    "rarely": Rarely,
    "a generator of its own": OfItsOwn,
}
QUIET: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "dropout": lambda: nn.Dropout(0.0),
    "functional": lambda: Functional(0.0),
    "alpha": lambda: nn.AlphaDropout(0.0),
    "draws": Draws,
}


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_found(name):
    assert is_needed(net(NOISY[name]())) and is_needed(net(NOISY[name]()), None, (DATA, DATA[:, :1]))


@pytest.mark.parametrize("name", QUIET)
def test_its_absence_is_found(name):
    assert not is_needed(net(QUIET[name]()))


def test_a_classifier_needs_no_pairs_by_default():
    assert not is_needed(net(nn.Dropout()), None, (DATA, torch.zeros(64, dtype=torch.long)))
    assert not is_needed(net(nn.Dropout(), 3), None)
    assert is_needed(net(nn.Dropout(), 3), "variance")


def group_of(*sizes: int) -> Group:
    return Group(tuple(Piece(number + 1, torch.zeros(n, 6), n) for number, n in enumerate(sizes)))


class Feeds(nn.Module):
    """Feeds its norm what it is told, in order, with noise on."""

    def __init__(self, norm: nn.Module, *fed: Tensor) -> None:
        super().__init__()
        self.norm, self.fed = norm, fed

    def forward(self) -> None:
        for x in self.fed:
            self.norm(x)


def held(*fed: Tensor, group: Group | None = None) -> tuple[Pairing, Group]:
    model, group = Feeds(nn.BatchNorm1d(2), *fed).eval(), group or group_of(16)
    pairing = pairing_of(model)
    pairing.hold(model, group, 4096)
    return pairing, group


@pytest.mark.parametrize("on", [[16], [10, 6], [4, 4, 4, 4], [1] * 16])
@pytest.mark.parametrize("off", [[16], [7, 9], [5, 5, 6]])
def test_pieces_are_paired_in_order(on, off):
    x = torch.randn(16, 2)
    pairing, group = held(*(2 * x).split(on))
    population = pairing.population("norm")
    for part in x.split(off):
        population.add(pairing.parts(group, "norm", part, 99))
    population.merge()
    assert not pairing.unpaired and population.count == 16
    assert torch.allclose(population.off.variance.float(), x.var(0), rtol=1e-5)  # type: ignore[attr-defined]
    assert torch.allclose(population.on.variance.float(), 4 * x.var(0), rtol=1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(12, 2), (16, 2, 3), (0, 2)])
def test_other_samples_or_positions_are_no_pairs(shape):
    x = torch.randn(16, 2)
    pairing, group = held(torch.randn(shape))
    parts = pairing.parts(group, "norm", x, 99)
    assert pairing.unpaired == {"norm"}
    population = pairing.population("norm")
    population.add(parts)
    population.merge()
    assert population.matched().variance.float().eq(1).all()  # type: ignore[attr-defined]


def test_what_is_held_is_a_copy():
    x = torch.randn(16, 2)
    kept = x.clone()
    pairing, group = held(x)
    x.zero_()
    (_, statistics), *_ = pairing.parts(group, "norm", kept, 99)
    assert torch.allclose(statistics.variance[4:], torch.zeros(2))


def test_few_batches_are_told_by_their_parts():
    x = torch.randn(16, 2)
    for expected, sizes, count in ((99, (16,), 1), (1, (16,), MOST_PARTS), (2, (8, 8), MOST_PARTS), (99, (8, 8), 2)):
        pairing, group = held(x, group=group_of(*sizes))
        parts = pairing.parts(group, "norm", x, expected)
        assert len({number for number, _ in parts}) == count and sum(s.size for _, s in parts) == 16
    pairing, group = held(x[:3], group=group_of(3))
    assert [s.size for _, s in pairing.parts(group, "norm", x[:3], 1)] == [1, 1, 1]


def test_masks_are_those_of_the_seed_the_rank_and_the_batch():
    model, found = net(nn.Dropout()), []
    for seed, rank, first in ((0, 0, 1), (0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)):
        pairing, group = pairing_of(model, seed=seed, rank=rank), Group((Piece(first, DATA, 64),))
        with torch.no_grad():
            pairing.hold(lambda: model(DATA), group, 4096)
            (_, statistics), *_ = pairing.parts(group, "2", model[0](DATA), 99)
        found.append(statistics.mean[8:16])
    assert torch.equal(found[0], found[1])
    assert not any(torch.equal(found[0], other) for other in found[2:])


def test_modes_are_as_found():
    model = net(nn.Dropout()).train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    is_needed(model)
    assert [module.training for module in model.modules()] == flags
