"""Forecasts: made when they are read, and then of the model as `init_` left it."""

import copy
import pickle

import pytest
import torch
from initnets import Odd, mlp, residual_net
from torch import nn

import evenkeel as ek
from evenkeel.init import forecast
from evenkeel.init.gains import MODES


class Varied(nn.Module):
    """Reads whatever training changes: gains, shifts, statistics, slopes, constants, a frozen layer and its bias."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.slope = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU()
        self.scale, self.place = nn.Parameter(torch.full((1, 6, 1, 1), 0.7)), nn.Parameter(torch.randn(1, 6, 5, 5))
        self.register_buffer("offset", torch.ones(6, 1, 1))
        self.frozen, self.drop, self.head = nn.Linear(150, 20).requires_grad_(False), nn.Dropout(0.3), nn.Linear(20, 4)

    def forward(self, x):
        x = self.slope(self.norm(self.first(x)) * self.scale + self.place) - self.offset
        return self.head(self.drop(torch.tanh(self.frozen(x.flatten(1)))))


NETS = {
    "varied": (Varied, (2, 3, 5, 5)),
    "odd": (Odd, (2, 5, 4)),
    "gelu": (lambda: mlp(nn.GELU), (2, 40)),
    "residual": (lambda: residual_net(2, norm=True), (4, 64)),
}


def drawn(name, **options):
    """A net, and its report, which nobody has read."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make()
    return net, ek.init_(net, torch.ones(shape), seed=0, **options)


def train_wildly(net):
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.add_(3) if tensor.is_floating_point() else tensor.add_(1)
    for module in net.modules():
        module.training = not module.training
        if isinstance(module, nn.Dropout):
            module.p = 0.9


def replace_parameters(net):
    for module in net.modules():
        for name in module._parameters:
            module._parameters[name] = nn.Parameter(torch.zeros(1))


LATER = {
    "trained": lambda net, report: train_wildly(net),
    "undone": lambda net, report: report.undo(),
    "halved": lambda net, report: net.half(),
    "drawn again": lambda net, report: ek.init_(net, torch.ones(2, 3, 5, 5), mode="hendrycks2016", seed=1),
    "replaced": lambda net, report: replace_parameters(net),
}


@pytest.mark.parametrize("mode", MODES[:3])
def test_nothing_is_predicted_until_it_is_read_and_then_once(monkeypatch, mode):
    asked, predict = [], forecast.predict_mean_squares
    monkeypatch.setattr(forecast, "predict_mean_squares", lambda *a, **k: asked.append(1) or predict(*a, **k))
    _, report = drawn("residual", mode=mode)
    assert report.mode == mode and not report.untouched and not report.unsure and not report.notes and not asked
    assert str(report) and len(report) == 6 and report.to_dict() and asked == [1]


@pytest.mark.parametrize("later", LATER)
def test_whatever_is_done_to_the_model_before_they_are_read(later):
    expected = drawn("varied")[1].to_dict()
    net, report = drawn("varied")
    LATER[later](net, report)
    assert report.to_dict() == expected


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("mode", MODES)
def test_training_does_not_show_in_any_mode(name, mode):
    expected = drawn(name, mode=mode)[1].to_dict()
    net, report = drawn(name, mode=mode)
    train_wildly(net)
    assert report.to_dict() == expected


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_report_that_nobody_has_read_can_be_copied_and_stored(copied):
    _, report = drawn("gelu")
    assert copied(report).to_dict() == report.to_dict()


def test_the_number_of_threads_changes_no_figure():
    before, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            found.append(drawn("varied")[1].to_dict())
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)
    assert found[0] == found[1]
