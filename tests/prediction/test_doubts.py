"""Doubts: what a norm stores bounds what is not known, dropout bounds a shift, and both hold in simulation."""

import math

import pytest
import torch
from test_shift_prediction import train_
from torch import nn

import evenkeel as ek
from evenkeel.graph.kinds import Kind
from evenkeel.prediction.doubts import Loose, _loosely_fixed, bounds_of, excess, loose_dropouts
from evenkeel.prediction.replica_recorder import Arrival, SamplingPlan
from evenkeel.prediction.replicas import Channels
from evenkeel.prediction.shift_prediction import predict, prediction_inputs


def channels(train, noise, mean=0.0):
    train, noise, mean = (torch.tensor([value], dtype=torch.float64) for value in (train, noise, mean))
    return Channels(mean, train, mean, train - noise, train - noise, train - noise)


def predicted(model, example):
    graph = ek.trace(model, example)
    norms = {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)}
    return predict(prediction_inputs(model, graph, norms), SamplingPlan())


@pytest.mark.parametrize(("given", "low", "high"), [(1.0, 0, 0), (2.0, 0, 0.1), (0.5, 0.2, 0), (1 / 3, 0.6, 0)])
def test_of_loose_noise_what_is_stored_over_what_random_inputs_give_is_the_bound(given, low, high):
    """Noise of .2 of a variance of 1 stored: with the signals it may be 1 / given as strong."""
    arrival = Arrival(channels(1.0, 0.2), channels(given, 0.2), torch.tensor([False]))
    below, above = bounds_of(arrival, share=1.0)
    assert 0.8 * math.exp(-below) == pytest.approx(1 - 0.2 * max(1 / given, 1))
    assert 0.8 * math.exp(above) == pytest.approx(1 - 0.2 * min(1 / given, 1))
    assert below >= low and above >= high
    assert bounds_of(arrival, share=0.0) == (0, 0)


def test_means_that_are_not_what_random_inputs_give_count():
    arrival = Arrival(channels(1.0, 0.2, mean=2.0), channels(1.0, 0.2), torch.tensor([False]))
    assert bounds_of(arrival, share=1.0)[0] > 1


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("correlated", [False, True])
def test_the_truth_is_within_the_bounds(strength, correlated):
    """Data of another strength, and of features that are alike: what embeds them has dropout before a norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.4), nn.Linear(32, 64), nn.BatchNorm1d(64, momentum=None))
    shared = torch.randn(20000, 1)

    def data():
        x = torch.randn(20000, 8)
        return strength * (0.6**0.5 * shared + 0.4**0.5 * x if correlated else x)

    with torch.no_grad():
        for _ in range(10):
            model.train()(data())
    true = ek.variance_shift(model, [data()])[0].ratio
    found = predicted(model, torch.zeros(1, 8))
    doubt = found.doubts.get("3")
    ratio = float(found.channels["3"].eval_var.mean() / found.channels["3"].train_var.mean())
    if strength < 1:
        assert doubt is not None and "exceeds the variance stored" in doubt.reason
    elif doubt is None:
        assert ratio == pytest.approx(true, rel=0.1)
    else:
        assert not doubt.wrong and "of unknown strength: eval/train is between" in doubt.reason
        low, high = (float(word) for word in doubt.reason.split("between ")[1].split(" and "))
        assert low - 0.05 <= true <= high + 0.05
    assert (doubt is None) is (strength == 1 and not correlated)


def test_dropouts_are_loose_behind_inputs_weights_and_products_and_not_behind_norms():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw, self.embed, self.drop = nn.Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.1)
            self.norm, self.fixed, self.out = nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 8)
            self.branch, self.product, self.last = nn.Dropout(0.1), nn.Dropout(0.1), nn.BatchNorm1d(8)

        def forward(self, x):
            x = self.norm(self.drop(self.embed(self.raw(x))) + 1)
            y = self.fixed(x.relu())
            return self.last(x + self.branch(self.out(y)) + self.product(y * x))

    graph = ek.trace(Net(), torch.zeros(2, 8))
    loose = loose_dropouts(graph, {})
    assert [layer.name for layer in loose.raw] == ["raw"]
    assert {layer.name for layer in loose.mixed} == {"drop", "branch", "product"}
    assert {layer.name for layer in loose_dropouts(graph, {"out": None}).mixed} == {"drop", "product"}  # type: ignore[dict-item]


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("places", [(1,), (3,), (1, 3), (3, 5)])
def test_no_norm_moves_further_than_the_dropout_before_it_can_move_it(p, places):
    """A law of sums: a dropout adds to a variance at most what it adds to the signals that it multiplies."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64)]
    for place in reversed(places):
        layers.insert(place, nn.Dropout(p))
    model = train_(nn.Sequential(*layers), (32,))
    found = predicted(model, torch.zeros(1, 32))
    last = list(found.channels)[-1]
    change = math.log(float(found.channels[last].eval_var.mean() / found.channels[last].train_var.mean()))
    assert -found.bounds[last] < change < 0.02
    assert found.bounds[last] < 4 * len(places) * math.log1p(p / (1 - p))
    assert excess(found.channels[last], found.bounds[last]) is None


