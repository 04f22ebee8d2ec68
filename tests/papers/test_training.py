"""Training: the same bits every time, after every kind of end, and the same numbers as the slow, obvious way."""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from labs import CPU, MLP, SOURCE, WRN, a_training, images_of, noisy, same, trained_in
from processes import forked
from torch.multiprocessing import ProcessExitedException
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.errors import EvenkeelError
from evenkeel.papers.lab import training as lab
from evenkeel.papers.lab.hardware import Hardware
from evenkeel.papers.lab.images import augment, batches
from evenkeel.papers.lab.specs import ImageSource, Net
from evenkeel.papers.lab.training import (
    batches_of,
    build_net,
    checkpoint_path,
    deterministic,
    device_of,
    initialize_,
    score,
)

pytestmark = pytest.mark.slow

# All that an outcome hangs on: order, crops, masks, momentum, rates, norms
NOISY = a_training(
    noisy(WRN, "a"), epochs=3, optimizer="nesterov", lr=0.05, augment=True, milestones=(1 / 3,), snapshots=(1 / 3,)
)
RECIPES = {
    "sgd": {"optimizer": "sgd", "lr": 0.05, "weight_decay": 0.1, "milestones": (0.4, 0.8)},
    "nesterov": {"optimizer": "nesterov", "lr": 0.05, "weight_decay": 0.1, "milestones": (0.6,), "gamma": 0.5},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1, "milestones": (0.8,)},
    "cycle": {"optimizer": "nesterov", "lr": 0.05, "weight_decay": 0.1, "schedule": "one-cycle"},
    "reset": {"optimizer": "nesterov", "lr": 0.05, "momentum": 0.95, "reset_momentum": 2},
}


def recipe_of(name, **recipe):
    return a_training(noisy(MLP, "hidden"), epochs=5, augment=True, **RECIPES[name] | recipe)


def stop_after(monkeypatch, epochs):
    """Let no more than so many epochs be trained from now on; with 0, whoever trains is told."""
    train_epoch, left = lab._train_epoch, [epochs]

    def counted(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return train_epoch(*args)

    monkeypatch.setattr(lab, "_train_epoch", counted)


# the same bits


def test_a_seed_gives_the_same_bits_and_another_one_does_not(tmp_path):
    first, again = trained_in(tmp_path / "a", NOISY, seed=1), trained_in(tmp_path / "b", NOISY, seed=1)
    other = trained_in(tmp_path / "a", NOISY, seed=2)
    assert same(first, again) and not same(first, other)
    weights, others = first.weights[3], other.weights[3]
    assert not any(torch.equal(weights[name], others[name]) for name in weights if not name.endswith("tracked"))
    assert [a["train_loss"] == b["train_loss"] for a, b in zip(first.history, other.history, strict=True)] == [
        False
    ] * 3


def test_the_state_of_the_world_does_not_matter_and_is_left_alone(tmp_path, monkeypatch):
    expected = trained_in(tmp_path / "a", NOISY)
    threads, state = torch.get_num_threads(), []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    watch = lab._watch

    def spied(*args):
        state.append((torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        return watch(*args)

    monkeypatch.setattr(lab, "_watch", spied)
    torch.set_num_threads(2)
    try:
        torch.manual_seed(12345)
        assert same(trained_in(tmp_path / "b", NOISY), expected)
        assert state == [(1, True, False)] * 3
        stop_after(monkeypatch, 1)
        with pytest.raises(KeyboardInterrupt):
            trained_in(tmp_path / "c", NOISY)
        with pytest.raises(ZeroDivisionError), deterministic(1):
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)
    finally:
        torch.set_num_threads(threads)


def train_until_killed(folder):
    """Writes half of the second checkpoint, and is killed."""
    save, saved = torch.save, []

    def half(state, path):
        saved.append(path)
        save(state, path)
        if len(saved) == 2:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    trained_in(folder, NOISY, seed=3)


def test_after_kill_9_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        forked(train_until_killed, tmp_path / "a", folder=tmp_path)
    assert len(torch.load(checkpoint_path(tmp_path / "a", NOISY, 3, CPU))["history"]) == 1
    expected = trained_in(tmp_path / "b", NOISY, seed=3)
    stop_after(monkeypatch, 2)  # of 3: the first one need not be trained again
    assert same(trained_in(tmp_path / "a", NOISY, seed=3), expected)


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_after_every_epoch_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, name):
    training = recipe_of(name)
    expected = trained_in(tmp_path / "a", training)
    for epoch in range(1, 5):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            stop_after(patched, 1)
            trained_in(tmp_path / "b", training)
        assert len(torch.load(checkpoint_path(tmp_path / "b", training, 0, CPU))["history"]) == epoch
    assert same(trained_in(tmp_path / "b", training), expected)


def test_what_is_done_is_read(tmp_path, monkeypatch):
    expected = trained_in(tmp_path, NOISY)
    stop_after(monkeypatch, 0)
    found = trained_in(tmp_path, NOISY)
    assert same(found, expected) and found.seconds == expected.seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_path(tmp_path, NOISY, 0, CPU).name]


