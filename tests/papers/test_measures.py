"""Measures: what evenkeel's verbs and the slow, obvious way find of the same network, which stays as it was."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from statistics import mean, median

import pytest
import torch
from labs import SOURCE, WRN, a_training, images_of, noisy, trained_in
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.papers.lab import measures
from evenkeel.papers.lab.measures import TrainingBatches
from evenkeel.papers.lab.training import Trained
from evenkeel.papers.lab.trials import Trial
from evenkeel.prediction import correction

pytestmark = pytest.mark.slow

WITH_VALIDATION = replace(SOURCE, validation=32)
TRAINING = a_training(
    noisy(WRN, "a"), source=WITH_VALIDATION, epochs=3, lr=0.05, augment=True, snapshots=(0.34,), weight_decay=1e-3
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch):
    """As many for corrections as for reports, which is enough to be the same."""
    monkeypatch.setattr(correction, "_ELEMENTS", 1 << 20)


@pytest.fixture
def trial(folder):
    torch.manual_seed(0)
    return a_trial(folder, TRAINING)


def a_trial(folder, training):
    return Trial({}, "smoke", 0, trained_in(folder, training), images_of(training.source))


def by_hand(net, images, split, train_mode=False):
    """Error and log loss, all images at once."""
    with torch.no_grad():
        logits = net.train(train_mode)(images.standardize(split.images)).double()
    wrong = (logits.argmax(1) != split.labels).double().mean()
    return {"error": float(wrong), "loss": float(F.cross_entropy(logits, split.labels))}


def agree(figures, prefix, expected):
    for name, value in expected.items():
        assert figures[f"{prefix}_{name}"] == pytest.approx(value, rel=1e-4), f"{prefix}_{name}"


def met(net, images):
    """Every input that each norm meets in eval mode, by path."""
    seen = {}
    for path, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs, path=path: seen.setdefault(path, []).append(inputs[0]))
    with torch.no_grad():
        for inputs in TrainingBatches(trained_of(images), images):
            net.eval()(inputs)
    return {path: torch.cat(parts).double() for path, parts in seen.items()}


def trained_of(images):
    return Trained(TRAINING, [], 0.0, {})


# scores


def test_scores_are_those_of_all_images_in_eval_mode(trial):
    figures = measures.scores(trial)
    net = trial.trained.model(trial.images)
    agree(figures, "test", by_hand(net, trial.images, trial.images.test))
    agree(figures, "validation", by_hand(net, trial.images, trial.images.validation))
    losses = [epoch["validation_eval_loss"] for epoch in trial.trained.history]
    assert figures["mean_validation_loss"] == pytest.approx(sum(losses) / 3)
    assert len(figures) == 5


def test_without_a_validation_split_there_are_test_scores_alone(folder):
    assert set(measures.scores(a_trial(folder, a_training()))) == {"test_error", "test_loss"}


def test_a_training_that_diverged_has_scores_but_no_loss(folder):
    diverged = a_trial(folder, a_training(source=WITH_VALIDATION, lr=1e30, optimizer="sgd", epochs=4))
    assert len(diverged.trained.history) < 4
    for figures in (measures.scores(diverged), measures.train_eval(diverged)):
        assert math.isnan(figures["test_loss"]) and math.isnan(figures["mean_validation_loss"])
        assert 0 <= figures["test_error"] <= 1


# shift


@pytest.mark.parametrize("measure", [measures.shift, measures.adjust, measures.snapshots, measures.angles])
def test_of_a_training_that_diverged_there_are_scores_and_no_statistics(folder, measure):
    trained = trained_in(folder, a_training(WRN, optimizer="sgd", lr=1e30, snapshots=(0.5,)))
    trial = Trial({}, "smoke", 0, trained, images_of())
    assert str(measure(trial)) == str(measures.scores(trial))


def test_the_shift_is_of_all_values_that_every_norm_meets(trial):
    figures = measures.shift(trial)
    net = trial.trained.model(trial.images)
    report = ek.variance_shift(trial.trained.model(trial.images), TrainingBatches(trial.trained, trial.images))
    assert figures["paths"] == [row.path for row in report]
    assert figures["ratio"] == [row.ratio for row in report]
    inputs = met(net, trial.images)
    assert list(inputs) == figures["paths"]
    ratios = [
        float(x.transpose(0, 1).flatten(1).var(1).mean() / net.get_submodule(path).running_var.double().mean())
        for path, x in inputs.items()
    ]
    assert figures["ratio"] == pytest.approx(ratios, rel=1e-4)
    folded = [max(ratio, 1 / ratio) for ratio in ratios]
    assert figures["folded"] == pytest.approx(folded, rel=1e-4)
    assert figures["median"] == pytest.approx(median(folded), rel=1e-4)
    assert figures["worst"] == pytest.approx(max(folded), rel=1e-4)
    assert figures.items() >= measures.scores(trial).items()


def fed_by_dropout(net):
    """Norms that stand right behind a dropout in their sequence, by path."""
    for path, parent in net.named_modules():
        names = list(parent._modules)
        for before, name in pairwise(names):
            if isinstance(parent._modules[before], nn.Dropout) and isinstance(parent._modules[name], nn.BatchNorm2d):
                yield f"{path}.{name}"


def test_the_shift_after_dropout_is_of_the_norms_right_behind_it(trial, folder):
    figures = measures.shift(trial)
    fed = list(fed_by_dropout(trial.trained.model(trial.images)))
    folded = dict(zip(figures["paths"], figures["folded"], strict=True))
    assert 0 < len(fed) < len(folded)
    assert figures["after_dropout"] == median(folded[path] for path in fed)
    for net in (WRN, noisy(WRN, "b"), noisy(WRN, "last")):
        assert "after_dropout" not in measures.shift(a_trial(folder, a_training(net, epochs=1)))


# statistics taken anew


def test_adjusted_and_corrected_scores_are_those_of_the_verbs(trial):
    figures, images = measures.adjust(trial), trial.images
    net = trial.trained.model(images)
    agree(figures, "test", by_hand(net, images, images.test))
    ek.reestimate_(net, TrainingBatches(trial.trained, images))
    agree(figures, "adjusted", by_hand(net, images, images.test))
    report = ek.variance_shift(net, TrainingBatches(trial.trained, images))
    assert report.worst == pytest.approx(1, abs=1e-3)
    net = trial.trained.model(images)
    ek.correct_(net, images.standardize(images.test.images[:2]))
    agree(figures, "corrected", by_hand(net, images, images.test))
    assert figures["test_loss"] != figures["adjusted_loss"]
    corrected = ek.correct_(trial.trained.model(images), images.standardize(images.test.images[:2]))
    assert (figures["corrected_loss"] != figures["test_loss"]) == bool(len(corrected))
    net = trial.trained.model(images)
    ek.reestimate_(net, TrainingBatches(trial.trained, images), match="mean")
    agree(figures, "mean_matched", by_hand(net, images, images.test))


def test_the_ensemble_is_the_mean_of_probabilities_over_masks(trial):
    images, net = trial.images, trial.trained.model(trial.images).eval()
    x = images.standardize(images.test.images[:8])
    torch.manual_seed(3)
    found = measures.MaskEnsemble(net, masks=4)(x).exp()
    torch.manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    expected = sum(net(x).softmax(1) for _ in range(4)) / 4
    assert torch.allclose(found, expected, atol=1e-6)


def test_in_bfloat16_the_ensemble_is_nearly_the_same(trial):
    images, net = trial.images, trial.trained.model(trial.images).eval()
    x = images.standardize(images.test.images[:8])
    found = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(3)
        found.append(measures.MaskEnsemble(net, 8, precision)(x).exp())
    assert found[1].dtype == torch.float32 and torch.allclose(*found, atol=0.1) and not torch.equal(*found)


def test_without_dropout_the_ensemble_is_the_net_and_so_is_every_repair_nearly(folder):
    figures = measures.adjust(a_trial(folder, a_training(WRN, epochs=1)))
    assert figures["ensemble_error"] == figures["test_error"]
    assert figures["mean_matched_loss"] == pytest.approx(figures["adjusted_loss"], rel=1e-3)


def test_snapshots_are_scored_with_each_kind_of_statistics(trial):
    figures, images, found = measures.snapshots(trial), trial.images, trial.trained
    assert list(found.weights) == [1, 3]
    for stage, epoch in (("halfway", 1), ("final", 3)):
        agree(figures, stage, by_hand(found.model(images, epoch), images, images.test))
        for stats in ("var", "both"):
            net = found.model(images, epoch)
            ek.reestimate_(net, TrainingBatches(found, images), stats=stats)
            agree(figures, f"{stage}_{stats}", by_hand(net, images, images.test))
    assert len(figures) == 18 and len(set(figures.values())) > 6


# both modes


def test_train_mode_scores_are_of_noise_and_batch_statistics(trial):
    images = trial.images
    torch.manual_seed(7)
    figures = measures.train_eval(trial)
    torch.manual_seed(7)
    net = trial.trained.model(images)  # which draws, too
    agree(figures, "train_mode", by_hand(copy.deepcopy(net), images, images.train, train_mode=True))
    agree(figures, "eval_mode", by_hand(net, images, images.train))
    assert figures["gap"] == pytest.approx(figures["eval_mode_error"] - figures["train_mode_error"])
    assert figures["train_mode_loss"] != figures["eval_mode_loss"]
    assert figures.items() >= measures.scores(trial).items()


def test_without_noise_and_norms_both_modes_are_one(folder):
    figures = measures.train_eval(a_trial(folder, a_training()))
    assert figures["gap"] == 0 and figures["train_mode_loss"] == figures["eval_mode_loss"]


# angles


def test_angles_are_means_over_filters_then_over_convolutions(trial):
    figures = measures.angles(trial)
    cosines, sizes = [], []
    for module in trial.trained.model(trial.images).modules():
        if isinstance(module, nn.Conv2d):
            found = []
            for unit in module.weight.detach().double():
                ones = torch.ones_like(unit)
                found.append(float((unit * ones).sum() ** 2 / (unit**2).sum() / ones.sum()))
            cosines.append(mean(found))
            sizes.append(ones.numel())
    assert figures["cosines"] == pytest.approx(cosines) and figures["sizes"] == sizes
    assert figures["cos2"] == pytest.approx(mean(cosines))
    assert figures["d_cos2"] == pytest.approx(mean(d * c for d, c in zip(sizes, cosines, strict=True)))


# what they share


@pytest.mark.parametrize("name", ["scores", "shift", "adjust", "train_eval", "snapshots", "angles"])
def test_a_measure_leaves_the_trained_weights_and_finds_the_same_again(trial, name):
    before = copy.deepcopy(trial.trained.weights)
    images = copy.deepcopy(trial.images)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(getattr(measures, name)(trial))
    assert found[0] == found[1]
    for epoch, state in before.items():
        assert all(torch.equal(value, trial.trained.weights[epoch][key]) for key, value in state.items())
    assert torch.equal(images.train.images, trial.images.train.images)


@pytest.mark.parametrize("augmented", [False, True])
def test_training_batches_are_the_training_images_as_trained_on(folder, augmented):
    training = replace(TRAINING, source=replace(SOURCE, train=300), recipe=replace(TRAINING.recipe, augment=augmented))
    images = images_of(training.source)
    batches = TrainingBatches(replace(trained_of(images), training=training), images)
    first, again = list(batches), list(batches)
    assert len(first) == len(batches) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    inputs, plain = torch.cat(first), images.standardize(images.train.images)
    assert inputs.shape == plain.shape
    assert torch.equal(inputs, plain) != augmented
    if augmented:
        padded = F.pad(plain, (2,) * 4)
        for image, source in zip(inputs[::20], padded[::20], strict=True):
            crops = (source[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5))
            assert any(torch.equal(image, crop) or torch.equal(image.flip(2), crop) for crop in crops)


def test_a_measure_needs_a_trained_network():
    with pytest.raises(AssertionError, match="needs a trained network"):
        measures.scores(Trial({}, "smoke", 0))
