"""Laws are those of the values that torch draws."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from evenkeel.graph.kinds import function_name
from evenkeel.graph.randomness import Law, dropped, law_of

N = 200_000


class Laws(TorchFunctionMode):
    """Follows the laws of all tensors that functions return."""

    def __init__(self):
        super().__init__()
        self.known = WeakIdKeyDictionary()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result, name = func(*args, **(kwargs or {})), function_name(func)
        in_place = bool(args) and result is args[0]
        with torch._C.DisableTorchFunction():
            law = law_of(name, args, kwargs or {}, self.known.get, in_place=in_place)
            if law is not None and isinstance(result, torch.Tensor):
                self.known[result] = law
        return result


DRAWN = {
    "normal": lambda: 1 + 0.5 * torch.randn(N),
    "normal, in place": lambda: torch.empty(N).normal_(2.0, 0.3).mul_(2).sub_(1),
    "normal, of filled tensors": lambda: torch.normal(torch.zeros(N), torch.ones(N)),
    "uniform": lambda: 3 - torch.rand(N) / 2,
    "uniform, in place": lambda: torch.zeros(N).uniform_(-1, 3),
    "a difference": lambda: torch.rand(N) - torch.randn(N),
    "a product": lambda: (1 + torch.rand(N)) * (2 + torch.randn(N)),
    "scaled in a sum": lambda: torch.add(torch.ones(N), torch.randn(N), alpha=0.2),
    "a mask": lambda: torch.empty(N).bernoulli_(0.7) / 0.7,
    "a mask, of a filled tensor": lambda: torch.bernoulli(torch.full((N,), 0.7)),
    "the rest of a mask": lambda: 1 - torch.empty(N).bernoulli_(0.7),
    "below": lambda: (torch.rand(N) < 0.3).float() * 2,
    "above": lambda: torch.rand(N) < 0.3,
    "a mask of integers": lambda: torch.randint(0, 2, (N,)).float() / 0.5,
    "not": lambda: ~(torch.rand(N) >= 0.4),
    "rounded down": lambda: torch.floor(0.8 + torch.rand(N)),
    "negated": lambda: -(1 + torch.rand(N)),
    "rearranged": lambda: (1 + torch.randn(N)).view(2, -1).T.contiguous() * 1.0,
}


@pytest.mark.parametrize("case", DRAWN)
def test_a_law_has_the_moments_of_the_values(case):
    torch.manual_seed(0)
    with Laws() as laws:
        values = DRAWN[case]()
    law = laws.known[values]
    values = values.double()
    error = 4 * float(values.std()) / N**0.5
    assert law.mean == pytest.approx(float(values.mean()), abs=error)
    assert law.variance == pytest.approx(float(values.var()), rel=0.03)
    if law.peak is not None:
        assert values.unique().tolist() == pytest.approx([0.0, law.peak])


UNKNOWN = {
    "a function": lambda: torch.randn(N).exp(),
    "a mean": lambda: torch.rand(N).mean(),
    "a quotient": lambda: torch.ones(N) / torch.rand(N),
    "other laws": lambda: torch.empty(N).exponential_(),
    "joined": lambda: torch.cat([torch.randn(N), torch.rand(N)]),
    "unknown values": lambda: torch.arange(N) * torch.rand(N),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_random_all_the_same(case):
    with Laws() as laws:
        law = laws.known[UNKNOWN[case]()]
    assert law.is_random
    assert law.p is None


def test_zero_mean_is_known_whatever_it_is_scaled_by():
    with Laws() as laws:
        law = laws.known[torch.arange(4.0) * torch.randn(4)]
    assert law.is_centered
    assert law.variance is None


def test_what_is_not_random_has_no_law_unless_its_value_is_known():
    with Laws() as laws:
        one, other = torch.full((2,), 3.0) * 2, torch.arange(3) + 1
    assert laws.known[one] == Law(6.0, 0.0)
    assert not laws.known[one].is_random
    assert other not in laws.known


def test_dropout_of_a_value_is_a_mask():
    assert dropped(Law(1.0, 0.0), 0.2).p == pytest.approx(0.2)
    assert dropped(Law(1.0, 0.0), 0.2).scaled
    assert dropped(Law(), 0.2) == Law()
