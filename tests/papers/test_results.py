"""Results: records read from files, in order; the best of a tuned factor, by what all arms have in common."""

import json
import math
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from labs import a_record, results_of

from evenkeel.errors import EvenkeelError
from evenkeel.output.files import write_json
from evenkeel.papers.lab.results import Record, Results, read_results
from evenkeel.papers.lab.specs import SCALES, Selection, arm_name, grid

ARMS = grid(net=("wrn", "mlp"), p=(0.5, 0.1))
BY_LR = Selection(over="lr", by="cost")
COSTS = st.sampled_from([0.25, 0.5, 0.75, 1.0, math.nan, math.inf])


def content_of(scale="quick", seed=0, **factors):
    times = {"training": 1.5, "measuring": 0.25}
    history = [{"epoch": 1, "train_loss": math.nan}, {"epoch": 2, "train_loss": 0.5}]
    figures = {"error": 0.5, "loss": math.inf, "ratio": [1.0, math.nan], "deep": {"x": math.nan}}
    return {
        "factors": factors,
        "seed": seed,
        "scale": scale,
        "figures": figures,
        "history": history,
        "seconds": times,
    }


def write(folder, content):
    path = folder / f"{arm_name(content['factors'])}-{content['seed']}.json"
    write_json(path, content)
    return path


# one record


def test_what_is_not_finite_is_read_as_no_number(tmp_path):
    record = Record.read(write(tmp_path, content_of(net="wrn", p=0.5)))
    assert (record.arm, record.seed, record.scale, record.seconds) == ("wrn-0.5", 0, "quick", 1.75)
    assert record.figures["error"] == 0.5 and record.figures["ratio"][0] == 1.0
    assert all(map(math.isnan, (record.figures["loss"], record.figures["ratio"][1], record.figures["deep"]["x"])))
    assert math.isnan(record.history[0]["train_loss"]) and record.history[1] == {"epoch": 2, "train_loss": 0.5}