def test_whatever_decides_the_outcome_has_a_checkpoint_of_its_own(tmp_path):
    others = [
        checkpoint_path(tmp_path, NOISY, 1, CPU),
        checkpoint_path(tmp_path, replace(NOISY, init="he"), 0, CPU),
        checkpoint_path(tmp_path, replace(NOISY, net=WRN), 0, CPU),
        *(
            checkpoint_path(tmp_path, NOISY, 0, replace(CPU, **changed))
            for changed in (
                {"accelerator": "cuda"},
                {"devices": 2},
                {"precision": "bf16-mixed"},
                {"compile": True},
                {"channels_last": True},
                {"threads": 2},
            )
        ),
    ]
    assert len({checkpoint_path(tmp_path, NOISY, 0, CPU), *others}) == 1 + len(others)


# the slow, obvious way


def one_cycle(recipe, step, an_epoch):
    """The rate at a step, counted from the first epoch's first."""
    done = step / (an_epoch * recipe.epochs)
    cosine = math.cos(math.pi * (done / 0.3 if done < 0.3 else (done - 0.3) / 0.7))
    return recipe.lr * (0.52 - 0.48 * cosine if done < 0.3 else 0.5 + 0.5 * cosine)


def by_hand(training, seed, images):
    """Weights by number of epochs done, and the history, of torch's plain optimizers without any decay of their own."""
    recipe, history, weights = training.recipe, [], {}
    torch.manual_seed(seed)
    net = build_net(training, images)
    parameters = list(net.parameters())
    optimizer = None
    for epoch in range(recipe.epochs):
        torch.manual_seed(lab._mixed(seed, epoch, 0))
        drawn, crops = (torch.Generator().manual_seed(lab._mixed(seed, epoch)) for _ in range(2))
        lr = recipe.lr
        for share in recipe.milestones:
            lr *= recipe.gamma if epoch >= share * recipe.epochs else 1
        if optimizer is None or (recipe.reset_momentum and epoch % recipe.reset_momentum == 0):
            optimizer = (
                torch.optim.Adam(parameters, foreach=False)
                if recipe.optimizer == "adam"
                else torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=recipe.optimizer == "nesterov")
            )
        optimizer.param_groups[0]["lr"] = lr
        losses, wrong = [], []
        orders = list(batches(len(images.train.labels), recipe.batch, drawn))
        for step, chosen in enumerate(orders):
            if recipe.schedule == "one-cycle":
                optimizer.param_groups[0]["lr"] = one_cycle(recipe, epoch * len(orders) + step, len(orders))
                lr = lr if step else optimizer.param_groups[0]["lr"]
            inputs = images.standardize(images.train.images[chosen])
            if recipe.augment:
                inputs = augment(inputs, crops, pad=2)
            labels = images.train.labels[chosen]
            logits = net.train()(inputs)
            each = -logits.log_softmax(1)[torch.arange(len(labels)), labels]
            gradients = torch.autograd.grad(each.mean(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient + recipe.weight_decay * parameter.detach()
            optimizer.step()
            losses += each.tolist()
            wrong += (logits.argmax(1) != labels).tolist()
        figures = {"epoch": epoch + 1, "lr": lr, "train_loss": sum(losses) / len(losses)}
        figures["train_error"] = sum(wrong) / len(wrong)
        for name, split in (("train", images.train), ("test", images.test)):
            with torch.no_grad():
                logits = net.eval()(images.standardize(split.images[: recipe.watched]))
            labels = split.labels[: recipe.watched]
            figures[f"{name}_eval_loss"] = float(F.cross_entropy(logits, labels))
            figures[f"{name}_eval_error"] = float((logits.argmax(1) != labels).double().mean())
        history.append(figures)
        weights[epoch + 1] = {key: value.clone() for key, value in net.state_dict().items()}
    return history, weights


@pytest.mark.parametrize(
    "training",
    [
        *map(recipe_of, RECIPES),
        NOISY,
        a_training(noisy(WRN, "b"), optimizer="sgd", weight_decay=0.1, lr=0.01, batch=50, watched=40),
        a_training(noisy(MLP, "last"), reset_momentum=1, epochs=3, batch=128, snapshots=(0.0, 0.3, 0.6)),
    ],
    ids=[*RECIPES, "norms", "uneven", "snapshots"],
)
def test_training_is_that_by_hand(tmp_path, training):
    found = trained_in(tmp_path, training, seed=5)
    history, weights = by_hand(training, 5, images_of())
    assert [list(epoch) for epoch in found.history] == [list(epoch) for epoch in history]
    for epoch, expected in zip(found.history, history, strict=True):
        assert epoch == pytest.approx(expected, rel=1e-4)
    assert tuple(found.weights) == training.recipe.kept()
    for epoch, state in found.weights.items():
        for name, value in state.items():
            assert torch.allclose(value, weights[epoch][name], rtol=1e-4, atol=1e-5), (epoch, name)


def test_weight_decay_draws_every_parameter_to_zero(tmp_path):
    plain, decayed = (
        a_training(WRN, epochs=1, batch=128, optimizer="sgd", momentum=0.0, lr=0.1, weight_decay=decay)
        for decay in (0.0, 0.5)
    )
    weights, others = (trained_in(tmp_path, training).weights[1] for training in (plain, decayed))
    torch.manual_seed(0)
    start = build_net(plain, images_of())
    for name, parameter in start.named_parameters():
        assert torch.allclose(weights[name] - others[name], 0.05 * parameter, rtol=1e-3, atol=1e-6), name


def test_a_validation_split_is_watched_in_the_test_splits_place(tmp_path):
    source = replace(SOURCE, validation=32)
    history = trained_in(tmp_path, a_training(source=source)).history
    assert {name.split("_")[0] for name in history[0]} == {"epoch", "lr", "train", "validation"}
    assert set(trained_in(tmp_path, a_training(watched=0)).history[0]) == {"epoch", "lr", "train_loss", "train_error"}


def test_scores_and_batches_are_of_the_first_images(tmp_path):
    images = images_of()
    net = trained_in(tmp_path, a_training()).model(images)
    for count, size in ((None, 500), (None, 30), (10, 3), (1000, 64)):
        found = list(batches_of(images, images.test, count, size))
        inputs, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        n = min(count or 64, 64)
        assert torch.equal(inputs, images.standardize(images.test.images[:n]))
        assert torch.equal(labels, images.test.labels[:n])
        with torch.no_grad():
            logits = net.eval()(inputs).double()
        result = score(net.train(), images, images.test, count, size)
        assert net.training and result.samples == n
        assert result.error == pytest.approx(float((logits.argmax(1) != labels).double().mean()))
        assert result.log_loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_the_network_of_any_epoch_kept_is_given_in_train_mode(tmp_path):
    found = trained_in(tmp_path, NOISY)
    for epoch in (None, 1, 3):
        net = found.model(images_of(), epoch)
        assert all(module.training for module in net.modules())
        state = net.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in found.weights[epoch or 3].items())
    with pytest.raises(KeyError):
        found.model(images_of(), 2)


# initialization


@pytest.mark.parametrize("init", ["given", "xavier", "he", "hendrycks2016", "forward", "backward", "mean"])
def test_weights_are_drawn_as_the_initialization_says(init):
    images = images_of()
    training = a_training(noisy(Net("mlp", {"widths": [400, 200], "norm": True}), "hidden"), init=init)
    torch.manual_seed(0)
    given, net = (build_net(training, images) for _ in range(2))
    net.load_state_dict(given.state_dict())
    torch.manual_seed(1)
    initialize_(net, init, torch.zeros(2, *images.shape))
    found, layers = net.state_dict(), ("fc1", "fc2", "fc")
    if init in ("xavier", "he"):
        for layer in map(net.get_submodule, layers):
            ins, outs = layer.in_features, layer.out_features
            variance = 2 / (ins + outs) if init == "xavier" else 2 / ins
            assert float(layer.weight.detach().square().mean()) == pytest.approx(variance, rel=0.05)
            assert (float(layer.weight.detach().abs().max()) <= math.sqrt(3 * variance)) == (init == "xavier")
    elif init != "given":
        torch.manual_seed(1)
        ek.init_(given, torch.zeros(2, *images.shape), mode=init)
    kept = [name for name in found if init not in ("xavier", "he") or "norm" in name]
    assert all(torch.equal(found[name], given.state_dict()[name]) for name in kept)
    assert init == "given" or not any(found[f"{name}.bias"].any() for name in layers)


@pytest.mark.parametrize("init", ["he", "forward"])
def test_trainings_start_from_their_initialization(tmp_path, init):
    training = a_training(init=init, epochs=1, lr=0.0)
    images = images_of()
    torch.manual_seed(4)
    net = build_net(training, images)
    initialize_(net, init, images.standardize(images.train.images[:2]))
    weights = trained_in(tmp_path, training, seed=4).weights[1]
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


# on other hardware


def close(found, expected):
    for epoch, other in zip(found.history, expected.history, strict=True):
        assert epoch == pytest.approx(other, rel=1e-3)
    for epoch, state in found.weights.items():
        assert list(state) == list(expected.weights[epoch])
        for name, value in state.items():
            assert torch.allclose(value, expected.weights[epoch][name], rtol=1e-3, atol=1e-4), name


def test_channels_last_gives_the_same_but_for_rounding(tmp_path, monkeypatch):
    training = replace(NOISY, net=WRN)
    expected, watch, laid_out = trained_in(tmp_path, training), lab._watch, []

    def spied(net, *rest):
        weights = [module.weight for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
        laid_out.append(all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights))
        return watch(net, *rest)

    monkeypatch.setattr(lab, "_watch", spied)
    found = trained_in(tmp_path, training, hardware=replace(CPU, channels_last=True))
    close(found, expected)
    assert laid_out == [True] * 3
    for trained, expected_layout in ((found, True), (expected, False)):
        weight = trained.model(images_of()).stage1[0].branch.conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected_layout


def test_a_compiled_network_gives_the_same_and_goes_on_like_any(tmp_path, monkeypatch):
    compile_, compiled = torch.compile, []

    def eagerly(net, **options):
        compiled.append(net)
        return compile_(net, **options | {"backend": "eager"})

    training, hardware = a_training(WRN), replace(CPU, compile=True)
    expected = trained_in(tmp_path, training)
    monkeypatch.setattr(torch, "compile", eagerly)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, 1)
        trained_in(tmp_path, training, hardware=hardware)
    close(trained_in(tmp_path, training, hardware=hardware), expected)
    assert compiled


