"""docs/why-statistics-go-stale.md, docs/after-pruning.md: tables are what results say, and claims hold there."""

import json
import re
from statistics import fmean

import torch
from torch import nn

from benchmarks.pages import text_in
from benchmarks.stale import PAGE, PRUNING, RESULTS, aligned, between, build, pruned, quantized, regrouped, tables

FOUND = json.loads(RESULTS.read_text())
TORCH, OURS = "torch update_bn", "ek.reestimate_"


def mean(data, reason, treatment, figure="accuracy"):
    return fmean(run[figure] for run in FOUND[data][reason][treatment])


def test_the_tables_are_what_the_results_say():
    for name, table in tables(FOUND).items():
        assert text_in(PRUNING if name == "stale fused" else PAGE, name) == table


def test_three_seeds_of_every_reason():
    for data in ("digits", "cifar10", "fused"):
        assert all(len(runs) == 3 for row in FOUND[data].values() for runs in row.values())
    assert list(FOUND["digits"]) == list(FOUND["cifar10"])


def test_the_claims_hold():
    dropout = "dropout before the norms"
    for data, points in (("digits", 6), ("cifar10", 15)):
        assert round(100 * (mean(data, dropout, OURS) - mean(data, dropout, "as found"))) == points
        assert abs(mean(data, dropout, TORCH) - mean(data, dropout, "as found")) < 0.01
        for reason in FOUND[data]:
            if reason not in (dropout, "trained on two images at a time"):
                assert abs(mean(data, reason, OURS) - mean(data, reason, TORCH)) < 0.003, (data, reason)
            assert mean(data, reason, OURS) > mean(data, reason, "as found") - 0.002, (data, reason)
    two = "trained on two images at a time"
    assert 0.004 < mean("cifar10", two, OURS) - mean("cifar10", two, TORCH) < 0.008
    by_class = "statistics of data sorted by class"
    for reason, words in ((two, r"(\.\d+) against (\.\d+)\. Stat"), (by_class, r"\((\.\d+) against\s+(\.\d+)\)")):
        claimed = re.search(words, PAGE.read_text(encoding="utf-8")).groups()
        losses = [mean("digits", reason, treatment, "log_loss") for treatment in (TORCH, OURS)]
        assert [f"{loss:.3f}".lstrip("0") for loss in losses] == list(claimed)


def test_the_percentages_of_the_page_on_pruning_hold():
    text = " ".join(PRUNING.read_text(encoding="utf-8").split())
    for reason, words in (
        ("half of the filters pruned", r"fell from 99 % to (\d+) %, and came back to (\d+) %"),
        ("weights of 2 bits", r"2 bits to (\d+) %, and came back to (\d+) %"),
    ):
        claimed = [int(found) for found in re.search(words, text).groups()]
        assert claimed == [round(100 * mean("digits", reason, treatment)) for treatment in ("as found", OURS)]


def test_units_in_any_order_are_put_back():
    torch.manual_seed(0)
    one = build((1, 6, 8)).eval()
    x = torch.randn(16, 1, 8, 8)
    other, order = build((1, 6, 8)).eval(), torch.randperm(6)
    state = {key: value.clone() for key, value in one.state_dict().items()}
    state["0.weight"], state["4.weight"] = state["0.weight"][order], state["4.weight"][:, order]
    other.load_state_dict(state)
    assert torch.allclose(other(x), one(x), atol=1e-5) and not torch.equal(other[0].weight, one[0].weight)
    moved = aligned(one, other, x)
    assert all(torch.equal(a, b) for a, b in zip(moved.parameters(), one.parameters(), strict=True))
    assert torch.allclose(between(one, moved)(x), one(x), atol=1e-5)


def test_what_is_done_to_the_nets_is_what_is_said():
    torch.manual_seed(0)
    net = build((1, 8, 8))
    rounded = quantized(build((1, 8, 8)), 2)
    assert all(len(row.unique()) <= 3 for conv in (rounded[0], rounded[4]) for row in conv.weight.flatten(1))
    half = pruned(net)
    assert all(int((m.weight.flatten(1) == 0).all(1).sum()) == 4 for m in half if isinstance(m, nn.Conv2d))
    batches = [(torch.arange(6.0).view(6, 1), torch.tensor([2, 0, 1, 0, 2, 1]))]
    pairs = regrouped(batches, 2, by_class=True)
    assert [y.tolist() for _, y in pairs] == [[0, 0], [1, 1], [2, 2]]
    assert [x.flatten().tolist() for x, _ in pairs] == [[1, 3], [2, 5], [0, 4]]
