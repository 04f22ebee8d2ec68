"""docs/new-domain.md: its tables and its picture are what results/adaptation.json says, and its claims hold there."""

import json
from pathlib import Path

import pytest
import torch

import evenkeel as ek
from benchmarks.adaptation import (
    ALL,
    CORRUPTIONS,
    PANELS,
    PRIORS,
    RUNS,
    accuracies,
    draw,
    gain,
    largest,
    tables,
)
from benchmarks.pages import text_in

PAGE, RESULTS = Path("docs/new-domain.md"), Path("results/adaptation.json")
FOUND = json.loads(RESULTS.read_text(encoding="utf-8"))
SAMPLES = FOUND["samples"]


@pytest.mark.parametrize(("name", "table"), tables(FOUND).items())
def test_the_tables_are_those_of_the_results(name, table):
    assert text_in(PAGE, name) == table


def test_the_picture_is_that_of_the_results(tmp_path):
    draw(largest(FOUND), tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_text(encoding="utf-8").count("<path") == (
        Path("docs/pictures/adaptation.svg").read_text(encoding="utf-8").count("<path")
    )


def test_three_seeds_and_every_corruption_were_run():
    assert set(SAMPLES) == {f"{name}, seed {seed}" for name in ("clean", *CORRUPTIONS) for seed in range(3)}
    assert all(set(row) == {"no adaptation", ALL, *PRIORS} for row in SAMPLES.values())


def test_an_automatic_prior_is_within_two_standard_errors_of_the_best_at_every_size_of_corrupted_images():
    for size in RUNS:
        found = {name: gain(SAMPLES, PANELS["five corruptions"], name, size) for name in PRIORS}
        mean, error = found["auto"]
        assert mean > max(other for other, _ in found.values()) - 2 * error


def test_an_automatic_prior_costs_clean_images_no_more_than_two_points_and_two_standard_errors():
    for size in list(RUNS)[1:]:
        mean, error = gain(largest(FOUND), ("clean",), "auto", size)
        assert mean > -2 - 2 * error


def test_values_of_several_batches_are_of_the_same_images_at_every_size():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    ek.reestimate_(model, [torch.randn(64, 4)], unsure="write")
    x, y = 1 + torch.randn(64, 4), torch.randint(3, (64,))
    found = {(name, size): values for name, size, values in accuracies(model, x, y, {2: 4, 16: 4, 32: 2}, span=16)}
    assert {size: len(values) for (_, size), values in found.items()} == {2: 4, 16: 4, 32: 2}
    none = {size: values for (name, size), values in found.items() if name == "no adaptation"}
    assert none[2] == none[16] and sum(none[32]) == pytest.approx(sum(none[16]) / 2)
    by_hand = []
    for one, label in zip(x.split(2), y.split(2), strict=True):
        with ek.adapted(model, one, prior=16):
            by_hand.append(float((model(one).argmax(1) == label).double().mean()))
    assert sum(found["prior 16", 2]) / 4 == pytest.approx(sum(by_hand) / 32)


def test_each_domain_by_itself_is_best_where_one_site_was_trained_on():
    for key, row in FOUND["domains"].items():
        if key.startswith("trained on one site"):
            assert sum(row["each"]) > sum(row["all"]) > sum(row["as trained"])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_stay_between_black_and_white_and_change_something(name):
    images = torch.rand(2, 3, 32, 32)
    found = CORRUPTIONS[name](images)
    assert found.shape == images.shape and float(found.min()) >= -1e-6 and float(found.max()) <= 1 + 1e-6
    assert float((found - images).abs().mean()) > 0.01
