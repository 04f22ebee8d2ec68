"""match="mean": k and what norms store are those of a slow oracle that averages masks; then the verb's contract."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from masked import (
    LOADERS,
    NOISES,
    TOPOLOGIES,
    Functional,
    Masked,
    as_if_trained,
    fed,
    masked,
    norms_in,
    oracle,
    same_bits,
    statistics_in,
    teacher_of,
)
from snapshots import Snapshot
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import evenkeel as ek

RMS, MOST = 2.5, 5.5  # in standard errors: of eight channels together, and of the worst of a hundred or so
SPREAD = 64  # values that a channel's variance must come from for its standard error to be tested


def disagreements(model: nn.Module, x: Tensor, done: Any, as_trained: nn.Module, masks: int = 256) -> dict[str, str]:
    """By norm, where k or what is stored is off by more than chance, against the oracle."""
    slopes, found = done.slopes, dict[str, str]()
    answers = oracle(as_trained, x, masks, {path: slope.is_known for path, slope in slopes.items()})
    assert list(answers) == list(slopes) == [row.path for row in done]
    for path, answer in answers.items():
        norm, slope, old = norms_in(model)[path], slopes[path], norms_in(as_trained)[path]
        stored = (old.running_var.double() + norm.eps) / slope.value**2 - norm.eps
        assert torch.allclose(norm.running_var.double(), stored, rtol=1e-4)
        error = (slope.error**2 + answer.error**2).sqrt()
        deviation = (answer.variance + norm.eps).sqrt()
        chances = {
            "slope": (slope.value - answer.slope) / error.clamp_min(1e-6),
            # what is upstream is known to within some percent, too
            "mean": (norm.running_mean - answer.mean) / (answer.chance / slope.value + 0.01 * deviation),
        }
        for name, z in chances.items():
            known = z[slope.is_known & (answer.spread > SPREAD)]
            # errors are estimated from few parts, so single channels may be far off
            most = 1 + (MOST - 1) / math.sqrt(max(len(known), 1))
            if len(known) and (float(known.square().mean().sqrt()) > most or float(known.abs().max()) > MOST):
                found[f"{path} {name}"] = str(z)
    return found


def matched(spec: Masked, **options: Any) -> tuple[nn.Module, Any, nn.Module]:
    model = spec.build()
    as_trained = copy.deepcopy(model)
    done = ek.reestimate_(model, LOADERS[spec.loader](spec.data()), match="mean", **options)
    return model, done, as_trained


@pytest.mark.parametrize(
    ("noise", "loader"), [*zip(NOISES, ["8", "64", "one", "once", "unequal", "8", "64"], strict=True)]
)
def test_slopes_and_statistics_are_those_of_the_average_of_masks(noise, loader):
    topology = TOPOLOGIES[len(noise) % 3]
    spec = Masked("vector", topology, (("LDNA", noise, 0.3), ("LADN", noise, 0.3)), loader, seed=3)
    model, done, as_trained = matched(spec)
    assert done.match == "mean"
    assert disagreements(model, spec.data(), done, as_trained, masks=64) == {}


@pytest.mark.slow
@settings(max_examples=10, phases=[Phase.generate])  # smaller nets are no simpler
@given(spec=masked(), memory=st.sampled_from((0, 1 << 27)))
def test_so_they_are_on_any_net(spec, memory):
    model, done, as_trained = matched(spec, memory=memory)
    assert disagreements(model, spec.data(), done, as_trained) == {}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, dropout=0.4, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(x)[0][:, -1]))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.2, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.attention(x).mean(1)))


class Reused(nn.Module):
    """One norm in three places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(6, 8), nn.Linear(8, 8)
        self.drop, self.norm, self.head = nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.drop(self.first(x)))
        for _ in range(2):
            x = self.norm(self.drop(self.again(x.relu())))
        return self.head(x)


CURIOUS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "inside an LSTM": (Recurrent, (5, 6)),
    "inside attention": (Attentive, (5, 6)),
    "1d": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Dropout1d(0.3), nn.BatchNorm1d(8)), (3, 9)),
    "3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Dropout3d(0.3), nn.BatchNorm3d(4)), (3, 4, 4, 4)),
}