def test_what_is_no_record_is_told_in_one_line(tmp_path):
    path = write(tmp_path, content_of(p=0.5))
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    damaged = [whole[: len(whole) * i // 20] for i in range(20)]
    others = ["[]", "1", "null", '"text"', "{}", json.dumps({"figures": {}}), "".join(lines[:-2])]
    for text in (*damaged, *others):
        path.write_text(text)
        with pytest.raises(EvenkeelError, match=r"is no result of a run .*: remove it and run again") as caught:
            Record.read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(EvenkeelError, match="is no result of a run"):
        Record.read(path)
    with pytest.raises(EvenkeelError, match="is no result of a run"):
        Record.read(tmp_path / "absent.json")


# a folder of them


def test_records_are_read_in_the_order_of_arms_and_seeds(tmp_path):
    for seed in (10, 2, 0):
        for factors in reversed(ARMS):
            write(tmp_path, content_of(seed=seed, **factors))
    rows = read_results(tmp_path, ARMS, "quick")
    assert [(row.factors, row.seed) for row in rows] == [(arm, seed) for arm in ARMS for seed in (0, 2, 10)]


def test_records_of_other_scales_and_of_arms_that_are_gone_are_left_out(tmp_path):
    write(tmp_path, content_of(**ARMS[0]))
    write(tmp_path, content_of(scale="full", **ARMS[1]))
    write(tmp_path, content_of(scale="smoke", **ARMS[2]))  # at smoke scale there is no such arm
    write(tmp_path, content_of(net="gone", p=0.5))
    arms = {"smoke": ARMS[:2], "quick": ARMS, "desk": ARMS, "full": ARMS}
    found = {scale: read_results(tmp_path, arms[scale], scale).arms() for scale in SCALES}
    assert found == {"smoke": [], "quick": ["wrn-0.5"], "desk": [], "full": ["wrn-0.1"]}
    assert not read_results(tmp_path / "absent", ARMS, "quick")


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, content_of(**ARMS[0]))
    path = write(tmp_path, content_of(**ARMS[1]))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(EvenkeelError, match=r"wrn-0\.1-0\.json is no result of a run"):
        read_results(tmp_path, ARMS, "quick")


# what is made of them


def test_rows_are_found_by_factors_arms_and_seeds():
    values = {(("a", p), seed): p + seed for p in (0.5, 0.1) for seed in (2, 0)} | {(("b", 0.5), 1): 7.0}
    results = results_of("x", values, "net", "p")
    assert results.arms() == ["a-0.5", "a-0.1", "b-0.5"]
    assert results.levels("p") == [0.5, 0.1] and results.levels("net") == ["a", "b"] and results.levels("q") == []
    assert results.seeds() == [0, 1, 2]
    assert results.where(net="a", p=0.1).values("x") == [2.1, 0.1]
    assert results.where().values("x") == list(values.values())
    assert not results.where(net="c") and not results.where(q=1)
    parts = results.by_arm()
    assert {arm: part.values("x") for arm, part in parts.items()} == {
        "a-0.5": [2.5, 0.5],
        "a-0.1": [2.1, 0.1],
        "b-0.5": [7.0],
    }
    assert all(part.arms() == [arm] for arm, part in parts.items())


def test_any_of_several_levels_will_do():
    found = Results(a_record(net=net)() for net in ("wrn", "vgg", "mlp"))
    assert [row.factors["net"] for row in found.where(net=("mlp", "wrn"))] == ["wrn", "mlp"]
    assert not found.where(net=()) and not found.where(place=("a", "b"))


def test_means_and_deviations_are_of_the_runs_that_have_the_figure():
    rows = [a_record(seed, p=0.5)(x=float(seed)) for seed in range(4)] + [a_record(4, p=0.5)(y=1.0)]
    results = Results(rows)
    assert results.mean("x") == mean(range(4)) and results.deviation("x") == pytest.approx(stdev(range(4)))
    assert results.mean("y") == 1.0 and math.isnan(results.deviation("y"))
    assert math.isnan(results.mean("z")) and math.isnan(results.deviation("z"))
    diverged = results_of("x", {((0.5,), 0): 1.0, ((0.5,), 1): math.nan}, "p")
    assert math.isnan(diverged.mean("x")) and math.isnan(diverged.deviation("x"))


# tuning


@given(st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from([1.0, 0.1, 0.01]), st.integers(0, 2)), COSTS))
def test_the_best_value_has_the_least_mean_over_seeds_that_all_values_have(costs):
    results = results_of("cost", {((net, lr), seed): cost for (net, lr, seed), cost in costs.items()}, "net", "lr")
    tuned = results.tuned(BY_LR)
    compared = {net: {lr for n, lr, _ in costs if n == net} for net, _, _ in costs}
    assert set(tuned.arms()) == {
        net for net, rates in compared.items() if any(all((net, lr, s) in costs for lr in rates) for s in range(3))
    }
    for net, rows in tuned.by_arm().items():
        seeds = {lr: {s for n, r, s in costs if (n, r) == (net, lr)} for n, lr, _ in costs if n == net}
        shared = set.intersection(*seeds.values())
        means = {}
        for lr in seeds:
            values = [costs[net, lr, seed] for seed in shared]
            means[lr] = sum(values) / len(values) if values and all(map(math.isfinite, values)) else math.inf
        (chosen,) = {row.chosen for row in rows}
        assert means[chosen] == min(means.values())
        assert {row.seed for row in rows} == seeds[chosen]
        assert all(row.factors == {"net": net} for row in rows)
        assert [str(row.figures["cost"]) for row in rows] == [str(costs[net, chosen, row.seed]) for row in rows]


def test_a_value_that_diverged_never_wins_and_more_seeds_of_the_best_do_not_count():
    costs = {((0.1,), 0): 0.5, ((0.1,), 1): 99.0, ((1.0,), 0): math.nan, ((0.01,), 0): 0.75}
    assert {row.chosen for row in results_of("cost", costs, "lr").tuned(BY_LR)} == {0.1}
    assert [row.seed for row in results_of("cost", costs, "lr").tuned(BY_LR)] == [0, 1]
    rows = [a_record(lr=0.1)(), a_record(lr=0.01)(cost=3.0)]  # one without the figure is no better
    assert [row.chosen for row in Results(rows).tuned(BY_LR)] == [0.01]


def test_without_a_selection_all_is_as_it_was():
    results = results_of("cost", {((0.1,), 0): 0.5}, "lr")
    assert results.tuned(None) is results
    assert not Results([]).tuned(BY_LR)
