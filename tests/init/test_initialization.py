"""init_: every mode's formula by hand on small nets, what is drawn, and what is left alone."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from initnets import Odd, Sum, mlp, residual_net
from models import specs
from snapshots import Snapshot
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.init import forecast, initialization
from evenkeel.init.drawing import FILLS
from evenkeel.init.gains import MODES
from evenkeel.model.threads import on_threads

WIDE = 256  # where the spread of samples' strengths hardly matters


def variances(report):
    """The variance of every weight layer's entries, by name."""
    return {row.name: row.gain**2 / row.fan_in for row in report}


def mean_square(parameter):
    return float(parameter.detach().double().square().mean())


class Together(Sum):
    """Its branches' outputs side by side."""

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


# --- formulas ---------------------------------------------------------------------------------------------------------


def by_hand(mode, widths, f, keep):
    """Variances of a chain of wide layers with one activation and one dropout between every two, by the definitions.

    What a weight layer is fed is f of a normal variable of the variance that the layer before has made, so moments of
    f are those of f(sqrt(variance) z).
    """
    power, slope, found = 1.0, 1.0, []
    for n_in, n_out in pairwise(widths):
        variance = {
            "forward": 1 / (n_in * power),
            "backward": 1 / (n_out * slope),
            "mean": 2 / (n_in * power + n_out * slope),
        }[mode]
        found.append(variance)
        deviation = math.sqrt(variance * n_in * power)
        moments = ek.activation_moments(lambda z, by=deviation: f(by * z))
        power, slope = moments.second / keep, moments.derivative_second / deviation**2 / keep
    return found


def by_hand_of_leaky_relu(mode, widths, p, slope):
    passed, q, found = (1 + slope**2) / 2 / (1 - p), 1.0, []
    for index, (n_in, n_out) in enumerate(pairwise(widths)):
        d = passed if index else 1.0
        v = {"forward": 1 / (n_in * q), "backward": 1 / (n_out * d), "mean": 2 / (n_in * q + n_out * d)}[mode]
        found.append(v)
        q *= v * n_in * passed
    return found


@pytest.mark.parametrize("mode", ["forward", "backward", "mean"])
@given(
    widths=st.lists(st.integers(8, 40), min_size=2, max_size=4),
    p=st.sampled_from([0.0, 0.3, 0.5]),
    slope=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=6)
def test_modes_in_a_chain_of_leaky_relus_of_any_width(mode, widths, p, slope):
    """E f^2 = E f'^2 = (1 + slope^2) / 2, however strong a sample is, so the formulas are exact at every width."""
    net = mlp(lambda: nn.LeakyReLU(slope), widths, p)
    expected = by_hand_of_leaky_relu(mode, widths, p, slope)
    report = ek.init_(net, torch.ones(2, widths[0]), mode=mode, seed=0)
    assert list(variances(report).values()) == pytest.approx(expected, rel=5e-3)
    drawn = [mean_square(module.weight) for module in net if isinstance(module, nn.Linear)]
    assert drawn == pytest.approx(list(variances(report).values()), rel=1e-5)  # rows of the sphere have no spread


@pytest.mark.parametrize("mode", ["forward", "backward", "mean"])
@pytest.mark.parametrize("widths", [(1, 1), (2, 2, 2), (6, 3, 1, 5)])
def test_modes_in_the_narrowest_chains(mode, widths):
    report = ek.init_(mlp(lambda: nn.LeakyReLU(0.2), widths, 0.0), torch.ones(2, widths[0]), mode=mode, seed=0)
    expected = by_hand_of_leaky_relu(mode, widths, 0.0, 0.2)
    assert list(variances(report).values()) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("f", [nn.GELU, nn.Tanh, nn.SiLU, nn.ELU, nn.Hardswish])
@pytest.mark.parametrize("mode", ["forward", "backward", "mean"])
def test_modes_in_a_wide_chain_with_any_activation(f, mode):
    widths = (8 * WIDE, 4 * WIDE, 2 * WIDE, WIDE)
    report = ek.init_(mlp(f, widths, 0.2), torch.ones(1, widths[0]), mode=mode, seed=0)
    expected = by_hand(mode, widths, f(), 0.8)
    assert list(variances(report).values()) == pytest.approx(expected, rel=0.01)


def test_the_forward_mode_counts_that_samples_of_narrow_layers_differ_in_strength():
    """Of an input of n features, the mean square is a chi-squared variable over n; E tanh^2 is concave in it."""
    n = 12
    strength = torch.distributions.Chi2(torch.tensor(float(n))).sample((400_000,)) / n
    samples = torch.tanh(strength.sqrt() * torch.randn(400_000)).double().square()
    report = ek.init_(mlp(nn.Tanh, (n, 50, 50), 0.0), torch.ones(2, n), seed=0)
    assert 1 / (50 * list(variances(report).values())[1]) == pytest.approx(float(samples.mean()), rel=0.01)
    assert float(samples.mean()) < 0.97 * ek.activation_moments(torch.tanh).second


