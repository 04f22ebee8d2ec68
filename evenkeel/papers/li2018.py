"""Li, Chen, Hu & Yang 2018: Understanding the disharmony between dropout and batch normalization by variance shift.

    evenkeel reproduce li2018 --scale full --data-dir data

The paper's p is the rate to keep; here, p is the rate to drop, as in the paper's tables. Published values are printed
ones, and those of Figures 4 and 5 are read off the vector graphics, within .03 points.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from evenkeel.papers.lab import measures, plots
from evenkeel.papers.lab.claims import OURS, Between, Claim, Within
from evenkeel.papers.lab.experiments import Column, Experiment, Paper
from evenkeel.papers.lab.specs import CIFAR, SCALES, Factors, Net, Scale, Training, grid
from evenkeel.papers.li2018_nets import SIZES, recipe_at
from evenkeel.papers.li2018_values import FIGURE_4, TABLE_1, TABLE_3, TABLE_4, TABLE_6
from evenkeel.theory.li2018 import equal_noise_p

_SEEDS: dict[Scale, int] = {"smoke": 1, "quick": 3, "desk": 3, "full": 5}
_SMALL = (
    "At quick scale: nets of 10 to 16 layers, the wide one of 16 to 64 channels, 10,000 images averaged down to 16x16, "
    "8 epochs. At desk scale: nets of 16 to 22 layers, all images as they are, 16 epochs of one cycle."
)


def _training(scale: Scale, data: str, net: str, places: str, noise: str, amount: float) -> Training:
    dropout = {"places": places, "noise": [noise, amount]} if places != "none" else {}
    return Training(Net(net, {**SIZES[scale][net], **dropout}), CIFAR[scale][data], recipe_at(scale, net))


def _placed(scale: Scale, data: str, net: str, place: str, p: float) -> Training:
    return _training(scale, data, net, place, "Dropout", p)


def _last(scale: Scale, data: str, net: str, p: float) -> Training:
    return _training(scale, data, net, "last" if p else "none", "Dropout", p)


def _uout(scale: Scale, data: str, net: str, noise: str, beta: float) -> Training:
    kind, amount = ("Uout", beta) if noise == "uout" else ("Dropout", float(equal_noise_p(beta)))
    return _training(scale, data, net, "none" if noise == "none" else "b", kind, amount)


def _arms(without: Factors, **factors: Mapping[Scale, tuple[Any, ...]]) -> dict[Scale, tuple[Factors, ...]]:
    """All four nets on all data of a scale, without dropout and with it at every combination of factors, if any."""
    return {
        scale: tuple(
            {"data": data, "net": net, **rest}
            for data in CIFAR[scale]
            for net in SIZES[scale]
            for rest in (
                without,
                *(grid(**{name: levels[scale] for name, levels in factors.items()}) if factors else ()),
            )
        )
        for scale in SCALES
    }


_PLACES = dict.fromkeys(SCALES, ("a", "b"))
_NONE = {"place": "none", "p": 0.0}
_HALF: dict[Scale, tuple[float, ...]] = dict.fromkeys(SCALES, (0.5,))
_ERROR = Column("test error %", "test_error", 100, 2)


# Table 1: angles

angles = Experiment(
    name="angles",
    source="Table 1",
    about=(
        "Squared cosine between filters and the vector of ones, of nets trained without dropout, and the test error "
        f"that these reach. {_SMALL}"
    ),
    arms=_arms({}),
    seeds=_SEEDS,
    training=partial(_training, places="none", noise="Dropout", amount=0.0),
    measure=measures.angles,
    columns=(Column("cos^2", "cos2", digits=4), Column("d cos^2", "d_cos2", digits=2), _ERROR),
    published=TABLE_1,
    plots={
        "bars": partial(
            plots.bars, keys="d_cos2", groups="net", panels="data", factor=1.0, ylabel="d cos^2", published=TABLE_1
        )
    },
    claims=(
        Claim(
            "Filters are closer to the vector of ones, by d cos^2, in a wide net (WRN) than in a thin one (PreResNet).",
            "52.7 against 2.9 (CIFAR-10)",
            Between("d_cos2", {"net": "wrn"}, {"net": "preresnet"}, log=True),
            unit="d cos^2",
        ),
    ),
)

# Figure 4: the shift

_SHIFT_RATES: dict[Scale, tuple[float, ...]] = {
    "smoke": (0.5,),
    "quick": (0.3, 0.5),
    "desk": (0.5, 0.3),
    "full": (0.1, 0.3, 0.5, 0.7),
}

shift = Experiment(
    name="shift",
    source="Figure 4",
    about=(
        "Dropout (a) right before the last norm of every block, (b) before its last convolution: test error, and at "
        "every norm the variance met in eval mode over the training images, augmented, against the one stored, folded "
        f"max(r, 1/r). {_SMALL}"
    ),
    arms=_arms(_NONE, place=_PLACES, p=_SHIFT_RATES),
    seeds=_SEEDS,
    training=_placed,
    measure=measures.shift,
    columns=(
        _ERROR,
        Column("median shift", "median"),
        Column("worst shift", "worst", digits=2),
        Column("shift after dropout", "after_dropout", digits=2),
    ),
    published=FIGURE_4,
    plots={
        "profile": partial(
            plots.profiles,
            keys="folded",
            lines="p",
            panels="net",
            rows=("data", "place"),
            baseline={"place": "none"},
            xlabel="norm",
            ylabel="shift, folded",
        ),
        "bars": partial(
            plots.bars,
            keys="test_error",
            groups="p",
            panels="net",
            rows=("data", "place"),
            baseline={"place": "none"},
            published=FIGURE_4,
        ),
    },
    claims=(
        Claim(
            "Dropout of 0.5 right before norms (a) raises the test error.",
            "4.9 to 8.4 (PreResNet), 4.8 to 8.7 (DenseNet), 3.8 to 4.4 (ResNeXt), 4.0 to 4.6 (WRN)",
            Between("test_error", {"place": "a", "p": 0.5}, {"place": "none", "p": 0.0}, by=("data", "net")),
            headline=True,
        ),
        Claim(
            "Dropout right before norms (a) shifts them more than dropout before the last convolution (b).",
            "median 1.27 against 1.05 (PreResNet, .5), 1.48 against 1.02 (DenseNet, .5)",
            Between("median", {"place": "a"}, {"place": "b"}, by=("data", "net"), log=True),
            unit="median shift",
            headline=True,
        ),
        Claim(
            "Dropout right before norms (a) raises the test error more than dropout before the last convolution (b).",
            "8.43 against 5.86 (PreResNet, .5), 8.70 against 5.63 (DenseNet, .5)",
            Between("test_error", {"place": "a"}, {"place": "b"}, by=("data", "net")),
        ),
        Claim(
            "The shift grows with the drop rate.",
            "worst, (a): 1.53 at .3, 2.35 at .5 (PreResNet)",
            Between("worst", {"p": 0.5}, {"p": 0.3}, by=("data", "net", "place"), log=True),
            unit="worst shift",
        ),
        Claim(
            "With (b), the shift of the wide net is smaller than that of the thin one.",
            "median 1.025 (WRN) against 1.046 (PreResNet), .5",
            Between("median", {"net": "wrn"}, {"net": "preresnet"}, by=("data", "p"), where={"place": "b"}, log=True),
            unit="median shift",
        ),
    ),
)

# Table 3: statistics adjusted

adjust = Experiment(
    name="adjust",
    source="Table 3",
    about=(
        "The nets of `shift`, at desk scale of both rates: test errors as trained, and with means and variances over "
        "the training images with dropout off (`evenkeel.reestimate_`). Not the paper's: by the same images, with each "
        "norm's mean over masks kept; corrected without data (`evenkeel.correct_`); and the mean of what the net says "
        f"under {measures.MASKS} masks."
    ),
    arms=_arms(_NONE, place=_PLACES, p={**_HALF, "desk": _SHIFT_RATES["desk"]}),
    seeds={**_SEEDS, "desk": 5},
    training=_placed,
    measure=measures.adjust,
    columns=(
        _ERROR,
        Column("adjusted %", "adjusted_error", 100, 2),
        Column("mean kept %", "mean_matched_error", 100, 2),
        Column("without data %", "corrected_error", 100, 2),
        Column("masks %", "ensemble_error", 100, 2),
    ),
    published=TABLE_3,
    plots={
        "bars": partial(
            plots.bars,
            keys={"as trained": "test_error", "adjusted": "adjusted_error", "without data": "corrected_error"},
            groups=("place", "p"),
            panels="net",
            rows="data",
            published=TABLE_3,
        )
    },
    claims=(
        *(
            Claim(
                f"With dropout ({place}) of 0.5, adjusted statistics lower the test error.",
                shown,
                Within("test_error", "adjusted_error", by=("data", "net"), where={"place": place, "p": 0.5}),
                headline=place == "a",
            )
            for place, shown in (
                ("a", "-0.4 to -5.9 points, all 4 nets on both sets"),
                ("b", "-0.1 to -1.1 points, all 4 nets on both sets"),
            )
        ),
        Claim(
            "Without data, correction lowers it, too (ours).",
            OURS,
            Within("test_error", "corrected_error", by=("data", "net"), where={"place": "a", "p": 0.5}),
        ),
        *(
            Claim(
                f"With dropout ({place}), keeping the mean over masks lowers it more than adjusted statistics (ours).",
                OURS,
                Within("adjusted_error", "mean_matched_error", by=("data", "net"), where={"place": place}),
            )
            for place in ("a", "b")
        ),
    ),
)

# Figure 5: the same images in both modes

train_eval = Experiment(
    name="train_eval",
    source="Figure 5",
    about=(
        "Error on the training images in train mode and in eval mode, with dropout (a) of 0.5 and without; the curves "
        "show batches as they are trained on against images in eval mode."
    ),
    arms=_arms(_NONE, place=dict.fromkeys(SCALES, ("a",)), p=_HALF),
    seeds=_SEEDS,
    training=_placed,
    measure=measures.train_eval,
    columns=(
        Column("train mode, error %", "train_mode_error", 100, 1),
        Column("eval mode, error %", "eval_mode_error", 100, 1),
    ),
    published={
        "cifar10-preresnet-a-0.5": {"train_mode_error": 1.2, "eval_mode_error": 1.5},
        "cifar10-densenet-a-0.5": {"train_mode_error": 0.6, "eval_mode_error": 3.4},
        "cifar100-preresnet-a-0.5": {"train_mode_error": 4.7, "eval_mode_error": 17.1},
        "cifar100-densenet-a-0.5": {"train_mode_error": 5.2, "eval_mode_error": 22.6},
    },
    plots={
        "curves": partial(
            plots.curves,
            keys={"train mode": "train_error", "eval mode": "train_eval_error"},
            lines=("place", "p"),
            columns="net",
            rows="data",
            transform=plots.accuracy,
            ylabel="right on training images, %",
        )
    },
    claims=(
        Claim(
            "With dropout (a), training images fare worse in eval mode than in train mode.",
            "98.8 to 98.5 and 99.4 to 96.6 % right (CIFAR-10), 95.3 to 82.9 and 94.8 to 77.4 (CIFAR-100)",
            Within("eval_mode_error", "train_mode_error", by=("data", "net"), where={"place": "a"}),
        ),
        Claim(
            "With dropout (a), eval mode costs training images more than without dropout.",
            "99.9 to 100 % in both modes",
            Between("gap", {"place": "a", "p": 0.5}, {"place": "none", "p": 0.0}, by=("data", "net")),
        ),
    ),
)

# Table 4: one dropout, behind all norms

_LAST_RATES: dict[Scale, tuple[float, ...]] = {
    "smoke": (0.5,),
    "quick": (0.2, 0.5),
    "desk": (0.5, 0.2),
    "full": (0.1, 0.2, 0.3, 0.5),
}

last_layer = Experiment(
    name="last_layer",
    source="Table 4",
    about=f"One dropout right before the classifier, behind all norms. {_SMALL}",
    arms=_arms({"p": 0.0}, p=_LAST_RATES),
    seeds=_SEEDS,
    training=_last,
    measure=measures.scores,
    columns=(_ERROR,),
    published=TABLE_4,
    plots={"bars": partial(plots.bars, keys="test_error", groups="p", panels="net", rows="data", published=TABLE_4)},
    claims=(
        Claim(
            "One dropout of 0.5 behind all norms lowers the error.",
            "-0.13 to +0.15 points (CIFAR-10), +0.03 to +0.91 (CIFAR-100)",
            Between("test_error", {"p": 0.0}, {"p": 0.5}, by=("data", "net")),
        ),
        Claim(
            "One dropout of 0.2 behind all norms lowers the error.",
            "-0.08 to +0.03 points (CIFAR-10), -0.17 to +0.21 (CIFAR-100)",
            Between("test_error", {"p": 0.0}, {"p": 0.2}, by=("data", "net")),
        ),
    ),
)

# Table 6: Uout

_BETAS: dict[Scale, tuple[float, ...]] = {**_HALF, "full": (0.1, 0.2, 0.3, 0.5)}

uout = Experiment(
    name="uout",
    source="Table 6",
    about=(
        "Uout in the places (b), and dropout there of equal noise, p = beta^2 / (3 + beta^2), which the paper does not "
        f"compare with. {_SMALL}"
    ),
    arms=_arms({"noise": "none", "beta": 0.0}, noise=dict.fromkeys(SCALES, ("uout", "dropout")), beta=_BETAS),
    seeds=_SEEDS,
    training=_uout,
    measure=measures.shift,
    columns=(_ERROR, Column("median shift", "median"), Column("worst shift", "worst", digits=2)),
    published=TABLE_6,
    plots={
        "bars": partial(
            plots.bars,
            keys="test_error",
            groups=("noise", "beta"),
            panels="net",
            rows="data",
            published=TABLE_6,
        )
    },
    claims=(
        Claim(
            "Uout of beta 0.5 lowers the test error.",
            "-0.13 to +0.02 points (CIFAR-10), -0.30 to +0.08 (CIFAR-100)",
            Between("test_error", {"noise": "none", "beta": 0.0}, {"noise": "uout", "beta": 0.5}, by=("data", "net")),
        ),
        Claim(
            "Uout does better than dropout of equal noise (ours).",
            OURS,
            Between("test_error", {"noise": "dropout"}, {"noise": "uout"}, by=("data", "net")),
        ),
        Claim(
            "Uout shifts less than dropout of equal noise (ours; by its theory, as much).",
            OURS,
            Between("worst", {"noise": "dropout"}, {"noise": "uout"}, by=("data", "net"), log=True),
            unit="worst shift",
        ),
    ),
)

PAPER = Paper(
    name="li2018",
    title="Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift",
    authors="Xiang Li, Shuo Chen, Xiaolin Hu and Jian Yang",
    url="https://arxiv.org/abs/1801.05134",
    experiments=(angles, shift, adjust, train_eval, last_layer, uout),
    left_out=(
        "Dropout of 0.1 right before norms (a) costs next to nothing (Figure 4).",
        "In wide nets on CIFAR-10, dropout before the last convolution (b) of 0.1 to 0.5 lowers the error (Figure 4).",
        "On ImageNet, one dropout of 0.2 behind all norms lowers the error of large nets (Table 5).",
        "Uout is hurt less by few data than one dropout behind all norms (section 5).",
    ),
)
