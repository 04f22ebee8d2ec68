"""match="mean" where it is easily wrong: few samples, shared masks, rare channels, other ways to draw, odd models."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from masked import as_if_trained, fed, norms_in, oracle, same_bits, statistics_in
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.statistics.pairs import Pairs, paired_statistics

DATA = torch.randn(768, 6, generator=torch.Generator().manual_seed(7))
BATCHES = list(DATA.split(64))
REGRESSION = [(x, x[:, :1]) for x in BATCHES]


def net(noise: nn.Module, *between: nn.Module, passes: int = 4) -> nn.Module:
    torch.manual_seed(5)
    layers = nn.Linear(6, 8), noise, *between, nn.BatchNorm1d(8), nn.Linear(8, 1)
    return as_if_trained(nn.Sequential(*layers), DATA, passes)


class OfAllSamples(nn.Module):
    """One mask for all samples of a batch, as DropConnect, stochastic depth in mode "batch" and LayerDrop draw."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.empty(1, x.shape[1]).bernoulli_(0.5) / 0.5 if self.training else x


@pytest.mark.parametrize("batches", [BATCHES, [DATA]], ids=["merged", "one"])
def test_masks_that_samples_share_are_one_draw(batches):
    model = net(OfAllSamples(), nn.ReLU(), nn.Linear(8, 8), passes=200)
    slope = ek.reestimate_(model, batches, match="mean").slopes["4"]
    assert not ((slope.value - 1).abs() > 6 * slope.error)[slope.is_known].any()


def test_a_channel_that_few_samples_wake_has_no_known_slope():
    off = torch.zeros(512, 1)
    off[3] = 1.0
    pairs = Pairs(torch.zeros(1), torch.ones(1), eps=0.0)
    for number, part in enumerate(off.split(64)):
        pairs.add([(number, paired_statistics(part, 2 * part))])  # the mask that it met kept it
    pairs.merge()
    assert not pairs.slope.is_known.any()


def test_a_small_slope_must_be_known_well():
    """0.15 give or take 0.08 says nothing of 1 / k^2."""
    torch.manual_seed(0)
    off = torch.randn(512, 64)
    pairs = Pairs(torch.zeros(64), torch.ones(64), eps=0.0)
    for number, part in enumerate(off.split(32)):
        pairs.add([(number, paired_statistics(part, 0.15 * part + 1.8 * torch.randn_like(part)))])
    pairs.merge()
    slope = pairs.slope
    assert float(slope.error.mean()) < 0.1
    off_by = pairs.matched().variance[slope.is_known].log() - math.log(1 / 0.15**2)
    assert not (off_by.abs() > 1).any()