SECOND_MOMENTS = {
    "relu": (nn.ReLU(), (WIDE,), 0.5),
    "dropout": (nn.Dropout(0.3), (WIDE,), 1 / 0.7),
    "functional dropout": (Apply(lambda x: F.dropout(x, 0.3)), (WIDE,), 1 / 0.7),
    "dropout, twice": (nn.Sequential(nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.5)), (WIDE,), 0.5 / 0.7 / 0.5),
    "dropout in eval mode": (nn.Sequential(nn.Dropout(0.3).eval(), nn.ReLU()), (WIDE,), 0.5),
    "dropout2d": (nn.Dropout2d(0.3), (8, 4, 4), 1 / 0.7),
    "alpha dropout": (nn.Sequential(nn.SELU(), nn.AlphaDropout(0.2)), (3 * WIDE,), 1.0),
    "scaled": (Apply(lambda x: 3 * x), (WIDE,), 9.0),
    "shifted": (Apply(lambda x: torch.relu(x) + 1), (WIDE,), 0.5 + 2 / math.sqrt(2 * math.pi) + 1),
    "average pool": (nn.AvgPool2d(2), (8, 4, 4), 1 / 4),
    "average pool of relu": (
        nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)),
        (8, 4, 4),
        1 / (2 * math.pi) + (0.5 - 1 / (2 * math.pi)) / 4,
    ),
    "mean over all positions": (
        Apply(lambda x: torch.relu(x).mean((2, 3), keepdim=True)),
        (8, 4, 4),
        1 / (2 * math.pi) + (0.5 - 1 / (2 * math.pi)) / 16,
    ),
    "batch norm": (nn.BatchNorm1d(WIDE), (WIDE,), "gamma"),
    "batch norm of what is strong": (
        nn.Sequential(Apply(lambda x: 5 * x), nn.BatchNorm2d(8)),
        (8, 4, 4),
        "gamma",
    ),
    "layer norm": (nn.Sequential(nn.ReLU(), nn.LayerNorm(WIDE)), (WIDE,), "gamma"),
    "group norm": (nn.Sequential(Apply(lambda x: 0.1 * x), nn.GroupNorm(2, 8)), (8, 4, 4), "gamma"),
    "norm without affine": (nn.Sequential(Apply(lambda x: 5 * x), nn.BatchNorm1d(WIDE, affine=False)), (WIDE,), 1.0),
    "identity shortcut": (Sum(nn.Identity(), nn.Linear(WIDE, WIDE)), (WIDE,), 2.0),
    "sum of relu and shortcut": (Sum(nn.Identity(), nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU())), (WIDE,), 1.5),
    "concat by channels": (Together(nn.ReLU(), nn.Linear(WIDE, 3 * WIDE)), (WIDE,), (0.5 + 3) / 4),
    "concat of images": (
        Together(nn.Sequential(nn.Conv2d(8, 24, 1), nn.ReLU()), nn.Identity()),
        (8, 4, 4),
        (24 * 0.5 + 8) / 32,
    ),
}


def before_head(module, shape):
    """A net of one layer that makes a signal of variance 1, the module, and a head; and an example."""
    if len(shape) == 1:
        stem, head = nn.Linear(4 * shape[0], shape[0]), nn.LazyLinear(5)
        example = torch.ones(2, 4 * shape[0])
    else:
        stem, head = nn.Conv2d(4 * shape[0], shape[0], 1), nn.LazyConv2d(5, 1)
        example = torch.ones(2, 4 * shape[0], *shape[1:])
    net = nn.Sequential(stem, copy.deepcopy(module), head)
    net(example)
    return net, example


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_the_second_moment_that_a_layer_is_fed(name):
    module, shape, expected = SECOND_MOMENTS[name]
    net, example = before_head(module, shape)
    if expected == "gamma":
        norm = next(m for m in net.modules() if getattr(m, "eps", None) is not None)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        expected = mean_square(norm.weight) + mean_square(norm.bias)
    report = ek.init_(net, example, seed=0)
    assert 1 / report[-1].gain ** 2 == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize("size", [2, 3])
def test_the_second_moment_of_a_maximum_is_that_of_draws(activation, size):
    net, example = before_head(nn.Sequential(activation, nn.MaxPool2d(size)), (64, 6, 6))
    report = ek.init_(net, example, seed=0)
    samples = activation(torch.randn(50_000, size**2).max(1).values).double().square()
    error = float(samples.std()) / math.sqrt(50_000)
    assert abs(1 / report[-1].gain ** 2 - float(samples.mean())) < 4 * error


def test_backward_and_mean_at_a_junction_of_widths():
    """From 50 to 25 and back: n_in counts in forward, n_out in backward, both in mean."""
    chain = {}
    for mode in ("forward", "backward", "mean"):
        report = ek.init_(mlp(nn.ReLU, (50, 50, 25, 50), 0.0), torch.ones(2, 50), mode=mode, seed=0)
        chain[mode] = [value * 50 for value in variances(report).values()]
    assert chain["forward"] == pytest.approx([1, 2, 4], rel=1e-3)
    assert chain["backward"] == pytest.approx([1, 4, 2], rel=1e-3)
    # what the middle layer makes is of variance 8 / 6, half of which is left to the last one
    assert chain["mean"] == pytest.approx([1, 2 / (0.5 + 0.25), 2 / (0.25 * 8 / 6 + 0.5)], rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(30, 40, 20, 50), (16, 12, 10, 14)])
