"""The page: one file that holds all that its report says, whatever the names in it, and asks for nothing else."""

import json
import re
import sys

import pytest
import torch
from html_pages import REPORTS, Reader, page_of, trained
from torch import nn

import evenkeel as ek
from evenkeel.output.page import Chart, Grid, Histogram, Mark, Node, Notice, Page
from evenkeel.output.rendering import render, render_compact

NASTY = "</script><script>alert(1)</script>\"'&<u>"


@pytest.mark.parametrize("verb", REPORTS)
def test_every_report_is_a_page_that_names_all_its_layers(verb, tmp_path):
    model, data = trained()
    report = REPORTS[verb](model, data)
    page = page_of(report, tmp_path, model="my net", weights="net.pt")
    names = [getattr(row, "path", None) or getattr(row, "name", "") for row in report]
    assert all(name in page.text for name in names)
    assert "my net" in page.text and "net.pt" in page.text and "evenkeel" in page.text
    assert page.of("h1") and len(page.of("main")) == 1 and page.of("html", lang="en")
    assert any(found.get("name") == "viewport" for found in page.of("meta"))


@pytest.mark.parametrize("verb", REPORTS)
def test_a_page_asks_for_nothing_and_is_small(verb, tmp_path):
    model, data = trained()
    page_of(REPORTS[verb](model, data), tmp_path)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert not re.findall(r'\s(?:src|href)="(?!#)', text)
    assert len(text) < 150_000


def nasty_page():
    mark = Mark(NASTY, (0.5,), (NASTY,), ((NASTY, 100.0),), Histogram(0.5, 2.0, (1, 2)))
    leaf = Node(NASTY, NASTY, "N", "norm", NASTY, NASTY, NASTY)
    return Page(
        NASTY,
        NASTY,
        subject=NASTY,
        facts={NASTY: NASTY},
        charts=[Chart(NASTY, NASTY, (NASTY,), (mark,))],
        network=Node(NASTY, NASTY, children=(leaf,)),
        ratios={NASTY: 0.5},
        notices=[Notice(NASTY, NASTY, NASTY, NASTY, NASTY, NASTY)],
        commands=[(NASTY, NASTY)],
        grids=[Grid(NASTY, (NASTY, "other"), [(NASTY, NASTY)], (NASTY,))],
        notes=[NASTY],
    )


@pytest.mark.parametrize("rendered", [render, render_compact])
def test_no_name_becomes_markup(rendered):
    text = rendered(nasty_page())
    page = Reader(text)
    assert "alert(1)</script>" not in text and not page.of("u")
    assert len(page.of("script")) == (2 if rendered is render else 0)
    assert NASTY.replace(" ", "") in page.text.replace(" ", "")


def test_what_the_script_reads_is_json_without_nan():
    mark = Mark("a", (float("nan"), float("inf")), shares=(("x", float("nan")),))
    text = render(Page("t", "v", charts=[Chart("c", "", ("one", "two"), (mark,))]))
    data = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', text)
    (chart,) = json.loads(data[1], parse_constant=pytest.fail)
    assert chart["marks"][0]["shares"] == [["x", None]]


def test_shortcuts_folds_dropouts_and_findings_are_in_the_drawing(tmp_path):
    model, data = trained()
    page = page_of(ek.lint(model, data[0], guideline="li2018"), tmp_path)
    assert "\N{MULTIPLICATION SIGN} 4" in page.text and "dropout p=0.4" in page.text
    assert page.of("svg") and page.of("details")
    anchors = {found["href"][1:] for found in page.of("a") if found["href"].startswith("#finding")}
    ids = {found["id"] for _, found in page.elements if "id" in found}
    assert anchors and anchors <= ids


def test_links_lead_somewhere_and_no_id_is_used_twice(tmp_path):
    model, data = trained()
    page = page_of(ek.variance_shift(model, data), tmp_path)
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {found["href"][1:] for found in page.of("a")} <= set(ids)


def test_a_repair_shows_both_before_and_after(tmp_path):
    model, data = trained()
    before = ek.variance_shift(model, data)
    done = ek.reestimate_(model, data)
    after = ek.variance_shift(model, data)
    page = page_of(done, tmp_path, before=before, after=after)
    assert "Repaired: the worst norm was off by" in page.text and "before" in page.text
    done.undo()
    marks = done.page(before, after).charts[0].marks
    assert all(abs(mark.values[1] - 1) < abs(mark.values[0] - 1) for mark in marks)


def test_rows_keep_how_their_channels_spread_without_showing_it():
    model, data = trained()
    for report in (ek.variance_shift(model, data), ek.predict_shift(model, data[0])):
        row = report[0]
        assert sum(row.channels.counts) == 8 and row.channels.low <= row.channels.high
        assert "counts" not in str(report) and "counts" not in repr(row)
        assert row.to_dict()["channels"]["counts"] == list(row.channels.counts)
        assert len(json.dumps(report.to_dict())) < 2500 * len(report)


def test_a_norm_that_is_damaged_has_no_place_on_the_scale_and_says_so(tmp_path):
    model, data = trained(depth=2)
    model[1].norm.running_var[0] = float("nan")
    page = page_of(ek.variance_shift(model, data), tmp_path)
    assert "1.norm is damaged" in page.text


def test_the_verdict_says_how_much_of_it_is_a_guess():
    model, data = trained(depth=3)
    assert "guess" not in ek.variance_shift(model, data).page().verdict
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
    assert "3 figures are guesses: the notes say why." in ek.predict_shift(model, data[0]).page().verdict


def test_nothing_is_written_without_jinja2_and_notebooks_still_show_the_table(monkeypatch, tmp_path):
    model, data = trained(depth=1)
    report = ek.variance_shift(model, data)
    assert "verdict" in report._repr_html_()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ek.EvenkeelError, match=r'needs jinja2: pip install "evenkeel\[report\]"'):
        report.save_html(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
    assert report._repr_html_().startswith("<table>")


def test_findings_stay_a_list_and_show_in_notebooks():
    model, data = trained(depth=1)
    found = ek.lint(model, data[0], guideline="li2018")
    assert isinstance(found, list) and found == list(found)
    assert found._repr_html_().count("<tr>") == 1 + len(found)


def test_a_page_of_nothing_is_a_page():
    text = render(ek.lint(nn.Linear(2, 2), torch.ones(1, 2), guideline="li2018").page())
    assert "No findings" in Reader(text).text


def test_three_hundred_norms_take_less_than_a_megabyte():
    nodes = [Node(f"block.{n}.norm", f"norm{n}", "N", "norm", path=f"block.{n}.norm") for n in range(300)]
    edges = tuple((n, n + 1) for n in range(299))
    marks = tuple(
        Mark(node.path, (0.5 + n / 300, 1.0), ("a line",) * 4, (("dropout", 100.0),), Histogram(0.5, 2, (3,) * 24))
        for n, node in enumerate(nodes)
    )
    page = Page(
        "t",
        "v",
        charts=[Chart("c", "", ("before", "after"), marks)],
        network=Node("Net", children=tuple(nodes), edges=edges),
        ratios={mark.path: mark.values[0] for mark in marks},
        grids=[Grid("All", ("norm", "ratio"), [(mark.path, f"{mark.values[0]:.3f}") for mark in marks], ("norm",))],
    )
    text = render(page)
    assert len(text.encode()) < 500_000 and all(node.path in text for node in nodes)
