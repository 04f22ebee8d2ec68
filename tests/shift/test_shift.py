"""variance_shift against slow, obvious oracles."""

import math
import re

import pytest
import torch
from smallnet import TwoDrops
from torch import nn

import evenkeel as ek


def trained_statistics(model, data, epochs=1):
    """Let the norms gather what training would: the mean over all train-mode batches."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.momentum = None
    with torch.no_grad():
        for _ in range(epochs):
            for batch in data:
                model(batch)
    return model


def test_ratio_right_after_dropout_is_li_equation_8():
    """Case (a): v / ((c^2 + v) / keep - c^2), for several means c and rates."""
    torch.manual_seed(0)
    for c in (0.0, 0.8):
        for p in (0.1, 0.3, 0.5):
            data = c + torch.randn(8, 4096, 16)
            model = trained_statistics(nn.Sequential(nn.Dropout(p), nn.BatchNorm1d(16)), data)
            expected = 1 / ((c**2 + 1) / (1 - p) - c**2)
            assert ek.variance_shift(model, data).rows[0].ratio == pytest.approx(expected, rel=0.02)


def test_rows_are_what_eval_mode_sees_in_execution_order():
    class Backwards(nn.Module):
        """Registers its norms in the other order than it runs them."""

        def __init__(self):
            super().__init__()
            self.last, self.first = nn.BatchNorm2d(4), nn.BatchNorm2d(3)
            self.conv, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout2d(0.3)

        def forward(self, x):
            return self.last(self.conv(self.drop(self.first(x))))

    torch.manual_seed(0)
    data = 2 * torch.randn(4, 16, 3, 8, 8)
    model = trained_statistics(Backwards(), data)
    report = ek.variance_shift(model, data)
    assert [row.path for row in report] == ["first", "last"]
    model.eval()
    with torch.no_grad():
        seen = [data.flatten(0, 1), model.conv(model.first(data.flatten(0, 1)))]
    for row, x, norm in zip(report, seen, (model.first, model.last), strict=True):
        eval_var = float(x.double().transpose(0, 1).flatten(1).var(1).mean())
        assert row.eval_var == pytest.approx(eval_var, rel=1e-5)
        assert row.running_var == pytest.approx(float(norm.running_var.mean()), rel=1e-6)
        assert row.ratio == row.eval_var / row.running_var
        assert row.folded == max(row.ratio, 1 / row.ratio)


def test_rows_name_the_dropouts_that_feed_them_nearest_first_with_their_lines():
    report = ek.variance_shift(TwoDrops(), torch.randn(3, 16, 4))
    norm, after = report
    assert [(d.path, d.p) for d in norm.dropouts] == [("", 0.25), ("drop", 0.5)]
    line = TwoDrops.forward.__code__.co_firstlineno + 2
    assert norm.dropouts[0].where == f"smallnet.py:{line}"
    assert norm.dropouts[1].where == f"smallnet.py:{line - 1}"
    assert after.dropouts == ()  # a norm stands between
    assert f"smallnet.py:{line}" in str(report)


def test_norms_never_reached_are_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x)

    report = ek.variance_shift(Unused(), torch.randn(2, 8, 4))
    assert len(report) == 1 and "unused" in report.notes[0] and "unused: never reached" in str(report)


def test_a_norm_of_train_mode_alone_is_not_reached():
    class Split(nn.BatchNorm1d):
        """As in adversarial training with auxiliary norms: half of a batch each."""

        def __init__(self, features):
            super().__init__(features)
            self.auxiliary = nn.BatchNorm1d(features)

        def forward(self, x):
            if not self.training:
                return super().forward(x)
            first, other = x.chunk(2)
            return torch.cat([super().forward(first), self.auxiliary(other)])

    report = ek.variance_shift(nn.Sequential(nn.Dropout(0.3), Split(4)), [torch.randn(64, 4)])
    assert any(note == "1.auxiliary: never reached by the batches" for note in report.notes)
    model = nn.Sequential(nn.Linear(4, 4))
    model.never = nn.BatchNorm1d(4)
    model.forward = lambda x: x
    with pytest.raises(ek.BatchError, match="reached none of the model's norms"):
        ek.variance_shift(model, torch.randn(2, 8, 4))


def test_a_norm_used_twice_has_one_row_over_both_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(x) + self.norm(3 * x + 7)

    data = torch.randn(1, 64, 4)
    both = torch.cat([data[0], 3 * data[0] + 7]).double()
    report = ek.variance_shift(Twice(), data)
    assert len(report) == 1 and report[0].eval_var == pytest.approx(float(both.var(0).mean()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(dtype)
    data = torch.randn(2, 64, 4, dtype=dtype)
    seen = model[0](data.flatten(0, 1)).detach().double()
    assert ek.variance_shift(model, data)[0].eval_var == pytest.approx(float(seen.var(0).mean()), rel=1e-3)


def test_batches_may_need_a_forward():
    data = [{"deep": [torch.randn(8, 4)]} for _ in range(3)]
    report = ek.variance_shift(TwoDrops(), data, forward=lambda model, batch: model(batch["deep"][0]), max_batches=2)
    assert len(report[0].dropouts) == 2


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "empty"),
        ([torch.full((8, 4), math.nan)], {}, "batch 1 is not finite at norm 'norm'"),
        ([torch.randn(8, 4), torch.randn(8, 5)], {}, "batch 2 raised RuntimeError.*layer 'fc1'"),
        ([torch.randn(8, 4)], {"max_batches": 2}, "ran short: 1 of max_batches=2"),
    ],
)
def test_faults_say_batch_and_layer(data, options, message):
    with pytest.raises(ek.BatchError, match=message):
        ek.variance_shift(TwoDrops(), data, **options)


def test_a_model_without_norms_is_refused():
    with pytest.raises(ek.ModelError, match="Linear has no norm layer with running statistics"):
        ek.variance_shift(nn.Linear(4, 4), [torch.randn(4, 4)])


def test_reestimation_brings_every_ratio_to_one():
    """A chain re-estimated from one large batch, whose statistics upstream are those that eval mode uses."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(5) for layer in (nn.Linear(32, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.ReLU())]
    model, data = nn.Sequential(*blocks), torch.randn(1, 4096, 32)
    trained_statistics(model, data, epochs=5)
    assert ek.variance_shift(model, data).worst > 1.8
    ek.reestimate_(model, data)
    assert ek.variance_shift(model, data).worst < 1.002


