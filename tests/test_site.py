"""The documentation site is built without a warning, asks no other host for anything, and comes with llms.txt."""

import os
import re
import subprocess
import sys
from pathlib import Path

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
    assert text.startswith("# evenkeel\n") and "worse-in-eval" in text and "limits" in text