def test_backward_keeps_the_variance_of_errors_under_autograd(widths):
    """Law: with independent errors sent in at the output, every layer before receives the same variance, over draws."""
    torch.manual_seed(0)
    net, draws = mlp(nn.ReLU, widths, 0.4), []
    for seed in range(40):
        ek.init_(net, torch.ones(2, widths[0]), mode="backward", seed=seed)
        outputs, x = [], torch.randn(64, widths[0])
        for module in net:
            x = module(x)
            outputs += [x] if isinstance(module, nn.Linear) else []
        errors = torch.autograd.grad(x, outputs, torch.randn_like(x))
        draws.append([float(error.square().mean()) for error in errors])
    draws = torch.tensor(draws)
    assert ((draws.mean(0) - 1).abs() < 4 * draws.std(0) / math.sqrt(len(draws))).all()


# --- hendrycks2016 ----------------------------------------------------------------------------------------------------

PRINTED = {"relu": (nn.ReLU, torch.relu), "gelu": (nn.GELU, F.gelu), "tanh": (nn.Tanh, torch.tanh)}


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("weights", FILLS)
def test_hendrycks2016_is_the_printed_formula(name, p, weights):
    """Unit rows over sqrt(E f^2 / keep + keep E f'^2); uniform: U(-1, 1) sqrt(3 / (n_in E f^2 / keep + ...))."""
    module, f = PRINTED[name]
    moments, keep, widths = ek.activation_moments(f), 1 - p, (30, 40, 20)
    net = mlp(module, widths, p)
    ek.init_(net, torch.ones(2, 30), mode="hendrycks2016", weights=weights, seed=0)
    terms = [(1.0, keep * moments.derivative_second), (moments.second / keep, 1.0)]
    for linear, n_in, n_out, (forward, backward) in zip((net[0], net[-1]), widths, widths[1:], terms, strict=False):
        w = linear.weight.detach().double()
        if weights == "sphere":
            expected = torch.full((n_out,), 1 / (forward + backward), dtype=torch.float64)
            assert torch.allclose(w.square().sum(1), expected, rtol=1e-5)
        elif weights == "orthogonal":
            assert mean_square(w) == pytest.approx(1 / n_in / (forward + backward), rel=1e-5)
        elif weights == "uniform":
            bound = math.sqrt(3 / (n_in * forward + n_out * backward))
            assert 0.98 * bound < float(w.abs().max()) <= bound * (1 + 1e-6)
        else:
            assert mean_square(w) == pytest.approx(1 / n_in / (forward + backward), rel=0.2)


def test_hendrycks2016_with_uniform_weights_is_glorot_where_both_moments_are_a_half():
    """hendrycks2016.md section 2: keep 1 and E f^2 = E f'^2 = 1/2 give U(-1, 1) sqrt(6 / (n_in + n_out))."""
    net = mlp(nn.ReLU, (30, 300, 200, 20), 0.0)
    report = ek.init_(net, torch.ones(2, 30), mode="hendrycks2016", weights="uniform", seed=0)
    assert list(variances(report).values())[1] == pytest.approx(2 / (300 + 200), rel=1e-9)
    sphere = ek.init_(net, torch.ones(2, 30), mode="hendrycks2016", seed=0)
    assert sphere[1].gain == pytest.approx(1.0, rel=1e-9)  # W itself


def test_hendrycks2016_reads_the_forward_term_before_and_the_backward_term_behind():
    net = nn.Sequential(
        nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 8)
    )
    report = ek.init_(net, torch.ones(2, 8), mode="hendrycks2016", seed=0)
    tanh, gelu = ek.activation_moments(torch.tanh), ek.activation_moments(F.gelu)
    expected = [
        1 / (1 + 0.8 * tanh.derivative_second),
        1 / (tanh.second / 0.8 + 0.5 * gelu.derivative_second),
        1 / (gelu.second / 0.5 + 1),
    ]
    assert [row.gain**2 for row in report] == pytest.approx(expected, rel=1e-9)


def test_hendrycks2016_says_that_it_shrinks_the_signal():
    """Homogeneous ReLU: every inner layer keeps (.5 / keep) / (.5 / keep + .5 keep), one half at keep 1."""
    net = mlp(nn.ReLU, (32,) * 6, 0.0)
    report = ek.init_(net, torch.ones(2, 32), mode="hendrycks2016", seed=0)
    left = [row.predicted.train_variance for row in report]
    assert [b / a for a, b in pairwise(left[:-1])] == pytest.approx([0.5] * 3)
    assert "the signal shrinks" in report.notes[0] and f"{left[-1]:.2g} of its variance" in report.notes[0]
    assert "mode='forward' keeps it" in str(report).replace("\n", " ")
    assert not ek.init_(net, torch.ones(2, 32), seed=0).notes


# --- what is not understood, tied, frozen, computed or out of reach ---------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_is_fed_by_an_opaque_call_gets_a_half_and_a_note(mode):
    net = nn.Sequential(nn.Linear(8, 8), Apply(lambda x: torch.fft.fft(x).real), nn.Linear(8, 8))
    report = ek.init_(net, torch.ones(2, 8), mode=mode, seed=0)
    ((name, guess),) = report.unsure.items()
    assert name == report[1].name
    assert guess.startswith("its input is not understood (") and guess.endswith(": factor 1/2")
    assert f"{name}: gain is a guess: {guess}" in " ".join(str(report).split())
    expected = {"forward": 2, "backward": 2, "mean": 2, "hendrycks2016": 1 / (0.5 + 1)}[mode]
    assert report[1].gain ** 2 == pytest.approx(expected, rel=1e-2)


