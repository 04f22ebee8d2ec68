"""Branches: found by how signals part and meet, whatever the classes are called."""

import pytest
import torch
from made import Made
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.graph.branches import branches_of, innermost


def conv(n_in=4, n_out=4, **options):
    return nn.Conv2d(n_in, n_out, 1, **options)


def norm(n=4):
    return nn.BatchNorm2d(n)


def pictures(model, shape=(2, 4, 8, 8)):
    """Of every branch, what lies on it and on its shortcut, by letters."""
    found = branches_of(ek.trace(model, torch.zeros(shape)))
    return [tuple("".join(layer.kind.value for layer in way) for way in (b.layers, b.shortcut)) for b in found]


CASES = {
    "identity": (Made(lambda m, x: x + m.w(m.n(x)), n=norm(), w=conv()), [("NW", "")]),
    "the shortcut first or last": (Made(lambda m, x: m.w(m.n(x)) + x, n=norm(), w=conv()), [("NW", "")]),
    "in place": (Made(lambda m, x: m.w(x).add_(x), w=conv()), [("W", "")]),
    "projection": (Made(lambda m, x: m.a(x) + m.c(m.b(x)), a=conv(), b=conv(), c=conv()), [("WW", "W")]),
    "projection with norm": (
        Made(lambda m, x: m.s(m.a(x)) + m.c(m.n(m.b(x))), a=conv(), s=norm(), b=conv(), n=norm(), c=conv()),
        [("WNW", "WN")],
    ),
    "pooled shortcut": (
        Made(lambda m, x: F.avg_pool2d(x, 2) + m.b(m.a(x)), a=conv(stride=2), b=conv()),
        [("WW", "P")],
    ),
    "no weights": (Made(lambda m, x: x + F.relu(x), w=conv()), []),
    "two branches alike": (Made(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv()), []),
    "two towers": (Made(lambda m, x: m.b(m.a(x)) + m.e(m.d(m.c(x))), **{k: conv() for k in "abcde"}), []),
    "gate": (
        Made(
            lambda m, x: x + (y := m.a(x)) * m.c(F.relu(m.b(y.mean((2, 3), keepdim=True)))).sigmoid(),
            a=conv(), b=conv(), c=conv(),
        ),
        [("Wx", "")],
    ),
    "gated linear unit": (Made(lambda m, x: x + m.a(x) * m.b(x).sigmoid(), a=conv(), b=conv()), [("WWAx", "")]),
    "dense layer": (
        Made(lambda m, x: torch.cat([x, m.w(m.n(x))], 1), n=norm(), w=conv()),
        [("NW", "")],
    ),
    "dense block": (
        Made(
            lambda m, x: torch.cat([x, a := m.a(x), m.b(torch.cat([x, a], 1))], 1),
            a=conv(4, 2), b=conv(6, 2),
        ),
        [("W", ""), ("cW", "")],
    ),
    "inception": (Made(lambda m, x: torch.cat([m.a(x), m.c(m.b(x))], 1), a=conv(), b=conv(), c=conv()), []),
    "U-Net": (
        Made(
            lambda m, x: torch.cat([x, F.interpolate(m.b(F.max_pool2d(m.a(x), 2)), scale_factor=2)], 1),
            a=conv(), b=conv(),
        ),
        [],
    ),
    "U-Net of sums": (
        Made(
            lambda m, x: x + F.interpolate((y := m.b(F.max_pool2d(m.a(x), 2))) + m.c(y), scale_factor=2),
            a=conv(), b=conv(), c=conv(),
        ),
        [("W", "")],
    ),
    "a smaller map beside the branch's own": (
        Made(
            lambda m, x: x + m.b(m.a(x) + F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)),
            a=conv(), b=conv(),
        ),
        [("W", "PP"), ("WPP+W", "")],
    ),
    "bottleneck of features behind the positions": (
        Made(lambda m, x: x + m.b(F.relu(m.a(x))), a=nn.Linear(8, 2), b=nn.Linear(2, 8)),
        [("WAW", "")],
    ),
    "parallel": (
        Made(lambda m, x: x + m.b(m.a(x)) + m.d(m.c(x)), **{k: conv() for k in "abcd"}),
        [("WW", ""), ("WW", "")],
    ),
    "a sum that is read elsewhere, too": (
        Made(lambda m, x: (y := x + m.a(x)) + m.b(y), a=conv(), b=conv()),
        [("W", ""), ("W", "")],
    ),
    "a constant added": (Made(lambda m, x: m.w(x) + m.w.bias.view(1, -1, 1, 1), w=conv()), []),
    "nested": (
        Made(lambda m, x: x + m.c((y := m.a(x)) + m.b(y)), a=conv(), b=conv(), c=conv()),
        [("W", ""), ("WW+W", "")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pictures(name):
    model, expected = CASES[name]
    assert pictures(model) == expected


def test_signals_of_two_inputs_are_no_branch():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = conv()

        def forward(self, x, y):
            return x + self.w(y)

    shape = (2, 4, 8, 8)
    assert branches_of(ek.trace(Two(), (torch.zeros(shape), torch.zeros(shape)))) == ()


def test_a_branch_may_begin_with_an_input_of_its_own():
    """As where frames beyond a sequence's length are left out."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.n = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)

        def forward(self, x, lengths):
            beyond = torch.arange(x.shape[2])[None, None] >= lengths[:, None, None]
            return x + self.w(self.n(x).masked_fill(beyond, 0.0))

    graph = ek.trace(Masked(), (torch.zeros(2, 4, 8), torch.tensor([8, 5])))
    (branch,) = branches_of(graph)
    assert graph["n"] in branch.layers and graph["w"] in branch.layers


def test_the_innermost_branch_counts():
    graph = ek.trace(CASES["nested"][0], torch.zeros(2, 4, 8, 8))
    branches = branches_of(graph)
    assert innermost(branches, graph["b"]) is branches[0]
    assert innermost(branches, graph["c"]) is branches[1]
    assert innermost(branches, graph["a"]) is branches[1]
    assert innermost(branches, graph.of(ek.Kind.OUTPUT)[0]) is None


@pytest.mark.slow
def test_branches_agree_with_the_graph_on_every_join_of_two():
    """The slow twin: `LayerGraph.branch` walks, where branches are found by sets of bits."""
    graph = ek.trace(import_torchvision().models.resnet18(), torch.zeros(2, 3, 64, 64))
    for branch in branches_of(graph):
        slow = set(graph.branch(branch.join))
        assert {branch.layers, branch.shortcut} == slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "picture", "pre"),
    [
        ("resnet18", 8, "WNAWN", False),
        ("densenet121", 58, "NAWNAW", True),
        ("mobilenet_v2", 10, "WNAWNAWN", False),
        ("efficientnet_b0", 9, "WNAWNAxWN", False),
        ("shufflenet_v2_x0_5", 13, "WNAWNWNA", False),
        ("googlenet", 0, "", False),
        ("vgg11_bn", 0, "", False),
    ],
)
def test_torchvision(name, count, picture, pre):
    models = import_torchvision().models
    model = models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
    branches = branches_of(ek.trace(model, torch.zeros(2, 3, 224, 224)))
    assert len(branches) == count
    for branch in branches:
        letters = "".join(layer.kind.value for layer in branch.layers if layer.kind.value not in "Dc")
        assert letters == picture
        assert branch.is_pre_activation is pre


@pytest.mark.parametrize(("features", "length"), [(32, 8), (8, 32)])
def test_convolutions_along_tokens_are_a_branch_however_long_they_are(features, length):
    """As in a conformer, where maps are transposed tokens: what looks smaller is another dimension."""

    def run(m, x):
        return x + m.last(m.norm(m.first(m.before(x).transpose(1, 2)))).transpose(1, 2)

    layers = {"before": nn.LayerNorm(features), "norm": nn.BatchNorm1d(2 * features)}
    layers |= {"first": nn.Conv1d(features, 2 * features, 3, padding=1), "last": nn.Conv1d(2 * features, features, 1)}
    (branch,) = branches_of(ek.trace(Made(run, **layers), torch.zeros(2, length, features)))
    assert [layer.kind.value for layer in branch.layers] == list("N.WNW.") and not branch.shortcut


def test_what_makes_tokens_fewer_and_more_again_is_no_branch():
    def run(m, x):
        return x + m.up(m.norm(m.down(x.transpose(1, 2)))).transpose(1, 2)

    layers = {"down": nn.Conv1d(8, 8, 2, 2), "norm": nn.BatchNorm1d(8), "up": nn.ConvTranspose1d(8, 8, 2, 2)}
    assert branches_of(ek.trace(Made(run, **layers), torch.zeros(2, 16, 8))) == ()
