"""The README's program runs, and prints what the README says it prints, up to the last digits of training."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
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
def test_the_second_program_prints_the_output_shown():
    program, shown = blocks("python")[1], blocks("text")[1]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=240)
    assert masked(run.stdout) == masked(shown)


@pytest.mark.slow
def test_the_program_prints_the_output_shown():
    pytest.importorskip("sklearn")
    program, shown = blocks("python")[0], blocks("text")[0]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=240)
    assert even(run.stdout) == even(shown)
    for output in (run.stdout, shown):  # and both hold what the README claims
        before, after = (float(x) for x in re.findall(r"worst x([\d.]+)", output))
        error_before, error_after = (float(x) for x in re.findall(r"test error ([\d.]+)%", output))
        assert before > 1.8 and after < 1.05 and error_after < error_before


def test_the_claims_are_what_the_results_say():
    from evenkeel.papers.catalogue import ALL, find
    from evenkeel.papers.lab.report import read_reports, to_markdown

    reports = read_reports(Path(__file__).parents[1] / "results", [pair for paper in ALL for pair in find(paper.name)])
    shown = re.search(r"<!-- claims -->\n(.*?)<!-- /claims -->", README, re.S)
    assert shown is not None and shown[1].strip() == to_markdown(reports).strip(), "run `make docs`"


def test_every_verb_named_exists():
    import evenkeel as ek

    for verb in re.findall(r"`ek\.(\w+)\(", README):
        assert callable(getattr(ek, verb))
