"""merge_parts_: the bits of one machine in any order and cut, and statistics that settle within a few rounds."""

import copy
import itertools
import math

import pytest
import torch
from parted import images, plain, rounds, same, save_part, settled_in_order, statistics
from processes import forked
from snapshots import Snapshot
from torch import nn

import evenkeel as ek

DATA = images(320).split(16)
PROBE = DATA[:8]


def merged(model, shards, probe=PROBE, **options):
    model = copy.deepcopy(model)
    return statistics(model), rounds(model, shards, probe, **options)[0], statistics(model)


def cuts(batches, *places):
    return [batches[a:b] for a, b in itertools.pairwise([0, *places, len(batches)])]


# the same bits


@pytest.mark.slow
def test_parts_in_any_order_and_cut_anywhere_give_the_bits_of_one_part():
    model = plain(4)
    expected = merged(model, [DATA])[2]
    for places in ((1,), (7,), (19,), (3, 4, 11)):
        shards = cuts(DATA, *places)
        assert same(merged(model, shards)[2], expected)
        assert same(merged(model, shards[::-1])[2], expected)


def test_the_order_of_batches_does_not_count_either():
    model = plain(4)
    assert same(merged(model, [DATA[::-1]])[2], merged(model, [DATA])[2])


@pytest.mark.slow
def test_later_rounds_do_not_depend_on_cuts_either():
    model = plain(4)
    one, many = (rounds(copy.deepcopy(model), shards, PROBE, 3) for shards in ([DATA], cuts(DATA, 2, 9)))
    assert one[1] == many[1] and one[0].doubts == many[0].doubts
    assert one[0].start.fingerprint == many[0].start.fingerprint
    assert one[0].standard_errors == many[0].standard_errors


