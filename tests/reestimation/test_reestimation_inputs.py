"""What people feed to reestimate_: number formats, norms, noise by any name, batches and loaders.

Each is held to the plain oracle: afterwards, an eval-mode pass over all data shows at every norm's input the mean and
the variance that the norm stores, and nothing else in the model, or in the world, has changed.
"""

import copy
import gc
import importlib
import itertools
import sys
import weakref
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from snapshots import Snapshot
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import evenkeel as ek
from benchmarks.torchvision_cpu import import_torchvision


def inputs_of(model, run):
    """What reaches each norm in an eval-mode pass, by path: (samples, channels, values) in float64."""
    twin, seen = copy.deepcopy(model).eval(), {}
    for path, norm in twin.named_modules():
        if isinstance(norm, _NormBase) and norm.running_var is not None:
            calls = seen[path] = []
            norm.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0].double()))
    with torch.no_grad():
        run(twin)
    return {path: torch.cat([x.reshape(*x.shape[:2], -1) for x in calls]) for path, calls in seen.items()}


def reestimated(model, batches, run, precision=1e-5, **options):
    """Re-estimate, and hold the model to the oracle; `run` passes all data through it."""
    before = Snapshot(model)
    done = ek.reestimate_(model, batches, **options)
    names = (
        "state_dict {}.running_mean",
        "state_dict {}.running_var",
        "attribute {}:_buffers",
        "attribute {}:evenkeel_written",  # the mark of what was written
        "attribute {}:evenkeel_trained",  # and of what was there before
        "attributes {}",
    )
    assert set(before.changes()) == {name.format(path) for path in done.standard_errors for name in names}
    inputs = inputs_of(model, run)
    assert inputs.keys() == done.standard_errors.keys()
    for path, x in inputs.items():
        norm = model.get_submodule(path)
        if isinstance(norm, _InstanceNorm):  # averages over instances
            mean, variance = x.mean(2).mean(0), x.var(2).mean(0)
        else:
            variance, mean = torch.var_mean(x.transpose(0, 1).flatten(1), 1)
        assert ((norm.running_mean.double() - mean).abs() / variance.sqrt()).max() < precision
        assert (norm.running_var.double() / variance - 1).abs().max() < precision
    return done


half_off = partial(nn.Dropout, 0.5)


def layers(dims, norm, noise=half_off):
    """Two weight layers, each with noise and then a norm: statistics depend on the noise, and on the norm before."""
    weight = [nn.Linear, *(partial(c, kernel_size=2) for c in (nn.Conv1d, nn.Conv2d, nn.Conv3d))][dims]
    return nn.Sequential(weight(3, 6), noise(), norm(6), nn.ReLU(), weight(6, 4), noise(), norm(4))


def data_of(dims, count=40):
    return 1 + 2 * torch.randn(count, 3, *(5,) * dims)


def library(name):
    """What timm or torchvision has by that name: they are importable beside a CPU build of torch only with help."""
    place, _, name = name.rpartition(".")
    try:
        import_torchvision()
        return getattr(importlib.import_module(place), name)
    except ImportError as error:
        pytest.skip(str(error))


both_ways = pytest.mark.parametrize("options", [{}, {"memory": 0}], ids=["merged", "apart"])


# --- number formats ---------------------------------------------------------------------------------------------------


def under_autocast(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch)


@pytest.mark.parametrize("forward", [under_autocast, None], ids=["in forward", "around"])
def test_autocast(forward):
    model, data = layers(2, nn.BatchNorm2d), data_of(2)
    plain = copy.deepcopy(model)
    ek.reestimate_(plain, data.split(8))
    with torch.autocast("cpu", torch.bfloat16, enabled=forward is None):
        reestimated(model, data.split(8), lambda m: forward(m, data) if forward else m(data), forward=forward)
    for place in (2, 6):
        half, full = model[place].running_var, plain[place].running_var
        assert half.dtype == torch.float32
        assert torch.allclose(half, full, rtol=0.02) and not torch.equal(half, full)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_wholly_in_another_dtype(dtype):
    model, data = layers(2, nn.BatchNorm2d).to(dtype), data_of(2).to(dtype)
    reestimated(model, data.split(8), lambda m: m(data), precision=max(torch.finfo(dtype).eps, 1e-12))
    assert model[6].running_var.dtype == model[6].running_mean.dtype == dtype


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("of_the_data", [True, False])
@pytest.mark.parametrize("of_the_model", [True, False])
def test_channels_last(dims, of_the_model, of_the_data):
    last = [torch.channels_last, torch.channels_last_3d][dims - 2]
    model, data = layers(dims, [nn.BatchNorm2d, nn.BatchNorm3d][dims - 2]), data_of(dims)
    model = model.to(memory_format=last) if of_the_model else model
    data = data.contiguous(memory_format=last) if of_the_data else data
    reestimated(model, data.split(8), lambda m: m(data))
    assert model[0].weight.is_contiguous(memory_format=last) is of_the_model


