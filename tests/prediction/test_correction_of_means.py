"""correct_ with match="mean": without data, what reestimate_ stores with them."""

from __future__ import annotations

import copy
from statistics import median

import pytest
import torch
from masked import MaskedNet, as_if_trained, norms_in, oracle, same_bits, statistics_in
from snapshots import Snapshot
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek

EXAMPLE = torch.zeros(2, 6)
DATA = torch.randn(4096, 6, generator=torch.Generator().manual_seed(7))


def trained(net: nn.Module, steps: int = 150) -> nn.Module:
    torch.manual_seed(1)
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(steps):
        x = DATA[step * 64 % 4096 :][:64]
        y = (x[:, :1] * x[:, 1:2]).tanh() + x[:, 2:3].sin()
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()
    return as_if_running(net)


def as_if_running(net: nn.Module) -> nn.Module:
    """Statistics of all data, with the weights that there are by now."""
    for norm in norms_in(net).values():
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    with torch.no_grad():
        for _ in range(4):
            net(DATA)
    return net.eval()


def of(order: str, p: float = 0.3, topology: str = "chain", depth: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return trained(MaskedNet("vector", topology, [(order, "module", p)] * depth))


def behind_a_dropout(p: float = 0.5) -> nn.Module:
    torch.manual_seed(5)
    return as_if_trained(nn.Sequential(nn.Linear(6, 64), nn.Dropout(p), nn.BatchNorm1d(64), nn.Linear(64, 1)), DATA)


def test_right_behind_a_dropout_nothing_changes():
    model = behind_a_dropout()
    before = statistics_in(model)
    done = ek.correct_(model, EXAMPLE, match="mean")
    assert done.match == "mean" and [row.path for row in done] == ["2"]
    assert float((statistics_in(model)[1] / before[1]).log().abs().mean()) < 0.05
    assert done.rows[0].paired.slope == pytest.approx(1, abs=0.02)
    assert float(((statistics_in(model)[0] - before[0]) / before[1].sqrt()).abs().mean()) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["chain", "dense"])
@pytest.mark.parametrize("order", ["LDNA", "LADN", "LNAD"])
def test_slopes_are_near_those_that_data_give(order, topology):
    model = of(order, topology=topology)
    with_data = ek.reestimate_(copy.deepcopy(model), list(DATA.split(64)), match="mean")
    slopes: dict[str, list[float]] = {}
    for seed in range(6):
        without = ek.correct_(model, EXAMPLE, match="mean", unsure="write", seed=seed)
        assert len(without) >= 2
        for row in without if not without.untouched else ():  # those behind a norm that is left are fed otherwise
            slopes.setdefault(row.path, []).append(row.paired.slope)
        without.undo()
    assert len(slopes) == len(with_data.slopes)
    for path, found in slopes.items():
        slope = with_data.slopes[path]
        assert median(found) == pytest.approx(float(slope.value[slope.is_known].mean()), abs=0.06)


@pytest.mark.parametrize("order", ["LADN", "LNAD"])
def test_outputs_come_near_to_the_average_over_masks(order):
    model = of(order, p=0.3, depth=2)
    with ek.noisy(model), torch.no_grad():
        average = torch.stack([model(DATA[:1024]) for _ in range(64)]).mean(0)

    def error(net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(DATA[:1024]) - average).square().mean())

    errors = {"as trained": error(model)}
    for match in ("variance", "mean"):
        corrected = copy.deepcopy(model)
        ek.correct_(corrected, EXAMPLE, match=match, unsure="write")
        errors[match] = error(corrected)
    assert errors["mean"] < 1.1 * errors["as trained"] and errors["mean"] < 1.1 * errors["variance"]


def test_undo_is_exact():
    model = of("LDNA", depth=2)
    before, found = Snapshot(model, world=False), statistics_in(model)
    done = ek.correct_(model, EXAMPLE, match="mean", unsure="write")
    assert len(done) and not same_bits(statistics_in(model), found)
    with ek.noisy(model):
        assert same_bits(statistics_in(model), found)
    done.undo()
    assert before.changes() == []


def test_statistics_only_are_written_and_nothing_else():
    model = of("LDNA", depth=2)
    written = [name for name in model.state_dict() if "running" in name]
    before = Snapshot(model)
    ek.correct_(model, EXAMPLE, match="mean", unsure="write")
    assert before.changes(written) == []


def test_seeds_decide():
    found = []
    for seed in (0, 0, 1):
        model = behind_a_dropout()
        ek.correct_(model, EXAMPLE, match="mean", seed=seed)
        found.append(statistics_in(model))
    assert same_bits(found[0], found[1]) and not same_bits(found[0], found[2])


class Odd(nn.Module):
    """Noise passes an operation that nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize("match", ["variance", "mean"])
def test_what_cannot_be_proven_is_left(match):
    torch.manual_seed(5)
    layers = nn.Linear(6, 8), nn.Dropout(0.5), Odd(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
    model = as_if_trained(nn.Sequential(*layers), DATA)
    before = statistics_in(model)
    done = ek.correct_(model, EXAMPLE, match=match)
    assert set(done.untouched) == {"4"} and not done.rows and same_bits(statistics_in(model), before)


def test_one_of_the_two_is_written_if_so_asked():
    model = of("LNAD", depth=2)
    before = statistics_in(model)
    ek.correct_(model, EXAMPLE, match="mean", stats="var", unsure="write")
    assert same_bits(before[::2], statistics_in(model)[::2]) and not same_bits(before, statistics_in(model))


def test_once_written_nothing_is_left_to_correct():
    model = behind_a_dropout()
    ek.correct_(model, EXAMPLE, match="mean")
    with pytest.raises(ek.ModelError, match="nothing is left"):
        ek.correct_(model, EXAMPLE, match="mean")
    with pytest.raises(ek.EvenkeelError, match="match must be"):
        ek.correct_(model, EXAMPLE, match="median")


def test_the_default_spares_regressions():
    for outputs, expected in ((1, "mean"), (3, "variance")):
        torch.manual_seed(0)
        layers = nn.Linear(6, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, outputs)
        assert ek.correct_(as_if_trained(nn.Sequential(*layers), DATA), EXAMPLE).match == expected


def test_slopes_are_those_of_the_oracle_on_normal_data():
    """Data as the replicas are: normal, and not correlated."""
    torch.manual_seed(2)
    layers = nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.ReLU(), nn.BatchNorm1d(32)
    model = as_if_trained(nn.Sequential(*layers, nn.Linear(32, 1)), DATA)
    answer, before = oracle(model, DATA, 64)["5"], statistics_in(model)[1]
    ek.correct_(model, EXAMPLE, match="mean", unsure="write")
    slope = (before / model[5].running_var).sqrt()
    live = answer.spread > 256
    assert float((slope - answer.slope)[live].abs().mean()) < 0.06
    assert float(slope[live].mean()) == pytest.approx(float(answer.slope[live].mean()), abs=0.04)


def test_a_report_of_the_shift_has_the_slope():
    rows = ek.predict_shift(behind_a_dropout(), EXAMPLE).rows
    assert rows[0].slope == pytest.approx(1, abs=0.05)