@pytest.mark.parametrize("name", CURIOUS)
def test_so_they_are_of_dropout_anywhere(name):
    build, shape = CURIOUS[name]
    x = torch.randn(768, *shape)
    model = as_if_trained(build(), x)
    as_trained = copy.deepcopy(model)
    done = ek.reestimate_(model, list(x.split(64)), match="mean")
    assert disagreements(model, x, done, as_trained, masks=64) == {}


def test_a_norm_used_in_several_places_pools_them():
    """The oracle settles it on itself by repetition."""
    x = torch.randn(1536, 6)
    model = as_if_trained(Reused(), x)
    slope = ek.reestimate_(copy.deepcopy(model), list(x.split(64)), match="mean").slopes["norm"]
    answer = oracle(model, x, 64)["norm"]
    assert float(((slope.value - answer.slope).abs() / slope.error).max()) < MOST


class Chunked(nn.Module):
    """Feeds its norm in pieces, with noise on or off."""

    def __init__(self, on: int = 1, off: int = 1) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(6, 8), nn.Dropout(0.5)
        self.norm, self.head, self.pieces = nn.BatchNorm1d(8), nn.Linear(8, 1), (off, on)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x))
        return self.head(torch.cat([self.norm(part) for part in x.chunk(self.pieces[self.training])]))


def test_a_norm_may_be_fed_in_pieces_with_noise_on():
    x, found = torch.randn(512, 6), []
    for pieces in (1, 5):
        torch.manual_seed(0)
        model = as_if_trained(Chunked(), x)
        model.pieces = (1, pieces)
        done = ek.reestimate_(model, list(x.split(64)), match="mean")
        assert done.match == "mean" and not done.untouched
        found.append(statistics_in(model))
    assert same_bits(*found)


# --- without noise, and right behind it -------------------------------------------------------------------------------

DATA = torch.randn(512, 6, generator=torch.Generator().manual_seed(7))
BATCHES = list(DATA.split(64))


def small(noise: Callable[[float], nn.Module] = nn.Dropout, p: float = 0.3, outputs: int = 1) -> nn.Module:
    torch.manual_seed(5)
    layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), noise(p), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()
    return as_if_trained(nn.Sequential(*layers, nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs)), DATA)


@pytest.mark.parametrize("noise", [nn.Dropout, Functional, lambda p: nn.Identity()], ids=["module", "functional", "no"])
@pytest.mark.parametrize(("loader", "memory"), [*((loader, 1 << 27) for loader in LOADERS), ("64", 0), ("unequal", 0)])
def test_without_noise_both_matches_give_the_same_bits(noise, loader, memory):
    found = []
    for options in ({"match": "mean"}, {"match": "variance"}, {"match": "variance", "relative": True}):
        model = small(noise, 0.0)
        done = ek.reestimate_(model, LOADERS[loader](1 + DATA), memory=memory, **options)
        assert done.match == "variance" and not done.slopes
        found.append(statistics_in(model))
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_that_there_was_no_noise_is_told():
    assert any("no noise" in note for note in ek.reestimate_(small(p=0.0), BATCHES, match="mean").notes)
    assert not any("no noise" in note for note in ek.reestimate_(small(p=0.0), BATCHES).notes)


def test_norms_before_any_noise_keep_their_bits():
    model = small()
    before = statistics_in(model)
    done = ek.reestimate_(model, BATCHES, match="mean")
    after = statistics_in(model)
    assert same_bits(before[:2], after[:2]) and not torch.equal(before[3], after[3])
    assert done.slopes["1"].value.eq(1).all() and done.slopes["1"].error.eq(0).all()


def test_right_behind_a_dropout_the_slope_is_one():
    model = as_if_trained(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)), DATA)
    slope = ek.reestimate_(model, BATCHES, match="mean").slopes["2"]
    z = ((slope.value - 1) / slope.error)[slope.is_known]
    assert len(z) and float(z.square().mean().sqrt()) < RMS


def test_standard_errors_are_honest():
    """Over masks, slopes vary by their standard errors."""
    model = small(p=0.5)
    runs = [ek.reestimate_(copy.deepcopy(model), BATCHES, match="mean", seed=seed).slopes["5"] for seed in range(8)]
    known = torch.stack([run.is_known for run in runs]).all(0)
    spread = torch.stack([run.value for run in runs]).std(0)[known]
    told = torch.stack([run.error for run in runs]).mean(0)[known]
    assert len(spread) and 0.6 < float(spread.square().mean().sqrt() / told.square().mean().sqrt()) < 1.5


