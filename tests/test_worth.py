"""docs/is-it-worth-it.md: its table is what results/prediction.json says, and its claims hold there."""

import json
import re

import pytest

from benchmarks.pages import text_in
from benchmarks.worth import PAGE, RESULTS, outcomes, table

FOUND = outcomes(json.loads(RESULTS.read_text()))


def test_the_table_is_what_the_results_say():
    assert text_in(PAGE, "worth") == table(FOUND)


def test_the_claims_hold():
    small = [one.gain for one in FOUND if one.worst < 1.5]
    assert sum(abs(gain) < 0.5 for gain in small) > len(small) / 2
    large = [one.gain for one in FOUND if one.worst >= 1.5 and not one.is_mlp]
    claimed = re.search(r"better, by ([\d.]+) to ([\d.]+) points", PAGE.read_text(encoding="utf-8"))
    assert (min(large), max(large)) == pytest.approx(tuple(map(float, claimed.groups())), abs=0.5)
    assert all(abs(one.gain) < 1.5 for one in FOUND if one.is_mlp)
    assert all(one.worst < 1.5 and one.gain <= 1.5 for one in FOUND if one.p == 0.1)