def test_the_note_names_the_call_that_is_not_understood():
    net = nn.Sequential(nn.Linear(8, 8), Apply(lambda x: torch.fft.fft(x).real.unsqueeze(1)), nn.Linear(8, 8))
    assert "fft" in ek.init_(net, torch.ones(2, 8), seed=0).unsure["2"]


def with_zero_gamma():
    """As where residual branches start at zero."""
    norm = nn.BatchNorm1d(8)
    nn.init.zeros_(norm.weight)
    return nn.Sequential(nn.Linear(8, 8), norm, nn.ReLU(), nn.Linear(8, 8))


BLOCKED = {
    "zero gamma": with_zero_gamma,
    "factor 0": lambda: nn.Sequential(nn.Linear(8, 8), Apply(lambda x: 0 * x), nn.Linear(8, 8)),
    "all dropped": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(1.0), nn.Linear(8, 8)),
    "zero weights": lambda: nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCKED)
def test_where_nothing_passes_weights_are_finite_all_the_same(name, mode):
    net = BLOCKED[name]()
    if name == "zero weights":
        nn.init.zeros_(net[2].weight)
        nn.init.zeros_(net[2].bias)
    report = ek.init_(net, torch.ones(4, 8), mode=mode, seed=0)
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    assert all(math.isfinite(row.gain) for row in report)


