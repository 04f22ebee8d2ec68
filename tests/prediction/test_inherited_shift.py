"""What of a predicted shift comes through norms upstream: parts, against what data show."""

import copy
import math

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.prediction.random_inputs import random_field

pytestmark = pytest.mark.samples(1024)  # fewer than users get, which makes no bound easier to keep


def convolution(p, channels=16):
    return nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(p)


def trained(*rates):
    """A chain of convolutions and norms, with dropout of these rates in between; and data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(layer for p in rates for layer in convolution(p)))
    data = random_field((128, 3, 10, 10))
    for norm in model:
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        for _ in range(8):
            model(data)
    return model, data


def test_parts_are_those_that_data_show():
    model, data = trained(0.3, 0.3, 0, 0.5, 0)
    measured = {row.path: row.parts for row in ek.variance_shift(model, [data])}
    for row in ek.predict_shift(model, data[:2]):
        assert math.prod(row.parts.values()) == pytest.approx(row.ratio)
        for part in ("inherited", "dropout"):
            assert math.log(row.parts[part]) == pytest.approx(math.log(measured[row.path][part]), abs=0.12), row.path


def test_nothing_is_inherited_where_no_norm_upstream_is_off():
    model, data = trained(0, 0, 0.5, 0)
    parts = [row.parts["inherited"] for row in ek.predict_shift(model, data[:2])]
    assert parts == [1, 1, 1, 1]
    model, data = trained(0, 0.5, 0, 0)
    *first, last = [row.parts["inherited"] for row in ek.predict_shift(model, data[:2])]
    assert first == [1, 1, 1] and last < 0.8


def test_what_is_left_once_the_norms_upstream_are_corrected_is_the_part_of_dropout():
    """The law by its definition: with these corrected from data, and this norm as it was."""
    model, data = trained(0.4, 0.4, 0.4, 0)
    *_, path = [row.path for row in ek.predict_shift(model, data[:2])]
    corrected = copy.deepcopy(model)
    ek.reestimate_(corrected, [data])
    norm, found = corrected.get_submodule(path), model.get_submodule(path)
    norm.running_mean.copy_(found.running_mean), norm.running_var.copy_(found.running_var)
    own = ek.predict_shift(model, data[:2])[-1].parts["dropout"]
    assert own == pytest.approx(ek.variance_shift(corrected, [data])[-1].ratio, rel=0.1)
    # and so it is predicted of the model whose other norms are corrected
    row = ek.predict_shift(corrected, data[:2])[-1]
    assert row.ratio == pytest.approx(own, rel=0.1) and row.parts["inherited"] == pytest.approx(1, abs=0.05)


@pytest.mark.usefixtures("few_samples")
def test_the_table_and_the_findings_name_it():
    model, data = trained(0.5, 0.5, 0)
    model.append(nn.Conv2d(16, 2, 1))  # a weight layer behind the last norm: dropout can be moved
    report = ek.predict_shift(model, data[:2])
    assert "inherited" in str(report) and "own" in str(report)
    assert report.to_dict()["rows"][2]["parts"] == pytest.approx(report[2].parts)
    last = ek.lint(model, data[:2], guideline="li2018")[-1]
    assert last.inherited == pytest.approx(report[2].parts["inherited"], rel=1e-3)
    assert f"x{last.inherited:.2f} through them]" in str(last) and "by dropout since the norms before" in str(last)
    assert last.to_dict()["inherited"] == last.inherited
    first = ek.lint(model, data[:2], guideline="li2018")[0]
    assert first.inherited == 1 and "through them" not in str(first)


@pytest.mark.usefixtures("few_samples")
def test_dead_norms_are_no_error():
    model, data = trained(0.5, 0.5, 0)
    nn.init.zeros_(model[9].weight), nn.init.zeros_(model[9].bias)
    model[10].running_var.zero_(), model[10].running_mean.zero_()
    for row in ek.predict_shift(model, data[:2]):
        assert not row.parts or all(part > 0 for part in row.parts.values()), row


@pytest.mark.slow
def test_what_is_left_out_at_first_is_corrected_as_well_later():
    """Norms behind repaired ones are fed by these as they are by now."""
    model, data = trained(0.4, 0.4, 0.4, 0)
    once, twice = copy.deepcopy(model), copy.deepcopy(model)
    ek.correct_(once, data[:2])
    done = ek.correct_(twice, data[:2])
    norm, found = twice.get_submodule(done[-1].path), model.get_submodule(done[-1].path)
    norm.running_mean.copy_(found.running_mean), norm.running_var.copy_(found.running_var)
    again = ek.correct_(twice, data[:2])
    assert [row.path for row in again] == [done[-1].path]
    for row in ek.variance_shift(twice, [data]):
        assert row.ratio == pytest.approx(1, abs=0.1), row.path
    assert torch.allclose(norm.running_var, once.get_submodule(done[-1].path).running_var, rtol=0.1)


@pytest.mark.usefixtures("few_samples")
def test_what_was_repaired_is_not_called_even_behind_a_norm_that_is_off_again():
    model, data = trained(0.4, 0.4, 0)
    repaired = copy.deepcopy(model)
    first, second, third = [row.path for row in ek.correct_(repaired, data[:2])][-3:]
    norm, found = repaired.get_submodule(second), model.get_submodule(second)
    norm.running_mean.copy_(found.running_mean), norm.running_var.copy_(found.running_var)
    unsure = ek.predict_shift(repaired, data[:2]).unsure
    assert "a norm before it is off" in unsure[third] and "out already" in unsure[first] and second not in unsure


def test_nothing_is_inherited_through_a_frozen_norm():
    model, data = trained(0.4, 0.4, 0)
    model[6].eval()
    model[10].reset_running_stats()
    with torch.no_grad():
        for _ in range(8):
            model(data)
    (row,) = [row for row in ek.predict_shift(model, data[:2]) if row.path == "10"]
    assert row.parts["inherited"] == 1 and row.ratio < 0.8


@pytest.mark.usefixtures("few_samples")
def test_a_blend_is_no_repair():
    """How much of what is stored is new is known, so that not all noise is taken for gone."""
    model, data = trained(0.4, 0.4, 0)
    clean = copy.deepcopy(model)
    ek.reestimate_(clean, [data], prior=1)
    assert all("out already" in reason for reason in ek.predict_shift(clean, data[:2]).unsure.values())
    mixed = copy.deepcopy(model)
    done = ek.reestimate_(mixed, [data], prior=len(data))
    unsure = ek.predict_shift(mixed, data[:2]).unsure
    assert len(unsure) == 3 and all("50% of what" in reason for reason in unsure.values())
    assert not ek.correct_(mixed, data[:2]).rows
    done.undo()
    assert not any("of what" in reason for reason in ek.predict_shift(mixed, data[:2]).unsure.values())
    little = copy.deepcopy(model)
    ek.reestimate_(little, [data], prior=50 * len(data))
    assert len(ek.correct_(little, data[:2])) == 3
