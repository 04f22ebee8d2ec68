"""reestimate_ and variance_shift on models of rounded weights: torch.ao's, exported ones, and rounded by hand."""

import copy

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn
from torch.ao.nn.intrinsic import qat
from torch.ao.quantization.quantize_fx import prepare_qat_fx
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.model.evaluation import evaluate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
SLOW = "_enable_slow_path_for_better_numerical_stability"


class Net(nn.Module):
    """Two convolutions and a linear layer with norms, dropout behind the first."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.drop = nn.Dropout(0.3)
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.fc, self.bn3 = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.drop(self.relu1(self.bn1(self.conv1(self.quant(x)))))
        x = self.pool(self.relu2(self.bn2(self.conv2(x)))).flatten(1)
        return self.dequant(self.bn3(self.fc(x)))


def batches(count=5, size=24):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 6, generator=draw) + 0.3 for _ in range(count)]


def trained():
    torch.manual_seed(0)
    net = Net()
    for norm in (net.bn1, net.bn2, net.bn3):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    for x in batches() * 8:
        net(x)
    return net


def prepared(how):
    net = trained()
    config = tq.get_default_qat_qconfig("x86")
    if how == "fx":
        net = prepare_qat_fx(net, tq.QConfigMapping().set_global(config), (batches()[0],))
    elif how == "calibrated":
        net.qconfig = tq.get_default_qconfig("x86")
        net = tq.prepare(net.eval())
    else:
        net.qconfig = config
        parts = [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"], ["fc", "bn3"]]
        net = tq.prepare_qat(net if how == "apart" else tq.fuse_modules_qat(net, parts))
    for x in batches() * 3:
        net(x)
    for module in net.modules():
        if how == "fused, slow path" and hasattr(module, SLOW):
            setattr(module, SLOW, True)
    return net


WAYS = ("apart", "fused", "fused, slow path", "fx", "calibrated")


def fed(net, data):
    """Slow and obvious: mean and variance of what each norm reads in eval mode, observers off, in float64 sums."""
    net, found = copy.deepcopy(net).eval(), {}
    net.apply(tq.disable_observer)
    for module in net.modules():
        if hasattr(module, SLOW):
            setattr(module, SLOW, False)
        if isinstance(module, tq.ObserverBase):
            module.forward = lambda x: x
    norms = {path: m for path, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for path, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, args, path=path: found.setdefault(path, []).append(args[0].double()))
    with torch.no_grad():
        for x in data:
            net(x)
    values = {path: torch.cat(xs).movedim(1, -1).flatten(0, -2) for path, xs in found.items()}
    return {path: (v.mean(0), v.var(0), norms[path]) for path, v in values.items()}


def off(net, data):
    """How far norms are from storing what they are fed: relative mean variance, and means in deviations."""
    return max(
        max(
            abs(float(variance.mean() / norm.running_var.double().mean()) - 1),
            float(((mean - norm.running_mean).abs() / variance.sqrt()).mean()),
        )
        for mean, variance, norm in fed(net, data).values()
    )


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(net, before):
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("how", WAYS)
def test_norms_store_what_they_are_fed_and_nothing_else_moves(how):
    net, data = prepared(how), batches()
    before = state(net)
    assert off(net, data) > 0.2  # dropout
    done = ek.reestimate_(net, data)
    assert off(net, data) < 0.01
    assert {name.rpartition(".")[2] for name in changed(net, before)} == {"running_mean", "running_var"}
    assert len(done) == 3 and not done.untouched and not done.unsure
    assert any("observers were off while measuring" in note for note in done.notes)
    done.undo()
    assert not changed(net, before)


@pytest.mark.parametrize("how", WAYS)
def test_the_shift_is_that_of_the_model_as_it_is_whatever_the_order(how):
    net, data = prepared(how), batches()
    before = state(net)
    rows = {row.path: row for row in ek.variance_shift(net, data)}
    for path, (_, variance, norm) in fed(net, data).items():
        assert rows[path].eval_var == pytest.approx(
            float(variance.mean()), rel=0.02
        )  # rounding is not the same, merged
        assert rows[path].running_var == pytest.approx(float(norm.running_var.mean()), rel=1e-5)
    reverse = {row.path: row.eval_var for row in ek.variance_shift(net, data[::-1])}
    assert reverse == pytest.approx({path: row.eval_var for path, row in rows.items()}, rel=1e-6)
    assert not changed(net, before)


@pytest.mark.parametrize("how", ["apart", "fused"])
def test_batches_are_merged_since_ranges_do_not_move(how):
    done = ek.reestimate_(prepared(how), batches(12, 8))
    assert not any("one by one" in note for note in done.notes)


def test_the_prediction_moves_no_range():
    net = prepared("fused")
    before = state(net)
    predicted, measured = ek.predict_shift(net, batches()[0]), ek.variance_shift(net, batches())
    assert [row.ratio for row in predicted][1] == pytest.approx([row.ratio for row in measured][1], rel=0.1)
    assert ek.lint(net, batches()[0]) is not None
    assert not changed(net, before)
    done = ek.correct_(net, batches()[0])
    assert {name.rpartition(".")[2] for name in changed(net, before)} <= {"running_mean", "running_var"}
    assert any("are cut off there" in note for note in done.notes)
    done.undo()
    assert not changed(net, before)


def test_scores_move_no_range_and_do_not_depend_on_the_order():
    net = prepared("fused")
    before, held = state(net), [(x, torch.arange(len(x)) % 8) for x in batches()]
    assert evaluate(net, held).loss == pytest.approx(evaluate(net, held[::-1]).loss, rel=1e-6)
    assert not changed(net, before)


def test_without_a_range_nothing_is_rounded_and_that_is_said():
    net = trained()
    net.qconfig = tq.get_default_qat_qconfig("x86")
    plain = copy.deepcopy(net)
    net = tq.prepare_qat(net)
    done = ek.reestimate_(net, batches())
    ek.reestimate_(plain, batches())
    assert torch.allclose(net.bn2.running_var, plain.bn2.running_var, rtol=1e-3)
    assert any("observed nothing yet" in note for note in done.notes)
    assert net.quant.activation_post_process.fake_quant_enabled.all()


def test_weights_cut_off_by_their_range_are_named_and_the_way_out_works():
    net, data = prepared("fused"), batches()
    done = ek.reestimate_(net, data)
    assert any(note.startswith("'conv2': its weights, scaled by the new statistics, reach x") for note in done.notes)
    done.undo()
    net.apply(tq.disable_fake_quant)
    ek.reestimate_(net, data)
    net.apply(tq.enable_fake_quant)
    for module in net.modules():
        if isinstance(module, tq.ObserverBase):
            module.reset_min_max_vals()
    with torch.no_grad():
        for x in data:
            net.eval()(x)
    done = ek.reestimate_(net, data)
    assert not any("are cut off" in note for note in done.notes)
    assert off(net, data) < 0.01
    plain = trained()
    ek.reestimate_(plain, data)
    assert float(net.conv2.bn.running_var.mean() / plain.bn2.running_var.mean()) == pytest.approx(1, abs=0.05)


def test_frozen_statistics_are_left_in_train_mode_and_count_in_eval_mode():
    net = prepared("fused").train()
    net.apply(qat.freeze_bn_stats)
    before = state(net)
    done = ek.reestimate_(net, batches())  # torch freezes no LinearBn1d
    assert set(done.untouched) == {"conv1.bn", "conv2.bn"} and [row.path for row in done] == ["fc.bn"]
    assert changed(net, before) == {"fc.bn.running_mean", "fc.bn.running_var"}
    assert len(ek.reestimate_(net.eval(), batches())) == 3
    assert off(net, batches()) < 0.01
    assert net.conv1.freeze_bn and net.conv2.freeze_bn


@pytest.mark.parametrize("verb", ["reestimate_", "variance_shift", "predict_shift"])
def test_a_norm_weight_of_0_in_a_fused_layer_is_to_blame(verb):
    net = prepared("fused")
    net.conv1.bn.weight.data[2] = 0
    before = state(net)
    data = batches()[0] if verb == "predict_shift" else batches()
    with pytest.raises(ek.EvenkeelError, match=r"'conv1' divides by its norm's weight, which is 0 in 1 of 8 channels"):
        getattr(ek, verb)(net, data)
    assert not changed(net, before)


def test_the_slow_path_with_a_weight_of_0_is_out_of_reach_by_name():
    net = prepared("fused, slow path")
    net.conv1.bn.weight.data[2] = 0
    done = ek.reestimate_(net, batches())
    assert list(done.untouched) == ["conv1.bn"] and "fused with it" in done.untouched["conv1.bn"]


class Rounded(nn.Conv2d):
    """Weights scaled by what the norm behind stores, and rounded to so many bits: no layer that any table knows."""

    def __init__(self, norm, bits, *sizes):
        super().__init__(*sizes, bias=False)
        self.norm, self.most = [norm], 2 ** (bits - 1) - 1

    def forward(self, x):
        scale = (self.norm[0].weight / (self.norm[0].running_var + self.norm[0].eps).sqrt()).view(-1, 1, 1, 1)
        scaled = self.weight * scale
        step = scaled.detach().abs().amax((1, 2, 3), keepdim=True) / self.most
        return F.conv2d(x, (scaled / step).round() * step / scale)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_steps_by_filter_do_not_depend_on_statistics_and_are_exact(bits):
    """The scale cancels: each filter's step is a part of its own largest weight."""
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    net = nn.Sequential(
        Rounded(norms[0], bits, 3, 8, 3), norms[0], nn.ReLU(), Rounded(norms[1], bits, 8, 8, 3), norms[1]
    )
    done = ek.reestimate_(net, batches())
    assert off(net, batches()) < 1e-3 and not done.unsure


