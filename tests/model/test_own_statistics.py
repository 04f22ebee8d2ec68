"""Statistics of modules' own making are named, whatever they are called, and nothing else is."""

from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import TensorDataset

import evenkeel as ek
from evenkeel.model.own_statistics import statistics_beside
from evenkeel.model.restoring import restored
from tests.support.snapshots import Snapshot


class Own(nn.Module):
    """Keeps an average of squares, in one of several places."""

    def __init__(self, place="buffer", only_in_training=True):
        super().__init__()
        self.only_in_training = only_in_training
        if place == "buffer":
            self.register_buffer("nu", torch.ones(8))
        elif place == "parameter":
            self.nu = nn.Parameter(torch.ones(8), requires_grad=False)
        else:
            self.nu = torch.ones(8)

    def forward(self, x):
        if self.training or not self.only_in_training:
            new = self.nu.detach().lerp(x.detach().square().mean(0), 0.1)
            if isinstance(self.nu, nn.Parameter):
                self.nu.data.copy_(new)
            else:
                self.nu = new
        return x / self.nu.sqrt()


class Functional(nn.Module):
    """Torch's batch norm, with buffers of other names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("m", torch.zeros(8))
        self.register_buffer("v", torch.ones(8))

    def forward(self, x):
        return F.batch_norm(x, self.m, self.v, None, None, self.training, 0.1)


def net(own):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), own, nn.Linear(8, 8), nn.BatchNorm1d(8))


def data():
    return [torch.randn(32, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.parametrize("own", [Own(), Own("parameter"), Own("attribute"), Functional()])
@pytest.mark.parametrize("training", [True, False])
def test_every_verb_names_them(own, training):
    model = net(own)
    with torch.no_grad():
        for batch in data():
            model(batch)
    model.train(training)
    before = Snapshot(model)
    assert any("'2'" in note or note.startswith("2:") for note in ek.variance_shift(model, data()).notes)
    assert "train mode updates its" in ek.predict_shift(model, data()[0][:2]).unsure["2"]
    assert not before.changes()
    assert "train mode updates its" in ek.correct_(model, data()[0][:2]).untouched["2"]
    assert "train mode updates its" in ek.reestimate_(model, data()).untouched["2"]


class Running:
    """The mean square of what it has seen, as those who train agents keep it."""

    def __init__(self, shape):
        self.square, self.count = np.ones(shape), 1e-4


class OfAnyType(nn.Module):
    """Keeps an average of squares as a number, an array, or within something else, and divides by its root."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, x):
        square = x.detach().square()
        if self.training:
            self.follow(square)
        return x / torch.as_tensor(self.scale(), dtype=x.dtype).sqrt()

    def follow(self, square):
        kept, mean = self.kept, square.mean(0)
        if isinstance(kept, float):
            self.kept = 0.9 * kept + 0.1 * float(mean.mean())
        elif isinstance(kept, torch.Tensor):
            kept.lerp_(mean.mean(), 0.1)
        elif isinstance(kept, np.ndarray):
            kept += 0.1 * (mean.numpy() - kept)
        elif isinstance(kept, Running):
            kept.square += 0.1 * (mean.numpy() - kept.square)
            kept.count += len(square)
        elif isinstance(kept, tuple):
            self.kept = (kept[0].lerp(mean, 0.1),)
        else:
            at = 0 if isinstance(kept, (list, deque)) else "square"
            kept[at] = kept[at] + 0.1 * (mean - kept[at])

    def scale(self):
        kept = self.kept
        if isinstance(kept, (list, tuple, deque)):
            return kept[0]
        return kept["square"] if isinstance(kept, dict) else kept.square if isinstance(kept, Running) else kept


KEPT = {
    "number": lambda: 1.0,
    "tensor of one number": lambda: torch.tensor(1.0),
    "array": lambda: np.ones(8, dtype=np.float32),
    "list": lambda: [torch.ones(8)],
    "tuple": lambda: (torch.ones(8),),
    "dict": lambda: {"square": torch.ones(8)},
    "window": lambda: deque([torch.ones(8)], maxlen=1),
    "list of numbers": lambda: [np.float64(1.0)],
    "object": lambda: Running(8),
}


@pytest.mark.parametrize("name", KEPT)
def test_so_they_are_of_any_type_and_nothing_changes(name):
    model = net(OfAnyType(KEPT[name]()))
    if name == "list of numbers":
        model[2].follow = lambda square: model[2].kept.__setitem__(0, float(square.mean()))
    before = Snapshot(model)
    kept = model[2].kept
    found = ek.variance_shift(model, data())
    assert any("2:" in note and "train mode updates its kept" in note for note in found.notes)
    assert "train mode updates its kept" in ek.predict_shift(model, data()[0][:2]).unsure["2"]
    assert model[2].kept is kept and not before.changes()
    assert bool((torch.as_tensor(model[2].scale()) == 1).all())
    assert not isinstance(kept, Running) or kept.count == 1e-4


class Falling(nn.Module):
    """A temperature that falls with every step of training, whatever it is given."""

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def forward(self, x):
        if self.training:
            self.temperature = self.temperature * 0.9
        return x / self.temperature


@pytest.mark.parametrize("temperature", [2.0, torch.tensor(2.0), np.array(2.0)])
def test_a_number_that_follows_no_data_is_not_named(temperature):
    model = net(Falling(temperature))
    assert statistics_beside(model, lambda: model(data()[0])) == {}
    assert model[2].temperature is temperature