# --- norms ------------------------------------------------------------------------------------------------------------


def norm_drop_act(features):
    return library("timm.layers.BatchNormAct2d")(features, drop_layer=half_off)


NORMS = {
    "BatchNorm1d": (0, nn.BatchNorm1d),
    "BatchNorm1d of sequences": (1, nn.BatchNorm1d),
    "BatchNorm2d": (2, nn.BatchNorm2d),
    "BatchNorm3d": (3, nn.BatchNorm3d),
    "SyncBatchNorm": (2, nn.SyncBatchNorm),
    "lazy, but initialized": (2, lambda _: nn.LazyBatchNorm2d()),
    "InstanceNorm1d": (1, partial(nn.InstanceNorm1d, track_running_stats=True)),
    "InstanceNorm2d": (2, partial(nn.InstanceNorm2d, track_running_stats=True)),
    "InstanceNorm3d": (3, partial(nn.InstanceNorm3d, track_running_stats=True, affine=True)),
    "cumulative": (2, partial(nn.BatchNorm2d, momentum=None)),
    "not affine": (2, partial(nn.BatchNorm2d, affine=False)),
    "timm, dropout inside": (2, norm_drop_act),
    "timm, synchronized": (2, lambda n: library("timm.layers.convert_sync_batchnorm")(norm_drop_act(n))),
}


@both_ways
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_norms(name, training, options):
    dims, norm = NORMS[name]
    model, data = layers(dims, norm), data_of(dims)
    model(data)  # statistics of train mode, and a count of batches
    reestimated(model.train(training), data.split(8), lambda m: m(data), precision=1e-4 if options else 1e-5, **options)


@pytest.mark.parametrize(("dims", "lazy"), [(0, nn.LazyBatchNorm1d), (2, nn.LazyBatchNorm2d)])
def test_a_lazy_norm_without_a_shape_is_refused(dims, lazy):
    model = nn.Sequential(nn.Identity(), lazy())
    with pytest.raises(ek.ModelError, match=r"'1\.\w+' belongs to a lazy module.*run one forward pass first"):
        ek.reestimate_(model, [data_of(dims)])
    assert type(model[1]) is lazy and model[1].has_uninitialized_params() and model[1].training


@pytest.mark.parametrize("name", ["timm.layers.FrozenBatchNormAct2d", "torchvision.ops.FrozenBatchNorm2d"])
def test_what_is_frozen_by_its_class_stays_as_it_is_and_is_named(name):
    model, data = layers(2, nn.BatchNorm2d), data_of(2)
    model[2] = library(name)(6)
    for buffer in model[2].buffers():
        nn.init.uniform_(buffer, 0.5, 2)
    done = reestimated(model, data.split(8), lambda m: m(data))
    what = f"of class {type(model[2]).__name__}, not a norm of torch's"
    assert list(done.untouched) == ["2"] and what in done.untouched["2"]
    assert what in str(ek.variance_shift(model, data.split(8)))
    with pytest.raises(ek.ModelError, match=f"no norm layer with running statistics.*'2' is {what}"):
        ek.reestimate_(model[:3], data.split(8))


def test_batches_stay_apart_where_a_norm_without_statistics_normalises_by_them():
    model, data = layers(2, nn.BatchNorm2d), data_of(2)
    model[2] = nn.BatchNorm2d(6, track_running_stats=False)
    done = reestimated(model, data.split(8), lambda m: [m(batch) for batch in data.split(8)])
    assert list(done.standard_errors) == ["6"]


def test_instances_fed_one_by_one_without_a_batch_dimension():
    model = nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True))
    data = torch.randn(16, 4, 4, 9) * torch.arange(1, 5).view(4, 1, 1)
    ek.reestimate_(model, data.split(8), forward=lambda m, batch: [m(x) for x in batch])
    assert torch.allclose(model[0].running_var, data.flatten(2).var(2).mean(0), rtol=1e-5)


# --- noise by other names than dropout --------------------------------------------------------------------------------


