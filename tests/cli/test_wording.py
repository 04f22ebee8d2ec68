"""On the command line advice is in its words: no message asks for what only Python can do."""

import re

import pytest

from evenkeel.cli.wording import for_command_line
from evenkeel.linting.rules import ek102_statistics_carry_dropout as ek102
from evenkeel.model.losses import ADVICE
from evenkeel.prediction.anchors import WRITTEN
from evenkeel.reestimation import attempt, judging
from evenkeel.statistics import pairing

PYTHON = re.compile(r"\b(held_out|choose|unsure|prior|match|forward|score|memory|relative|download|samples)=|undo\(\)")


@pytest.mark.parametrize(
    "text",
    [
        ADVICE,
        WRITTEN,
        attempt._NO_SAY,
        attempt._NO_NOISE,
        judging._BY_OWN,
        pairing._ALWAYS_ON,
        'judge by held_out= (with choose="best"), or undo() where outputs count',
        "pass unsure='write' (--unsure write) to replace them, or held_out= and choose='best' (--held-out) to let a "
        "score decide",
        "new and old differ: take more, or prior='auto', which weighs both",
        "a batch is a tensor: pass forward=lambda model, batch: ...",
        "call undo() first, or load what training left",
        "batches had been merged before it was found that they must not be: pass match='variance'",
        "prior= needs the number of samples, and no tensor in the batches has it: pass samples=",
        "it is a guess, which needs unsafe=True",
        "so its statistics are of weights, call reestimate_ with unsure='write'.",
        "name the folder by data_dir (--data-dir) or EVENKEEL_DATA, or by download=True (--download)",
    ],
)
def test_advice_names_options(text):
    words = for_command_line(text)
    assert words != text and not PYTHON.search(words) and "unsafe=" not in words


def test_the_findings_for_code_scanning_ask_for_nothing_that_only_python_can_do():
    from pathlib import Path

    import torch

    from evenkeel.linting.context import Context
    from evenkeel.linting.linter import examine, wanted
    from evenkeel.linting.rules import ALL
    from evenkeel.linting.sarif import to_sarif

    found = examine(Context(ek102.bad(), torch.zeros(ek102.EXAMPLE)), wanted(None))
    text = str(for_command_line(to_sarif(found, ALL, root=Path(), version="1")))
    assert found and not PYTHON.search(text) and not re.search(r"\b(reestimate_|correct_|predict_shift)\b", text)


def test_code_of_pythons_users_stays_code():
    for text in ("done = ek.reestimate_(model, batches)", "done.correct_(1)"):
        assert for_command_line(text) == text


def test_what_has_no_python_in_it_stays():
    data = {"path": "layer1.0.bn2", "ratio": 0.5, "notes": ["x1.12 dropout upstream"], "none": None}
    assert for_command_line(data) == data


def test_the_rule_on_statistics_advises_a_command():
    import torch

    from evenkeel.linting.context import Context

    (finding,) = ek102.statistics_carry_dropout.findings(Context(ek102.bad(), torch.zeros(ek102.EXAMPLE)))
    advice = for_command_line(finding.advice)
    assert advice.startswith("Repair the checkpoint by `evenkeel repair`, with --data or without")
    assert "--match mean" in advice
