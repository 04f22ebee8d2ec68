"""docs/matching.md: its table and its figures are what the closed forms say, and a neuron of torch does the same."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.one_neuron import CASES, NOISE, PAGE, PLOT, STYLES, P, draw, figures, table
from benchmarks.pages import text_in
from evenkeel.theory.matching import dropout_stretch, slope_through

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_table_is_what_the_formulas_say():
    assert text_in(PAGE, "one neuron") == table()


def test_the_picture_is_what_the_formulas_say(tmp_path):
    draw(tmp_path / "matching.svg")
    drawn, kept = ((path / "matching.svg").read_text(encoding="utf-8") for path in (tmp_path, PLOT.parent))
    assert drawn.count("<path") == kept.count("<path")
    assert all(f"eval mode, {name}" in kept for name in STYLES)


def test_the_claims_hold():
    behind_dropout, behind_relu = map(figures, CASES)
    assert behind_dropout["as trained"] == pytest.approx((0.5, 0), abs=1e-9)
    assert behind_dropout["mean matched"] == pytest.approx((0.5, 0), abs=1e-9)
    for found in (behind_dropout, behind_relu):
        assert found["variance matched"][0] == pytest.approx(1)
        assert min(distance for _, distance in found.values()) == pytest.approx(found["mean matched"][1])
    assert f"{dropout_stretch(P):.2f}, `dropout_stretch(0.5)`" in TEXT
    assert f"k = {slope_through(torch.relu, noise=NOISE):.2f}".replace("0.", ".") in TEXT
    assert len(TEXT.splitlines()) < 120


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_neuron_of_torch_does_the_same(case):
    """256 inputs, dropout and a batch norm; averaged over 400 masks."""
    x, weight = torch.randn(300, 256), torch.randn(256) / 16
    weight = weight / weight.norm()

    def norm_input(inputs):
        return case.f(inputs @ weight)[:, None]

    noisy = torch.stack([norm_input(F.dropout(x, P, training=True)) for _ in range(400)])
    mean, variance = noisy.mean()[None], noisy.var()[None]
    average = F.batch_norm(noisy.flatten(0, 1), mean, variance).view(400, -1).mean(0)
    for name, (_, distance) in figures(case).items():
        stored = case.stored()[name]
        output = (norm_input(x)[:, 0] - stored.mean) / stored.variance**0.5
        assert float((output - average).square().mean().sqrt()) == pytest.approx(distance, abs=0.08)
