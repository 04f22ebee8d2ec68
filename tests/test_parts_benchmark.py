"""benchmarks/parts: the page has the table of the results, and figures mean what is said."""

import copy
import json

import pytest
import torch
from parted import images, plain

from benchmarks.pages import text_in
from benchmarks.parts import PAGE, RESULTS, _percent, off, probes, rounds_of, settled_in_order, tables


def test_the_page_has_the_table_of_the_results():
    for name, table in tables(json.loads(RESULTS.read_text())).items():
        assert text_in(PAGE, name) == table


def test_rounds_come_to_what_is_true():
    model, data = plain(3), images(512).split(32)
    truth = settled_in_order(model, torch.cat(data))
    sites = list(data[:9]), list(data[9:])
    found = rounds_of(model, sites, probes(sites)["both sites"], 3, truth)
    assert found[0]["off"] > 10 * found[2]["off"] and found[2]["off"] < 1e-3
    assert found[1]["changed"] == pytest.approx(found[0]["off"], rel=1)


def test_off_is_measured_as_said():
    model = plain(2)
    other = copy.deepcopy(model)
    assert off(model, other) < 1e-6
    other[5].running_var *= 1.1
    assert off(model, other) == pytest.approx(0.095, abs=0.005)
    other[1].running_mean += other[1].running_var.mean().sqrt()
    assert off(model, other) == pytest.approx(1)


def test_percentages_are_short():
    assert [_percent(value) for value in (2.5, 30, 0.0123, 0.00012, 1e-6)] == [
        "250 %",
        "> 1000 %",
        "1.2 %",
        "0.012 %",
        "< .01 %",
    ]