class GaussianNoise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class Container(nn.Sequential):
    """Drops, by a function, what its layers return."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


NOISE = {
    "timm DropPath": (2, lambda: library("timm.layers.DropPath")(0.5)),
    "timm DropBlock2d": (2, lambda: library("timm.layers.DropBlock2d")(0.5, block_size=3)),
    "torchvision StochasticDepth": (2, lambda: library("torchvision.ops.StochasticDepth")(0.5, "row")),
    "torchvision DropBlock2d": (2, lambda: library("torchvision.ops.DropBlock2d")(0.5, 3)),
    "RReLU": (2, partial(nn.RReLU, 0.1, 3.0)),
    "Gaussian": (2, GaussianNoise),
    "AlphaDropout": (0, partial(nn.AlphaDropout, 0.5)),
    "FeatureAlphaDropout": (2, partial(nn.FeatureAlphaDropout, 0.5)),
    "Dropout1d": (1, partial(nn.Dropout1d, 0.5)),
    "Dropout2d": (2, partial(nn.Dropout2d, 0.5)),
    "Dropout3d": (3, partial(nn.Dropout3d, 0.5)),
    "functional": (2, partial(Container, nn.Identity())),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_off_and_comes_back(name):
    dims, noise = NOISE[name]
    norm = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims]
    model, data = layers(dims, norm, noise), data_of(dims)
    model(data)
    reestimated(model, data.split(8), lambda m: m(data))
    assert not torch.equal(model[:2](data), model[:2](data))  # there was noise to switch off


# --- batches ----------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "x y")


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor
    source: str = "camera"


class Difference(nn.Module):
    """What reaches its norms is small only if x and y are of the same sample."""

    def __init__(self):
        super().__init__()
        self.layers = layers(0, nn.BatchNorm1d)

    def forward(self, x, y=0):
        return self.layers(x - y)


def on_images(model, batch):
    return model(*batch["images"])


FORMS = {
    "tensor": (lambda x, y: x - y, None),
    "tuple": (lambda x, y: (x - y, y), None),
    "list": (lambda x, y: [x - y, y], None),
    "named tuple": (lambda x, y: Pair(x - y, y), None),
    "mapping": (lambda x, y: {"x": x, "y": y}, None),
    "tuple, by place": (lambda x, y: (x, y), lambda m, b: m(*b)),
    "named tuple, by name": (Pair, lambda m, b: m(b.x, b.y)),
    "mapping, by name": (lambda x, y: {"left": x, "right": y}, lambda m, b: m(b["left"], b["right"])),
    "dataclass": (Record, lambda m, b: m(b.x, b.y)),
    "nested": (lambda x, y: {"images": (x, y), "meta": [f"sample {i}" for i in range(len(x))]}, on_images),
    "nested, with records": (lambda x, y: {"images": (x, y), "meta": [{"id": z, "box": z} for z in y]}, on_images),
    "one by one": (lambda x, y: list(zip(x, y, strict=True)), lambda m, b: [m(x[None], y[None]) for x, y in b]),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_batches(name):
    wrap, forward = FORMS[name]
    model, x = Difference(), data_of(0, 44)  # the last batch is a smaller one
    y = x + 0.1 * torch.randn_like(x)
    batches = [wrap(*pair) for pair in zip(x.split(8), y.split(8), strict=True)]
    assert reestimated(model, batches, lambda m: m(x, y), precision=1e-4, forward=forward).batches == 6


class Recurrent(nn.Module):
    """Reads sequences as torch does by default: time is the first dimension, samples are the second."""

    def __init__(self):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(3, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.lstm(x)[1][0][-1])


@both_ways
def test_sequences_with_time_as_their_first_dimension(options):
    data = 1 + 2 * torch.randn(12, 5, 16, 3)
    reestimated(Recurrent(), data, lambda m: [m(batch) for batch in data], **options)


def test_packed_sequences():
    data = [pack_sequence([torch.randn(n, 3) for n in (5, 3, 2)]) for _ in range(6)]
    reestimated(Recurrent(), data, lambda m: [m(batch) for batch in data], forward=lambda m, batch: m(batch))


class InPlace(nn.Sequential):
    """Changes its input, as a forward does that begins by standardising images in place."""

    def forward(self, x):
        return super().forward(x.sub_(5).div_(2))


@both_ways
@pytest.mark.parametrize("dims", [0, 2])
def test_a_forward_that_changes_its_input_gets_every_batch_as_it_came(dims, options):
    model, data = InPlace([nn.BatchNorm1d, None, nn.BatchNorm2d][dims](3)), data_of(dims)
    reestimated(model, iter(data.clone().split(8)), lambda m: m(data.clone()), **options)


def test_a_model_that_makes_one_of_all_samples_gets_its_batches_apart():
    model, data = nn.Sequential(nn.BatchNorm1d(3)), data_of(0)
    reestimated(
        model,
        data.split(8),
        lambda m: m(torch.stack([x.mean(0) for x in data.split(8)])),
        forward=lambda m, x: m(x.mean(0, keepdim=True)),
    )


# --- loaders ----------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


LOADERS = {
    "generator": (lambda data: (batch for batch in data.split(8)), {}),
    "endless": (lambda data: itertools.cycle(data.split(8)), {"max_batches": 6}),
    "shuffled": (lambda data: DataLoader(TensorDataset(data, data), 8, shuffle=True), {}),
    "stream": (lambda data: DataLoader(Stream(data), 8), {}),
    "endless stream": (lambda data: DataLoader(Stream(itertools.cycle(data)), 11), {"max_batches": 4}),
    "of mappings": (lambda data: DataLoader([{"x": x} for x in data], 8), {}),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name):
    loader, options = LOADERS[name]
    model, data = Difference(), data_of(0, 44)
    done = reestimated(model, loader(data), lambda m: m(data), **options)
    assert (done.batches, done.samples) == (options.get("max_batches", 6), 44)


@pytest.mark.parametrize("name", ["generator", "shuffled", "stream", "of mappings"])
def test_more_batches_asked_for_than_there_are_change_nothing(name):
    model, data = Difference(), data_of(0, 44)
    model(data)
    before = Snapshot(model)
    with pytest.raises(ek.BatchError, match="ran short: 6 of max_batches=7"):
        ek.reestimate_(model, LOADERS[name][0](data), max_batches=7)
    assert before.changes() == []


class Recycled:
    """Yields every batch in the same tensor, in a graph, or in an array."""

    def __init__(self, data, wrap):
        self.data, self.wrap = data, wrap

    def __iter__(self):
        buffer = torch.empty_like(self.data[0])
        for rows in self.data:
            yield self.wrap(buffer.copy_(rows))


class Store:
    """As a graph library's data: its tensors are in a mapping."""

    def __init__(self, x):
        self.store = {"x": x}

    def clone(self):
        return Store(self.store["x"].clone())


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(
    ("wrap", "forward"),
    [
        (lambda x: x, None),
        (lambda x: {"input": x}, None),
        (Store, lambda model, batch: model(batch.store["x"])),
        (lambda x: x.numpy(), lambda model, batch: model(torch.from_numpy(batch))),
    ],
    ids=["tensor", "mapping", "graph", "array"],
)
def test_a_loader_that_writes_the_next_batch_over_the_last(wrap, forward, once):
    data = torch.randn(30, 20, 4) * torch.arange(1.0, 31.0)[:, None, None]
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), n=nn.BatchNorm1d(4), b=nn.Linear(4, 4), m=nn.BatchNorm1d(4)))
    loader = Recycled(data, wrap)
    reestimated(model, iter(loader) if once else loader, lambda m: m(data.flatten(0, 1)), 1e-3, forward=forward)


