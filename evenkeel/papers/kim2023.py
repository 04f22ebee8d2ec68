"""Kim et al. 2023: where dropout belongs in a residual branch and in the head.

"How to Use Dropout Correctly on Residual Networks with Batch Normalization", UAI 2023, arXiv 2302.06112. Positions,
nets and module tests are those of the authors' public code. The tables of the paper could not be had, and so nothing
is printed here as published; claims are the abstract's and its guideline's, or say that they are ours.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from evenkeel.papers.kim2023_modules import depth, module_tests
from evenkeel.papers.lab import heads, plots
from evenkeel.papers.lab.claims import OURS, Between, Claim, Within
from evenkeel.papers.lab.experiments import Column, Experiment, Paper
from evenkeel.papers.lab.positions import positions as measure_positions
from evenkeel.papers.lab.specs import (
    CIFAR,
    DESK_RECIPE,
    IMAGES,
    SCALES,
    Factors,
    Net,
    Recipe,
    Scale,
    Training,
    grid,
    recipe_on,
)

_UNKNOWN = "guideline; its figures could not be had"

# The positions in a branch

_SIZES: dict[Scale, dict[str, dict[str, Any]]] = {
    "smoke": {
        "preresnet": {"depth": 8, "block": "basic", "width": 4},
        "densenet": {"depth": 10, "growth": 4, "bottleneck": True},
    },
    "quick": {
        "preresnet": {"depth": 14, "block": "basic", "width": 8},
        "densenet": {"depth": 16, "growth": 6, "bottleneck": True},
    },
    "desk": {
        "preresnet": {"depth": 20, "block": "basic"},
        "densenet": {"depth": 22, "growth": 12, "bottleneck": True},
    },
    "full": {
        "preresnet": {"depth": 110, "block": "basic"},
        "densenet": {"depth": 100, "growth": 12, "bottleneck": True},
    },
}
# Of the code base that the authors' CIFAR nets come from, bearpaw/pytorch-classification; theirs is not known.
_RECIPE = Recipe(
    epochs=164, batch=128, optimizer="sgd", weight_decay=1e-4, milestones=(81 / 164, 122 / 164), augment=True
)
_RECIPES: dict[Scale, Recipe] = {
    "smoke": replace(_RECIPE, epochs=1),
    "quick": replace(_RECIPE, epochs=8, batch=64),
    "desk": DESK_RECIPE,
    "full": _RECIPE,
}
_SEEDS: dict[Scale, int] = {"smoke": 1, "quick": 3, "desk": 3, "full": 3}
_SMALL = (
    "At quick scale: 14 layers of 8 to 32 channels, or a DenseNet-BC of 16, 10,000 images averaged down to 16x16, 8 "
    "epochs. At desk scale: 20 layers of 16 to 64 channels, or a DenseNet-BC of 22, all images as they are, 16 epochs "
    "of one cycle."
)
_PLACES: dict[Scale, tuple[str, ...]] = {
    **dict.fromkeys(SCALES, tuple(f"P{number}" for number in range(8))),
    "desk": ("P6", "P4", "P3", "P7", "P1", "P0"),  # for ReLU, P5 is P6 to the bit
}
_RATES: dict[Scale, tuple[float, ...]] = {"smoke": (0.3,), "quick": (0.1, 0.3), "desk": (0.3, 0.1), "full": (0.1, 0.3)}
_NONE = {"place": "none", "p": 0.0}
_ERROR = Column("test error %", "test_error", 100, 2)


def _training(scale: Scale, data: str, net: str, places: str, p: float) -> Training:
    dropout = {"places": places, "noise": ["Dropout", p]} if places != "none" else {}
    sized = Net(net, {**_SIZES[scale][net], **dropout})
    return Training(sized, IMAGES[scale][data], recipe_on(data, _RECIPES[scale]))


def _placed(scale: Scale, data: str, net: str, place: str, p: float) -> Training:
    return _training(scale, data, net, place, p)


def _position_arms(scale: Scale) -> tuple[Factors, ...]:
    placed = [{"place": place, "p": p} for p in _RATES[scale] for place in _PLACES[scale]]
    return tuple({"data": data, "net": "preresnet", **rest} for data in CIFAR[scale] for rest in (_NONE, *placed))


def _worse(place: str, where: str) -> Claim:
    return Claim(
        f"Dropout at P6 does better than at {place}, {where}.",
        _UNKNOWN,
        Between("test_error", {"place": place}, {"place": "P6"}, by=("data", "p")),
    )


positions = Experiment(
    name="positions",
    source="the positions P0 to P7",
    about=(
        "One dropout in each branch of a pre-activation net: before the block (P0), before its first norm, activation "
        "and weight (P1 to P3), before its last ones (P4 to P6), or before the addition (P7). Behind a ReLU, P2 is P3 "
        "and P5 is P6, to the bit, where the shortcut forks off before them. Shifts are max(r, 1/r), r = eval / "
        "train. The recipe at full scale is that of the code base the authors' net comes from; theirs is not known. A "
        "leaderboard has 94.44 and 73.98 % right for the paper (PreResNet-110, CIFAR-10 and -100), of which position "
        f"and rate it does not say. {_SMALL}"
    ),
    arms={scale: _position_arms(scale) for scale in SCALES},
    seeds=_SEEDS,
    training=_placed,
    measure=measure_positions,
    columns=(
        _ERROR,
        Column("adjusted %", "adjusted_error", 100, 2),
        Column("shift in branches", "in_branch"),
        Column("shift on the trunk", "at_trunk"),
    ),
    plots={
        "bars": partial(
            plots.bars,
            keys={"as trained": "test_error", "adjusted": "adjusted_error"},
            groups="place",
            panels="p",
            rows="data",
            baseline={"p": 0.0},
        ),
        "shift": partial(
            plots.bars,
            keys={"in branches": "in_branch", "on the trunk": "at_trunk"},
            groups="place",
            panels="p",
            rows="data",
            baseline={"p": 0.0},
            factor=1.0,
            ylabel="shift, folded",
        ),
    },
    claims=(
        *(
            Claim(
                f"Dropout of {p:g} at P6 lowers the test error.",
                _UNKNOWN,
                Between("test_error", _NONE, {"place": "P6", "p": p}, by=("data",)),
            )
            for p in (0.1, 0.3)
        ),
        _worse("P0", "before the whole block"),
        _worse("P1", "before the first norm"),
        _worse("P3", "before the first weight"),
        _worse("P4", "before the last norm"),
        _worse("P7", "behind the last weight"),
        Claim(
            "Dropout before the last norm of a branch (P4) shifts the norms in branches more than behind it (P6).",
            _UNKNOWN,
            Between("in_branch", {"place": "P4"}, {"place": "P6"}, by=("data", "p"), log=True),
            unit="shift in branches",
            headline=True,
        ),
        Claim(
            "Dropout before the first weight of a branch (P3) shifts the norms in branches more than at P6.",
            _UNKNOWN,
            Between("in_branch", {"place": "P3"}, {"place": "P6"}, by=("data", "p"), log=True),
            unit="shift in branches",
        ),
        Claim(
            "Adjusted statistics lower the error of nets with dropout at P4 (ours).",
            OURS,
            Within("test_error", "adjusted_error", by=("data", "p"), where={"place": "P4"}),
        ),
        Claim(
            "Once adjusted, P6 still does better than P4 (ours).",
            OURS,
            Between("adjusted_error", {"place": "P4"}, {"place": "P6"}, by=("data", "p")),
        ),
    ),
)

# The head

_SIDES = {"synthetic": 16, "mnist": 28}
_HEADS = ("after", "before", "before-equal-noise")
_HEAD_RATES: dict[Scale, tuple[float, ...]] = {**dict.fromkeys(SCALES, (0.2, 0.5)), "smoke": (0.2,)}


def _headed(scale: Scale, data: str, net: str, head: str, p: float) -> Training:
    if head == "none":
        return _training(scale, data, net, "none", 0.0)
    side = (IMAGES[scale][data].size or _SIDES.get(data, 32)) // 4  # halved twice on the way
    rate = heads.equal_noise_rate(p, side**2) if head.endswith("noise") else p
    return _training(scale, data, net, "head-after" if head == "after" else "head-before", round(rate, 4))


head = Experiment(
    name="head",
    source="the head",
    about=(
        "Dropout before the global pool and after it: at the same rate, and before it at the rate that makes as much "
        "noise as `p` after it, of independent rectified normal values. `p` is the rate after the pool. Noise is the "
        "variance of logits over masks, over that over images, in eval mode otherwise. MNIST, beside CIFAR, is as "
        f"large as that at quick scale, and neither cropped nor mirrored. {_SMALL}"
    ),
    arms={
        scale: tuple(
            {"data": data, "net": net, **rest}
            for data in IMAGES[scale]
            for net in _SIZES[scale]
            for rest in ({"head": "none", "p": 0.0}, *grid(head=_HEADS, p=_HEAD_RATES[scale]))
        )
        for scale in SCALES
    },
    seeds=_SEEDS,
    training=_headed,
    measure=heads.head_noise,
    columns=(
        _ERROR,
        Column("test log loss", "test_loss"),
        Column("noise of logits", "logit_noise", digits=4),
        Column("by the formula", "logit_noise_theory", digits=4),
        Column("before / after", "noise_ratio", digits=4),
    ),
    plots={
        "bars": partial(
            plots.bars,
            keys="test_error",
            groups="head",
            panels="p",
            rows=("data", "net"),
            baseline={"p": 0.0},
        ),
        "noise": partial(
            plots.bars,
            keys={"drawn": "logit_noise", "closed form": "logit_noise_theory"},
            groups="head",
            panels="p",
            rows=("data", "net"),
            factor=1.0,
            ylabel="noise of logits",
        ),
    },
    claims=(
        Claim(
            "At the same rate, outputs are more stable with dropout before the pool: logits move less over masks.",
            "abstract; its figures could not be had",
            Between("logit_noise", {"head": "after"}, {"head": "before"}, by=("data", "net", "p"), log=True),
            unit="noise",
            headline=True,
        ),
        Claim(
            "In one and the same net, dropout before the pool makes less noise than after it.",
            "proved, for values none of which is negative",
            Within("after_noise", "before_noise", by=("data", "net", "p"), log=True),
            exact=True,
        ),
        Claim(
            "At the same rate, the error is lower with dropout before the pool.",
            _UNKNOWN,
            Between("test_error", {"head": "after"}, {"head": "before"}, by=("data", "net")),
        ),
        Claim(
            "At equal noise, too, the error is lower with dropout before the pool (ours).",
            OURS,
            Between("test_error", {"head": "after"}, {"head": "before-equal-noise"}, by=("data", "net")),
        ),
        *(
            Claim(
                f"Dropout of {p:g} before the pool lowers the error.",
                _UNKNOWN,
                Between("test_error", {"head": "none", "p": 0.0}, {"head": "before", "p": p}, by=("data", "net")),
            )
            for p in (0.2, 0.5)
        ),
    ),
)

PAPER = Paper(
    name="kim2023",
    title="How to Use Dropout Correctly on Residual Networks with Batch Normalization",
    authors="Bum Jun Kim, Hyeyeon Choi, Hyeonah Jang, Donggeon Lee and Sang Woo Kim",
    url="https://arxiv.org/abs/2302.06112",
    experiments=(module_tests, positions, head, depth),
    left_out=(
        "The guideline holds on other data sets and models, too: Oxford-IIIT Pets and Caltech-101 (PreResNet-101).",
        "On ImageNet, dropout before the global pool raises the accuracy (DenseNet-169).",
    ),
)