# --- undo, seeds, repetition ------------------------------------------------------------------------------------------


def test_undo_and_redo_are_exact():
    model = small()
    before = Snapshot(model, world=False)
    found = statistics_in(model)
    done = ek.reestimate_(model, BATCHES, match="mean")
    new = statistics_in(model)
    done.undo()
    assert before.changes() == [] and same_bits(statistics_in(model), found)
    done.redo()
    assert same_bits(statistics_in(model), new)
    done.redo()
    assert same_bits(statistics_in(model), new)
    done.undo()
    assert before.changes() == []


def test_seeds_decide_masks():
    found, slopes = [], []
    for seed in (0, 0, 1):
        model = small()
        torch.manual_seed(seed + len(found))  # which is not asked
        slopes.append(ek.reestimate_(model, BATCHES, match="mean", seed=seed).slopes["5"])
        found.append(statistics_in(model))
    assert same_bits(found[0], found[1]) and not same_bits(found[0], found[2])
    known = slopes[0].is_known & slopes[2].is_known
    z = (slopes[0].value - slopes[2].value) / (slopes[0].error ** 2 + slopes[2].error ** 2).sqrt()
    assert float(z[known].square().mean().sqrt()) < RMS


def test_what_training_left_is_remembered():
    """A second call, or one after matching variances or without data, gives what the first would have."""
    model = small()
    ek.reestimate_(model, BATCHES, match="mean")
    once = statistics_in(model)
    ek.reestimate_(model, BATCHES, match="mean")
    assert same_bits(once, statistics_in(model))
    for first in (
        lambda m: ek.reestimate_(m, BATCHES, match="variance"),
        lambda m: ek.reestimate_(m, BATCHES, match="variance", stats="mean"),
        lambda m: ek.reestimate_(m, BATCHES, match="mean", prior=300),
        lambda m: ek.correct_(m, DATA[:2], unsure="write"),
    ):
        model = small()
        first(model)
        assert not same_bits(once, statistics_in(model))
        ek.reestimate_(model, BATCHES, match="mean")
        assert same_bits(once, statistics_in(model))


@pytest.mark.parametrize("order", [("variance", "mean"), ("mean", "variance")])
def test_repairs_are_undone_one_by_one(order):
    model = small()
    states, repairs = [statistics_in(model)], []
    for match in order:
        repairs.append(ek.reestimate_(model, BATCHES, match=match))
        states.append(statistics_in(model))
    assert not same_bits(states[1], states[2])
    for done, state in zip(reversed(repairs), reversed(states[:-1]), strict=True):
        done.undo()
        assert same_bits(statistics_in(model), state)
        with ek.noisy(model):
            assert same_bits(statistics_in(model), states[0])
    for done, state in zip(repairs, states[1:], strict=True):
        done.redo()
        assert same_bits(statistics_in(model), state)


def test_a_repaired_checkpoint_from_a_file_is_refused_where_it_says_so():
    """Those loaded into a model that knows what was written there, but not what training left."""
    from evenkeel.model.buffers import mark_, marks_of

    repaired, model = small(), small()
    ek.reestimate_(repaired, BATCHES, match="variance")
    model.load_state_dict(repaired.state_dict())
    mark_(model, marks_of(repaired))
    before = Snapshot(model)
    with pytest.raises(ek.ModelError, match="written by a repair"):
        ek.reestimate_(model, BATCHES, match="mean")
    assert before.changes() == []
    labelled = [(x, x[:, :1]) for x in BATCHES]
    assert ek.reestimate_(model, labelled).match == "variance"  # nothing else can be had


# --- on any error the model is as it was ------------------------------------------------------------------------------


class RaisesIn(nn.Module):
    """Raises in train mode, in one call."""

    def __init__(self, call: int, error: BaseException) -> None:
        super().__init__()
        self.call, self.error = call, error
        self.calls = itertools.count(1)  # which nothing restores

    def forward(self, x: Tensor) -> Tensor:
        if self.training and next(self.calls) >= self.call:
            raise self.error
        return x


@pytest.mark.parametrize("call", [1, 5])
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("training", [True, False])
def test_an_error_with_noise_on_changes_nothing(call, error, training):
    model = nn.Sequential(small(), RaisesIn(call, error)).train(training)
    before = Snapshot(model)
    with pytest.raises((ek.BatchError, KeyboardInterrupt)):
        ek.reestimate_(model, BATCHES, match="mean", memory=0)
    assert before.changes() == []


