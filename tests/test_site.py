"""The documentation site is built without a warning, asks no other host for anything, and comes with llms.txt."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there(site):
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 30
    for page in pages:
        folder = page.parent if page.stem in ("index", "README") else page.with_suffix("")
        assert (site / folder / "index.html").is_file(), page


@pytest.mark.slow
def test_nothing_is_loaded_from_another_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//', text), page
        assert not re.search(r'<link[^>]* rel="(?:stylesheet|preconnect|preload)"[^>]* href="(?:https?:)?//', text), (
            page
        )


@pytest.mark.slow
def test_examples_of_docstrings_are_code(site):
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert "variance_shift" in text and "<p>&gt;&gt;&gt;" not in text and "<p>>>>" not in text


@pytest.mark.slow
def test_a_short_text_for_language_models_comes_with_it(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# evenkeel\n")
    for page in (path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")):
        folder = page.parent if page.stem == "README" else page.with_suffix("")
        assert f"/{folder.as_posix()}/index.md)" in text or page.stem == "index", page


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def served(site):
    """The site's address on a server of its own, as it is read."""
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_no_page_scrolls_sideways_on_a_phone_or_complains(site, browser, served):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    wide = []
    for path in sorted(site.rglob("index.html")):
        page.goto(served + path.relative_to(site).as_posix())
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            wide.append(path.relative_to(site))
    context.close()
    assert wide == [] and said == []
    assert all(url.startswith((served, "blob:", "data:")) for url in asked)


@pytest.mark.slow
def test_the_search_finds_a_verb_without_another_host(browser, served):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(served)
    page.locator("[data-md-component=search-query]").click()
    page.keyboard.type("variance_shift")
    page.locator(".md-search-result__item").first.wait_for()
    assert "variance_shift" in page.locator(".md-search-result__list").inner_text()
    context.close()
