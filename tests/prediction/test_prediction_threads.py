"""Predictions on any number of threads: the same figures, and the number that was set before."""

import pytest
import torch
from torch import nn

import evenkeel as ek

X = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.drop = nn.Conv2d(3, 16, 3, padding=1), nn.Dropout(0.4)
        self.conv, self.norm, self.last = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.fails = False

    def forward(self, x):
        x = self.last(self.conv(torch.relu(self.norm(self.drop(self.stem(x))))))
        if self.fails:
            raise ValueError("as asked for")
        return x


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(60):
            net(torch.randn(8, *X.shape[1:]))
    return net


@pytest.fixture(autouse=True)
def restored_number():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


VERBS = {"predict_shift": ek.predict_shift, "correct_": lambda net, x: _undone(ek.correct_(net, x))}


def _undone(correction):
    correction.undo()
    return correction


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_the_number_of_threads_changes_roundings_only(net, verb):
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(VERBS[verb](net, X))
        assert torch.get_num_threads() == count
    one, two = ([[row.ratio, *row.to_dict().values()] for row in report] for report in found)
    for left, right in zip(one, two, strict=True):
        numbers = [(a, b) for a, b in zip(left, right, strict=True) if isinstance(a, float)]
        assert numbers and all(a == pytest.approx(b, rel=1e-4, nan_ok=True) for a, b in numbers)


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_leaves_the_number_as_it_was(net, verb):
    net.fails = True
    torch.set_num_threads(2)
    with pytest.raises(ek.TraceError, match="as asked for"):
        VERBS[verb](net, X)
    assert torch.get_num_threads() == 2