def _short() -> Iterator[Tensor]:
    yield BATCHES[0]
    raise OSError("disk gone")


BAD: dict[str, Callable[[], Any]] = {
    "nan": lambda: [*BATCHES, math.nan * DATA[:5]],
    "shape": lambda: [*BATCHES, DATA[:5, :3]],
    "empty": list,
    "raises": _short,
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("memory", [0, 1 << 27])
def test_bad_batches_change_nothing(name, memory):
    model, batches = small(), BAD[name]()
    model.train()
    model[1].eval()
    before = Snapshot(model)
    with pytest.raises(ek.BatchError):
        ek.reestimate_(model, batches, match="mean", memory=memory)
    assert before.changes() == []


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"match": "mean"}, {"match": "variance", "relative": True}])
def test_all_but_statistics_is_as_found(training, options):
    model = nn.Sequential(small(), RaisesIn(10**6, RuntimeError())).train(training)
    before, written = Snapshot(model), [f"0.{path}" for path in small().state_dict() if "running" in path]
    ek.reestimate_(model, BATCHES, **options)
    assert before.changes(written) == []


# --- relative ---------------------------------------------------------------------------------------------------------


def test_relative_is_stored_times_off_over_on():
    """For data that are not those of training, too: the oracle settles norms one after the other."""
    x = 2 * DATA.repeat(4, 1) + 1
    model = small(p=0.5)
    teacher, student = teacher_of(model), copy.deepcopy(model)
    noisy = [fed(teacher, x) for _ in range(32)]
    done = ek.reestimate_(model, list(x.split(64)), match="variance", relative=True)
    assert done.match == "variance"
    for path, norm in norms_in(student).items():
        off = fed(student, x)[path]
        on = torch.stack([one[path].var(0) for one in noisy])
        expected = (norm.running_var.double() + norm.eps) * off.var(0) / on.mean(0) - norm.eps
        k = (on.mean(0) / off.var(0)).sqrt()
        means = torch.stack([one[path].mean(0) for one in noisy])
        mean = off.mean(0) - (means.mean(0) - norm.running_mean.double()) / k
        error = done.slopes[path].error
        found = norms_in(model)[path]
        z = (found.running_var / expected - 1) / (2 * error / k).clamp_min(1e-5)
        assert float(z[done.slopes[path].is_known].square().mean().sqrt()) < RMS
        z = (found.running_mean - mean) / (means.std(0) / k + 0.02 * expected.sqrt())
        assert float(z.square().mean().sqrt()) < RMS
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(expected)


def test_relative_is_for_variances():
    for match in ("mean", None):
        with pytest.raises(ek.EvenkeelError, match="relative"):
            ek.reestimate_(small(), BATCHES, match=match, relative=True)
    with pytest.raises(ek.EvenkeelError, match="match must be"):
        ek.reestimate_(small(), BATCHES, match="median")


# --- which one, when --------------------------------------------------------------------------------------------------