class Tied(nn.Module):
    """A head that shares its weights with the embedding, and two layers that share theirs."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head.weight, self.second.weight = self.embedding.weight, self.first.weight

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(self.embedding(x))))))


def test_tied_weights_are_drawn_once_and_noted(monkeypatch):
    drawn, fill = [], initialization.draw_
    monkeypatch.setattr(initialization, "draw_", lambda w, *args: (drawn.append(w.parameter), fill(w, *args))[1])
    net = Tied()
    report = ek.init_(net, torch.zeros(2, 3, dtype=torch.long), seed=0)
    assert sorted(map(id, drawn)) == sorted(map(id, (net.embedding.weight, net.first.weight)))
    rows = {row.name: row for row in report}
    assert report.untouched == {
        "embedding": "shares its weights with head, which decides",
        "second": "shares its weights with first, which decides",
    }
    assert not report.unsure
    assert net.head.weight is net.embedding.weight
    assert mean_square(net.head.weight) == pytest.approx(rows["head"].gain ** 2 / 16, rel=1e-5)
    assert rows["head"].predicted.train_variance == pytest.approx(1, rel=1e-2)  # the one that decides is right
    assert net.second.bias.eq(0).all() and net.head.bias.eq(0).all()


def test_a_module_called_twice_is_drawn_once():
    linear = nn.Linear(8, 8)
    net = nn.Sequential(linear, nn.ReLU(), linear)
    report = ek.init_(net, torch.ones(2, 8), seed=0)
    assert report.untouched == {report[1].name: "shares its weights with 0, which decides"}
    assert report[1].predicted.train_variance == pytest.approx(0.5, rel=1e-3)


def test_frozen_weights_and_their_biases_are_left_alone_and_noted():
    net = mlp()
    frozen = net[3]
    frozen.weight.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    report = ek.init_(net, torch.ones(2, 40), seed=0)
    assert all(torch.equal(frozen.state_dict()[key], value) for key, value in before.items())
    assert report.untouched == {"3": "frozen (requires_grad=False)"}
    assert report[1].gain == pytest.approx(math.sqrt(60 * mean_square(frozen.weight)))
    made = 60 * mean_square(frozen.weight) * 0.5 / 0.6 + mean_square(frozen.bias)
    assert report[1].predicted.train_variance == pytest.approx(made, rel=1e-3)
    assert report[2].gain ** 2 == pytest.approx(1 / (made * 0.5 / 0.6), rel=1e-3)  # behind it, what it makes counts


def test_a_frozen_bias_is_left_alone_while_its_weights_are_drawn():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].bias.requires_grad_(False).fill_(3.0)
    before = net[0].weight.detach().clone()
    ek.init_(net, torch.ones(2, 4), seed=0)
    assert net[0].bias.eq(3).all() and net[1].bias.eq(0).all() and not torch.equal(net[0].weight, before)


def test_computed_weights_and_parameters_out_of_reach_are_left_alone_and_noted():
    net = Odd()
    before = Snapshot(net)
    report = ek.init_(net, torch.ones(2, 5, 4), seed=0)
    changed = {change.split()[1] for change in before.changes() if change.startswith("state_dict")}
    assert changed == {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    rows = {row.name: row for row in report}
    assert report.untouched["normed"] == "its weights are computed from other parameters"
    assert math.isnan(rows["normed"].gain)
    unread = [path for path, why in report.untouched.items() if why == "no weight layer in the graph reads it"]
    assert unread[:3] == ["position", "rnn.weight_ih_l0", "rnn.weight_hh_l0"] and len(unread) == 6
    assert set(report.untouched) == {"normed", *unread} and "scale" not in unread
    assert "position and 5 more: not drawn: no weight layer in the graph reads it" in " ".join(str(report).split())


def test_norms_are_left_alone_and_biases_are_zero():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8))
    net(torch.randn(4, 3, 9, 9))
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    before = Snapshot(net)
    ek.init_(net, torch.ones(2, 3, 9, 9), seed=0)
    changed = {change for change in before.changes() if change.startswith("state_dict")}
    assert changed == {f"state_dict {i}.{name}" for i in (0, 3) for name in ("weight", "bias")}
    assert net[0].bias.eq(0).all() and net[3].bias.eq(0).all()


def test_the_padding_row_of_an_embedding_stays_zero():
    """Training never changes it, so what is drawn there would stay."""
    net = nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 4))
    ek.init_(net, torch.zeros(2, dtype=torch.long), seed=0)
    assert net[0].weight[2].eq(0).all() and net[0].weight[[0, 1, 3, 4, 5, 6]].abs().sum(1).gt(0).all()


# --- undo, faults and what is as found --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_undo_puts_the_same_bits_back(mode):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Sum(nn.Identity(), nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))
    ).to(memory_format=torch.channels_last)
    before = Snapshot(net)
    report = ek.init_(net, torch.ones(2, 3, 5, 5), mode=mode, seed=0, branch_scale=0.5)
    assert {f"state_dict {name}" for name in ("0.weight", "0.bias", "2.branches.1.1.weight")} <= set(before.changes())
    report.undo()
    assert before.changes() == []
    report.undo()
    assert before.changes() == []


def test_undo_of_the_second_gives_back_the_first():
    net = mlp()
    ek.init_(net, torch.ones(2, 40), seed=1)
    between = Snapshot(net)
    ek.init_(net, torch.ones(2, 40), seed=2).undo()
    assert between.changes() == []


def broken_model():
    inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Sum(nn.Identity(), inner), nn.Flatten(), nn.Linear(72, 4))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
        parameter.grad = torch.ones_like(parameter)
    net[1].register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (initialization, "graph_of", 1),
        (initialization, "weights_of", 2),
        (initialization, "_branch_scales", 1),
        (initialization, "write_", 1),
        (initialization, "write_", 2),
        (initialization, "choose_variances", 1),
        (initialization, "draw_", 1),
        (initialization, "draw_", 3),
        (initialization, "_draw", 1),
        (forecast, "snapshot", 1),
        (initialization, "InitReport", 1),
    ],
)
def test_on_an_error_anywhere_the_model_is_as_before(monkeypatch, owner, name, calls, error):
    net = broken_model()
    ek.trace(net, torch.ones(2, 3, 5, 5))
    before = Snapshot(net)
    original, made = getattr(owner, name), []

    def broken(*args, **kwargs):
        made.append(original(*args, **kwargs))
        if len(made) == calls:  # and not later: the same function may put things back
            raise error("half-way")
        return made[-1]

    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(error, match="half-way"):
        ek.init_(net, torch.ones(2, 3, 5, 5), seed=0, branch_scale=0.5)
    assert before.changes() == []


@pytest.mark.slow
@given(spec=specs(fails=True), mode=st.sampled_from(MODES))
@settings(max_examples=8)
def test_if_the_forward_raises_nothing_has_changed(spec, mode):
    net, (batch, _) = spec.build(), spec.batches()
    before = Snapshot(net)
    try:
        ek.init_(net, batch, mode=mode, seed=0).undo()
    except (ek.TraceError, KeyboardInterrupt):
        pass
    else:
        assert spec.fails_after > 0
    assert before.changes() == []


@pytest.mark.slow
@given(spec=specs(fails=False), weights=st.sampled_from(sorted(FILLS)))
@settings(max_examples=12)
def test_only_weights_and_biases_of_weight_layers_change(spec, weights):
    """Not flags, momenta, hooks, gradients, caches, norms or the random state, whatever forward does on the side."""
    net, (batch, _) = spec.build(), spec.batches()
    before = Snapshot(net)
    report = ek.init_(net, batch, weights=weights, seed=0)
    modules = ["head", *(f"blocks.{i}.weight" for i in range(len(spec.blocks)))]
    tensors = {f"state_dict {module}.{name}" for module in modules for name in ("weight", "bias")}
    changes = set(before.changes())
    assert {change for change in changes if "attribute" not in change} == tensors
    assert {change for change in changes if "attribute" in change} == {f"attribute {m}:_parameters" for m in modules}
    report.undo()
    assert before.changes() == []


# --- random numbers ---------------------------------------------------------------------------------------------------


def bits(net, **options):
    ek.init_(net, torch.ones(2, 40), **options)
    return [parameter.detach().clone() for parameter in net.parameters()]


def alike(left, right):
    return all(map(torch.equal, left, right))


@pytest.mark.parametrize("weights", FILLS)
def test_the_same_seed_gives_the_same_bits(weights):
    first = bits(mlp(), weights=weights, seed=3)
    assert alike(first, bits(mlp(), weights=weights, seed=3))
    assert not alike(first, bits(mlp(), weights=weights, seed=4))


@pytest.mark.parametrize("weights", [kind for kind in FILLS if kind != "orthogonal"])  # LAPACK sums in another order
def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads(weights):
    net, found = mlp(widths=(40, 400, 300, 300, 1)), []
    for count in (1, 2, 3):
        with on_threads(count):
            found.append(bits(net, weights=weights, seed=3))
    assert alike(found[0], found[1]) and alike(found[0], found[2])


def test_the_global_generator_is_drawn_from_only_without_a_seed():
    net, state = mlp(), torch.get_rng_state()
    with_seed = bits(net, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert alike(bits(net), with_seed)
    assert not torch.equal(torch.get_rng_state(), state)
    assert not alike(bits(net), with_seed)  # the next draw is another one


@pytest.mark.parametrize("weights", FILLS)
def test_layers_of_one_shape_are_drawn_independently(weights):
    net = mlp(widths=(40, 40, 40, 40), p=0.0)
    ek.init_(net, torch.ones(2, 40), weights=weights, seed=0)
    drawn = [module.weight.detach().flatten() for module in net if isinstance(module, nn.Linear)]
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(3)
    assert correlations.abs().max() < 4 / math.sqrt(1600)


# --- errors -----------------------------------------------------------------------------------------------------------


class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(40, 40)

    def forward(self, x):
        self.linear(x)
        raise RuntimeError("no luck")


def all_frozen():
    return mlp().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (
            mlp,
            {"mode": "sum"},
            ek.EvenkeelError,
            "mode is 'sum': it must be forward or backward or mean or hendrycks2016",
        ),
        (
            mlp,
            {"weights": "xavier"},
            ek.EvenkeelError,
            "weights is 'xavier': it must be sphere or orthogonal or normal or",
        ),
        (mlp, {"branch_scale": 0}, ek.EvenkeelError, "branch_scale is 0: it must be a positive number or even"),
        (mlp, {"branch_scale": -1.0}, ek.EvenkeelError, "branch_scale is -1.0"),
        (mlp, {"branch_scale": math.nan}, ek.EvenkeelError, "branch_scale is nan"),
        (mlp, {"branch_scale": math.inf}, ek.EvenkeelError, "branch_scale is inf"),
        (mlp, {"branch_scale": True}, ek.EvenkeelError, "branch_scale is True"),
        (mlp, {"seed": 1.0}, ek.EvenkeelError, "seed is 1.0: it must be None or a whole number of 64 bits"),
        (mlp, {"seed": True}, ek.EvenkeelError, "seed is True"),
        (mlp, {"seed": 2**64}, ek.EvenkeelError, "seed is 18446744073709551616"),
        (mlp, {"branch_scale": "odd"}, ek.EvenkeelError, "branch_scale is 'odd'"),
        (nn.ReLU, {}, ek.ModelError, "ReLU has no weight layer with weights to draw"),
        (all_frozen, {}, ek.ModelError, r"Sequential has no weight layer .*frozen \(requires_grad=False\) or computed"),
        (lambda: mlp().to("meta"), {}, ek.ModelError, r"'0' are on the meta device: model.to_empty\(device=...\)"),
        (lambda: mlp(widths=(41, 3)), {}, ek.TraceError, "the forward pass raised RuntimeError.*check that the exam"),
        (Raising, {}, ek.TraceError, r"no luck.*test_initialization.py:\d+"),
        (lambda: nn.LazyLinear(3), {}, ek.TraceError, "lazy module.*run one forward pass first"),
    ],
)
def test_errors_say_what_is_wrong_and_what_to_do(make, options, error, message):
    with pytest.raises(error, match=message):
        ek.init_(make(), torch.ones(2, 40), **options)


# --- branch_scale -----------------------------------------------------------------------------------------------------


def test_a_number_scales_the_last_weights_of_every_branch():
    scaled, plain = residual_net(3), residual_net(3)
    ek.init_(scaled, torch.ones(2, 64), seed=0, branch_scale=0.3)
    ek.init_(plain, torch.ones(2, 64), seed=0)
    power = 1.0
    for i in range(4):
        block = scaled[i + 1]
        if i == 3:
            assert mean_square(block.weight) == pytest.approx(1 / (64 * power), rel=1e-3)
            continue
        assert mean_square(block.branches[1][0].weight) == pytest.approx(1 / (64 * power), rel=1e-3)
        assert mean_square(block.branches[1][2].weight) == pytest.approx(0.3**2 * 2 / 64, rel=1e-3)
        power += 0.3**2
    first = scaled[1].branches[1][2].weight
    assert torch.allclose(first, 0.3 * plain[1].branches[1][2].weight)
    assert torch.equal(scaled[0].weight, plain[0].weight)


@pytest.mark.parametrize("order", ["branch + shortcut", "shortcut + branch"])
def test_a_projection_in_the_shortcut_is_not_scaled(order):
    branch, projection = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 8)
    net = Sum(*((branch, projection) if order == "branch + shortcut" else (projection, branch)))
    ek.init_(net, torch.ones(2, 8), seed=0, branch_scale=0.5)
    assert mean_square(projection.weight) == pytest.approx(1 / 8, rel=1e-3)
    assert mean_square(branch[2].weight) == pytest.approx(0.25 * 2 / 8, rel=1e-3)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_every_one_of_parallel_branches_is_scaled(first):
    """x + a(x) + b(x), a of so many layers, b of two."""
    branches = [nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers))) for layers in (first, 2)]
    net = Sum(nn.Identity(), *branches)
    ek.init_(net, torch.ones(2, 8), seed=0, branch_scale=0.5)
    for branch in branches:
        assert mean_square(branch[-1].weight) == pytest.approx(0.25 / 8, rel=1e-3)


def test_a_norm_at_the_end_of_a_branch_is_scaled_in_place_of_the_weights():
    net = residual_net(2, norm=True)
    before = Snapshot(net)
    report = ek.init_(net, torch.ones(4, 64), seed=0, branch_scale=0.3)
    for block in (net[1], net[2]):
        assert block.branches[1][3].weight.eq(torch.tensor(0.3)).all() and block.branches[1][3].bias.eq(0).all()
        assert mean_square(block.branches[1][2].weight) == pytest.approx(2 / 64, rel=1e-3)
    assert report[-1].gain ** 2 == pytest.approx(1 / (1 + 2 * 0.3**2), rel=1e-3)
    report.undo()
    assert before.changes() == []


def test_a_concatenation_does_not_add_up_and_is_not_scaled():
    dense, plain = (nn.Sequential(Together(nn.Identity(), nn.Linear(8, 8)), nn.Linear(16, 4)) for _ in range(2))
    ek.init_(dense, torch.ones(2, 8), seed=0, branch_scale=0.5)
    ek.init_(plain, torch.ones(2, 8), seed=0)
    assert alike(dense.parameters(), plain.parameters())


def test_weights_that_compute_a_gate_at_the_end_of_a_branch_are_not_those_scaled():
    """As in squeeze and excitation, whose gate is the last to be computed."""
    body, gate = nn.Conv2d(8, 8, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
    net = Sum(nn.Identity(), nn.Sequential(body, Apply(lambda x: x * gate(x))))
    net.gate = gate
    ek.init_(net, torch.ones(2, 8, 4, 4), seed=0, branch_scale=0.5)
    assert mean_square(body.weight) == pytest.approx(0.25 / 8, rel=1e-3)
    assert mean_square(gate[1].weight) > 1 / 8


def test_a_frozen_norm_at_the_end_of_a_branch_is_left_alone():
    net = residual_net(1, norm=True)
    net[1].branches[1][3].requires_grad_(False)
    ek.init_(net, torch.ones(4, 64), seed=0, branch_scale=0.3)
    assert net[1].branches[1][3].weight.eq(1).all()


@pytest.mark.parametrize("norm", [False, True])
def test_even_branches_keep_the_variance_of_a_deep_net_bounded(norm):
    """1 + n of a variance grows with the depth n; 1 + n (1 / sqrt n)^2 = 2 does not."""
    powers = {}
    for scale in (1.0, "even"):
        net = residual_net(12, norm)
        ek.init_(net, torch.ones(4, 64), seed=0, branch_scale=scale)
        with torch.no_grad():
            powers[scale] = mean_square(net[:-1](torch.randn(512, 64)))
    assert powers[1.0] == pytest.approx(13, rel=0.35)
    assert powers["even"] == pytest.approx(2, rel=0.35)


@pytest.mark.parametrize("mode", MODES)
def test_even_is_one_over_the_root_of_the_number_of_branches(mode):
    by_word, by_number = residual_net(4, width=16), residual_net(4, width=16)
    ek.init_(by_word, torch.ones(2, 16), mode=mode, seed=0, branch_scale="even")
    ek.init_(by_number, torch.ones(2, 16), mode=mode, seed=0, branch_scale=1 / 2)
    assert alike(by_word.parameters(), by_number.parameters())
    without = mlp()
    ek.init_(without, torch.ones(2, 40), mode=mode, seed=0, branch_scale="even")
    assert alike(without.parameters(), bits(mlp(), mode=mode, seed=0))


# --- models of all sorts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", FILLS)
def test_other_dtypes(dtype, weights):
    net = mlp().to(dtype)
    report = ek.init_(net, torch.ones(2, 40), weights=weights, seed=0)
    precise = ek.init_(mlp(), torch.ones(2, 40), weights=weights, seed=0)
    assert [row.gain for row in report] == pytest.approx([row.gain for row in precise])
    for row, linear in zip(report, (net[0], net[3], net[6]), strict=True):
        assert linear.weight.dtype == dtype and linear.bias.dtype == dtype
        exact = weights in ("sphere", "orthogonal")
        assert mean_square(linear.weight) == pytest.approx(row.gain**2 / row.fan_in, rel=0.01 if exact else 0.2)
    if dtype == torch.float64 and weights == "sphere":
        norms = net[0].weight.detach().square().sum(1)
        assert torch.allclose(norms, torch.ones_like(norms), rtol=1e-12)


def test_train_and_eval_mode_of_the_model_make_no_difference():
    given, plain = mlp().eval(), mlp()
    report = ek.init_(given, torch.ones(2, 40), seed=0)
    other = ek.init_(plain, torch.ones(2, 40), seed=0)
    assert alike(given.parameters(), plain.parameters()) and report.to_dict() == other.to_dict()
    assert not any(module.training for module in given.modules())


@pytest.mark.parametrize("example", [(torch.ones(2, 40),), {"input": torch.ones(2, 40)}, torch.full((2, 40), math.nan)])
def test_every_form_of_example(example):
    net = mlp()
    ek.init_(net, example, seed=0)
    assert alike(net.parameters(), bits(mlp(), seed=0))


def test_the_graph_is_taken_in_place_of_the_example(monkeypatch):
    net = mlp()
    graph = ek.trace(net, torch.ones(2, 40))
    monkeypatch.setattr(net, "forward", None)  # nothing is run again
    report = ek.init_(net, graph, seed=0)
    assert len(report) == 3 and alike(net.parameters(), bits(mlp(), seed=0))
    with pytest.raises(ek.TraceError, match="another model"):
        ek.init_(mlp(), graph)


def test_a_lazy_layer_that_has_seen_an_input():
    net = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(4))
    net(torch.ones(2, 40))
    report = ek.init_(net, torch.ones(2, 40), seed=0)
    assert [row.fan_in for row in report] == [40, 6]
    assert [row.gain for row in report] == pytest.approx([1, math.sqrt(2)])


def test_a_compiled_model():
    net = mlp()
    report = ek.init_(torch.compile(net, backend="eager"), torch.ones(2, 40), seed=0)
    assert len(report) == 3 and not report.untouched
    assert alike(net.parameters(), bits(mlp(), seed=0))


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        net = mlp()
    report = ek.init_(net, torch.ones(2, 40), seed=0)
    assert mean_square(net[0].weight) == pytest.approx(1 / 40, rel=1e-5)
    report.undo()


class Group(nn.Module):
    """A block as in a grouped residual net: convolutions with norms, one of them in groups, strides, a projection."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, stride, padding=1, groups=4, bias=False)
        self.bn2, self.relu = nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