def test_samples_of_a_graph_whose_tensors_are_in_a_mapping_are_counted():
    data = torch.randn(30, 20, 4)
    done = ek.reestimate_(
        nn.BatchNorm1d(4), map(Store, data), forward=lambda model, batch: model(batch.store["x"]), prior=10
    )
    assert done.samples == 600


class Domains(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))

    def forward(self, x, domain):
        return self.norms[int(domain[0].argmax() if domain.ndim > 1 else domain[0])](x)


@pytest.mark.parametrize("encoded", [lambda d: F.one_hot(d, 2).float(), lambda d: d.float()], ids=["one-hot", "float"])
@pytest.mark.parametrize("size", [1, 5])
def test_of_domains_in_between_each_gets_statistics_of_its_own(size, encoded):
    model, data = Domains(), torch.randn(60, size, 4)
    domain = torch.tensor([0, 1, 0]).repeat_interleave(20)
    data[domain == 1] += 3
    ek.reestimate_(model, [{"x": x, "domain": encoded(d.expand(size))} for x, d in zip(data, domain, strict=True)])
    for number, norm in enumerate(model.norms):
        assert torch.allclose(norm.running_mean, data[domain == number].flatten(0, 1).mean(0), atol=1e-4)


def test_batches_of_images_are_merged_before_an_instance_norm():
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    done = ek.reestimate_(nn.Sequential(nn.Conv2d(3, 3, 3), norm), list(torch.randn(9, 4, 3, 8, 8)))
    assert not [note for note in done.notes if "one by one" in note]


class Logging(nn.BatchNorm1d):
    def forward(self, x):
        self.logged = self.running_var.clone()
        return super().forward(x)