def test_a_data_set_that_a_module_holds_is_neither_copied_nor_named():
    data_set = TensorDataset(torch.randn(4, 8))
    data_set.targets = torch.zeros(4)
    model = net(Falling(2.0))
    model[2].data_set = data_set
    with restored(model):
        data_set.targets += 1
    assert bool(data_set.targets.all())
    assert statistics_beside(model, lambda: model(data()[0])) == {}


def test_data_in_a_file_beside_statistics_stay_as_they_are(tmp_path):
    stored = np.memmap(tmp_path / "data", np.float32, "w+", shape=(4,))
    kept = Running(8)
    kept.data = stored
    model = net(OfAnyType(kept))
    assert "train mode updates its kept" in statistics_beside(model, lambda: model(data()[0]))["2"]
    assert not stored.any() and kept.data is stored


class Constant(nn.Module):
    """Standardizes its input, and keeps what it returned last."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((8,), 0.5))
        self.last = torch.zeros(32, 8)

    def forward(self, x):
        self.last = x - self.mean
        return self.last


@pytest.mark.parametrize("other", [Constant(), Own(only_in_training=False), spectral_norm(nn.Linear(8, 8))])
def test_what_is_no_statistic_of_training_is_not_named(other):
    model, batch = net(other), data()[0]
    assert statistics_beside(model, lambda: model(batch)) == {}


class Kept(nn.Module):
    """Keeps something of each pass, or of those in train mode, that no pass reads."""

    def __init__(self, what, only_in_training=False):
        super().__init__()
        self.what, self.only_in_training, self.kept = what, only_in_training, torch.zeros(8, 8)

    def forward(self, x):
        if self.training or not self.only_in_training:
            self.kept = {"map": x.mT @ x, "mask": torch.bernoulli(torch.full((8, 8), 0.5))}[self.what].detach()
        masked = self.training and self.what == "mask"
        return x @ (self.kept if masked else torch.eye(8))


class Random(Own):
    """Draws in eval mode, too, and keeps an average that it does not read."""

    def forward(self, x):
        super().forward(x)
        return F.dropout(x, 0.5, True)


def used(model):
    """After a pass in eval mode over the very samples that it is tried on."""
    with torch.no_grad():
        model.eval()(data()[0])
    return model


class Subclass(nn.Linear):
    """Of another library."""


@pytest.mark.parametrize(
    "other",
    [
        Kept("map"),
        Kept("map", only_in_training=True),
        Kept("mask", only_in_training=True),
        Random(),
        nn.utils.spectral_norm(Subclass(8, 8)),
    ],
    ids=["map", "training map", "mask", "random", "spectral norm"],
)
@pytest.mark.parametrize("prepare", [used, lambda model: model], ids=["used", "fresh"])
def test_what_is_kept_to_be_looked_at_is_not_named(other, prepare):
    model = prepare(net(other))
    before = Snapshot(model)
    assert statistics_beside(model, lambda: model(data()[0])) == {}
    assert not before.changes()


class Whitening(nn.Module):
    """Refuses another matrix than a covariance."""

    def __init__(self):
        super().__init__()
        self.register_buffer("c", torch.eye(8))

    def forward(self, x):
        if self.training:
            self.c.lerp_(x.mT @ x / len(x), 0.1)
        if not torch.equal(self.c, self.c.mT) or bool((self.c.diagonal() > 2.5).any()):
            raise ValueError
        return x @ torch.linalg.inv(torch.linalg.cholesky(self.c)).mT


def test_what_takes_no_other_value_is_read():
    model = net(Whitening())
    assert "train mode updates its c" in statistics_beside(model, lambda: model(data()[0]))["2"]


def test_one_made_in_inference_mode_is_named():
    with torch.inference_mode():
        model = net(Functional())
    assert "train mode updates its m, v" in statistics_beside(model, lambda: model(data()[0]))["2"]


def test_a_frozen_one_is_not_named_and_the_model_may_raise():
    model = net(Own()).train()
    model[2].eval()
    assert statistics_beside(model, lambda: model(data()[0])) == {}
    model[2].train()
    assert statistics_beside(model, lambda: model(torch.ones(3, 5))) == {}
    assert "2" in statistics_beside(model, lambda: model(data()[0][:1]))


@pytest.mark.parametrize("kind", ["float32", "big-endian", "long", "reversed", "read-only"])
def test_numbers_and_arrays_of_any_kind_of_numpys_are_named_if_read_alone(kind):
    def made(value):
        if kind == "float32":
            return np.float32(value)
        array = np.full(2, value, {"big-endian": ">f4", "long": np.longdouble}.get(kind, np.float32))
        array.flags.writeable = kind != "read-only"
        return array[::-1] if kind == "reversed" else array

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.size, self.seen = made(1.0), made(0.0)

        def forward(self, x):
            if self.training:
                self.size = made(float(x.square().mean()))
                self.seen = made(float(x.mean()))
            return x / float(np.mean(self.size))

    model = nn.Sequential(Scaled(), nn.BatchNorm1d(2)).eval()
    found = statistics_beside(model, lambda: model(torch.randn(8, 2) + 3))
    assert list(found) == ["0"]
    assert "updates its size" in found["0"]


def test_a_read_only_array_that_is_only_kept_to_be_looked_at_is_none():
    class Logged(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = np.zeros(2)

        def forward(self, x):
            if self.training:
                self.seen = x.mean(0).double().numpy().copy()
                self.seen.flags.writeable = False
            return 2 * x

    model = nn.Sequential(Logged(), nn.BatchNorm1d(2))
    model(torch.randn(8, 2))
    assert not statistics_beside(model.eval(), lambda: model(torch.randn(8, 2) + 3))