def test_blocks_of_convolutions_with_strides_and_groups():
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Group(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(32, 10))
    report = ek.init_(net, torch.ones(2, 3, 8, 8), seed=0)
    fans = {row.name: (row.fan_in, row.fan_out) for row in report}
    assert fans == {
        "0": (27, 144),
        "1.conv1": (16, 32),
        "1.conv2": (72, 18),
        "1.down.0": (16, 8),
        "4": (32, 10),
    }
    gains = {row.name: row.gain**2 for row in report}
    assert (gains["0"], gains["1.conv1"], gains["1.conv2"]) == pytest.approx((1, 1, 2), rel=1e-3)


# --- prediction -------------------------------------------------------------------------------------------------------

NETS = {
    "relu and dropout": (lambda: mlp(nn.ReLU, (48, 64, 32, 48), 0.4), (256, 48)),
    "gelu": (lambda: mlp(nn.GELU, (48, 64, 32, 48), 0.3), (256, 48)),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(32, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.5), nn.Linear(48, 32)),
        (512, 32),
    ),
    "convolutions with borders": (
        lambda: nn.Sequential(
            *(nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.3), nn.AvgPool2d(2)),
            *(nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 16)),
        ),
        (64, 8, 8, 8),
    ),
    "residual": (lambda: residual_net(1, width=48), (256, 48)),
}


