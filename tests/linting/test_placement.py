"""Places: where kim2023 has a dropout in a branch, what it reads, and how it is called in words."""

import pytest
import torch
from made import Made
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Move
from evenkeel.linting.placement import caveat, dropouts_on, in_words, is_well_placed, kept, move_into

WAYS = {
    "pre": lambda m, x: m.d4(m.w2(m.d3(m.act(m.d2(m.n2(m.d1(m.w1(m.n1(m.d0(x)))))))))),
    "post": lambda m, x: m.d4(m.n2(m.d3(m.w2(m.d2(m.act(m.n1(m.d1(m.w1(m.d0(x)))))))))),
    "no norm": lambda m, x: m.d4(m.w2(m.d3(m.act(m.d2(m.w1(m.d0(x))))))),
}


class Block(nn.Module):
    """x + way(x), with a dropout at each place that `rates` names."""

    def __init__(self, way, rates, act=None):
        super().__init__()
        self.way, self.act = WAYS[way], act or nn.ReLU()
        self.n1, self.w1, self.n2, self.w2 = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        for place in range(5):
            self.add_module(f"d{place}", nn.Dropout(rates[place]) if place in rates else nn.Identity())

    def forward(self, x):
        return x + self.way(self, x)


def subject_of(way, places, **options):
    model = nn.Sequential(nn.Linear(4, 4), Block(way, dict.fromkeys(places, 0.3), **options), nn.Linear(4, 4))
    return Context(model, torch.zeros(2, 4))


def names(layers):
    return [layer.name.rpartition(".")[2] for layer in layers]


WELL = {"pre": {2, 3}, "post": {4}}  # kim2023's places: behind the last norm, and before the last weights if there are


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("way", WELL)
def test_well_placed_is_behind_the_last_norm_and_before_the_last_weights(way, place):
    context = subject_of(way, [place])
    (branch,) = context.branches
    (dropout,) = dropouts_on(context, branch)
    assert is_well_placed(dropout, branch) is (place in WELL[way])


@pytest.mark.parametrize("way", WELL)
@pytest.mark.parametrize("places", [(0,), (0, 1), (0, 3), (2, 3), (1, 4), (3, 4), (0, 1, 2, 3, 4)])
def test_the_first_in_place_is_kept_or_else_the_last(way, places):
    context = subject_of(way, places)
    (branch,) = context.branches
    well = [place for place in places if place in WELL[way]]
    assert kept(context, branch).name == f"1.d{well[0] if well else places[-1]}"
    assert names(dropouts_on(context, branch)) == [f"d{place}" for place in places]


@pytest.mark.parametrize("place", [0, 1])
def test_where_it_is_moved_it_is_well_placed(place):
    for way, expected in (("pre", ("w2", "before")), ("post", ("n2", "after"))):
        context = subject_of(way, [place])
        (branch,) = context.branches
        (dropout,) = dropouts_on(context, branch)
        move = move_into(dropout, branch)
        assert isinstance(move, Move) and move.layer is dropout and move.safe
        assert (move.target.name.rpartition(".")[2], move.side) == expected


def test_a_branch_without_running_statistics_and_one_without_dropout_keep_none():
    for context in (subject_of("no norm", [0, 3]), subject_of("pre", [])):
        (branch,) = context.branches
        assert dropouts_on(context, branch) == () and kept(context, branch) is None


@pytest.mark.parametrize(
    ("act", "said"),
    [(nn.ReLU(), False), (nn.LeakyReLU(0.1), False), (nn.GELU(), True), (nn.SiLU(), True), (nn.Sigmoid(), True)],
)
def test_a_caveat_where_the_activation_does_not_commute_with_dropout(act, said):
    (branch,) = subject_of("pre", [1], act=act).branches
    assert bool(caveat(branch)) is said
    assert not said or "1.act" in caveat(branch)


def test_no_caveat_behind_a_norm():
    (branch,) = subject_of("post", [1], act=nn.GELU()).branches
    assert caveat(branch) == ""


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Dropout(0.5), "dropout p=0.5"),
        (nn.Dropout2d(0.25), "dropout2d p=0.25"),
        (nn.AlphaDropout(0.1), "alpha_dropout p=0.1"),
        (ek.Uout(1.0), "Uout p=0.25"),
        (Made(lambda _, x: F.dropout2d(x, 0.1)), "dropout2d p=0.1"),
        (Made(lambda _, x: x * torch.empty_like(x).bernoulli_(0.8)), "dropout by a mask p=0.2"),
        (Made(lambda _, x: x * torch.rand_like(x)), "dropout by noise p=?"),
        (Made(lambda _, x: x * (1 + torch.randn_like(x))), "dropout by noise p=0.5"),
    ],
)  # fmt: skip
def test_a_dropout_in_words(module, text):
    (dropout,) = ek.trace(nn.Sequential(module), torch.zeros(2, 4, 8, 8)).of(ek.Kind.DROPOUT)
    assert in_words(dropout) == text