def test_right_before_a_norm_the_bound_is_the_shift():
    model = nn.Sequential(nn.BatchNorm1d(64), nn.Dropout(0.4), nn.BatchNorm1d(64))
    model[0].bias.data.fill_(1.0)
    train_(model, (64,))
    nn.init.ones_(model[0].weight), nn.init.ones_(model[0].bias)
    s2 = 0.4 / 0.6
    model[2].running_var.fill_(1 + 2 * s2), model[2].running_mean.fill_(1.0)
    found = predicted(model, torch.zeros(1, 64))
    assert found.bounds["2"] == pytest.approx(math.log(1 + 2 * s2), rel=0.05)


def test_what_is_beyond_its_bound_is_said_with_both_figures():
    assert excess(channels(1.0, 0.2), bound=0.3) is None
    assert excess(channels(1.0, 0.6), bound=0.1) == (
        "eval/train is predicted as 0.40, but the dropouts before it can make it 0.90 at most"
    )
    grown = channels(1.0, -0.5)
    assert excess(grown, bound=0.2) is None
    assert "1.50, but the dropouts before it can make it 1.11 at most" in (excess(grown, bound=0.05) or "")


@pytest.mark.parametrize(("factor", "doubted"), [(1.0, False), (1.5, False), (3.0, True)])
def test_a_shift_of_which_more_than_half_may_be_missing_cannot_be_proven(factor, doubted):
    """Random inputs give so many times what is stored; the noise, made as much smaller, is then a guess."""
    graph = ek.trace(nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1), nn.BatchNorm1d(1)), torch.zeros(2, 1))
    (dropout,) = graph.of(Kind.DROPOUT)
    arrival = Arrival(channels(1.0, 0.05), channels(factor, 0.05), torch.tensor([False]))
    reasons = list(_loosely_fixed([arrival], {dropout: 1.0}, Loose(frozenset(), frozenset({dropout}))))
    assert bool(reasons) == doubted
    assert all("of unknown strength: eval/train is between 0.95 and 0.98" in reason for reason in reasons)


class NoisyWeights(nn.Module):
    """Weights that are noisy in train mode, before a norm that another one rests on."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.beside = (nn.Linear(16, 16) for _ in range(3))
        self.norm, self.behind = nn.BatchNorm1d(16), nn.BatchNorm1d(16)

    def forward(self, x):
        weight = self.first.weight + 0.4 * self.training * torch.randn_like(self.first.weight)
        hidden = self.norm(nn.functional.linear(x, weight)).relu()
        return self.behind(self.second(hidden) + 8 * self.beside(x))


def test_a_norm_right_behind_one_of_which_the_prediction_is_wrong_rests_on_it():
    """Inputs of less variance than random ones have less of a noise on weights, which then seems to be too much."""
    torch.manual_seed(0)
    model = NoisyWeights()
    for _ in range(60):
        model(0.3 * torch.randn(64, 16))
    unsure = ek.predict_shift(model, torch.zeros(1, 16)).unsure
    reason = "the noise predicted exceeds the variance stored in 16 of 16 channels"
    assert unsure == {"norm": reason, "behind": f"it rests on 'norm' ({reason})"}
    assert set(ek.correct_(model, torch.zeros(1, 16)).untouched) == {"norm", "behind"}


def test_a_norm_that_stores_no_variance_is_said_to_be_so():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 4), nn.BatchNorm1d(4))
    for _ in range(60):
        net(torch.randn(64, 4))
    net[1].running_var.zero_()
    for report in (ek.predict_shift(net, torch.zeros(2, 4)).unsure, ek.correct_(net, torch.zeros(2, 4)).untouched):
        assert "variance of 0 in all channels" in report["1"]


class Largest(nn.Module):
    """The largest of so many noisy values a channel, before a norm."""

    def __init__(self, values):
        super().__init__()
        self.first, self.drop, self.last = nn.BatchNorm1d(8), nn.Dropout(0.4), nn.BatchNorm1d(8)
        self.values = values

    def forward(self, x):
        return self.last(self.drop(self.first(x).relu()).unfold(2, self.values, self.values).amax(-1))


@pytest.mark.parametrize("values", [4, 16, 32])
def test_maxima_of_many_noisy_values_are_unsure(values):
    torch.manual_seed(0)
    model = Largest(values)
    for _ in range(60):
        model(torch.randn(64, 8, 32))
    unsure = ek.predict_shift(model, torch.zeros(2, 8, 32)).unsure
    assert [f"the largest of {values} noisy values" in reason for reason in unsure.values()] == [True] * (values >= 16)


def test_noise_on_a_weight_is_loose_if_the_signals_that_it_meets_are():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Parameter(torch.randn(8, 8)) for _ in range(3))
            self.norm, self.last = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
            self.drops = nn.ModuleList(nn.Dropout(0.2) for _ in range(3))

        def forward(self, x):
            first, second, third = (
                drop(w) for drop, w in zip(self.drops, (self.first, self.second, self.third), strict=True)
            )
            hidden = self.norm(nn.functional.linear(x, first)).relu()
            return self.last(nn.functional.linear(nn.functional.linear(hidden, second), third))

    graph = ek.trace(Net(), torch.zeros(2, 8))
    rootless = {layer for layer in graph.of(Kind.DROPOUT) if not graph.upstream(layer)}
    loose = loose_dropouts(graph, {}, rootless)
    assert {layer.name for layer in loose.mixed} == {"drops.0", "drops.2"} and not loose.raw
