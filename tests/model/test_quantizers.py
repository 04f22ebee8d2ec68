"""Fake-quantizers and observers: ranges are held while a model is measured, and given back bit for bit."""

import copy

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

from evenkeel.model.quantizers import Quantizers, hold_quantizers_, outgrown, unscalable
from evenkeel.model.restoring import restored

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


MADE = {  # one of every kind that torch.ao has
    "fake": tq.default_fake_quant,
    "channels": tq.default_per_channel_weight_fake_quant,
    "fused": tq.default_fused_act_fake_quant,
    "histogram": lambda: tq.FakeQuantize(tq.HistogramObserver, 0, 255),
    "learnable": lambda: _LearnableFakeQuantize(tq.MovingAverageMinMaxObserver, 0, 255),
    "fixed": tq.default_fixed_qparams_range_0to1_fake_quant,
    "watching": tq.MinMaxObserver,
    "watching a histogram": tq.HistogramObserver,
    "recording": tq.RecordingObserver,
}


@pytest.mark.parametrize("name", MADE)
def test_what_passes_moves_no_range(name):
    quantizer = MADE[name]()
    if name == "learnable":
        quantizer.enable_static_estimate()
    quantizer(X)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    with restored(quantizer):
        hold_quantizers_(quantizer)
        out = quantizer(100 * X)
        held = {key: value for key, value in quantizer.state_dict().items() if not key.endswith("_enabled")}
        assert all(torch.equal(value, before[key]) for key, value in held.items())
        if name == "recording":
            assert len(quantizer.tensor_val) == 1
        if name.startswith(("watching", "recording")):
            assert torch.equal(out, 100 * X)
    after = quantizer.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    if name != "fixed":
        quantizer(100 * X)  # watches again
        moved = quantizer.state_dict()
        is_moved = any(not torch.equal(v, before[k]) for k, v in moved.items() if v.shape == before[k].shape)
        assert is_moved or name in ("learnable", "recording")


@pytest.mark.parametrize("name", ["fake", "channels", "fused"])
def test_as_torch_switches_them_off(name):
    one, other = MADE[name](), MADE[name]()
    for quantizer in (one, other):
        quantizer(X)
    hold_quantizers_(one)
    other.apply(tq.disable_observer)
    assert torch.equal(one(3 * X), other(3 * X))
    assert torch.equal(one.observer_enabled, other.observer_enabled)


@pytest.mark.parametrize("name", ["fake", "channels", "fused", "histogram"])
def test_what_never_saw_a_range_rounds_nothing(name):
    quantizer = MADE[name]()
    with restored(quantizer):
        assert hold_quantizers_(quantizer) == Quantizers(unobserved=("",))
        assert torch.equal(quantizer(X), X)
    assert quantizer.fake_quant_enabled.all() and quantizer.observer_enabled.all()


def test_one_whose_observer_the_user_switched_off_rounds_as_it_would():
    quantizer = MADE["fake"]()
    quantizer.disable_observer()
    assert hold_quantizers_(quantizer) == Quantizers(rounding=("",))
    assert torch.equal(quantizer(X), X.round().clamp(0, 127))


def test_ranges_of_single_batches_are_not_held():
    quantizer = tq.FakeQuantize(tq.MovingAverageMinMaxObserver, 0, 255, is_dynamic=True, averaging_constant=1)
    assert hold_quantizers_(quantizer) == Quantizers()
    assert torch.allclose(quantizer(100 * X), 100 * X, atol=3)


def test_notes_name_them():
    net = nn.Sequential(MADE["fake"](), MADE["watching"](), MADE["fused"]())
    net[0](X)
    assert hold_quantizers_(net).notes == [
        "0 and 1 more: their ranges stayed as they are: observers were off while measuring",
        "2: fake-quantizers that have observed nothing yet, so that nothing was rounded there: run some batches first",
    ]
    assert hold_quantizers_(nn.Linear(2, 2)).notes == []


def fused():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).train()
    net.qconfig = tq.get_default_qat_qconfig("x86")
    net = tq.prepare_qat(tq.fuse_modules_qat(net, [["0", "1"]]))
    for _ in range(50):
        net(X)
    net[0].weight_fake_quant.activation_post_process.reset_min_max_vals()
    net.eval()(X)
    return net


def test_weights_that_outgrow_their_range_are_found():
    net = fused()
    assert outgrown(net) == {}
    net[0].bn.running_var /= 4
    assert list(outgrown(net)) == ["0"] and outgrown(net)["0"] == pytest.approx(2, rel=0.05)
    net.apply(tq.disable_fake_quant)
    assert outgrown(net) == {}


def test_a_norm_weight_of_0_is_named():
    net = fused()
    assert unscalable(net) == ""
    net[0].bn.weight.data[3] = 0
    assert unscalable(net).startswith("'0' divides by its norm's weight, which is 0 in 1 of 8 channels")
    assert unscalable(copy.deepcopy(net[0].bn)) == ""
