"""What a shift is made of, where that is known because it was made so."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import evenkeel as ek


def field(count, size, scale=1.0):
    """Smooth images of varying brightness: samples that differ in their means."""
    return scale * (torch.randn(count, size, 3, 1, 1) + 0.5 * torch.randn(count, size, 3, 8, 8))


def net(p=0.3, momentum=0.1, conv=False):
    """Three norms: none, one and two dropouts before them."""
    torch.manual_seed(0)
    options = {"momentum": momentum}
    if conv:
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Dropout(p)),
            *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Dropout(p)),
            *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, **options), nn.ReLU()),
        )
    return nn.Sequential(
        *(nn.Linear(16, 32), nn.BatchNorm1d(32, **options), nn.ReLU(), nn.Dropout(p)),
        *(nn.Linear(32, 32), nn.BatchNorm1d(32, **options), nn.ReLU(), nn.Dropout(p)),
        *(nn.Linear(32, 32), nn.BatchNorm1d(32, **options), nn.ReLU()),
    )


def data(conv=False, count=8, scale=1.0):
    torch.manual_seed(1)
    return field(count, 128, scale) if conv else scale * torch.randn(count, 128, 16)


def trained(model, batches, times=12):
    with torch.no_grad():
        for _ in range(times):
            for batch in batches:
                model.train()(batch)
    return model


def product(row):
    return math.prod(row.parts.values())


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(("momentum", "scale"), [(0.1, 1.0), (0.01, 4.0), (1.0, 1.0), (None, 4.0)])
def test_the_parts_multiply_to_the_ratio(conv, momentum, scale):
    batches = data(conv)
    report = ek.variance_shift(trained(net(momentum=momentum, conv=conv), batches, 2), scale * batches)
    for row in report:
        assert product(row) == pytest.approx(row.ratio, rel=1e-9)
        assert row.why or row.folded < 1.04


def test_of_settled_statistics_the_parts_are_those_of_dropout():
    """The first norm has no part that is far from 1; a repair of the norms before one takes away what is inherited."""
    batches = data()
    model = trained(net(), batches)
    first, second, third = ek.variance_shift(model, batches)
    assert all(part == pytest.approx(1, abs=0.03) for part in first.parts.values())
    assert second.parts["dropout"] == pytest.approx(second.ratio, rel=0.05)
    assert second.why.startswith(f"x{second.parts['dropout']:.3g} dropout 3 p=0.3")
    assert third.parts["inherited"] < 0.9 and "norms upstream" in third.why
    settled = copy.deepcopy(model)
    ek.reestimate_(settled, batches)
    for index in (1, 5):
        model[index].load_state_dict(settled[index].state_dict())
    again = ek.variance_shift(model, batches)[2]
    assert again.parts["inherited"] == pytest.approx(1, abs=0.01)
    assert again.ratio == pytest.approx(third.ratio / third.parts["inherited"], rel=0.01)


class Unseen(nn.Module):
    """Changes its input in train mode by what no layer of a graph draws."""

    def forward(self, x):
        if not self.training:
            return x
        return 0.7 * x + 0.3 * x.roll(1, 0) + torch.from_numpy(np.random.default_rng(0).normal(size=x.shape)).float()


@pytest.mark.parametrize("tail", [(), (nn.Dropout(0.5), nn.Linear(32, 2))])
def test_what_no_layer_shows_is_not_called_dropout(tail):
    model = nn.Sequential(Unseen(), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), *tail)
    (row,) = ek.variance_shift(trained(model, data()), data())
    assert row.folded > 1.2
    assert "by no dropout that is seen" in row.why
    assert "dropout upstream" not in row.why


def test_a_repaired_model_has_no_parts_to_name():
    batches = data()
    model = trained(net(p=0.5), batches)
    ek.reestimate_(model, batches)
    loaded = net(p=0.5)
    loaded.load_state_dict(model.state_dict())
    for row in ek.variance_shift(loaded, batches):
        assert row.why == "" and row.parts["dropout"] == 1 and row.moved < 0.01


@pytest.mark.parametrize("conv", [False, True])
def test_initial_statistics_are_told_by_how_much_is_left_of_them(conv):
    batches = data(conv)
    report = ek.variance_shift(trained(net(p=0.0, momentum=0.01, conv=conv), batches, 5), batches)
    row = report[0]
    assert row.initial_left == pytest.approx(0.99**40) and report.other_data == {}
    assert row.parts["initial"] == pytest.approx(row.ratio, rel=0.02)
    assert "initial variance 1, 67% left after 40 updates at momentum 0.01" in row.why
    fresh = ek.variance_shift(net(p=0.0, conv=conv), batches)
    assert [row.initial_left for row in fresh] == [1, 1, 1] and fresh.other_data == {}
    assert fresh[0].parts["initial"] == pytest.approx(fresh[0].ratio, rel=1e-6)


def test_statistics_that_were_repaired_are_not_initial_whatever_the_count_says():
    batches = 4 * data()  # so that every variance is above what the count says is left
    model = trained(net(p=0.0, momentum=0.01), batches, 5)
    ek.reestimate_(model, batches)
    loaded = net(p=0.0, momentum=0.01)
    loaded.load_state_dict(model.state_dict())
    assert [row.initial_left for row in ek.variance_shift(loaded, batches)] == [0, 0, 0]


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("change", [lambda x: 2.5 * x, lambda x: x / 255, lambda x: x + 2.0, lambda x: 1 - x / 2])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_data_of_another_scale_are_told_by_the_first_norm(conv, change, p):
    batches = data(conv)
    model = trained(net(p, conv=conv), batches)
    assert ek.variance_shift(model, data(conv, 3)).other_data == {}
    report = ek.variance_shift(model, change(batches))
    assert next(iter(report.other_data)) == "1" and "no dropout reaches it" in report.other_data["1"]
    assert "these are not the data of training" in report.accusation and report.accusation in report.notes[0]
    assert "not the data of training" in report[0].why
    assert json.loads(json.dumps(report.to_dict()))["other_data"] == report.other_data


def test_data_of_another_scale_are_told_behind_dropout_too_also_of_a_repaired_model():
    batches = data()
    model = trained(nn.Sequential(nn.Dropout(0.5), *net(0.5)), batches)
    repaired = copy.deepcopy(model)
    ek.reestimate_(repaired, batches)
    for one in (model, repaired):
        assert ek.variance_shift(one, batches).other_data == {}
        assert next(iter(ek.variance_shift(one, 2.5 * batches).other_data)) == "2"


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("times", [2, 6])
def test_data_of_another_scale_are_told_by_statistics_that_are_partly_initial(conv, times):
    batches = data(conv)
    model = trained(net(0.3, momentum=0.03, conv=conv), batches, times)
    assert ek.variance_shift(model, batches).other_data == {}
    for change in (0.2, 5):
        report = ek.variance_shift(model, change * batches)
        assert list(report.other_data) == ["1"] and "by what it stores" in report.accusation


@pytest.mark.parametrize("uncounted", [False, True])
def test_averages_over_all_of_training_accuse_data_only_where_weights_cannot_be_it(uncounted):
    batches = data()
    model = trained(net(0.0, momentum=0.1 if uncounted else None), batches)
    for norm in (model[1], model[5], model[9]):
        norm.running_var.mul_(2.0)  # as where weights have shrunk
        if uncounted:
            norm.num_batches_tracked.zero_()
    report = ek.variance_shift(model, batches)
    assert report.other_data == {} and ("not counted" in report[0].why) is uncounted
    report = ek.variance_shift(model, 4 * batches)
    assert list(report.other_data) == ["1"] and ("not counted" in report[0].why) is uncounted


def test_few_samples_accuse_nobody():
    batches = data()
    model = trained(net(0.0), batches)
    for start in range(8):
        assert ek.variance_shift(model, [batches[start, :6]]).other_data == {}


def test_data_in_order_of_their_scale_are_those_of_training():
    batches = data() * torch.linspace(0.25, 1.75, 8)[:, None, None]
    model = trained(net(0.2, momentum=None), batches[torch.randperm(8)], 20)
    report = ek.variance_shift(model, batches)
    assert report.other_data == {} and report[0].ratio == pytest.approx(1, abs=0.05)


def test_small_batches_through_many_norms_are_those_of_training():
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())]
    model = trained(nn.Sequential(*layers), torch.randn(250, 4, 16), 1)
    report = ek.variance_shift(model, torch.randn(4, 256, 16))
    assert report.worst > 1.2 and report.other_data == {}


def test_the_shift_of_means_is_in_stored_deviations():
    batches = data()
    model = trained(net(), batches)
    norm = model[1]
    with torch.no_grad():
        x = model[0](batches.flatten(0, 1) + 1.5)
    moves = (x.mean(0) - norm.running_mean).abs() / norm.running_var.sqrt()
    ratios = x.var(0) / norm.running_var
    row = ek.variance_shift(model, batches + 1.5)[0]
    assert row.moved == pytest.approx(float(moves.mean()), rel=1e-3)
    assert row.moved_most == pytest.approx(float(moves.max()), rel=1e-3)
    assert row.spread == pytest.approx((float(ratios.min()), float(ratios.max())), rel=1e-3)
    assert row.ratio == pytest.approx(1, abs=0.05) and "not the data of training" in row.why


def test_batches_of_one_are_told_by_the_variance_within_samples():
    batches = data(conv=True)
    model = trained(net(0.0, conv=True), batches.flatten(0, 1)[:300, None], 1)
    report = ek.variance_shift(model, batches)
    assert report[0].ratio > 2 and "batches of one sample" in report[0].why and report.other_data == {}
    assert "batches of one" not in str(ek.variance_shift(trained(net(0.0, conv=True), batches), batches))


def test_frozen_norms_are_not_judged_and_normalise_as_in_training():
    batches = data()
    model = trained(net(0.0), batches)
    model[1].eval()
    report = ek.variance_shift(model, 3 * batches)
    assert "frozen" in report[0].why and "1" not in report.other_data
    assert report[1].parts["stored"] == pytest.approx(report[1].ratio, rel=1e-4)  # none is inherited


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("bad", [1, 5, 9])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("running_var", math.nan),
        ("running_var", math.inf),
        ("running_var", -3.0),
        ("running_mean", math.nan),
        ("running_mean", math.inf),
    ],
)
def test_what_cannot_be_is_the_worst_and_comes_first_wherever_it_is(conv, bad, name, value):
    batches = data(conv)
    model = trained(net(conv=conv), batches, 5)
    getattr(model[bad], name)[3] = value
    report = ek.variance_shift(model, batches)
    assert [row.path for row in report] == ["1", "5", "9"]
    assert report.worst_row.path == str(bad) and report.worst == math.inf
    assert [row.path for row in report if row.bad] == [str(bad)] and name in report.worst_row.bad
    assert str(report).splitlines()[2].startswith(f"{bad} ")
    with torch.no_grad():
        last = model.eval()[:-2](batches.flatten(0, 1))
    finite = bool(last.isfinite().all())
    assert (report[-1].path == str(bad) or math.isfinite(report[-1].eval_var)) == (finite or bad == 9)
    for row in report:
        if not row.bad and not math.isfinite(row.eval_var):
            assert row.why.endswith(f"because of {bad}") and row.folded == math.inf
    json.dumps(report.to_dict(), allow_nan=False)


def test_data_that_are_not_finite_are_to_blame_before_a_norm_that_is_neither():
    batches = data().clone()
    model = trained(net(), batches, 5)
    model[5].running_var[3] = math.nan
    batches[2, 3, 4] = math.nan
    with pytest.raises(ek.BatchError, match="batch 3 is not finite at norm '1'"):
        ek.variance_shift(model, batches)


def test_statistics_never_updated_beside_trained_weights_are_said_to_be():
    model, batches = net(), data()
    assert "initial variance 1, 100% left after 0 updates" in ek.variance_shift(model, batches)[0].why
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    assert all("never updated" in row.why for row in ek.variance_shift(model, batches))
    predicted = ek.predict_shift(model, batches[0][:2])
    assert len(predicted.unsure) == len(norms) and all("never updated" in why for why in predicted.unsure.values())
    left = ek.correct_(model, batches[0][:2]).untouched
    assert len(left) == len(norms) and all("never updated" in why for why in left.values())