@pytest.mark.slow
def test_parts_of_processes_give_the_bits_of_one(tmp_path):
    paths = [str(tmp_path / "b.part"), str(tmp_path / "a.part")]
    for path, (first, last) in zip(paths, ((0, 7), (7, 20)), strict=True):
        forked(save_part, first, last, path, folder=tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, one = plain(5), plain(5)
        ek.merge_parts_(model, paths, PROBE)
        ek.merge_parts_(one, [ek.measure_part(one, DATA)], PROBE)
    finally:
        torch.set_num_threads(threads)
    assert same(statistics(model), statistics(one))


def test_norms_with_none_before_them_get_what_reestimation_gives():
    """Float64 sums differ by their rounding alone, once each batch runs by itself."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6)).double()
    data = torch.randn(20, 32, 4, dtype=torch.float64)
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    ek.reestimate_(one, data, match="variance", memory=0)
    rounds(other, cuts(data, 3, 8), None)
    for name, value in statistics(one).items():
        torch.testing.assert_close(statistics(other)[name], value, rtol=1e-13, atol=1e-14)
    narrow, wide = copy.deepcopy(model).float(), copy.deepcopy(model).float()
    ek.reestimate_(narrow, data.float(), match="variance", memory=0)
    rounds(wide, cuts(data.float(), 5), None)
    assert same(statistics(narrow), statistics(wide))


# what they settle to


@pytest.mark.slow
def test_rounds_come_to_what_settling_in_order_gives():
    model, data = plain(12, dtype=torch.float64), images(320, dtype=torch.float64).split(16)
    oracle = statistics(settled_in_order(model, torch.cat(data)))
    done, changed = rounds(model, cuts(data, 5, 13), data[:8], 6)
    assert changed == sorted(changed, reverse=True) and changed[-1] < 1e-6
    for name, value in statistics(model).items():
        torch.testing.assert_close(value, oracle[name], rtol=1e-5, atol=1e-5)
    assert done.is_settled and done.round == 6


@pytest.mark.slow
def test_one_round_is_near_what_reestimation_gives():
    model = plain(6)
    other = copy.deepcopy(model)
    done, _ = rounds(model, cuts(DATA, 7), PROBE)
    ek.reestimate_(other, DATA, match="variance")
    for name, value in statistics(other).items():
        if name.endswith("var"):
            torch.testing.assert_close(statistics(model)[name], value, rtol=0.1, atol=0)
    assert done.doubt < 0.3 * max(done.changed.values())


@pytest.mark.slow
def test_noise_in_place_of_samples_takes_more_rounds_and_says_so():
    model = plain(6)
    oracle = statistics(settled_in_order(model, torch.cat(DATA)))
    noise = torch.randn(8, 32, 3, 4, 4)
    first, _ = rounds(copy.deepcopy(model), [DATA], noise)
    assert not first.is_settled and first.unsure and any("unlike the data" in note for note in first.notes)
    done, changed = rounds(model, [DATA], noise, 5)
    assert changed[-1] < 0.1 * changed[0] and done.is_settled
    for name, value in statistics(model).items():
        torch.testing.assert_close(value, oracle[name], rtol=0.02, atol=0.02)


def test_without_a_probe_norms_behind_others_are_named():
    model = plain(4)
    done, _ = rounds(model, [DATA], None)
    assert "1" not in done.unsure and set(done.unsure) == {"5", "9", "13"} and not done.is_settled
    assert "measure parts once more" in str(done)


@pytest.mark.slow
def test_rounds_that_stall_are_told():
    model = plain(6)
    done, _ = rounds(model, [DATA], [5 * batch + 3 for batch in PROBE], 3)
    assert not done.is_settled and any("do not come nearer" in note for note in done.notes)


# options


def test_undo_puts_all_back_and_leaves_the_marks():
    model = plain(3)
    before = Snapshot(model)
    done, _ = rounds(model, [DATA], PROBE)
    assert before.changes() != []
    done.undo()
    assert before.changes() == []


@pytest.mark.parametrize("stats", ["var", "mean"])
def test_stats_says_what_is_written(stats):
    before, _, after = merged(plain(3), [DATA], stats=stats)
    for name, value in before.items():
        assert torch.equal(after[name], value) == (not name.endswith(stats))


def test_a_prior_blends_what_was_found():
    model, data = nn.BatchNorm1d(3), torch.randn(10, 32, 3) * 3 + 1
    other = copy.deepcopy(model)
    rounds(model, cuts(data, 4), None, prior=320)
    ek.reestimate_(other, data, match="variance", prior=320)
    for name, value in statistics(other).items():
        torch.testing.assert_close(statistics(model)[name], value)


@pytest.mark.slow
def test_rounds_with_a_prior_settle_on_what_reestimation_with_it_gives():
    model = plain(4)
    other = copy.deepcopy(model)
    done, changed = rounds(model, cuts(DATA, 9), PROBE, 4, prior=200)
    ek.reestimate_(other, DATA, match="variance", prior=200)
    assert changed[-1] < 1e-3 and done.is_settled
    for name, value in statistics(other).items():
        torch.testing.assert_close(statistics(model)[name], value, rtol=1e-2, atol=1e-2)


def test_prior_auto_does_not_depend_on_cuts():
    model = plain(3)
    assert same(merged(model, [DATA], prior="auto")[2], merged(model, cuts(DATA, 3), prior="auto")[2])


def test_a_norm_that_only_some_parts_reach_is_of_those_and_named():
    model = nn.ModuleDict({"all": nn.BatchNorm1d(3), "left": nn.BatchNorm1d(3)})
    left, right = torch.randn(64, 3), torch.randn(64, 3)

    def both(model, batch):
        return model["left"](model["all"](batch))

    parts = [
        ek.measure_part(model, [left], name="a", forward=both),
        ek.measure_part(model, [right], name="b", forward=lambda model, batch: model["all"](batch)),
    ]
    done = ek.merge_parts_(model, parts)
    torch.testing.assert_close(model["all"].running_var, torch.cat([left, right]).var(0))
    assert any("'left' was not reached by 1 of 2 parts: 'b'" in note for note in done.notes)


def test_norms_called_several_times_and_instance_norms_add_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)

        def forward(self, x):
            return self.last(self.norm(x) + self.norm(2 * x))

    model, data = Twice(), torch.randn(12, 16, 3, 5)
    expected = merged(model, [data], data[:6])[2]
    assert same(merged(model, cuts(data, 5), data[:6])[2], expected)
    rows = data.flatten(0, 1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(expected["norm.running_var"], torch.cat([rows, 2 * rows], 1).var(1))


# what is refused


def refusal(model, parts, **options):
    before = Snapshot(model)
    with pytest.raises(ek.EvenkeelError) as caught:
        ek.merge_parts_(model, parts, **options)
    assert before.changes() == []
    return str(caught.value)


def test_parts_that_do_not_belong_together_are_refused_by_name():
    model = plain(2)
    a, b = (ek.measure_part(model, shard, name=name) for name, shard in (("a", DATA[:5]), ("b", DATA[5:])))
    assert "there is no part" in refusal(model, [])
    assert "two parts are named 'a'" in refusal(model, [a, b, a])
    again = ek.measure_part(model, DATA[:5], name="c")
    assert "'a' and 'c' are of the same data" in refusal(model, [again, a, b])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[0] += 1
    assert "'a' was measured on other weights" in refusal(other, [a, b])
    done = ek.merge_parts_(model, [a, b], PROBE)
    assert "'a' was measured on a checkpoint that stores other statistics" in refusal(model, [a, b])
    done.undo()
    later = ek.measure_part(model, DATA[5:], name="b", start=done.start)
    assert "'b' in round 2, 'a' in round 1" in refusal(model, [a, later])


def test_options_that_cannot_be_are_refused():
    model = plain(2)
    part = ek.measure_part(model, DATA)
    assert "stats must be" in refusal(model, [part], stats="all")
    assert "unsure must be" in refusal(model, [part], unsure="maybe")
    assert "prior" in refusal(model, [part], prior=-1)


def test_a_probe_that_fails_changes_nothing():
    model = plain(3)
    part = ek.measure_part(model, DATA)
    assert "empty" in refusal(model, [part], probe=[])
    assert "not finite" in refusal(model, [part], probe=[torch.full((4, 3, 4, 4), torch.inf)])
    assert "raised" in refusal(model, [part], probe=[torch.randn(4, 2, 4, 4)])


def test_one_value_has_no_variance():
    model = nn.BatchNorm1d(3)
    part = ek.measure_part(model, [torch.randn(1, 3)])
    assert "one value per channel" in refusal(model, [part])
    assert ek.merge_parts_(model, [part, ek.measure_part(model, [torch.randn(1, 3)])]).samples == 2


def test_what_looks_like_a_regression_is_warned_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for _ in range(100):
        model(torch.randn(64, 4))
    data = [(torch.randn(64, 4), torch.randn(64, 1)) for _ in range(6)]
    with pytest.warns(ek.StretchWarning):
        rounds(model, cuts(data, 2), data)


# what feeds itself, is left out, or is no part


class Skipping(nn.Module):
    """Two norms in a row, of which batches of seven pass by the first; or one norm, called twice."""

    def __init__(self, is_twice=False):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.first, self.second = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.is_twice = is_twice
        for _ in range(5):
            self(3 * torch.randn(32, 6))

    def forward(self, x):
        if self.is_twice:
            return self.first(self.weight(self.first(self.weight(x)).relu()))
        x = self.weight(x)
        return self.second(x if len(x) == 7 else self.first(x).relu())


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_norm_that_some_data_pass_by_still_puts_those_behind_it_in_doubt(names, is_cut):
    model = Skipping()
    short, long = torch.randn(4, 7, 6), torch.randn(4, 16, 6)
    shards = [short, long] if is_cut else [[*short, *long]]
    done = ek.merge_parts_(model, [ek.measure_part(model, s, name=n) for s, n in zip(shards, names, strict=False)])
    assert list(done.changed) == ["first", "second"]
    assert done.doubts["first"] == 0 and done.doubts["second"] == done.changed["first"] > 0.5
    assert not done.is_settled


def test_a_norm_that_feeds_itself_is_settled_by_rounds_and_not_by_one():
    model, data = Skipping(is_twice=True), torch.randn(16, 32, 6)
    found = statistics(model)
    part = ek.measure_part(model, data)
    assert part.repeated == ("first",)
    assert ek.merge_parts_(model, part).doubts["first"] > 0.5
    for name, value in found.items():
        model.get_buffer(name).copy_(value)
    done, _ = rounds(Skipping(is_twice=True), [data], data[:8], 8)
    assert done.is_settled and done.changed["first"] < 0.01


def test_an_infinite_prior_keeps_norms_one_by_one():
    model = plain(2)
    before, part = statistics(model), ek.measure_part(model, DATA)
    with pytest.raises(ek.EvenkeelError, match="prior=inf keeps what every norm stores"):
        ek.merge_parts_(model, part, PROBE, prior=float("inf"))
    assert same(statistics(model), before)
    done = ek.merge_parts_(model, part, PROBE, prior={"1": float("inf")})
    assert list(done.untouched) == ["1"] and [row.path for row in done] == ["5"]
    assert all(torch.equal(statistics(model)[name], before[name]) for name in before if name.startswith("1."))


def test_what_is_no_part_is_named():
    model = plain(1)
    part = ek.measure_part(model, DATA[:2])
    for parts, said in (
        ({"a": part}, "not dict"),
        (None, "not NoneType"),
        ([part.start], "not Start"),
        ([1], "not int"),
    ):
        with pytest.raises(ek.EvenkeelError, match=said):
            ek.merge_parts_(model, parts)


def test_of_parts_of_models_in_other_modes_the_norm_is_named():
    model = plain(2)
    parts = [ek.measure_part(model, DATA[:2], name="a")]
    model.train()[1].eval()
    parts.append(ek.measure_part(model, DATA[2:4], name="b"))
    with pytest.raises(ek.EvenkeelError, match="norm '1' is measured in 'a' and not in 'b', where it was frozen"):
        ek.merge_parts_(model, parts)


def test_a_probe_that_does_not_vary_is_said_to_be_unlike_in_few_digits():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    for _ in range(3):
        model(torch.randn(16, 4))
    done = ek.merge_parts_(model, ek.measure_part(model, torch.randn(4, 16, 4)), torch.ones(1, 1, 4))
    assert any("the probe is unlike the data, by more than 1,000 %" in note for note in done.notes)


def test_values_whose_squares_overflow_leave_no_known_error():
    model = nn.BatchNorm1d(2).double()
    done = ek.merge_parts_(model, ek.measure_part(model, 1e80 * torch.randn(4, 16, 2, dtype=torch.float64)))
    assert bool(model.running_var.isfinite().all()) and math.isnan(done.standard_error)