class Coarse(Rounded):
    """The same on one fixed step, so that what is rounded to 0 depends on the statistics."""

    step = 0.6

    def forward(self, x):
        scale = (self.norm[0].weight / (self.norm[0].running_var + self.norm[0].eps).sqrt()).view(-1, 1, 1, 1)
        return F.conv2d(x, (self.weight * scale / self.step).round() * self.step / scale)


@pytest.mark.parametrize("seed", range(3))
def test_statistics_that_cannot_agree_with_themselves_are_near_and_said_to_be_off_by_how_much(seed):
    """A coarse fixed step rounds all weights to 0 while the norm stores 1; no variance gives itself exactly."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    net, data = nn.Sequential(Coarse(norm, 2, 3, 4, 3), norm), batches()
    assert not any(variance.any() for _, variance, _ in fed(net, data).values())
    done = ek.reestimate_(net, data)
    mean, variance, _ = fed(net, data)["1"]
    changed = abs(float((variance - norm.running_var).mean()))
    moved = float((mean - norm.running_mean).square().mean().sqrt())
    left = max(changed / float(variance.mean()), moved / float(variance.mean().sqrt()))
    assert 0.05 < left < 0.3
    assert float(done.unsure["1"].split()[2].rstrip(":%")) / 100 == pytest.approx(left, rel=0.1)


def test_an_exported_model_is_repaired_by_the_module_that_it_was_made_from():
    """Exported, prepared or not, it keeps the names of weights and statistics; by itself it is refused."""
    net, data = trained(), batches()
    program = torch.export.export(net.train(), (data[0],), strict=False).module()
    for x in data * 3:
        program(2 * x)
    with pytest.raises(ek.ModelError, match="exported"):
        ek.reestimate_(program, data)
    plain, trained_since = Net(), program.state_dict()
    plain.load_state_dict({name: trained_since[name] for name in plain.state_dict()})
    ek.reestimate_(plain.eval(), data)
    for name, value in plain.named_buffers():
        program.get_buffer(name).copy_(value)
    assert off(plain, data) < 0.01
    assert all(torch.equal(program.state_dict()[name], value) for name, value in plain.state_dict().items())
