"""The batch that a chunk is cut out of."""

import pytest
import torch
from torch import nn

import evenkeel as ek
from evenkeel.prediction.arrivals import whole_of


def layers_of(cut):
    class Cut(nn.Module):
        def forward(self, x):
            return cut(x)[-1]

    graph = ek.trace(Cut(), torch.zeros(12, 4, 3))
    return graph.layers[1] if len(graph) == 3 else graph.layers[-2]


CUTS = {
    "chunk": lambda x: x.chunk(3),
    "split": lambda x: x.split(5),
    "slices": lambda x: [x[:4], x[4:]],
    "transposed": lambda x: x.transpose(1, 2).chunk(3),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_chunk_is_told_with_its_place_in_the_batch(cut):
    x = torch.arange(24 * 12.0).reshape(24, 4, 3)
    layer = layers_of(CUTS[cut])
    layer.inputs[0].__dict__["shape"] = (24, *layer.inputs[0].shape[1:])  # of the replicas, there are more
    begun = 0
    for part in CUTS[cut](x):
        whole, first = whole_of(part, layer)
        assert first == begun
        assert torch.equal(whole[first : first + len(part)], part)
        assert torch.equal(whole, x if cut != "transposed" else x.transpose(1, 2))
        begun += len(part)
    assert begun == 24


@pytest.mark.parametrize("cut", [lambda x: [x[:, :2]], lambda x: [x[::2]], lambda x: [x.relu()], lambda x: [x[..., 0]]])
def test_other_parts_are_no_chunks(cut):
    x = torch.zeros(12, 4, 3)
    assert whole_of(cut(x)[-1], layers_of(cut)) is None