def measured(net, names, x):
    """The mean squares of what these layers return."""
    modules, seen = dict(net.named_modules()), {}
    handles = [
        modules[name].register_forward_hook(lambda module, args, out: seen.__setitem__(module, mean_square(out)))
        for name in names
    ]
    net(x)
    for handle in handles:
        handle.remove()
    return [seen[modules[name]] for name in names]


@pytest.mark.parametrize("name", NETS)
def test_what_is_predicted_is_measured_over_draws(name):
    """Law: E z^2 of every weight layer in train mode is `predicted.train_variance` within 4 standard errors."""
    make, shape = NETS[name]
    net, draws, report = make(), [], ()
    for seed in range(16):
        report = ek.init_(net, torch.ones(2, *shape[1:]), seed=seed)
        draws.append(measured(net, [row.name for row in report], torch.randn(shape)))
    found = torch.tensor(draws, dtype=torch.float64)
    predicted = torch.tensor([row.predicted.train_variance for row in report], dtype=torch.float64)
    errors = found.std(0) / math.sqrt(len(draws))
    assert ((found.mean(0) - predicted).abs() < 4 * errors).all()
    assert (errors / predicted < 0.15).all()  # or the comparison would say little


class Positions(nn.Module):
    """Embedded words plus what stands for their places, in several forms, all of mean square `square`."""

    def __init__(self, form, square=4.0):
        super().__init__()
        self.words, self.head, self.form = nn.Embedding(50, 64), nn.Linear(64, 64), form
        self.table = nn.Embedding(16, 64)
        nn.init.normal_(self.table.weight, std=math.sqrt(square))
        self.stored = nn.Parameter(math.sqrt(square) * torch.randn(1, 32, 64))

    def forward(self, x):
        places = self.table(torch.arange(x.shape[1])) if self.form == "embedding" else self.stored[:, : x.shape[1]]
        return self.head(self.words(x) + places)


@pytest.mark.parametrize("form", ["embedding", "sliced"])
def test_a_part_of_a_parameter_that_is_added_counts_with_its_mean_square(form):
    net = Positions(form)
    report = ek.init_(net, torch.randint(0, 50, (8, 16)), seed=0)
    expected = 1 / math.sqrt(
        1 + float((net.table.weight if form == "embedding" else net.stored).detach().square().mean())
    )
    assert report[1].gain == pytest.approx(expected, rel=1e-3) and not report.unsure
