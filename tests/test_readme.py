"""The README's program runs, and prints what the README says it prints, up to the last digits of training."""

import re
from pathlib import Path

import pytest
from pages import run
from processes import forked

from benchmarks import claims
from benchmarks.pages import text_in
from evenkeel.papers.catalogue import ALL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d+\.?\d*")


def masked(text):
    """The lines with every number as # and runs of spaces or rules as one."""
    lines = (re.sub(r"[ ─]+", " ", NUMBER.sub("#", line)).strip() for line in text.splitlines())
    return [line for line in lines if line]


def even(text):
    """A program's output without what shifts are made of: which parts are large enough to be named may differ."""
    lines = (
        re.sub(r"  x[\d.]+ .*| at [\w.]+ +\(", "", line) for line in text.splitlines() if not line.startswith(" " * 20)
    )
    return masked("\n".join(lines))


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", README, re.S)


@pytest.mark.slow
def test_the_program_prints_the_output_shown(tmp_path):
    pytest.importorskip("sklearn")
    shown = blocks("text")[0]
    ((printed,),) = forked(run, ROOT / "README.md", tmp_path / "readme.py", tmp_path, folder=tmp_path)
    assert even(printed) == even(shown)
    for output in (printed, shown):  # and both hold what the README claims
        assert float(re.search(r"worst x([\d.]+)", output)[1]) > 1.8
        before, after = (float(x) for x in re.search(r"error ([\d.]+)% to ([\d.]+)%", output).groups())
        assert after < before


def test_the_claims_are_what_the_results_say():
    for page, texts in claims.tables(claims.reports(ROOT / "results")).items():
        for name, text in texts.items():
            assert text_in(ROOT / page, name) == text, "run `make docs`"


def test_each_paper_has_three_headlines():
    headlines = {paper.name: [c for e in paper.experiments for c in e.claims if c.headline] for paper in ALL}
    assert {name: len(found) for name, found in headlines.items()} == dict.fromkeys(headlines, 3)


def test_it_is_short():
    assert len(README.splitlines()) <= 120


def test_every_verb_named_exists():
    import evenkeel as ek

    for verb in re.findall(r"`ek\.(\w+)", README + (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")):
        assert callable(getattr(ek, verb))
