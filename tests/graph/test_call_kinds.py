"""kind_of_call: the kind of a call by its function, and by what it is given."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.graph.call_kinds import kind_of_call
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.randomness import Law

SIGNAL, OTHER = (Layer(name, Kind.INPUT, "", None, function="input") for name in "ab")
MASK, FIELD = Law(1.0, 1.0), Law(0.0, 1.0)  # what keeps a signal on average, and what replaces it by noise


@pytest.mark.parametrize(
    ("name", "signals", "values", "operands", "factor", "kind"),
    [
        ("add", (SIGNAL, OTHER), 2, 2, None, Kind.JOIN),
        ("add", (SIGNAL,), 1, 2, None, Kind.PASS),
        ("add", (SIGNAL,), 1, 2, FIELD, Kind.NOISE),
        ("mul", (SIGNAL, OTHER), 2, 2, None, Kind.GATE),
        ("mul", (SIGNAL,), 1, 2, MASK, Kind.DROPOUT),
        ("mul", (SIGNAL,), 1, 2, FIELD, Kind.NOISE),
        ("matmul", (SIGNAL,), 1, 2, None, Kind.WEIGHT),
        ("matmul", (SIGNAL, OTHER), 2, 2, None, Kind.GATE),
        ("relu", (SIGNAL,), 1, 1, None, Kind.ACTIVATION),
        ("relu", (SIGNAL,), 1, 1, MASK, Kind.OPAQUE),
    ],
)
def test_the_kind_is_that_of_what_is_done_to_the_signal(name, signals, values, operands, factor, kind):
    assert kind_of_call(name, signals, values, operands, factor) is kind


MASKED = {
    "a mask of an unknown rate": lambda x, rate: x * (torch.rand_like(x) > rate),
    "a mask of an unknown rate, scaled": lambda x, rate: x * (torch.rand_like(x) > rate) / (1 - rate),
    "the same, filled": lambda x, rate: x * torch.bernoulli(torch.full_like(x, 0.5) * rate),
    "the rest of one": lambda x, rate: x * (1 - torch.bernoulli(torch.full_like(x, 0.5) * rate)),
    "blocks of a mask": lambda x, rate: x * (1 - F.max_pool1d((torch.rand_like(x) < 0.1).float(), 3, 1, 1)),
    "a mask, scaled by what it keeps": lambda x, rate: x * (mask := (torch.rand_like(x) > 0.1).float()) / mask.mean(),
    "scaled before": lambda x, rate: x * ((mask := (torch.rand_like(x) > 0.1).float()) / mask.mean()),
    "a mask of two": lambda x, rate: x * (torch.rand_like(x) > rate) * (torch.rand(len(x), 1) > 0.1),
    "integers of two values": lambda x, rate: x * torch.randint(2, x.shape),
    "a factor of another mean": lambda x, rate: x * torch.rand_like(x),
    "a factor of mean 1": lambda x, rate: x * (1 + 0.5 * torch.randn_like(x)),
}
SAMPLED = {
    "an angle, as of diffusion": lambda x, rate: x * torch.cos(torch.rand(len(x), 1)),
    "a positive factor": lambda x, rate: x * torch.exp(torch.randn_like(x)),
    "drawn by what the signal says": lambda x, rate: x * (torch.rand_like(x) < x.sigmoid()),
    "rounded by chance": lambda x, rate: x + (torch.rand_like(x) < x),
    "beside the signal, as of generators": lambda x, rate: torch.cat([x, torch.randn(len(x), 3)], 1),
}


class Called(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.register_buffer("rate", torch.tensor(0.3))

    def forward(self, x):
        return self.call(x, self.rate)


@pytest.mark.parametrize("name", [*MASKED, *SAMPLED])
def test_a_random_factor_is_dropout_if_it_is_a_mask_or_has_a_mean(name):
    kinds = [layer.kind for layer in ek.trace(Called((MASKED | SAMPLED)[name]), torch.randn(4, 8))]
    assert (Kind.DROPOUT in kinds) is (name in MASKED)
    assert (Kind.NOISE in kinds) is (name in SAMPLED or name == "a mask, scaled by what it keeps")
    assert Kind.OPAQUE not in kinds
