"""explain: a page says what the rule's file says, and its examples are the code that runs."""

import ast
import re
from pathlib import Path

import pytest
from paths import ROOT

import evenkeel as ek
from evenkeel.linting.explanation import overview, without_links, write_pages
from evenkeel.linting.rule import GUIDELINES
from evenkeel.linting.rules import ALL

each = pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.code)


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@each
def test_a_page_holds_the_rules_own_text_and_guideline(rule):
    page = ek.explain(rule.code)
    title, _, rest = rule.text.partition("\n")
    assert page.startswith(f"# {title.rstrip('.')}\n")
    assert rest.strip() in page
    assert f"{rule.guideline}: {GUIDELINES[rule.guideline]}" in page


@each
def test_its_examples_are_the_functions_that_are_tested(rule):
    bad, good = blocks(ek.explain(rule.code))
    source = Path(rule.module.__file__).read_text(encoding="utf-8")
    assert bad.strip() in source and good.strip() in source
    assert [ast.parse(text).body[0].name for text in (bad, good)] == ["bad", "good"]


@each
def test_headings_are_in_order_and_the_page_ends_with_a_line(rule):
    page = ek.explain(rule.code)
    levels = [len(hashes) for hashes in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.M)]
    assert levels == [1] + [2] * 7
    assert page.endswith("```\n") and not re.search(r"[ \t]$|\n{3}", page, re.M)


def test_a_code_may_be_written_small():
    assert ek.explain("ek201") == ek.explain("EK201")


@pytest.mark.parametrize(
    ("code", "hint"),
    [("EK20", r"EK20[123]"), ("EK999", "EK"), ("EK2O1", "EK201"), ("", "EK101, "), ("dropout", "EK101, "), ("ß", "EK")],
)
def test_an_unknown_code_names_known_ones(code, hint):
    with pytest.raises(ek.EvenkeelError, match=rf"there is no rule '{code}'.*{hint}"):
        ek.explain(code)


def test_the_overview_has_a_row_for_every_rule():
    rows = re.findall(r"^\| \[(EK\d+)\]\((.+?)\) \| (\w+) \| (.+) \|$", overview(), re.M)
    assert rows == [(r.code, f"{r.code}.md", r.guideline, r.summary.rstrip(".")) for r in ALL]


def test_the_pages_are_what_explain_prints_and_nothing_is_left_beside(tmp_path):
    written = write_pages(tmp_path)
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert {path.name: path.read_text(encoding="utf-8") for path in written} == {
        "README.md": overview(), **{f"{r.code}.md": ek.explain(r.code) for r in ALL},
    }  # fmt: skip
    assert write_pages(str(tmp_path)) == written


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ek.EvenkeelError, match="there is no folder"):
        write_pages(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_docs_rules_is_what_the_rules_say(tmp_path):
    folder = ROOT / "docs" / "linting" / "rules"
    written = write_pages(tmp_path)
    assert sorted(path.name for path in written) == sorted(path.name for path in folder.iterdir())
    for path in written:
        assert path.read_text(encoding="utf-8") == (folder / path.name).read_text(encoding="utf-8"), "run make docs"


def test_on_a_terminal_links_are_their_texts():
    assert without_links("see [EK201](EK201.md), x[0](y z) and [a] (b)") == "see EK201, x[0](y z) and [a] (b)"
    assert "](" not in without_links(overview()) and "| EK101 | hendrycks2016 |" in without_links(overview())
