"""benchmarks/speed: the page has the tables of the results, and what is measured is what is said to be."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from benchmarks.pages import text_in
from benchmarks.speed import MODELS, PAGE, RESULTS, as_trained, exponent_of, measured, tables


def test_the_page_has_the_tables_of_the_results():
    for name, table in tables(json.loads(RESULTS.read_text())).items():
        assert text_in(PAGE, name) == table


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_every_model_is_taken(name):
    model = MODELS[name]
    example = torch.randn(2, *((3, 64, 64) if 224 in model.shape else model.shape))
    with torch.no_grad():
        assert len(as_trained(model.build, example)(example)) == 2


def test_exponents_are_those_of_powers():
    places = [1.0, 2.0, 5.0]
    for power in (0.0, 1.0, 1.5):
        assert exponent_of(places, [3 * place**power for place in places]) == pytest.approx(power)


@pytest.mark.slow
def test_a_verb_is_timed_in_a_process_of_its_own():
    found = measured(argparse.Namespace(rounds=2), 1, "verb", "MLP 3 x 256", "trace")
    assert found["cold"] > 0 and found["seconds"] > 0 and found["ratio"]["median"] > 0
    assert "error" in measured(argparse.Namespace(rounds=2), 1, "verb", "MLP 3 x 256", "no verb")