def test_an_untrained_model_is_called_so_and_its_figures_stay_readable():
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64))]
    model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(64, 2))
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(10)
    report = ek.variance_shift(model, [torch.randn(64, 64)])
    assert "no norm was ever updated" in report.notes[-1] and report.worst > 1e20
    rows = str(report).splitlines()[20:-4]  # of the norms furthest behind
    assert not any(re.search(r"e\+(0[7-9]|[1-9]\d)|\d{9}", row) for row in rows) and ">x1e+06 at " in str(report)
    for layer in model[:38:2]:
        layer.weight.data.mul_(10)
    with pytest.raises(ek.BatchError, match="no norm was ever updated, so that none keeps signals small"):
        ek.variance_shift(model, [torch.randn(64, 64)])
    for layer in model[:38:2]:
        layer.weight.data.mul_(0.1)
    model[1](torch.randn(64, 64))
    assert not any("no norm was ever updated" in note for note in ek.variance_shift(model, [torch.randn(64, 64)]).notes)


def test_one_sample_has_no_variance_and_several_batches_of_one_have():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
    for _ in range(60):
        model(torch.randn(64, 4))
    with pytest.raises(ek.BatchError, match="norm '2' saw one value per channel, which has no variance: more samples"):
        ek.variance_shift(model, [torch.randn(1, 4)])
    assert math.isfinite(ek.variance_shift(model, list(torch.randn(20, 4).split(1))).worst)


def test_norms_that_a_repair_wrote_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    data = [torch.randn(64, 4) for _ in range(4)]
    for batch in data * 10:
        model(batch)
    assert not any("repaired" in note for note in ek.variance_shift(model, data).notes)
    ek.reestimate_(model, data, match="variance")
    assert any(
        note.startswith("layer 2 and 1 more: repaired: they store") for note in ek.variance_shift(model, data).notes
    )