class ByHand(nn.BatchNorm1d):
    def forward(self, x):
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt()


@pytest.mark.parametrize("norm", [Logging, ByHand])
def test_what_reads_statistics_and_changes_nothing_takes_no_small_steps(norm):
    model = nn.Sequential(nn.BatchNorm1d(4), norm(4), nn.BatchNorm1d(4))
    done = ek.reestimate_(model, list(5 + torch.randn(20, 30, 4)))
    assert not [note for note in done.notes if "small steps" in note] and set(done.untouched) == (
        {"1"} if norm is ByHand else set()
    )


@pytest.mark.parametrize(("stats", "name"), [("mean", "running_var"), ("var", "running_mean")])
def test_what_is_not_finite_and_would_stay_so_is_refused(stats, name):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    getattr(model[1], name)[2] = torch.nan
    data, before = [torch.randn(64, 4)], Snapshot(model)
    with pytest.raises(ek.ModelError, match=f"{name} of '1' is not usable"):
        ek.reestimate_(model, data, stats=stats)
    assert before.changes() == []
    ek.reestimate_(model, data)
    assert getattr(model[1], name).isfinite().all()


@pytest.mark.parametrize("sizes", [64, 8])
def test_that_the_errors_of_one_batch_are_those_of_its_samples_is_noted(sizes):
    done = ek.reestimate_(nn.BatchNorm1d(4), torch.randn(64, 4).split(sizes), prior="auto")
    assert any("64 independent samples: there is one batch" in note for note in done.notes) is (sizes == 64)
    assert 0 < done.standard_error < 1


class Fused(nn.Module):
    """In eval mode the norm is a part of the convolution's weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3)

    def forward(self, x):
        scale = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        return F.conv2d(x, self.conv.weight * scale.view(-1, 1, 1, 1), self.bn.bias - self.bn.running_mean * scale)


def test_a_norm_read_by_a_layer_that_is_fused_with_it_is_named():
    data = list(torch.randn(3, 8, 3, 9, 9))
    done = ek.reestimate_(nn.Sequential(Fused(), nn.BatchNorm2d(3)), data)
    assert list(done.untouched) == ["0.bn"] and "fused" in done.untouched["0.bn"]
    with pytest.raises(ek.BatchError, match=r"'0.bn': never called, but its statistics are read"):
        ek.reestimate_(nn.Sequential(Fused()), data)


class Failing(nn.BatchNorm1d):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 30:
            raise ValueError("no more")
        return super().forward(x)


def test_a_batch_that_fails_when_it_is_run_again_says_why():
    model, data = nn.Sequential(nn.BatchNorm1d(4), Failing(4)), list(torch.randn(25, 20, 4))
    before = Snapshot(model)
    with pytest.raises(ek.BatchError, match=r"run again: .* raised ValueError: no more in layer '1'"):
        ek.reestimate_(model, data, memory=0)
    assert before.changes() == []


# --- on the way, and afterwards ---------------------------------------------------------------------------------------


@pytest.fixture
def uncollected():
    """Only what nothing refers to is freed: what a cycle holds would otherwise live for an unknown time."""
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("loader", [list, iter])
@pytest.mark.parametrize(
    ("options", "end"),
    [({}, "50/"), ({"max_batches": 3}, "3/"), ({"tolerance": 0.5}, ""), ({"forward": lambda *_: 1 / 0}, "")],
    ids=["all", "some", "enough", "a fault"],
)
def test_the_bar_shows_comes_to_its_end_and_goes(loader, options, end, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's switch for taking standard error for a terminal
    stdout, kept = sys.stdout, None
    try:
        kept = ek.reestimate_(nn.BatchNorm1d(4), loader(torch.randn(50, 64, 4)), progress=True, **options)
    except ek.BatchError as error:
        kept = error  # and with it all that its traceback holds
    diverted = sys.stdout is not stdout  # as rich does as long as a bar is live
    del kept
    gc.collect()  # ends a bar that goes on, as long as there is a terminal to end it on
    out, err = capsys.readouterr()
    assert out == "" and "re-estimating" in err and end in err
    assert not diverted


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("options", [{}, {"max_batches": 5}, {"tolerance": 0.5}, {"memory": 0}], ids=str)
def test_neither_batches_nor_model_are_held_afterwards(options):
    model, data = nn.BatchNorm1d(4), list(torch.randn(20, 64, 4))
    held = list(map(weakref.ref, [model, *data]))
    done = ek.reestimate_(model, data, **options)
    del model, data, done
    assert [reference() for reference in held if reference() is not None] == []