def test_two_devices_train_what_one_does(tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # set by lightning-fabric
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    training = a_training(optimizer="adam", lr=0.01, weight_decay=0.1, augment=True)
    found = trained_in(tmp_path, training, hardware=replace(CPU, devices=2))
    close(found, trained_in(tmp_path, training))
    stop_after(monkeypatch, 0)
    assert same(trained_in(tmp_path, training, hardware=replace(CPU, devices=2)), found)


def test_the_first_device_is_measured_on():
    assert device_of(CPU) == torch.device("cpu")
    assert device_of(Hardware()).type == ("cuda" if torch.cuda.is_available() else "cpu")


# what goes wrong


@pytest.mark.parametrize("net", [MLP, WRN])
def test_a_training_that_diverges_ends_and_is_done(tmp_path, monkeypatch, net):
    training = a_training(net, optimizer="sgd", lr=1e30, epochs=9, snapshots=(0.1, 0.5), milestones=(0.5,))
    found = trained_in(tmp_path, training)
    assert len(found.history) < 5 and not math.isfinite(found.history[-1]["train_loss"])
    assert all(math.isfinite(epoch["train_loss"]) for epoch in found.history[:-1])
    assert list(found.weights) == [1, 4, 9]
    assert not all(value.isfinite().all() for value in found.weights[9].values())
    stop_after(monkeypatch, 0)
    assert str(trained_in(tmp_path, training)) == str(found)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    path = checkpoint_path(tmp_path, NOISY, 0, CPU)
    for name in (f".{path.name}.1.tmp", ".other.pt.1.tmp"):
        (tmp_path / name).write_bytes(b"half")
    trained_in(tmp_path, NOISY)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([".other.pt.1.tmp", path.name])


def anew(folder, name):
    return lab.train(NOISY, 0, images_of(), folder=folder, hardware=CPU, anew=name)


def epochs_in(folder):
    """How many epochs the training's checkpoint has done, and the one that is to take its place."""
    paths = checkpoint_path(folder, NOISY, 0, CPU), checkpoint_path(folder, NOISY, 0, CPU).with_suffix(".new.pt")
    return [len(torch.load(path, weights_only=True)["history"]) if path.exists() else None for path in paths]


def test_training_anew_replaces_what_was_there_when_it_is_complete(tmp_path, monkeypatch):
    found = trained_in(tmp_path, NOISY)
    for epochs in (2, 1):  # of another name: from the beginning
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            stop_after(patched, epochs)
            anew(tmp_path, str(epochs))
        assert epochs_in(tmp_path) == [3, epochs]
    with monkeypatch.context() as patched:
        stop_after(patched, 2)  # of the same name: from there
        assert same(anew(tmp_path, "1"), found) and epochs_in(tmp_path) == [3, None]
        assert same(anew(tmp_path, "1"), found) and same(trained_in(tmp_path, NOISY), found)


@pytest.mark.parametrize(("first", "again", "left"), [(2, 1, [2, 1]), (1, 2, [1, 2]), (0, 2, [2, None])])
def test_of_two_trainings_begun_the_one_that_did_more_goes_on(tmp_path, monkeypatch, first, again, left):
    for epochs, name in ((first, "first"), (again, "again")):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            stop_after(patched, epochs)
            anew(tmp_path, name)
    assert epochs_in(tmp_path) == left
    stop_after(monkeypatch, 1)
    assert len(trained_in(tmp_path, NOISY).history) == 3 and epochs_in(tmp_path) == [3, None]


def test_a_damaged_checkpoint_is_replaced_by_what_is_trained_anew(tmp_path):
    path = checkpoint_path(tmp_path, NOISY, 0, CPU)
    path.write_bytes(b"damaged")
    assert len(anew(tmp_path, "name").history) == 3 and epochs_in(tmp_path) == [3, None]


def test_auto_is_what_the_machine_has(monkeypatch):
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert Hardware().resolved() == Hardware(accelerator=name)
        assert checkpoint_path(Path(), NOISY, 0, Hardware()) == checkpoint_path(Path(), NOISY, 0, Hardware(name))
    assert CPU.resolved() == CPU


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path, share):
    trained_in(tmp_path, NOISY)
    path = checkpoint_path(tmp_path, NOISY, 0, CPU)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(EvenkeelError, match=r"cannot be read .*: remove it to train anew") as caught:
        trained_in(tmp_path, NOISY)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.unlink()
    assert len(trained_in(tmp_path, NOISY).history) == 3


def test_without_lightning_fabric_it_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(EvenkeelError) as caught:
        trained_in(tmp_path, NOISY)
    assert str(caught.value) == 'training needs lightning-fabric: pip install "evenkeel[papers]"'


def test_images_of_any_shape_fit(tmp_path):
    source = ImageSource("digits", train=64, test=32)
    for net in (MLP, WRN):
        found = trained_in(tmp_path, a_training(net, source=source, epochs=1, augment=True))
        assert len(found.history) == 1
