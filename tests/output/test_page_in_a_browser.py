"""The page in a real browser: no error, hover and keys, sorting, folding, dark, narrow, and an accessibility check.

Needs playwright (and, for the check by axe, axe-playwright-python) and a chromium on the path; skipped without.
"""

import json
import re
import shutil
from itertools import pairwise

import pytest
import torch
from html_pages import REPORTS, graph_net, patch_net, trained

import evenkeel as ek
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.cli.comparison import compared
from evenkeel.output.page import Notice, Page
from evenkeel.output.rendering import write_page

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One page of every kind of report, by name."""
    folder = tmp_path_factory.mktemp("pages")
    for name, verb in REPORTS.items():
        model, data = trained()
        verb(model, data).save_html(folder / f"{name}.html")
    model, data = trained()
    before = ek.variance_shift(model, data)
    done = ek.reestimate_(model, data)
    after = ek.variance_shift(model, data)
    done.save_html(folder / "repair.html", before=before, after=after)
    for name, report in (("before", before), ("after", after)):
        (folder / f"{name}.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
    write_page(folder / "comparison.html", compared(folder / "before.json", folder / "after.json"))
    many = [Notice("EK301", "chen2019", f"layer{n}", f"it feeds layer{n}.relu") for n in range(20)]
    write_page(folder / "many.html", Page("lint", "20 findings.", "off", notices=many))
    for name, (net, batches) in {"graph": graph_net(), "transformer": patch_net()}.items():
        ek.variance_shift(net, batches).save_html(folder / f"{name}.html")
    return folder


@pytest.fixture
def look(browser, pages):
    """Opens a page, and finds at the end that nothing was complained of and nothing was asked for."""
    contexts, said, asked = [], [], []

    def opened(name, viewport=WIDE, scheme="light"):
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((pages / f"{name}.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == [] and all(url.startswith("file:") for url in asked)


NAMES = [*REPORTS, "repair", "comparison", "graph", "transformer", "many"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing(look, name, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = look(name, viewport, scheme)
    for button in page.locator("#unfold").all():
        button.click()
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("colours", ["background:#fff;color:#111", "background:#111;color:#eee"])
def test_axe_finds_nothing_in_a_notebook_of_either_theme(browser, scheme, colours):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    model, data = trained()
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    compact = ek.variance_shift(model, data)._repr_html_()
    page.set_content(f'<html lang="en"><title>notebook</title><body style="{colours}"><main>{compact}</main></html>')
    found = axe.Axe().run(page, context=".ek", options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()
    context.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_phone_never_scrolls_sideways(look, name):
    page = look(name, NARROW)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        for button in page.locator("#unfold").all():
            button.click()


@pytest.mark.parametrize("how", ["hover", "focus", "keys"])
def test_a_norm_tells_its_figures(look, how):
    page = look("variance_shift")
    marks, detail = page.locator(".plot .mark"), page.locator(".detail")
    assert marks.count() == 4 and page.locator(".plot .mark[tabindex='0']").count() == 1
    if how == "hover":
        marks.nth(1).hover()
    elif how == "focus":
        marks.nth(1).focus()
    else:
        page.locator(".plot .mark[tabindex='0']").focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert marks.nth(1).evaluate("mark => mark === document.activeElement")
    text = detail.inner_text()
    assert "2.norm" in text and "8 channels" in text and "called at html_pages.py:" in text and "%" in text
    assert marks.nth(1).get_attribute("aria-pressed") == "true"


def test_the_table_sorts_by_figures_and_back(look):
    page = look("variance_shift")
    head = page.locator("table.sortable th").nth(2)
    cells = page.locator("table.sortable tbody tr td:nth-child(3)")
    original = cells.all_inner_texts()
    for order, expected in (
        ("descending", sorted(map(float, original), reverse=True)),
        ("ascending", sorted(map(float, original))),
        ("none", list(map(float, original))),
    ):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        assert list(map(float, cells.all_inner_texts())) == expected


def test_what_repeats_unfolds_by_mouse_keys_and_all_at_once(look):
    page = look("variance_shift")
    fold = page.locator(".net details").first
    assert fold.get_attribute("open") is None and not page.get_by_text("dropout p=0.4").first.is_visible()
    fold.locator("summary").first.click()
    assert fold.get_attribute("open") is not None
    fold.locator("summary").first.press("Enter")
    assert fold.get_attribute("open") is None
    page.locator("#unfold").click()
    assert page.locator(".net details:not([open])").count() == 0
    assert page.get_by_text("dropout p=0.4").first.is_visible()
    page.locator("#fold").click()
    assert page.locator(".net details[open]").count() == 0


def test_a_graph_net_is_drawn_with_its_three_inputs_and_what_gathers_and_scatters(look):
    page = look("graph")
    page.locator("#unfold").click()
    rows = page.locator(".net li[data-k]")
    assert [rows.nth(n).locator("b").inner_text() for n in range(3)] == ["input", "input#2", "input#3"]
    assert page.locator(".net [data-k=N]").count() == 4 and page.locator(".net [data-k=D]").count() == 4
    names = page.locator(".net li[data-k] b").all_inner_texts()
    assert {"index_add", "scatter_add", "cat"} <= set(names)
    assert page.locator(".net .times").first.inner_text() == "\N{MULTIPLICATION SIGN} 3"


def test_a_transformer_with_batch_norms_is_its_layers_folded(look):
    page = look("transformer")
    assert page.locator(".plot .mark").count() == 8
    assert page.locator(".net .times").first.inner_text() == "\N{MULTIPLICATION SIGN} 4"
    page.locator("#unfold").click()
    assert page.locator(".net [data-k=N] .pill").count() == 8 and page.locator(".net [data-k='?']").count() == 4


@pytest.mark.parametrize("name", ["repair", "comparison"])
def test_a_norm_in_the_drawing_shows_before_and_after_and_leads_to_its_row(look, name):
    page = look(name)
    page.locator("#unfold").click()
    norm = page.locator(".net [data-k=N] a").nth(1)
    assert re.fullmatch(
        r"\D*[\d.]+ \N{RIGHTWARDS ARROW} \N{BLACK CIRCLE} \D*1\.00", norm.locator(".pill").text_content()
    )
    norm.click()
    assert "2.norm" in page.locator(norm.get_attribute("href")).inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_letter_of_the_drawing_lies_on_its_text_or_on_another(look, viewport, scheme):
    page = look("graph", viewport, scheme)
    page.locator("#unfold").click()
    page.locator(".net").scroll_into_view_if_needed()
    tops = page.eval_on_selector_all(
        ".net li[data-k], .net summary",
        "all => all.map(e => [e.getBoundingClientRect().top, e.getBoundingClientRect().height])",
    )
    assert all(height >= 32 for _, height in tops)
    tops.sort()
    assert all(after >= before + height - 0.5 for (before, height), (after, _) in pairwise(tops))


def test_the_bars_of_a_histogram_are_on_the_side_of_one_that_they_are_on(look):
    page = look("variance_shift")
    bars = page.locator(".histogram i")
    low, _, high = page.locator(".histogram-ends span").all_inner_texts()
    low, high = float(low[1:]), float(high[1:])
    assert low < high and bars.count() > 3
    for place, side in enumerate(bars.evaluate_all("all => all.map(bar => bar.className)")):
        middle = low * (high / low) ** ((place + 0.5) / bars.count())
        assert abs(middle - 1) < 0.02 or side == ("below" if middle < 1 else "above")


def test_paper_shows_the_findings_that_are_folded_and_the_screen_folds_them_again(look):
    page = look("many")
    folded = page.locator(".more").first
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.get_attribute("open") is not None
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folded.get_attribute("open") is None


def test_a_finding_in_the_drawing_leads_to_its_text(look):
    page = look("lint")
    page.locator("#unfold").click()
    link = page.locator(".net a.code").first
    link.click()
    assert page.locator(link.get_attribute("href")).is_visible()


def test_dark_is_dark_and_light_is_light(look):
    def brightness(scheme):
        page = look("variance_shift", scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert brightness("dark") < 120 and brightness("light") > 600


@pytest.mark.parametrize("allowed", [True, False])
def test_commands_are_copied_with_and_without_leave(look, allowed):
    page = look("variance_shift")
    if allowed:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    else:
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('closed')); }")
    button = page.locator(".copy").first
    button.click()
    page.wait_for_function("document.querySelector('.copy').textContent !== 'Copy'")
    assert button.inner_text() == "Copied"
    assert page.locator("#said").inner_text() == "Copied."


def test_without_scripts_all_figures_are_there(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((pages / "variance_shift.html").as_uri())
    assert page.locator("tbody tr").count() == 4 and page.locator(".net").is_visible()
    page.locator(".net summary").first.click()
    assert page.locator(".net details").first.get_attribute("open") is not None
    context.close()


def test_it_prints_on_white_without_buttons(look):
    page = look("variance_shift", scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#unfold").is_visible() and page.locator("table.sortable").is_visible()
    assert len(page.pdf()) > 10_000


def test_headings_go_down_one_step_at_a_time(look):
    page = look("lint")
    levels = [int(tag[1]) for tag in page.eval_on_selector_all("h1,h2,h3", "found => found.map(h => h.tagName)")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_resnet50_fits_its_limits(browser, tmp_path):
    model = import_torchvision().models.resnet50(weights=None)
    report = ek.predict_shift(model, torch.ones(1, 3, 64, 64))
    report.save_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 500_000
    page = browser.new_page(viewport=NARROW)
    page.goto((tmp_path / "page.html").as_uri())
    page.locator("#unfold").click()
    assert page.locator(".net [data-k=N]").count() == 53
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.close()
