"""Claims: pairs of runs, one-sided tests on their differences, and what is said of runs that diverged."""

import math
from itertools import count
from statistics import mean

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from labs import a_record, results_of
from scipy import stats

from evenkeel.papers.lab.claims import LEVEL, Between, Claim, Difference, Equal, Within
from evenkeel.papers.lab.results import Results

NUMBERS = st.floats(-4, 4).map(lambda x: round(x, 3))
ENDS = st.sampled_from([-math.inf, math.inf])


def differences(groups):
    """Differences as given, each of a seed of its own."""
    seeds = count()
    return {name: [Difference(value, next(seeds), name) for value in values] for name, values in groups.items()}


def values(groups):
    return {name: [difference.value for difference in found] for name, found in groups.items()}


def verdict(pairs, exact=False, **groups):
    """On differences as given."""
    found = differences(groups or {"all": pairs})
    return Claim("", "", lambda results: found, exact=exact).judge(Results([]))


# verdicts


@given(st.lists(NUMBERS, min_size=2, max_size=12))
def test_the_test_is_students_of_all_pairs_against_zero(pairs):
    assume(len(set(pairs)) > 1)
    found = verdict(pairs)
    spread = math.sqrt(sum((x - mean(pairs)) ** 2 for x in pairs) / (len(pairs) - 1))
    t = mean(pairs) / (spread / math.sqrt(len(pairs)))
    assert found.p_value == pytest.approx(stats.t.sf(t, len(pairs) - 1), rel=1e-9, abs=1e-300)
    assert found.holds == ("no" if mean(pairs) <= 0 else "yes" if found.p_value < LEVEL else "undecided")


@given(st.lists(NUMBERS | ENDS, min_size=2, max_size=12))
def test_with_pairs_that_are_not_finite_the_test_is_the_sign_test(pairs):
    assume(any(map(math.isinf, pairs)))
    found = verdict(pairs)
    n, favour = len(pairs), sum(x > 0 for x in pairs)
    chance = sum(math.comb(n, k) for k in range(favour, n + 1)) / 2**n
    assert found.p_value == pytest.approx(chance)
    if 2 * favour < n:
        assert found.holds == "no"
    elif 2 * favour > n:
        assert found.holds == ("yes" if chance < LEVEL else "undecided")


@pytest.mark.parametrize("value", [0.25, 0.0, -0.25])
def test_equal_differences_are_judged_by_their_sign(value):
    few, many = verdict([value] * 4), verdict([value] * 5)
    assert few.p_value == pytest.approx(1 / 16 if value > 0 else 1)
    assert (few.holds, many.holds) == (("undecided", "yes") if value > 0 else ("no", "no"))


@pytest.mark.parametrize(
    ("pairs", "holds"),
    [([], "not run"), ([0.1], "undecided"), ([math.inf], "undecided"), ([0.0], "no"), ([-math.inf], "no")],
)
def test_a_single_pair_proves_nothing_but_may_contradict(pairs, holds):
    found = verdict(pairs)
    assert found.holds == holds and math.isnan(found.p_value)


@given(st.lists(NUMBERS, max_size=5))
def test_an_exact_claim_holds_if_every_pair_says_so(pairs):
    found = verdict(pairs, exact=True)
    assert found.holds == ("not run" if not pairs else "yes" if all(x > 0 for x in pairs) else "no")
    assert math.isnan(found.p_value)
    favour = sum(x > 0 for x in pairs)
    against = "; not for all" if favour > 0 and not sum(pairs) > 0 else ""
    assert found.ours == (f"{favour} of {len(pairs)} pairs{against}" if pairs else "-")


@given(st.dictionaries(st.sampled_from("abc"), st.lists(NUMBERS | ENDS, max_size=4)))
def test_groups_against_are_those_whose_mean_is_not_above_zero(groups):
    found = verdict(None, **groups) if groups else verdict([])
    assert found.pairs == [value for values in groups.values() for value in values]
    assert found.against == [name for name, values in groups.items() if values and not sum(values) / len(values) > 0]


def test_the_finding_is_told_in_one_line():
    claim = Claim("", "", lambda results: {})
    assert claim.judge(Results([])).ours == "-"
    assert verdict([0.0125]).ours == "+1.25 points, 1 of 1 pairs"
    assert verdict([-math.inf]).ours == "-inf points, 0 of 1 pairs"
    nats = Claim("", "", lambda results: differences({"": [1.0, 3.0]}), unit="nats", factor=1.0).judge(Results([]))
    assert nats.ours == "+2 nats, 2 of 2 pairs, p = 0.15 over 2 seeds"
    groups = verdict(None, a=[0.02, 0.03], b=[-0.01, -0.01], c=[0.0])
    assert groups.ours == f"+0.6 points, 2 of 5 pairs, p = {groups.p_value:.2g} over 5 seeds; not for b, c"
    assert verdict(None, a=[-0.02, -0.03], b=[-0.01]).ours.endswith(f"0 of 3 pairs, p = {0.96:.2g} over 3 seeds")


def test_logarithms_are_told_as_the_ratio_that_they_are_of():
    results = results_of("x", {(("a",), 0): 3.0, (("b",), 0): 2.0, (("a",), 1): 6.0, (("b",), 1): 1.0}, "net")
    claim = Claim("", "", Between("x", {"net": "a"}, {"net": "b"}, log=True), unit="shift")
    assert claim.judge(results).ours == "x3 shift, 2 of 2 pairs, p = 0.18 over 2 seeds"  # the root of 3/2 times 6/1


