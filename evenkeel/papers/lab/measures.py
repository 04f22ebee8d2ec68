"""Measures: what is found out of a trained network. Each takes a trial and gives figures by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.graph.kinds import Kind
from evenkeel.graph.tracing import trace
from evenkeel.model.evaluation import Score
from evenkeel.papers.lab.images import Images, augment
from evenkeel.papers.lab.specs import Precision
from evenkeel.papers.lab.training import Trained, batches_of, score
from evenkeel.papers.lab.trials import Trial
from evenkeel.prediction.correction import correct_
from evenkeel.reestimation.reestimation import reestimate_
from evenkeel.shift.shift import variance_shift
from evenkeel.statistics.noise import noisy
from evenkeel.theory.li2018 import cos_squared

Measure = Callable[[Trial], dict[str, Any]]
_BATCH = 250
MASKS = 32  # of an ensemble


def _of_numbers(measure: Measure) -> Measure:
    """The measure of a training that has not diverged; of one that has, its scores: there are no statistics to take."""

    @wraps(measure)
    def measure_or_score(trial: Trial) -> dict[str, Any]:
        trained, _ = _given(trial)
        return measure(trial) if math.isfinite(trained.history[-1]["train_loss"]) else scores(trial)

    return measure_or_score


def scores(trial: Trial) -> dict[str, Any]:
    """Final scores in eval mode: `test_error`, `test_loss`, and the validation split's and the history's where kept.

    `mean_validation_loss` is the mean over epochs, lower where training converges sooner.
    """
    trained, images = _given(trial)
    net = trained.model(images)
    figures = _score_figures("test", score(net, images, images.test))
    if images.validation is not None:
        figures |= _score_figures("validation", score(net, images, images.validation))
        losses = [epoch.get("validation_eval_loss", math.nan) for epoch in trained.history]
        whole = len(losses) == trained.training.recipe.epochs
        figures["mean_validation_loss"] = mean(losses) if whole else math.nan  # one that diverged has no mean
    return figures


@_of_numbers
def shift(trial: Trial) -> dict[str, Any]:
    """The variance shift, norm by norm, over the training images as they were trained on, and scores.

    `folded` is li2018's max(r, 1/r) of the ratio of channel means, shallow to deep; `median` and `worst` are its, and
    `after_dropout` is the median of the norms that dropout feeds with nothing in between.
    """
    trained, images = _given(trial)
    net = trained.model(images)
    report = variance_shift(net, TrainingBatches(trained, images))
    norms = trace(net, images.standardize(images.test.images[:2])).of(Kind.NORM)
    fed = {norm.path for norm in norms if any(layer.kind is Kind.DROPOUT for layer in norm.inputs)}
    return {
        "paths": [row.path for row in report],
        "ratio": [row.ratio for row in report],
        "folded": [row.folded for row in report],
        "median": report.median,
        "worst": report.worst,
        **({"after_dropout": median(row.folded for row in report if row.path in fed)} if fed else {}),
        **scores(trial),
    }


@_of_numbers
def adjust(trial: Trial) -> dict[str, Any]:
    """Test scores as trained, with statistics re-estimated over the training images, and of what else mends a net.

    `adjusted` is the paper's; the others are those of `_mended`.
    """
    trained, images = _given(trial)
    return {**adjusted(trial), **_mended(trial, trained.model(images))}


@_of_numbers
def adjusted(trial: Trial) -> dict[str, Any]:
    """Test scores as trained, and with statistics re-estimated with dropout off, over the training images."""
    trained, images = _given(trial)
    net = trained.model(images)
    reestimate_(net, TrainingBatches(trained, images), match="variance")
    return {**scores(trial), **_score_figures("adjusted", score(net, images, images.test))}


def train_eval(trial: Trial) -> dict[str, Any]:
    """Scores of the same training images, not augmented, in train mode and in eval mode.

    `gap` is eval error minus train error.
    """
    trained, images = _given(trial)
    net = trained.model(images)
    figures = _score_figures("train_mode", score(_TrainMode(net), images, images.train))
    figures |= _score_figures("eval_mode", score(net, images, images.train))
    return {**figures, "gap": figures["eval_mode_error"] - figures["train_mode_error"], **scores(trial)}


@_of_numbers
def snapshots(trial: Trial) -> dict[str, Any]:
    """Test scores halfway and at the end: as trained, with new variances, and with new means and variances.

    Statistics are taken over the training images with dropout off (hendrycks2016, section 3). Of the net at the end,
    the figures of `_mended`, too.
    """
    trained, images = _given(trial)
    figures: dict[str, Any] = {}
    for stage, epoch in zip(("halfway", "final"), sorted(trained.weights), strict=True):
        net = trained.model(images, epoch)
        figures |= _score_figures(stage, score(net, images, images.test))
        for stats in ("var", "both"):
            done = reestimate_(net, TrainingBatches(trained, images), match="variance", stats=stats)
            figures |= _score_figures(f"{stage}_{stats}", score(net, images, images.test))
            done.undo()
    return figures | _mended(trial, trained.model(images), "final_")


def _mended(trial: Trial, net: nn.Module, prefix: str = "") -> dict[str, float]:
    """Test scores of a net as trained by what is not the papers'; it is given back as found.

    `mean_matched` is of norms whose mean over masks is kept, over the training images, `corrected` of statistics
    corrected without data, and `ensemble` of the mean over masks of what the net says.
    """
    trained, images = _given(trial)
    done = reestimate_(net, TrainingBatches(trained, images), match="mean")
    figures = _score_figures(f"{prefix}mean_matched", score(net, images, images.test))
    done.undo()
    example = images.standardize(images.test.images[:2])
    corrected = correct_(net, example, match="variance")
    figures |= _score_figures(f"{prefix}corrected", score(net, images, images.test))
    corrected.undo()
    masks = MASKS if trace(net, example).of(Kind.DROPOUT) else 1  # without noise, all passes are one
    ensemble = MaskEnsemble(net, masks, trial.precision)
    return figures | _score_figures(f"{prefix}ensemble", score(ensemble, images, images.test))


@_of_numbers
def angles(trial: Trial) -> dict[str, Any]:
    """The angle between filters and the vector of ones, as its squared cosine, alone and times the filter's size d.

    Means over the filters of a convolution, then over convolutions (li2018, Table 1).
    """
    trained, images = _given(trial)
    convolutions = [module for module in trained.model(images).modules() if isinstance(module, nn.Conv2d)]
    weights = [module.weight.detach().flatten(1).double() for module in convolutions]
    cosines = [float(cos_squared(weight).mean()) for weight in weights]
    sizes = [weight.shape[1] for weight in weights]
    return {
        "cos2": mean(cosines),
        "d_cos2": mean(d * cosine for d, cosine in zip(sizes, cosines, strict=True)),
        "sizes": sizes,
        "cosines": cosines,
        **scores(trial),
    }


@dataclass(frozen=True)
class TrainingBatches:
    """The training images once over, standardized, and augmented as the recipe says, the same every time."""

    trained: Trained
    images: Images

    def __len__(self) -> int:
        return len(batches_of(self.images, self.images.train, size=_BATCH))

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator(self.images.mean.device).manual_seed(0)
        augmented = self.trained.training.recipe.augment
        for inputs, _ in batches_of(self.images, self.images.train, size=_BATCH):
            yield augment(inputs, generator, pad=self.images.shape[-1] // 8) if augmented else inputs


class MaskEnsemble(nn.Module):
    """The logarithm of the mean probabilities over passes with dropout on, its norms on what training left in them.

    Args:
        net: a classifier that returns logits.
        masks: how many passes.
        precision: of the passes; `bf16-mixed` as in training.
    """

    def __init__(self, net: nn.Module, masks: int = MASKS, precision: Precision = "32-true") -> None:
        super().__init__()
        self.net, self.masks, self.low = net, masks, precision == "bf16-mixed"

    def forward(self, x: Tensor) -> Tensor:
        """Shape (samples, channels, height, width) to (samples, classes)."""
        with noisy(self.net), torch.autocast(x.device.type, torch.bfloat16, enabled=self.low):
            passes = [self.net(x).float().softmax(1) for _ in range(self.masks)]
        return torch.stack(passes).mean(0).clamp_min(torch.finfo(torch.float32).tiny).log()


class _TrainMode(nn.Module):
    """A network in train mode whatever mode it is set to."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.train()(x)


def _score_figures(prefix: str, found: Score) -> dict[str, float]:
    assert found.error is not None
    return {f"{prefix}_error": found.error, f"{prefix}_loss": found.loss}


def _given(trial: Trial) -> tuple[Trained, Images]:
    assert trial.trained is not None and trial.images is not None, "this measure needs a trained network"
    return trial.trained, trial.images