@pytest.mark.parametrize("count", [5, 25, 100])
def test_few_samples_do_no_harm(count):
    """Training left what is right: with one dropout, right before the norm, and a linear head."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.Linear(32, 1)
    model = as_if_trained(nn.Sequential(*layers), torch.randn(4096, 6), 16)
    expected, errors = model(DATA).detach(), list[float]()
    for seed in range(6):
        repaired = copy.deepcopy(model)
        ek.reestimate_(repaired, [torch.randn(count, 6)], match="mean", seed=seed)
        errors.append(float((repaired(DATA).detach() - expected).square().mean() / expected.var()))
    assert sum(errors) / 6 < 0.02


class AlwaysOn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, True)


def test_dropout_that_is_on_in_eval_mode_too_changes_nothing():
    model = net(AlwaysOn())
    before = statistics_in(model)
    ek.reestimate_(model, REGRESSION)
    assert float((statistics_in(model)[1] / before[1]).log().abs().mean()) < 0.2


def test_data_that_are_not_finite_are_no_noise():
    with pytest.raises(ek.BatchError, match="batch 1 is not finite"):
        ek.reestimate_(net(nn.Dropout()), [x * math.nan for x in BATCHES], match="mean")


class Averages(nn.Module):
    """A norm made by hand, whose statistics train mode moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("deviation", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.deviation.lerp_(x.std(0), 0.5)
        return x / self.deviation


def test_noise_off_sees_the_buffers_of_the_model(monkeypatch):
    model, seen = net(nn.Dropout(), Averages(), nn.ReLU(), nn.Linear(8, 8)), []
    matched = Pairs.matched
    monkeypatch.setattr(Pairs, "matched", lambda self: (seen.append(self.off.variance), matched(self))[1])
    ek.reestimate_(copy.deepcopy(model), [3 * x for x in BATCHES], match="mean")
    assert torch.allclose(seen[-1], fed(model, 3 * DATA)["5"].var(0), rtol=1e-3)


class Auxiliary(nn.Module):
    """Returns more in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = net(nn.Dropout(0.0)), nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.body(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def test_more_outputs_in_train_mode_are_no_noise():
    found = []
    for match in ("mean", "variance"):
        torch.manual_seed(0)
        model = Auxiliary().eval()
        ek.reestimate_(model, [1 + x for x in BATCHES], match=match)
        found.append(statistics_in(model))
    assert same_bits(*found)


def test_a_norm_of_train_mode_only_is_said_never_to_be_reached():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux = net(nn.Dropout(0.3)), nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.body(x)
            return (x, self.aux(x)) if self.training else x

    done = ek.reestimate_(Both().eval(), BATCHES, match="mean")
    assert "never reached" in done.untouched["aux"]


class OfItsOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(0.5, generator=self.generator) if self.training else x


def test_the_seed_decides_masks_of_a_generator_that_the_model_keeps():
    model = net(OfItsOwn())
    slopes = []
    for seed in (0, 1):
        done = ek.reestimate_(model, BATCHES, match="mean", seed=seed)
        slopes.append(done.slopes["2"].error)
        done.undo()
    assert not torch.equal(*slopes)


class OfPython(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0 if self.training and random.random() < 0.3 else x


def test_noise_that_python_draws_is_found():
    assert ek.reestimate_(net(OfPython(), passes=50), list(DATA.split(8)), match="mean", memory=0).slopes


class NeedsTargets(nn.Module):
    """Returns its loss in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(nn.Dropout())

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training:
            assert targets is not None
            return F.mse_loss(self.body(x), targets)
        return self.body(x)


def test_where_train_mode_cannot_be_run_the_default_is_the_variance():
    assert ek.reestimate_(NeedsTargets().eval(), BATCHES).match == "variance"


def test_where_train_mode_cannot_be_run_the_best_is_among_the_others():
    done = ek.reestimate_(NeedsTargets().eval(), REGRESSION, choose="best", held_out=REGRESSION)
    assert any("match='mean' was not tried" in note for note in done.notes)


def test_statistics_never_updated_are_replaced_if_so_asked():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1)).eval()
    nn.init.normal_(model[2].weight)
    nn.init.normal_(model[2].bias)
    ek.reestimate_(model, [(5 * x + 3, y) for x, y in REGRESSION], unsure="write")
    assert float(norms_in(model)["2"].running_var.mean()) > 5


def test_nan_that_training_left_is_known_after_its_repair():
    model = net(nn.Dropout())
    model[2].running_var[0] = math.nan
    ek.reestimate_(model, BATCHES, match="variance")
    assert ek.reestimate_(model, REGRESSION).match == "variance"


def test_a_few_large_batches_of_a_generator_tell_as_much_as_those_of_a_list():
    listed = ek.reestimate_(net(nn.Dropout(0.2)), [DATA], match="mean").slopes["2"]
    once = ek.reestimate_(net(nn.Dropout(0.2)), iter([DATA]), match="mean").slopes["2"]
    assert listed.is_known.all() and torch.equal(listed.value, once.value)


def test_the_oracle_sees_that_shared_masks_average_to_one():
    model = net(OfAllSamples(), nn.ReLU(), nn.Linear(8, 8), passes=200)
    assert float((oracle(model, DATA, 1024)["4"].slope - 1).abs().mean()) < 0.15