# differences


FIGURES = st.sampled_from([0.0, 0.25, 0.5, 2.0, math.nan, math.inf])


def obvious(higher, lower, log):
    """None where there is no difference to speak of."""
    good = [math.isfinite(x) and (x > 0 or not log) for x in (higher, lower)]
    if all(good):
        return math.log(higher) - math.log(lower) if log else higher - lower
    return None if not any(good) else -math.inf if good[0] else math.inf


@given(st.dictionaries(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), st.tuples(FIGURES, FIGURES)), st.booleans())
def test_within_compares_two_figures_of_every_run(figures, log):
    rows = [a_record(seed, net=net)(x=x, y=y) for (net, seed), (x, y) in figures.items()]
    expected = {}
    for (net, _), (x, y) in figures.items():
        if (difference := obvious(x, y, log)) is not None:
            expected.setdefault(net, []).append(pytest.approx(difference))
    assert values(Within("x", "y", by=("net",), log=log)(Results(rows))) == expected
    some = Within("x", "y", by=("net",), where={"net": "a"}, log=log)(Results(rows))
    assert values(some) == {net: found for net, found in expected.items() if net == "a"}


KEYS = st.tuples(st.sampled_from("ab"), st.sampled_from(["here", "there", "none"]), st.integers(0, 2))


@given(st.dictionaries(KEYS, FIGURES), st.booleans())
def test_between_compares_runs_that_are_alike_but_for_the_named_factors(figures, log):
    rows = results_of("x", {((net, place), seed): x for (net, place, seed), x in figures.items()}, "net", "place")
    expected = {}
    for (net, place, seed), x in figures.items():
        if place == "here" and (net, "there", seed) in figures:
            difference = obvious(x, figures[net, "there", seed], log)
            if difference is not None:
                expected.setdefault(net, []).append(difference)
    higher, lower = {"place": "here"}, {"place": "there"}
    assert values(Between("x", higher, lower, by=("net",), log=log)(rows)) == expected
    pooled = values(Between("x", higher, lower, log=log)(rows)).get("", [])
    assert sorted(pooled) == pytest.approx(sorted(x for found in expected.values() for x in found))
    some = Between("x", higher, lower, by=("net",), where={"net": "b"}, log=log)(rows)
    assert values(some) == {net: found for net, found in expected.items() if net == "b"}


def test_two_factors_may_differ_at_once():
    figures = {(("a", 0.5), 0): 3.0, (("none", 0.0), 0): 1.0, (("a", 0.1), 0): 2.0}
    results = results_of("x", figures, "place", "p")
    claim = Between("x", {"place": "a", "p": 0.5}, {"place": "none", "p": 0.0}, by=("place",))
    assert claim(results) == {"a": [Difference(2.0, 0, "a-0.5")]}


def test_the_test_is_on_one_number_a_seed_over_the_arms_that_all_seeds_have():
    figures = {(("a", net), seed): seed + 2.0 + len(net) for net in ("wrn", "vgg", "mlp") for seed in range(3)}
    figures |= {(("none", net), seed): 1.0 for net in ("wrn", "vgg", "mlp") for seed in range(3)}
    del figures[("a", "mlp"), 2]
    claim = Claim("", "", Between("x", {"place": "a"}, {"place": "none"}, by=("net",)))
    found = claim.judge(results_of("x", figures, "place", "net"))
    assert len(found.pairs) == 8 and found.seeds == 3
    assert found.p_value == pytest.approx(stats.ttest_1samp([4.0, 5.0, 6.0], 0, alternative="greater").pvalue)


def test_a_training_that_diverged_counts_for_the_one_that_did_not():
    losses = {(("he",), seed): math.nan for seed in range(5)} | {(("ours",), seed): 0.5 for seed in range(5)}
    claim = Claim("", "", Between("loss", {"init": "he"}, {"init": "ours"}), unit="points")
    found = claim.judge(results_of("loss", losses, "init"))
    assert found.pairs == [math.inf] * 5 and found.holds == "yes" and found.p_value == pytest.approx(1 / 32)
    assert found.ours == "+inf points, 5 of 5 pairs, p = 0.031 over 5 seeds"
    both = Claim("", "", Between("loss", {"init": "he"}, {"init": "he"})).judge(results_of("loss", losses, "init"))
    assert both.holds == "not run"


@given(st.dictionaries(st.sampled_from("abc"), st.floats(-1, 1)), st.floats(0, 1))
def test_figures_equal_published_ones_within_the_tolerance(values, tolerance):
    published = {"a": 0.5, "b": -0.5}
    rows = results_of("x", {((net,), 0): x for net, x in values.items()}, "net")
    claim = Claim("", "", Equal("x", published, tolerance), exact=True)
    found = claim.judge(rows)
    near = [abs(values[net] - published[net]) < tolerance for net in values if net in published]
    assert found.holds == ("not run" if not near else "yes" if all(near) else "no")


def test_an_exact_claim_counts_every_seed():
    claim = Claim("", "", Equal("x", {"a": 0.0}, 0.1), exact=True)
    found = claim.judge(results_of("x", {(("a",), 0): 0.5, (("a",), 1): 0.0}, "net"))
    assert (len(found.pairs), found.holds, found.ours) == (2, "no", "1 of 2 pairs; not for a")
