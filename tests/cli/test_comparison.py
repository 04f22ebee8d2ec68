"""`evenkeel compare` draws the network of its reports once, and says how far their networks differ."""

import json
import math

import pytest
from html_pages import Reader, trained

import evenkeel as ek
from evenkeel.cli.comparison import compared
from evenkeel.output.rendering import render, render_compact

TIMES = "\N{MULTIPLICATION SIGN}"
ARROW = "\N{RIGHTWARDS ARROW}"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes reports as `--json` does; returns the page that compares two."""
    monkeypatch.chdir(tmp_path)

    def compare(first, second):
        for name, report in (("a.json", first), ("b.json", second)):
            found = report if isinstance(report, (dict, list)) else report.to_dict()
            (tmp_path / name).write_text(json.dumps(found))
        return compared(tmp_path / "a.json", tmp_path / "b.json")

    return compare


def reports(depth=4):
    model, data = trained(depth)
    before = ek.variance_shift(model, data)
    ek.reestimate_(model, data)
    return before, ek.variance_shift(model, data)


def test_the_network_is_drawn_once_with_both_shifts_at_every_norm(written):
    before, after = reports()
    page = written(before, after)
    assert page.network == after.network
    assert page.ratios == {row.path: row.ratio for row in after}
    assert page.former == {row.path: row.ratio for row in before}
    read = Reader(render(page))
    assert len(read.of("li", **{"data-k": "N"})) == 4
    assert read.text.count(f"{ARROW} \N{BLACK CIRCLE}") == 9  # four norms, their four blocks, and all blocks together
    assert any(note.startswith("b.json's network is drawn") for note in page.notes)
    assert not any("alone" in note for note in page.notes)
    assert "verdict" in render_compact(page)


def test_a_repair_is_drawn_by_the_network_within_it(written):
    before, after = reports(2)
    page = written(before, {"before": {"shift": before.to_dict()}, "after": {"shift": after.to_dict()}})
    assert page.network == after.network and page.ratios == {row.path: row.ratio for row in after}


def test_of_two_networks_that_differ_the_second_is_drawn_and_the_notes_name_the_layers_of_one_alone(written):
    small, large = (ek.predict_shift(model, data[0]) for model, data in (trained(2), trained(6)))
    page = written(large, small)
    assert page.network == small.network
    notes = " ".join(page.notes)
    assert "3.norm, 4.norm, 5.norm and 1 more are in a.json alone" in notes
    assert "are in a.json's network alone, and not drawn" in notes
    assert "3.fc" in notes or "in b.json's network alone" in notes


def test_a_report_of_an_older_version_holds_no_network_and_that_is_said(written):
    before, after = (report.to_dict() for report in reports(1))
    old = {name: value for name, value in before.items() if name != "network"}
    page = written(old, after)
    assert page.network is not None and "a.json holds no network: that of b.json is drawn" in page.notes
    assert written(after, old).network is not None
    page = written(old, old)
    assert page.network is None and "a.json and b.json hold no network: none is drawn" in page.notes


@pytest.mark.parametrize("network", [3, {}, {"name": "n", "children": [{}]}, {"name": "n", "edges": [[0, 1]]}])
def test_a_network_that_is_none_is_no_report(written, network):
    before, after = (report.to_dict() for report in reports(1))
    with pytest.raises(ek.EvenkeelError, match=r"b\.json is no report"):
        written(before, after | {"network": network})


def test_a_norm_without_a_finite_ratio_is_named_and_drawn(written):
    model, data = trained(2)
    before = ek.variance_shift(model, data)
    model[1].norm.running_var.zero_()
    after = ek.variance_shift(model, data)
    page = written(before, after)
    assert page.ratios["1.norm"] == math.inf
    assert (
        f"norm {TIMES}{before[0].ratio:.2f} {ARROW} \N{BLACK UP-POINTING TRIANGLE} {TIMES}inf"
        in Reader(render(page)).text
    )
