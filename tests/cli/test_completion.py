"""Shell completion: on, quick, and with what only this program knows."""

import os
import subprocess
import sys

import pytest
from commands import run

from evenkeel.cli import completion
from evenkeel.linting.rules import ALL

COMPLETE = """
import sys
from evenkeel.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, "sklearn" in sys.modules, file=sys.stderr)
"""


def offered(line):
    """What bash is offered at the end of a line, and whether torch was imported for that."""
    words = line.split(" ")
    variables = {"_EVENKEEL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-c", f"import sys; sys.argv = ['evenkeel']\n{COMPLETE}"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("evenkeel re", ["repair", "reestimate-part", "reproduce", "report"]),
        ("evenkeel lint my:net --guideline k", ["kim2023"]),
        ("evenkeel lint my:net --format s", ["sarif"]),
        ("evenkeel lint my:net --select EK1,EK20", ["EK1,EK201", "EK1,EK202", "EK1,EK203"]),
        ("evenkeel explain EK30", ["EK301", "EK302"]),
        ("evenkeel reproduce li2018/sh", ["li2018/shift"]),
        ("evenkeel shift my:net --data cifar", ["cifar10", "cifar100"]),
        ("evenkeel repair my:net --match m", ["mean"]),
        ("evenkeel shift torchv", ["torchvision:"]),
    ],
)
def test_bash_is_offered_what_fits_without_torch(line, words):
    assert offered(line) == (words, ["False", "False"])


def test_the_program_has_the_options_that_install_it(capsys):
    text = run(capsys, "--help")[1]
    assert "--install-completion" in text and "--show-completion" in text


def test_every_rule_experiment_and_guideline_is_offered():
    from evenkeel.papers.catalogue import ALL as PAPERS

    assert [code for code, _ in completion.codes("")] == [rule.code for rule in ALL]
    assert {name for name, _ in completion.experiments("")} == {paper.name for paper in PAPERS}
    for paper in PAPERS:
        found = [name for name, _ in completion.experiments(f"{paper.name}/")]
        assert sorted(found) == sorted(f"{paper.name}/{experiment.name}" for experiment in paper.experiments)
    assert completion.experiments("li2019/") == completion.codes("XX") == []
