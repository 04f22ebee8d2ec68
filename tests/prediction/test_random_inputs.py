"""Random inputs: standardized, and smooth along positions."""

import pytest
import torch

from evenkeel.prediction.random_inputs import random_field, replicated_like, structures_among, takes_turns


@pytest.mark.parametrize(
    "shape", [(4000, 6), (500, 3, 32), (300, 3, 16, 16), (50, 2, 8, 8, 8), (1000,), (200, 3, 1, 1)]
)
def test_random_inputs_are_standardized_and_smooth(shape):
    torch.manual_seed(0)
    x = random_field(shape)
    assert x.shape == shape and x.isfinite().all()
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-3)
    assert abs(float(x.mean())) < 0.15
    if x.shape[-1] > 1 and len(shape) > 2:
        neighbours = float((x[..., 1:] * x[..., :-1]).mean())
        assert neighbours > 0.3
    contrast = x.flatten(1).square().mean(1).sqrt() if x.dim() > 1 else x
    assert float(contrast.std() / contrast.mean()) > 0.2


NODES, EDGES, SQUARE = torch.zeros(9, 4), torch.zeros(2, 30).long(), torch.zeros(9, 9)
STACK, SQUARES = torch.zeros(5, 9, 4), torch.zeros(5, 9, 9)
IMAGES, MASK = torch.zeros(2, 3, 8, 8), torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
WEIGHTS = torch.rand(30)


@pytest.mark.parametrize(
    ("given", "kept", "turns"),
    [
        ((NODES,), (), False),
        ((NODES, EDGES), (EDGES,), True),
        ((NODES, SQUARE), (SQUARE,), True),
        ((NODES, SQUARE.to_sparse()), None, True),
        ((STACK, SQUARES), (SQUARES,), False),
        ((IMAGES,), (), False),
        ((IMAGES, torch.zeros(2, 8, 8)), (), False),
        ((torch.zeros(4, 4),), (), False),
        ((torch.zeros(2, 6), MASK), (MASK,), False),
        ((torch.zeros(2, 6), torch.ones(2, 6)), (), False),
        ((torch.zeros(2, 6), torch.zeros(1, 7)), (), False),
        ((torch.zeros(2, 6), torch.tensor(3.0)), (), False),
        ((torch.zeros(2, 6), torch.zeros(5, 6)), (), True),
    ],
)
def test_what_says_how_inputs_are_connected_is_kept_and_runs_at_its_size(given, kept, turns):
    expected = {id(t) for t in (given[1:] if kept is None else kept)}
    assert structures_among(given) == expected
    assert takes_turns(given) is turns


def test_vectors_are_kept_where_sizes_are():
    assert id(WEIGHTS) in structures_among([NODES, EDGES, WEIGHTS], in_turn=True)
    assert id(WEIGHTS) not in structures_among([NODES, EDGES, WEIGHTS])


def test_rows_of_inputs_that_are_kept_stay_together():
    ids, lengths = torch.arange(12).view(4, 3), torch.arange(4) * 3
    rows = torch.randint(4, (50,))
    one, other = (replicated_like(t, 4, rows, kept=True) for t in (ids, lengths))
    assert torch.equal(one[:, 0], other) and len(one) == 150 and torch.equal(one[:50], one[100:])
