"""Chen et al. 2019: the independent-component layer, batch norm then dropout, before each weight layer.

"Rethinking the Usage of Batch Normalization and Dropout in the Training of Deep Neural Networks", arXiv 1905.05928.
The theorem's p is the probability to keep, that of the experiments the one to drop; here p is always the one to drop.
The tables of the paper could not be had, and so nothing is printed here as published. Where a claim names figures of
an independent replication (a group project of 2022, one run each), it says so.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from evenkeel.papers.lab import plots, theorems
from evenkeel.papers.lab.claims import OURS, Between, Claim, Equal, Within
from evenkeel.papers.lab.convergence import LEVELS, convergence
from evenkeel.papers.lab.experiments import Column, Experiment, Paper
from evenkeel.papers.lab.specs import (
    CIFAR,
    DESK_RECIPE,
    IMAGES,
    SCALES,
    Factors,
    ImageSource,
    Net,
    Recipe,
    Scale,
    Training,
    arm_name,
    grid,
    recipe_on,
)

# The theorem

_THEOREM_ARMS = grid(p=(0.05, 0.1, 0.2, 0.5))
_NOTHING_OFF = {arm_name(arm): 0.0 for arm in _THEOREM_ARMS}

theorem = Experiment(
    name="theorem",
    source="the theorem",
    about=(
        "Two neurons behind dropout: information, entropy and correlation over those before it, of discrete neurons of "
        "three values, of a random joint law, enumerated, and of normal ones of correlation .6, drawn (their "
        "information in eight bins). Two refinements are ours: with mass at 0, keep^2 is a bound, and a mean that is "
        "not 0 lessens the correlation further."
    ),
    arms=dict.fromkeys(SCALES, _THEOREM_ARMS),
    seeds={"smoke": 1, "quick": 3, "desk": 5, "full": 5},
    measure=theorems.theorem,
    columns=(
        Column("information", "information", digits=4),
        Column("same, normal", "information_drawn", digits=4),
        Column("keep^2", "information_theory", digits=4),
        Column("same, mass at 0", "information_zero", digits=4),
        Column("entropy, nats", "entropy", digits=4),
        Column("keep H + eps", "entropy_theory", digits=4),
        Column("correlation", "correlation", digits=4),
        Column("same, mean 1", "correlation_mean", digits=4),
        Column("its formula", "correlation_mean_theory", digits=4),
    ),
    plots={
        "bars": partial(
            plots.bars,
            keys={
                "information": "information",
                "normal": "information_drawn",
                "keep^2": "information_theory",
                "mass at 0": "information_zero",
                "correlation": "correlation",
                "keep": "correlation_theory",
                "mean 1": "correlation_mean",
                "its formula": "correlation_mean_theory",
            },
            groups="p",
            factor=1.0,
            ylabel="with dropout / without",
        )
    },
    claims=(
        Claim(
            "Information falls by keep^2, and entropy is keep H + H(mask): enumerated, to 1e-9.",
            "the theorem",
            Equal("enumerated_off", _NOTHING_OFF, tolerance=1e-9),
            exact=True,
            headline=True,
        ),
        Claim(
            "Of normal neurons, information falls by keep^2 and correlation by keep, or by its formula: drawn, to .01.",
            "the theorem",
            Equal("drawn_off", _NOTHING_OFF, tolerance=0.01),
            exact=True,
        ),
        Claim(
            "With mass at 0, as behind a ReLU, information falls by more than keep^2 (ours).",
            OURS,
            Within("information_theory", "information_zero", by=("p",)),
            exact=True,
        ),
        Claim(
            "Neurons of a mean that is not 0 lose more correlation than those of mean 0 (ours).",
            OURS,
            Within("correlation", "correlation_mean", by=("p",)),
            exact=True,
        ),
        Claim(
            "Information falls faster than correlation does.",
            "the abstract: quadratically; correlation linearly",
            Within("correlation", "information", by=("p",)),
            exact=True,
        ),
    ),
)

# Orders of norm, activation, dropout and weight

_SIZES: dict[Scale, dict[str, Any]] = {
    "smoke": {"depth": 8, "width": 4},
    "quick": {"depth": 14, "width": 8},
    "desk": {"depth": 20, "width": 16},
    "full": {"depth": 110, "width": 16},
}
# The replication's, which is Keras' example for CIFAR-10; the paper's is not known but for the batch.
_RECIPE = Recipe(
    epochs=200, batch=64, optimizer="adam", lr=1e-3, weight_decay=1e-4, milestones=(0.4, 0.6, 0.8), augment=True
)
_RECIPES: dict[Scale, Recipe] = {
    "smoke": replace(_RECIPE, epochs=1),
    "quick": replace(_RECIPE, epochs=12, milestones=(0.75,), watched=4000),
    "desk": replace(DESK_RECIPE, watched=4000),
    "full": replace(_RECIPE, watched=10_000),
}
_SEEDS: dict[Scale, int] = {"smoke": 1, "quick": 3, "desk": 3, "full": 3}
_SMALL = (
    "At quick scale: 14 layers of 8 to 32 channels, 10,000 images averaged down to 16x16, 12 epochs of Adam. At desk "
    "scale: 20 layers of 16 to 64 channels, all images as they are, 16 epochs of SGD in one cycle."
)
_NETS = {"conv-bn-relu": "resnet", "bn-relu-conv": "preresnet"}
_CHOSEN = {"order": "relu-ic-conv", "p": 0.05}
_POST, _PRE = {"order": "conv-bn-relu", "p": 0.0}, {"order": "bn-relu-conv", "p": 0.0}


def _training(scale: Scale, data: str, net: str, places: str, p: float) -> Training:
    dropout = {"places": places, "noise": ["Dropout", p]} if places != "none" else {}
    arguments = {**_SIZES[scale], "block": "basic", **dropout}
    return Training(Net(net, arguments), IMAGES[scale][data], recipe_on(data, _RECIPES[scale]))


def _ordered(scale: Scale, data: str, order: str, p: float) -> Training:
    """A net of some order; a pre-activation net has dropout where that of ReLU-IC-conv has it."""
    if order in _NETS:
        return _training(scale, data, _NETS[order], "P3+P6+head-before" if p else "none", p)
    return _training(scale, data, "preresnet", order, p)


def _arms(*rest: Factors, sources: dict[Scale, dict[str, ImageSource]] = CIFAR) -> dict[Scale, tuple[Factors, ...]]:
    return {scale: tuple({"data": data, **arm} for data in sources[scale] for arm in rest) for scale in SCALES}


_ERROR = Column("test error %", "test_error", 100, 2)
_COLUMNS = (
    _ERROR,
    Column("epochs to the level", "epochs_to_level", digits=1),
    Column("mean error over epochs, %", "mean_error", 100, 1),
    Column("spread between epochs", "spread", 100, 2),
    Column("median shift", "median"),
    Column("worst shift", "worst", digits=2),
)
_CURVES = partial(plots.curves, keys={"test": "test_eval_error"}, rows="data", ylabel="test error")

orders = Experiment(
    name="orders",
    source="the three orders",
    about=(
        "Residual nets of basic blocks with the IC layer of drop .05 in three orders, against conv-BN-ReLU (the "
        "paper's baseline, post-activation) and BN-ReLU-conv (pre-activation, whose shortcuts are as those of "
        "ReLU-IC-conv). Fast: epochs until the watched test error is at most "
        f"{LEVELS['quick']:.0%} (quick), {LEVELS['desk']:.0%} (desk), {LEVELS['full']:.0%} (full; 2.5 times that on "
        "CIFAR-100). Stable: the deviation of test errors from epoch to epoch around their trend, in points. The "
        f"recipe at full scale is a replication's; the paper's is not known but for the batch of 64. {_SMALL}"
    ),
    arms=_arms(_POST, _PRE, *grid(order=("relu-ic-conv", "ic-conv-relu", "conv-relu-ic"), p=(0.05,))),
    seeds=_SEEDS,
    training=_ordered,
    measure=convergence,
    columns=_COLUMNS,
    plots={
        "curves": partial(_CURVES, lines="order"),
        "bars": partial(plots.bars, keys="test_error", groups="order", panels="data"),
    },
    claims=(
        Claim(
            "ReLU-IC-conv ends at a lower test error than conv-BN-ReLU.",
            "abstract; a replication with ResNet-110: 6.81 to 6.44 % (CIFAR-10), 28.89 to 27.53 (CIFAR-100)",
            Between("test_error", _POST, _CHOSEN, by=("data",)),
        ),
        Claim(
            "ReLU-IC-conv ends at a lower test error than BN-ReLU-conv, whose shortcuts are the same (ours).",
            OURS,
            Between("test_error", _PRE, _CHOSEN, by=("data",)),
        ),
        Claim(
            "ReLU-IC-conv comes to the level in fewer epochs than conv-BN-ReLU.",
            "abstract; a replication after 20 epochs: 13.11 to 13.82 % error (CIFAR-10), 41.51 to 39.43 (CIFAR-100)",
            Between("epochs_to_level", _POST, _CHOSEN, by=("data",)),
            unit="epochs",
            factor=1.0,
            headline=True,
        ),
        Claim(
            "ReLU-IC-conv comes to the level in fewer epochs than BN-ReLU-conv (ours).",
            OURS,
            Between("epochs_to_level", _PRE, _CHOSEN, by=("data",)),
            unit="epochs",
            factor=1.0,
        ),
        Claim(
            "The test error of ReLU-IC-conv is steadier from epoch to epoch than that of conv-BN-ReLU.",
            "abstract; a replication, epochs 60 to 80: .79 to .43 points (CIFAR-10), .74 to .56 (CIFAR-100)",
            Between("spread", _POST, _CHOSEN, by=("data",), log=True),
            unit="spread",
            headline=True,
        ),
        Claim(
            "The test error of ReLU-IC-conv is steadier from epoch to epoch than that of BN-ReLU-conv (ours).",
            OURS,
            Between("spread", _PRE, _CHOSEN, by=("data",), log=True),
            unit="spread",
        ),
        *(
            Claim(
                f"Of the three orders, ReLU-IC-conv does better than {order}.",
                "the order that the paper retains",
                Between("test_error", {"order": order}, {"order": "relu-ic-conv"}, by=("data",)),
            )
            for order in ("ic-conv-relu", "conv-relu-ic")
        ),
    ),
)

# What is the norm's, and what is dropout's

ablation = Experiment(
    name="ablation",
    source="IC taken apart",
    about=(
        "The IC layer taken apart: orders BN-ReLU-conv and ReLU-BN-conv, each without dropout and with it before every "
        "weight of the branches and before the pool, so that ReLU-BN-conv with dropout is ReLU-IC-conv. "
        "The only source that separates the two, an MLP study (arXiv 2108.08186), has dropout of .05 gain -.1, +.4 and "
        "-.3 points of accuracy, trained from scratch, less than its deviations. MNIST, beside CIFAR, is as "
        f"large as that at quick scale, and neither cropped nor mirrored. {_SMALL}"
    ),
    arms=_arms(*grid(order=("bn-relu-conv", "relu-ic-conv"), p=(0.0, 0.05, 0.1)), sources=IMAGES),
    seeds=_SEEDS,
    training=_ordered,
    measure=convergence,
    columns=_COLUMNS,
    plots={
        "bars": partial(plots.bars, keys="test_error", groups="p", beside="order", panels="data"),
        "curves": partial(_CURVES, lines="p", columns="order"),
    },
    claims=(
        Claim(
            "Without any dropout, the norm behind the ReLU does better than before it.",
            "the design: no norm before ReLU",
            Between("test_error", _PRE, {"order": "relu-ic-conv", "p": 0.0}, by=("data",)),
        ),
        *(
            Claim(
                f"In the IC layer, dropout of {p:g} lowers the test error (ours).",
                OURS,
                Between(
                    "test_error",
                    {"order": "relu-ic-conv", "p": 0.0},
                    {"order": "relu-ic-conv", "p": p},
                    by=("data",),
                ),
            )
            for p in (0.05, 0.1)
        ),
        Claim(
            "With dropout of .05, too, the norm behind the ReLU does better than before it (ours).",
            OURS,
            Between(
                "test_error", {"order": "bn-relu-conv"}, {"order": "relu-ic-conv"}, by=("data",), where={"p": 0.05}
            ),
        ),
        Claim(
            "Dropout in the IC layer shifts the norms, the more the higher its rate (ours).",
            OURS,
            Between("worst", {"p": 0.1}, {"p": 0.05}, by=("data", "order"), log=True),
            unit="worst shift",
        ),
    ),
)

# A norm before every weight, dropout before the last

_RATES: dict[Scale, tuple[float, ...]] = {
    "smoke": (0.1,),
    "quick": (0.05, 0.1, 0.3),
    "desk": (0.3, 0.1),
    "full": (0.05, 0.1, 0.3),
}
_DESIGN_PLACES = {"ic": "relu-ic-conv", "ic-last": "relu-norm-conv+b", "P6": "P6"}


def _designed(scale: Scale, data: str, design: str, p: float) -> Training:
    if not p:
        return _ordered(scale, data, {"ic": "relu-ic-conv", "P6": "bn-relu-conv"}[design], p)
    return _training(scale, data, "preresnet", _DESIGN_PLACES[design], p)


compromise = Experiment(
    name="compromise",
    source="both papers at once",
    about=(
        "chen2019 and kim2023 at once: ReLU-BN-conv with dropout before the last weight of each branch alone "
        "(ic-last), beside IC layers throughout (ic; before the pool, too) and dropout at P6 of a pre-activation net "
        f"(P6). Without dropout, ic-last is ic. {_SMALL}"
    ),
    arms={
        scale: tuple(
            {"data": data, "design": design, "p": p}
            for data in CIFAR[scale]
            for p in (0.0, *_RATES[scale])
            for design in _DESIGN_PLACES
            if p or design != "ic-last"
        )
        for scale in SCALES
    },
    seeds=_SEEDS,
    training=_designed,
    measure=convergence,
    columns=_COLUMNS,
    plots={
        "bars": partial(plots.bars, keys="test_error", groups="p", beside="design", panels="data"),
        "shift": partial(
            plots.bars, keys="median", groups="p", beside="design", panels="data", factor=1.0, ylabel="median shift"
        ),
    },
    claims=(
        Claim(
            "Dropout before the last weight alone shifts norms less than IC layers throughout (ours).",
            OURS,
            Between("median", {"design": "ic"}, {"design": "ic-last"}, by=("data", "p"), log=True),
            unit="median shift",
        ),
        Claim(
            "With dropout before the last weight alone, ReLU-BN-conv does better than IC layers throughout (ours).",
            OURS,
            Between("test_error", {"design": "ic"}, {"design": "ic-last"}, by=("data", "p")),
        ),
        Claim(
            "With dropout before the last weight alone, ReLU-BN-conv does better than BN-ReLU-conv (P6; ours).",
            OURS,
            Between("test_error", {"design": "P6"}, {"design": "ic-last"}, by=("data", "p")),
        ),
        Claim(
            "At the same rate, dropout at P6 does better than IC layers throughout (ours).",
            OURS,
            Between("test_error", {"design": "ic"}, {"design": "P6"}, by=("data",), where={"p": 0.3}),
        ),
    ),
)

PAPER = Paper(
    name="chen2019",
    title="Rethinking the Usage of Batch Normalization and Dropout in the Training of Deep Neural Networks",
    authors="Guangyong Chen, Pengfei Chen, Yujun Shi, Chang-Yu Hsieh, Benben Liao and Shengyu Zhang",
    url="https://arxiv.org/abs/1905.05928",
    experiments=(theorem, orders, ablation, compromise),
    left_out=(
        "On ImageNet, too, nets with IC layers converge faster and to a better limit (abstract).",
        "So do deeper nets and nets of bottlenecks on CIFAR-10 and -100.",
    ),
)
