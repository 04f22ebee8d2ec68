"""reestimate_ on pruned models: by mask, by filter, for good; what is constant, and what comes back as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import evenkeel as ek

DRAW = torch.Generator().manual_seed(0)
DATA = [torch.randn(24, 3, 6, 6, generator=DRAW) + 0.3 for _ in range(5)]


def trained(bias=True):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Conv2d(8, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)),
    )
    for x in DATA * 10:
        net(x)
    return net


def by_weight(net):
    for layer in (net[0], net[4]):
        prune.l1_unstructured(layer, "weight", 0.5)


def by_filter(net):
    for layer in (net[0], net[4]):
        prune.ln_structured(layer, "weight", 0.5, 1, 0)


def for_good(net):
    by_filter(net)
    for layer in (net[0], net[4]):
        prune.remove(layer, "weight")


def by_norm(net):
    net[1].weight.data[::2] = 0


WAYS = {
    "by weight": by_weight,
    "by filter": by_filter,
    "for good": for_good,
    "by the norm's weight": by_norm,
    "globally": lambda net: prune.global_unstructured(
        [(net[0], "weight"), (net[4], "weight")], prune.L1Unstructured, amount=0.7
    ),
    "under weight norm": lambda net: parametrizations.weight_norm(net[4]),
}


def in_order(net):
    """Slow and obvious: norm after norm, mean and variance of all data in float64, the norms before it settled."""
    net = copy.deepcopy(net.cpu()).double().eval()
    with torch.no_grad():
        x = torch.cat(DATA).double()
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                values = x.movedim(1, -1).flatten(0, -2)
                layer.running_mean.copy_(values.mean(0))
                layer.running_var.copy_(values.var(0))
            x = layer(x)
    return net[1], net[5]


def everything(net):
    hooks = [(dict(m._forward_pre_hooks), dict(m._forward_hooks), m.training) for m in net.modules()]
    return {key: value.clone() for key, value in net.state_dict().items()}, hooks


def is_as_before(net, before):
    state, hooks = before
    now = everything(net)
    return (
        now[1] == hooks and now[0].keys() == state.keys() and all(torch.equal(now[0][k], v) for k, v in state.items())
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("way", WAYS)
def test_statistics_are_those_in_order_and_nothing_else_moves(way, bias):
    net = trained(bias)
    with torch.no_grad():  # a mask's product with a gradient cannot be copied, by the oracle
        WAYS[way](net)
    before = everything(net)
    expected = in_order(net)
    done = ek.reestimate_(net, DATA)
    for norm, other in zip((net[1], net[5]), expected, strict=True):
        assert torch.allclose(norm.running_mean.double(), other.running_mean, atol=1e-4)
        assert torch.allclose(norm.running_var.double(), other.running_var, rtol=1e-3, atol=1e-9)
        assert norm.running_var.isfinite().all() and (norm.running_var >= 0).all()
    after = net.state_dict()
    assert {k.rpartition(".")[2] for k, v in after.items() if not torch.equal(v, before[0][k])} == {
        "running_mean",
        "running_var",
    }
    done.undo()
    assert is_as_before(net, before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verb", ["variance_shift", "predict_shift", "lint"])
def test_reading_verbs_leave_masks_and_hooks(way, verb):
    net = trained()
    WAYS[way](net)
    before = everything(net)
    getattr(ek, verb)(net, DATA if verb == "variance_shift" else DATA[0])
    assert is_as_before(net, before)


def test_an_error_leaves_masks_and_hooks():
    net = trained()
    by_filter(net)
    before = everything(net)
    with pytest.raises(ek.BatchError):
        ek.reestimate_(net, [*DATA, torch.full((4, 3, 6, 6), torch.nan)])
    assert is_as_before(net, before)


@pytest.mark.parametrize("way", ["by filter", "for good"])
def test_channels_that_do_not_vary_are_said_to_store_0(way):
    net = trained(bias=False)
    WAYS[way](net)
    done = ek.reestimate_(net, DATA)
    assert (net[1].running_var == 0).sum() == 4
    (note,) = [note for note in done.notes if "do not vary" in note]
    assert note.startswith("8 channels do not vary, 4 of them in '1'")
    assert net.eval()(DATA[0]).isfinite().all()


def test_without_constant_channels_nothing_is_said_of_them():
    assert not any("do not vary" in note for note in ek.reestimate_(trained(), DATA).notes)


@pytest.mark.parametrize("way", ["by weight", "by filter", "globally"])
def test_fix_copies_a_model_with_masks(way):
    net = trained()
    WAYS[way](net)
    fixed = ek.fix(net, DATA[0], guideline="li2018")
    with torch.no_grad():
        assert torch.equal(fixed.eval()(DATA[0]), net.eval()(DATA[0]))
        fixed[0].weight_mask.zero_()
        fixed.eval()(DATA[0])
        assert not fixed[0].weight.any() and net[0].weight.any()
