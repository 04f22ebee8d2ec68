"""What the tests of other re-estimators ask of them holds of ours: fvcore's, AIMET's, and what of torch's is left."""

import copy
import itertools

import pytest
import torch
from fvcore.nn.precise_bn import update_bn_stats
from snapshots import Snapshot
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.optim import swa_utils

import evenkeel as ek
from evenkeel.integrations.compat import update_bn

SHAPES = {
    "vectors": (nn.BatchNorm1d, (64, 8)),
    "sequences": (nn.BatchNorm1d, (16, 8, 24)),
    "images": (nn.BatchNorm2d, (16, 8, 24, 8)),
    "volumes": (nn.BatchNorm3d, (16, 8, 4, 12, 6)),
}


def pooled(batches):
    """The values of a population, by channels, in float64."""
    return torch.cat([x.double().transpose(0, 1).flatten(1) for x in batches], 1)


def assert_stored(norm, values, correction=1, precision=1e-5):
    """The norm stores the mean and the variance of these values, by channels."""
    variance, mean = torch.var_mean(values, 1, correction=correction)
    assert torch.allclose(norm.running_mean.double(), mean, rtol=precision, atol=precision)
    assert torch.allclose(norm.running_var.double(), variance, rtol=precision)


def changed_statistics(before):
    return {key.split()[1].rpartition(".")[2] for key in before.changes() if key.startswith("state_dict")}


# --- fvcore -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_many_rounds_of_few_batches_give_their_population(name):
    norm, shape = SHAPES[name]
    model = norm(shape[1])
    nn.init.normal_(model.weight)
    nn.init.normal_(model.bias)
    batches = [(1 + i) * torch.randn(shape) + i for i in range(8)]
    before = Snapshot(model)
    done = ek.reestimate_(model, itertools.cycle(batches), max_batches=320, unsure="write")  # it was never updated
    assert (done.batches, done.samples) == (320, 320 * shape[0])
    assert_stored(model, pooled(batches), correction=1 / 40)  # of forty copies, all but the population's own variance
    assert changed_statistics(before) == {"running_mean", "running_var"}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sizes", [(16, 16, 16), (2, 3, 40), (1, 30)], ids=str)
def test_side_by_side_with_fvcore(name, sizes):
    """One norm, no dropout: the one case in which fvcore's statistics are those of eval mode."""
    if name == "vectors" and 1 in sizes:
        sizes = tuple(size + 1 for size in sizes)  # its norm is in train mode
    norm, shape = SHAPES[name]
    theirs = norm(shape[1])
    ours = copy.deepcopy(theirs)
    batches = [5 * i + torch.randn(size, *shape[1:]) for i, size in enumerate(sizes)]
    update_bn_stats(theirs, batches, num_iters=len(batches))
    ek.reestimate_(ours, batches)
    n = pooled(batches).shape[1]
    assert torch.allclose(ours.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(ours.running_var, theirs.running_var * n / (n - 1), rtol=1e-5)  # theirs is biased
    assert_stored(ours, pooled(batches))


def test_side_by_side_with_fvcore_behind_other_layers():
    theirs = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid())
    ours, batches = copy.deepcopy(theirs), torch.randn(10, 4, 3, 9, 9).unbind()
    with torch.no_grad():
        values = pooled(theirs[:3](x) for x in batches)
    update_bn_stats(theirs, batches, num_iters=7)
    ek.reestimate_(ours, batches, max_batches=7)
    n = values.shape[1] // 10 * 7
    assert torch.allclose(ours[3].running_mean, theirs[3].running_mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours[3].running_var, theirs[3].running_var * n / (n - 1), rtol=1e-5)
    assert_stored(ours[3], values[:, :n])


def test_batches_count_by_their_size():
    """Ten batches of ones and one of zeros, as large as they are together."""
    batches = [*torch.ones(10, 4, 2), torch.zeros(40, 2)]
    ours, theirs = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    ek.reestimate_(ours, batches)
    swa_utils.update_bn(batches, theirs)
    assert ours.running_mean.tolist() == pytest.approx([1 / 2] * 2)
    assert ours.running_var.tolist() == pytest.approx([1 / 4 * 80 / 79] * 2)
    assert theirs.running_mean.tolist() == pytest.approx([10 / 11] * 2)  # torch counts batches


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mean", [0, 1, 1000])
def test_large_images_lose_no_precision(mean, form):
    """As many values a channel as in 128 images of 112 by 112, which fvcore takes if their mean is small."""
    images, ours, theirs = mean + torch.randn(2, 2, 896, 896), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    if mean < 1000:
        update_bn_stats(theirs, [images], num_iters=1)
        assert_stored(theirs, pooled([images]))
    ek.reestimate_(ours, [images.contiguous(memory_format=form)])
    assert_stored(ours, pooled([images]))


@pytest.mark.parametrize("asked", [9, 200])
def test_fewer_batches_than_asked_for_raise_and_change_nothing(asked):
    model, batches = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout()), torch.randn(8, 16, 8, 4, 4)
    model(batches[0])
    before = Snapshot(model)
    with pytest.raises(ek.BatchError, match=f"8 of max_batches={asked}"):
        ek.reestimate_(model, batches, max_batches=asked)
    assert before.changes() == []
    with pytest.raises(AssertionError, match="stops at"):
        update_bn_stats(model, batches, num_iters=asked)


# --- AIMET ------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two norms, dropout as a module and as a function, and flags and momenta of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm1, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=0.37), nn.Dropout(0.5)
        self.head, self.norm2 = nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None)
        self.conv.eval()

    def forward(self, image, scale):
        x = self.drop(self.norm1(self.conv(image)).relu()).mean((2, 3)) * scale[:, None]
        return self.norm2(F.dropout(self.head(x), 0.5, self.training))


