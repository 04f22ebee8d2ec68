"""benchmarks/merging: aligning undoes a shuffle of units, and docs/after-merging.md says what its results say."""

import copy
import json
from statistics import mean

import pytest
import torch
from torch import nn

from benchmarks.aligning import aligned, interpolated
from benchmarks.merging import DESK, FAMILIES, PAGE, RESULTS, removed, table
from benchmarks.pages import text_in

FOUND = json.loads(RESULTS.read_text())


def shuffled_(net, orders):
    """The same function, its units in another order."""
    state = net.state_dict()
    for order in orders:
        path = order.columns[0]
        place = torch.randperm(state[f"{path}.weight"].shape[1])
        for name in [n for n in state if any(n.startswith(f"{row}.") for row in order.rows) and state[n].dim()]:
            state[name] = state[name][place]
        for column in order.columns:
            state[f"{column}.weight"] = state[f"{column}.weight"][:, place]
    net.load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_aligning_finds_the_order_of_units_that_was_shuffled(name):
    torch.manual_seed(0)
    net = FAMILIES[name].build().eval()
    for tensor in (
        t for m in net.modules() if isinstance(m, nn.BatchNorm2d) for t in m.state_dict().values() if t.dim()
    ):
        nn.init.uniform_(tensor, 0.5, 1.5)  # norms built alike have no order to get wrong
    x = torch.randn(64, *((3, 16, 16) if "CIFAR" in name else (1, 8, 8)))
    other, orders = copy.deepcopy(net), FAMILIES[name].orders(net)
    shuffled_(other, orders)
    torch.testing.assert_close(other(x), net(x), rtol=1e-3, atol=1e-4)
    state, correlation = aligned(net, other, orders, x)
    assert correlation == pytest.approx(1, abs=1e-3)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())


def test_interpolating():
    one, other = {"w": torch.tensor([1.0]), "n": torch.tensor(3)}, {"w": torch.tensor([5.0]), "n": torch.tensor(9)}
    assert interpolated(one, other, 0.75) == {"w": torch.tensor([2.0]), "n": torch.tensor(3)}


def test_what_is_removed_is_of_the_barrier():
    found = {"end points": [2.0, 4.0], "merged": 13.0, "match_": 5.0}
    assert removed(found, "match_") == pytest.approx(80)


def test_the_table_is_what_the_results_say():
    assert text_in(PAGE, "merging") == table(FOUND)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name in FOUND])
def test_the_claims_hold(name):
    seeds = list(FOUND[name].values())
    assert len(seeds) >= (FAMILIES[name].pairs or 3)
    for one in seeds:
        ends = sum(one["end points"]) / 2
        assert ends < one["match_"] < one["merged"] < one["not aligned"]
        if "reestimate_" in one:
            gained = one["reestimate_"] - one["match_"]
            assert 1 < gained < 4 if name == DESK else abs(gained) < 1.5  # branches that end in no norm, or none
            assert one["update_bn"] == pytest.approx(one["reestimate_"], abs=0.5)
    ratios = mean(next(reversed(one["ratios"].values())) for one in seeds)
    assert ratios < 0.9, "variance is lost on the way to the output"
