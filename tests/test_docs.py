"""docs/: every program runs, page by page, and prints what its page shows; every link leads somewhere."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
from pages import anchors, imported, links, masked, programs, run
from paths import ROOT
from processes import forked

DOCS = ROOT / "docs"
ALL = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
ELSEWHERE = {DOCS / "integrations" / "recipes.md", *(DOCS / "linting" / "rules").glob("*.md")}  # have their own tests
RUN = [page for page in ALL[1:] if page not in ELSEWHERE and programs(page)]
SLOWEST = 600  # seconds; a page takes less than a minute on an idle core


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_programs_of_a_page_run_and_print_what_it_shows(page, tmp_path):
    told = programs(page)
    for package in sorted(set().union(*(imported(program.code) for program in told))):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    work, file = tmp_path / "work", tmp_path / f"{page.stem.replace('-', '_')}.py"
    work.mkdir()
    (found,) = forked(run, page, file, work, folder=tmp_path, timeout=SLOWEST)
    for program, printed in zip(told, found, strict=True):
        if program.shown is not None:
            assert masked(printed) == masked(program.shown), f"printed:\n{printed}"


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_programs_of_a_page_are_python(page):
    for program in programs(page):
        compile(program.code, str(page), "exec")
        assert max(map(len, program.code.splitlines())) <= 120


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}: no such file"
        assert not path.startswith("/"), f"{name_of(page)} links to {link}: not relative"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(page)} links to {link}: no such heading, of {anchors(target)}"


def test_the_theory_names_tests_and_functions_that_exist():
    text = (DOCS / "theory.md").read_text(encoding="utf-8")
    cited = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(cited) > 30
    for file, test in cited:
        texts = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob(f"*/{file}"))
        assert any(f"\ndef {test}(" in text for text in texts), f"{file} has no {test}"
    named = re.findall(r"`(li2018|chen2019|kim2023|matching)\.(\w+)`", text)
    assert len(named) > 15
    for module, name in named:
        assert callable(getattr(import_module(f"evenkeel.theory.{module}"), name))


def test_links_are_found_outside_of_code_alone(tmp_path):
    page = Path(tmp_path, "page.md")
    page.write_text('# One `two`: 3\n[a](b.md#c) `[d](e)`\n```sh\n[f](g)\n```\n![h](i.svg "j") <img src="k.png">\n')
    assert links(page) == ["b.md#c", "i.svg", "k.png"] and anchors(page) == {"one-two-3"}


def test_a_program_comes_with_the_output_right_behind_it(tmp_path):
    page = Path(tmp_path, "page.md")
    page.write_text("```python\na\n```\n\n```text\nb\n```\n```py\nc\n```\n```python\nd\n```\nso:\n```text\ne\n```\n")
    assert programs(page) == [("a\n", "b\n"), ("d\n", None)]