def mappings(count=6):
    return [{"image": torch.randn(8, 3, 7, 7), "scale": torch.rand(8), "label": torch.zeros(8)} for _ in range(count)]


def run(model, batch):
    return model(batch["image"], scale=batch["scale"])


def trained():
    model = Net()
    for batch in mappings():
        run(model, batch)
    return model


def inputs_of(model, norm, batches):
    """The oracle: what reaches the norm in eval mode."""
    twin = copy.deepcopy(model).eval()
    seen = []
    twin.get_submodule(norm).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            run(twin, batch)
    return pooled(seen)


@pytest.mark.parametrize("training", [True, False])
def test_mappings_by_a_forward_function(training):
    model, batches = trained().train(training), mappings()
    before = Snapshot(model)
    ek.reestimate_(model, batches, forward=run)
    for norm in ("norm1", "norm2"):
        assert_stored(model.get_submodule(norm), inputs_of(model, norm, batches))
    assert changed_statistics(before) == {"running_mean", "running_var"}


def test_only_as_many_batches_as_asked_for_count():
    model, batches = trained(), mappings(6)
    ek.reestimate_(model, batches, max_batches=4, forward=run)
    assert_stored(model.norm2, inputs_of(model, "norm2", batches[:4]))


def test_nothing_but_norms_may_be_in_train_mode_while_measuring():
    model, flags = trained(), []

    def watched(model, batch):
        if isinstance(batch["image"], FakeTensor):  # which read the model, and measure nothing
            return run(model, batch)
        flags.extend(module.training for module in model.modules() if not isinstance(module, nn.BatchNorm2d))
        return run(model, batch)

    ek.reestimate_(model, mappings(), forward=watched)
    assert flags and not any(flags)
    assert [module.training for module in model.modules()] == [True, False, True, True, True, True]


def test_the_handle_restores_the_statistics_exactly():
    model, batches = trained(), mappings()
    before = Snapshot(model)
    done = ek.reestimate_(model, batches, forward=run)
    assert before.changes()
    done.undo()
    assert before.changes() == []


def test_the_handle_restores_them_after_more_training_too():
    model = trained()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    done = ek.reestimate_(model, mappings(), forward=run)
    run(model, mappings(1)[0])
    done.undo()
    assert all(torch.equal(model.get_buffer(name), found) for name, found in before.items())
    assert model.norm1.num_batches_tracked == 7


def test_one_handle_after_another():
    model, batches = trained(), mappings()
    before = Snapshot(model)
    first, second = (ek.reestimate_(model, some, forward=run) for some in (batches[:3], batches[3:]))
    second.undo()
    assert before.changes()
    first.undo()
    assert before.changes() == []


@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("at", ["loader", "forward", "layer"])
def test_an_exception_leaves_statistics_flags_and_momenta_as_they_were(at, error):
    model, calls = trained(), []
    if at == "layer":
        model.head.register_forward_hook(lambda *_: fail())
    before = Snapshot(model)

    def fail():
        calls.append(1)
        if len(calls) > 3:
            raise error

    def loader():
        for batch in mappings():
            if at == "loader":
                fail()
            yield batch

    def forward(model, batch):
        if at == "forward":
            fail()
        return run(model, batch)

    with pytest.raises((ek.BatchError, KeyboardInterrupt)):
        ek.reestimate_(model, loader(), forward=forward, memory=0)
    assert len(calls) > 3 and before.changes() == []


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cpu", torch.device("cpu")], ids=repr)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 0), lambda x: [x]], ids=["tensors", "pairs", "lists"])
def test_naming_the_device_makes_no_difference(wrap, place):
    unnamed = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(294))
    named, batches = copy.deepcopy(unnamed), [wrap(x) for x in torch.randn(4, 8, 3, 9, 9)]
    assert update_bn(batches, unnamed) is None
    assert update_bn(batches, named, place) is None
    assert all(map(torch.equal, unnamed.buffers(), named.buffers()))
    assert not torch.equal(unnamed[4].running_mean, torch.zeros(294))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_flags_and_momentum_are_preserved(momentum, training):
    model, batches = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9, momentum=momentum)), torch.randn(4, 16, 5)
    model(batches[0])
    before = Snapshot(model.train(training))
    update_bn(batches, model, device="cpu")
    assert changed_statistics(before) == {"running_mean", "running_var"}
    assert {key for key in before.changes() if not key.startswith("state_dict")} == {
        "attribute 1:_buffers",
        "attribute 1:evenkeel_written",  # the mark of what was written
        "attribute 1:evenkeel_trained",  # and of what was there before
        "attributes 1",
    }


def test_a_second_call_starts_anew():
    model, first, second = nn.BatchNorm1d(5), 3 + torch.randn(4, 16, 5), 2 * torch.randn(4, 16, 5)
    update_bn(first, model)
    update_bn(second, model)
    assert_stored(model, pooled(second))


def test_from_a_single_batch_all_agree():
    batch, models = 2 + 3 * torch.randn(64, 5), [nn.BatchNorm1d(5) for _ in range(3)]
    update_bn([batch], models[0])
    swa_utils.update_bn([batch], models[1])
    update_bn_stats(models[2], [batch], num_iters=1)
    for theirs, correction in ((models[1], 1), (models[2], 64 / 63)):
        assert torch.allclose(models[0].running_mean, theirs.running_mean, rtol=1e-5)
        assert torch.allclose(models[0].running_var, theirs.running_var * correction, rtol=1e-5)
