"""The compact form in a notebook that a kernel runs and nbconvert shows: light, dark, several at once, and no leak.

Needs nbconvert and ipykernel; what a browser shows of it needs playwright and a chromium, too; skipped without.
"""

import os
import re
import shutil
import sys
from collections import Counter
from importlib.util import find_spec

import pytest
import torch
from html_pages import trained

import evenkeel as ek

CELLS = (
    "import torch, evenkeel as ek\nfrom html_pages import trained\nmodel, data = trained(3)",
    "report = ek.variance_shift(model, data)\nreport",
    "ek.lint(model, data[0])",
    "done = ek.reestimate_(model, data)\ndone",
    "report",
    "from IPython.display import HTML\nHTML('<table class=\"dataframe\"><tr><th>a</th><td>1</td></tr></table>')",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_kernel = pytest.mark.skipif(
    not all(map(find_spec, ("nbconvert", "ipykernel"))), reason="nbconvert and ipykernel are not installed"
)


def executed(cells):
    """The notebook of these cells, as a running kernel fills it."""
    import nbformat
    from nbconvert.preprocessors import ExecutePreprocessor

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    ExecutePreprocessor(timeout=120, kernel_name="python3").preprocess(book, {})
    return book


def exported(book, theme):
    from nbconvert import HTMLExporter

    return HTMLExporter(theme=theme).from_notebook_node(book)[0]


@pytest.fixture(scope="module")
def book():
    with pytest.MonkeyPatch.context() as patch:  # the kernel finds what this test finds
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        yield executed(CELLS)


@pytest.mark.slow
@needs_kernel
@pytest.mark.filterwarnings("ignore")  # what jupyter says of itself
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_report_shows_its_compact_form_and_no_two_share_an_id(book, theme):
    text = exported(book, theme)
    assert text.count('<div class="ek compact">') == 4
    assert "norms are off" in text and "EK201" in text and text.count("3.norm") >= 4
    ours = re.findall(r'(?s)<div class="ek compact">(.*?)</div>\s*</div>', text)
    assert not any(re.search(r'\sid="', part) or "<script" in part for part in ours)
    ids = Counter(re.findall(r'\sid="([^"]+)"', text))
    assert not [name for name, count in ids.items() if count > 1]


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(CHROMIUM is None or not find_spec("playwright"), reason="there is no chromium or no playwright")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_beside_a_report_looks_as_it_did_and_the_report_fits_the_theme(book, theme, tmp_path):
    from playwright.sync_api import sync_playwright

    with_reports = exported(book, theme)
    without = re.sub(r"(?s)<style>\s*\.ek .*?</style>", "", with_reports)
    assert len(without) < len(with_reports)
    styles = """() => [...document.querySelectorAll('.dataframe, .dataframe *, .jp-InputArea, .jp-InputArea *, body')]
      .map((element) => { const style = getComputedStyle(element); return ['color', 'font', 'margin', 'backgroundColor',
        'padding', 'border', 'textAlign', 'whiteSpace', 'display', 'listStyle'].map((of) => style[of]); })"""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = []
        for number, text in enumerate((with_reports, without)):
            (tmp_path / f"{number}.html").write_text(text, encoding="utf-8")
            context = browser.new_context(color_scheme="light", offline=True)
            page = context.new_page()
            page.goto((tmp_path / f"{number}.html").as_uri(), wait_until="domcontentloaded")
            found.append(page.evaluate(styles))
            if number == 0:
                colours = page.evaluate(
                    "[getComputedStyle(document.querySelector('.ek .verdict')).color,"
                    " getComputedStyle(document.body).backgroundColor]"
                )
            context.close()
        browser.close()
    assert found[0] == found[1] and len(found[0]) > 20
    ink, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert abs(ink - ground) > 380, colours


def test_no_rule_of_the_style_reaches_beyond_a_report():
    model, data = trained(1)
    (style,) = re.findall(r"(?s)<style>(.*?)</style>", ek.variance_shift(model, data)._repr_html_())
    bare = re.sub(r"(?s)/\*.*?\*/", "", style)
    selectors = [one.strip() for found in re.findall(r"([^{}]+)\{", bare) for one in found.split(",")]
    rules = [one for one in selectors if not one.startswith("@media")]
    assert len(rules) > 100 and all(re.match(r"(html)?\.ek\b", rule) for rule in rules)


def test_the_compact_form_of_a_bare_norm_and_of_nothing_is_a_fragment():
    norm = torch.nn.BatchNorm1d(3)
    texts = [ek.variance_shift(norm, [torch.randn(9, 3)])._repr_html_()]
    texts += [ek.lint(torch.nn.Linear(2, 2), torch.ones(1, 2), guideline="li2018")._repr_html_()]
    assert all(text.lstrip().startswith('<div class="ek compact">') and "<html" not in text for text in texts)