TARGETS: dict[str, tuple[Callable[[Tensor], Tensor] | None, int, str]] = {
    "floating": (lambda x: x[:, :1], 1, "mean"),
    "floating, flat": (lambda x: x[:, 0], 1, "mean"),
    "several floating": (lambda x: x[:, :3], 3, "mean"),
    "class labels": (lambda x: (x[:, 0] > 0).long(), 2, "variance"),
    "0 and 1": (lambda x: (x[:, :1] > 0).float(), 1, "variance"),
    "none, one output": (None, 1, "mean"),
    "none, several outputs": (None, 3, "variance"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_default_spares_regressions(name):
    target, outputs, expected = TARGETS[name]
    model, explicit = small(outputs=outputs), small(outputs=outputs)
    batches = [x if target is None else (x, target(x)) for x in BATCHES]
    done = ek.reestimate_(model, batches)
    assert done.match == expected
    if done.kept:
        ek.reestimate_(explicit, batches, match=expected)
    assert same_bits(statistics_in(model), statistics_in(explicit))


@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_a_regression_keeps_what_lowers_the_error_by_its_own_targets_by_a_twentieth(noise):
    model, teacher = small(outputs=1), teacher_of(small(outputs=1))
    as_found = statistics_in(model)
    with torch.no_grad():  # what the mean over masks is near to, or hardly
        targets = [torch.stack([teacher(x) for _ in range(64)]).mean(0) for x in BATCHES]
    batches = [(x, y + noise * torch.randn_like(y)) for x, y in zip(BATCHES, targets, strict=True)]
    done = ek.reestimate_(model, batches)
    assert done.match == "mean" and done.kept == (done.after.loss <= 0.95 * done.before.loss) == (noise == 0)
    assert same_bits(statistics_in(model), as_found) != done.kept


def test_an_average_of_weights_gets_the_statistics_of_data():
    model = AveragedModel(small()).eval()
    batches = [(x, x[:, :1]) for x in BATCHES]
    assert ek.reestimate_(model, batches).match == "variance"
    assert ek.reestimate_(model, batches, match="mean").match == "mean"


class As(nn.Module):
    """A score that likes one of the matches, by the bits that it stores."""

    def __init__(self, model: nn.Module, liked: str) -> None:
        super().__init__()
        self.model, self.kinds = model, dict[str, list[Tensor]]()
        for match in ("mean", "variance"):
            other = copy.deepcopy(model)
            ek.reestimate_(other, BATCHES, match=match)
            self.kinds[match] = statistics_in(other)
        self.kinds["as found"] = statistics_in(model)
        self.liked = liked

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum() * 0 + (0.0 if same_bits(statistics_in(self.model), self.kinds[self.liked]) else 1.0)


@pytest.mark.parametrize("liked", ["as found", "variance", "mean"])
@pytest.mark.parametrize("loader", [list, lambda b: DataLoader(TensorDataset(DATA, DATA[:, :1]), 64)])
def test_the_best_of_three_is_kept(liked, loader):
    model = small()
    judge = As(model, liked)
    held_out = [(x, x[:, :1]) for x in BATCHES]
    done = ek.reestimate_(model, loader(held_out), choose="best", held_out=held_out, score=judge.score)
    assert same_bits(statistics_in(model), judge.kinds[liked])
    assert set(done.scores) == {"mean", "variance"} and done.kept is (liked != "as found")
    if done.kept:
        assert done.match == liked and done.after.loss == 0 and done.before.loss == 1
        done.undo()
        assert same_bits(statistics_in(model), judge.kinds["as found"])
        with ek.noisy(model):
            assert same_bits(statistics_in(model), judge.kinds["as found"])


def test_that_only_one_was_tried_is_told():
    held_out = [(x, x[:, :1]) for x in BATCHES]
    done = ek.reestimate_(small(), iter(held_out), choose="best", held_out=held_out)
    assert not done.scores and any("only match='mean' was tried" in note for note in done.notes)
    done = ek.reestimate_(small(), held_out, choose="best", held_out=held_out, match="variance")
    assert not done.scores and not any("was tried" in note for note in done.notes)


# --- what the verb has besides ----------------------------------------------------------------------------------------


def test_a_tolerance_is_a_standard_error_of_slopes():
    x = list(torch.randn(256, 64, 6))
    for tolerance in (0.05, 0.02):
        done = ek.reestimate_(small(), x, match="mean", tolerance=tolerance)
        assert done.converged and done.standard_error <= tolerance and done.batches < 256
    done = ek.reestimate_(small(), x[:4], match="mean", tolerance=1e-5)
    assert not done.converged and done.batches == 4


def test_a_prior_is_between():
    found, new = statistics_in(small()), small()
    ek.reestimate_(new, BATCHES, match="mean")
    for prior in (len(DATA), {"8": len(DATA)}):
        half = small()
        ek.reestimate_(half, BATCHES, match="mean", prior=prior)
        one, other, got = found[4], statistics_in(new)[4], statistics_in(half)[4]
        assert torch.allclose(got, (one + other) / 2, atol=0.02 if prior == len(DATA) else 0.1)
    auto = small()
    ek.reestimate_(auto, [DATA[i : i + 8] for i in range(0, 64, 8)], match="mean", prior="auto")
    few = small()
    ek.reestimate_(few, [DATA[i : i + 8] for i in range(0, 64, 8)], match="mean")
    moved = [float((a - b).norm()) for a, b in zip(statistics_in(auto), found, strict=True)]
    all_the_way = [float((a - b).norm()) for a, b in zip(statistics_in(few), found, strict=True)]
    assert sum(moved) < sum(all_the_way)


def test_one_of_the_two_is_written_if_so_asked():
    found, both = statistics_in(small()), small()
    ek.reestimate_(both, BATCHES, match="mean")
    for stats, kept in (("var", 0), ("mean", 1)):
        model = small()
        ek.reestimate_(model, BATCHES, match="mean", stats=stats)
        assert same_bits(statistics_in(model)[kept::2], found[kept::2])
        assert torch.equal(statistics_in(model)[3 - kept], statistics_in(both)[3 - kept])


def test_frozen_norms_stay_as_they_are():
    model = small().train()
    model[5].eval()
    before = statistics_in(model)
    done = ek.reestimate_(model, BATCHES, match="mean")
    after = statistics_in(model)
    assert "frozen" in done.untouched["5"] and same_bits(before[:4], after[:4]) and not same_bits(before[4:], after[4:])


def test_norms_never_updated_are_left():
    model = small()
    nn.init.zeros_(model[5].running_mean)
    nn.init.ones_(model[5].running_var)
    done = ek.reestimate_(model, BATCHES, match="mean")
    assert "never updated" in done.untouched["5"] and statistics_in(model)[3].eq(1).all()


def test_statistics_that_cannot_be_are_refused():
    model = small()
    model[5].running_var[0] = math.nan
    before = Snapshot(model)
    with pytest.raises(ek.ModelError, match="running_var"):
        ek.reestimate_(model, BATCHES, match="mean")
    assert before.changes() == []
    assert ek.reestimate_(model, [(x, x[:, :1]) for x in BATCHES]).match == "variance"


def test_instance_norms_take_part():
    x = torch.randn(256, 3, 9, 9)
    layers = nn.Conv2d(3, 8, 3), nn.Dropout(0.3), nn.InstanceNorm2d(8, track_running_stats=True), nn.ReLU()
    last = nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True)
    model = as_if_trained(nn.Sequential(*layers, *last), x)
    slopes = ek.reestimate_(model, list(x.split(32)), match="mean").slopes
    assert list(slopes) == ["2", "5"] and slopes["5"].is_known.all()
    assert float(((slopes["2"].value - 1) / slopes["2"].error).square().mean().sqrt()) < RMS


class Drops(nn.Module):
    """Layers that training skips at random, with their norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 1)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.3:
                x = x + layer(x).relu()
        return self.head(x)


def test_norms_that_noise_skips_are_left_and_named():
    model = as_if_trained(Drops(), DATA, 30)
    before = statistics_in(model)
    done = ek.reestimate_(model, BATCHES, match="mean", memory=0)
    assert set(done.untouched) == set(norms_in(model)) and all("not fed the same" in r for r in done.untouched.values())
    assert same_bits(before, statistics_in(model))


def test_few_samples_are_told():
    model = small()
    before = statistics_in(model)
    done = ek.reestimate_(model, [DATA[:2]], match="mean")
    assert set(done.unsure) >= {"5", "8"} and "too few samples" in done.unsure["5"]
    assert same_bits(before[1::2], statistics_in(model)[1::2])
    with pytest.raises(ek.BatchError, match="more samples"):
        ek.reestimate_(small(), [DATA[:1]], match="mean")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_any_precision(dtype):
    slopes = []
    for kind in (torch.float32, dtype):
        model = small().to(kind)
        slopes.append(ek.reestimate_(model, [x.to(kind) for x in BATCHES], match="mean").slopes["5"])
        assert all(t.isfinite().all() for t in statistics_in(model))
    assert torch.allclose(slopes[0].value, slopes[1].value.to(slopes[0].value), atol=0.05)


@pytest.mark.slow
def test_compiled_it_is_the_same():
    plain, model = small(), small()
    ek.reestimate_(plain, BATCHES, match="mean")
    ek.reestimate_(torch.compile(model), BATCHES, match="mean")
    assert same_bits(statistics_in(plain), statistics_in(model))


def test_given_in_train_mode_it_is_the_same():
    plain, model = small(), small().train()
    ek.reestimate_(plain, BATCHES, match="mean")
    ek.reestimate_(model, BATCHES, match="mean")
    assert same_bits(statistics_in(plain), statistics_in(model)) and all(m.training for m in model.modules())
