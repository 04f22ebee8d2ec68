"""Hendrycks & Gimpel 2016: Adjusting for dropout variance in batch normalization and weight initialization.

    evenkeel reproduce hendrycks2016 --scale full --data-dir data

The paper's p is the rate to keep; here, the factor `keep` is, and p is the rate to drop. Published values are printed
ones; where the paper prints a figure only, the claims say what it shows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from evenkeel.papers.hendrycks2016_values import DENSENET_ERRORS, DERIVATIVE, LEFT_OUT, MOMENTS, SECOND, VGG_ERRORS
from evenkeel.papers.lab import measures, plots, simulations
from evenkeel.papers.lab.claims import OURS, Between, Claim, Equal, Within
from evenkeel.papers.lab.experiments import Column, Experiment, Paper
from evenkeel.papers.lab.specs import DESK_RECIPE, SCALES, ImageSource, Net, Recipe, Scale, Selection, Training, grid

INITS = {"ours": "hendrycks2016", "forward": "forward", "xavier": "xavier", "he": "he"}  # ours: the printed sum

# Figures 1 and 5: signals and errors at initialization

_SIGNAL_ARMS = grid(keep=(1.0, 0.6), init=("forward", "hendrycks2016", "backward", "xavier", "he"))

signal = Experiment(
    name="signal",
    source="Figures 1 and 5",
    about=(
        "20 layers, 15 of 500 and 5 of 250, ReLU, 1,000 normal inputs; where the authors' code puts fresh matrices and "
        "bare masks into the backward pass, autograd here runs through the net itself. `backward` divides by E f'^2 / "
        "keep, which is what autograd does, and not by the printed keep E f'^2. Neurons are drawn before ReLU."
    ),
    arms=dict.fromkeys(SCALES, _SIGNAL_ARMS),
    seeds={"smoke": 2, "quick": 3, "desk": 5, "full": 5},
    measure=simulations.signal,
    columns=(
        Column("variance at the last layer", "last_forward", digits=3),
        Column("same, dropout off", "last_eval", digits=3),
        Column("errors at the first layer", "first_backward", digits=3),
    ),
    plots={
        "forward": partial(plots.densities, key="forward", columns="init", rows="keep", xlabel="neuron"),
        "backward": partial(plots.densities, key="backward", columns="init", rows="keep", xlabel="error, in units"),
        "variance": partial(
            plots.profiles,
            keys={"train mode": "forward_var", "eval mode": "eval_var"},
            lines="init",
            panels="keep",
            ylabel="mean square of neurons",
        ),
        "errors": partial(
            plots.profiles, keys="backward_var", lines="init", panels="keep", ylabel="mean square of errors"
        ),
    },
    claims=tuple(
        Claim(
            text,
            shown,
            Between(f"{way}_distance", {"init": higher}, {"init": lower}, where=where),
            unit="|ln variance| at the far end",
            factor=1.0,
            headline=text.startswith("Under dropout, He's signals"),
        )
        for text, shown, way, higher, lower, where in (
            (
                "Under dropout, He's signals explode; corrected ones stay.",
                "Fig. 1, keep .6",
                "forward",
                "he",
                "forward",
                {"keep": 0.6},
            ),
            (
                "Under dropout, Xavier's signals decay; corrected ones stay.",
                "Fig. 1, keep .6",
                "forward",
                "xavier",
                "forward",
                {"keep": 0.6},
            ),
            (
                "Without dropout, Xavier's signals decay; corrected ones stay.",
                "Fig. 1, keep 1",
                "forward",
                "xavier",
                "forward",
                {"keep": 1.0},
            ),
            (
                "The printed sum of both corrections keeps signals better than the forward one alone (ours).",
                OURS,
                "forward",
                "forward",
                "hendrycks2016",
                {},
            ),
            (
                "Under dropout, He's errors stay more even than those corrected by E f'^2 / keep (ours).",
                "Fig. 5, keep .6: He does well",
                "backward",
                "backward",
                "he",
                {"keep": 0.6},
            ),
        )
    ),
)

# Table 1: moments of activations

_MOMENTS_ARMS = grid(activation=("identity", "relu", "gelu", "tanh", "elu"))

moments = Experiment(
    name="moments",
    source="Table 1",
    about="E f(z)^2 and E f'(z)^2 by quadrature, beside a million draws, and beside the printed values.",
    arms=dict.fromkeys(SCALES, _MOMENTS_ARMS),
    seeds=dict.fromkeys(SCALES, 1),
    measure=simulations.moments,
    columns=(
        Column("E f^2", "second", digits=4),
        Column("E f^2, drawn", "drawn_second", digits=4),
        Column("E f'^2", "derivative_second", digits=4),
        Column("E f'^2, drawn", "drawn_derivative_second", digits=4),
    ),
    published=MOMENTS,
    plots={
        "bars": partial(
            plots.bars,
            keys={"E f^2": "second", "E f'^2": "derivative_second"},
            groups="activation",
            published=MOMENTS,
            factor=1.0,
            ylabel="moment",
        )
    },
    claims=(
        Claim("E f^2 is as printed, to three digits.", "5 values", Equal("second", SECOND, tolerance=6e-4), exact=True),
        Claim(
            "E f'^2 is as printed, to three digits.",
            "5 values",
            Equal("derivative_second", DERIVATIVE, tolerance=6e-4),
            exact=True,
        ),
        Claim(
            "tanh's E f'^2 is .216, if it is squared once more.",
            ".216",
            Equal("derivative_squared", {"tanh": 0.216}, tolerance=6e-4),
            exact=True,
        ),
    ),
)

# Figure 2: MNIST

_MNIST = {
    "smoke": (ImageSource("digits", train=600, test=300, validation=200), [32] * 3, Recipe(epochs=2, batch=64)),
    "quick": (ImageSource("mnist", train=10_000, validation=5_000), [256] * 7, Recipe(epochs=5, batch=64)),
    "desk": (ImageSource("mnist", validation=5_000), [256] * 7, Recipe(epochs=5, batch=64)),
    "full": (ImageSource("mnist", validation=5_000), [256] * 7, Recipe(epochs=25, batch=64)),
}


def _mnist(scale: Scale, activation: str, keep: float, init: str, lr: float) -> Training:
    source, widths, recipe = _MNIST[scale]
    noise = {"places": "hidden", "noise": ["Dropout", round(1 - keep, 6)]}
    net = Net("mlp", {"widths": widths, "activation": activation, **noise})
    return Training(net, source, replace(recipe, optimizer="adam", lr=lr, watched=5_000), INITS[init])


mnist = Experiment(
    name="mnist",
    source="Figure 2",
    about=(
        "8 weight layers, 256 wide, 25 epochs of Adam in batches of 64; the rate is chosen by the loss on 5,000 held "
        "out images. `ours` is the printed sum of both corrections, `forward` the one correction that it suggests for "
        "convolutional nets, and evenkeel's default."
    ),
    arms={
        "smoke": grid(activation=("relu",), keep=(0.5,), init=tuple(INITS), lr=(1e-3, 1e-4)),
        "quick": grid(activation=("relu", "tanh"), keep=(0.5, 0.3), init=tuple(INITS), lr=(1e-3, 1e-4)),
        "desk": grid(activation=("relu", "tanh"), keep=(0.5, 0.3), init=tuple(INITS), lr=(1e-3, 1e-4)),
        "full": grid(
            activation=("relu", "tanh", "elu", "gelu"), keep=(1.0, 0.5, 0.3), init=tuple(INITS), lr=(1e-3, 1e-4, 1e-5)
        ),
    },
    seeds={"smoke": 2, "quick": 3, "desk": 3, "full": 3},
    training=_mnist,
    measure=measures.scores,
    selection=Selection(over="lr", by="validation_loss"),
    columns=(
        Column("test error %", "test_error", 100, 2),
        Column("validation log loss", "validation_loss"),
        Column("same, mean over epochs", "mean_validation_loss"),
    ),
    plots={
        "curves": partial(
            plots.curves,
            keys="validation_eval_loss",
            lines="init",
            columns="keep",
            rows="activation",
            ylabel="validation log loss",
            log=True,
        )
    },
    claims=tuple(
        Claim(
            f"At keep {keep}, {which}ours converges sooner than {name}.",
            f"Fig. 2: {shown}",
            Between(
                "mean_validation_loss",
                {"init": than},
                {"init": "ours"},
                ("activation",),
                {"keep": keep, **only},
                log=True,
            ),
            unit="mean log loss",
            headline=keep == 0.5 and than == "he",
        )
        for keep, which, only, shown in (
            (0.5, "with ReLU, ELU or GELU, ", {"activation": ("relu", "elu", "gelu")}, "faster for these"),
            (0.3, "", {}, "large gains"),
        )
        for than, name in (("xavier", "Xavier"), ("he", "He"))
    ),
)

# Figure 4: VGG on CIFAR-10

_DRAWN = (1.6e-5, 6.5e-5, 2.9e-4, 7.4e-4, 3.2e-3, 2.1e-2, 6.3e-2)  # once, log-uniform in 1e-5 to 1e-1, as 7 of 10 were
_RATES = {"nesterov": (1e-2, 1e-3, 1e-4), "adam": (1e-3, 1e-4, 1e-5)}
_VGG = {
    "smoke": (ImageSource("synthetic", validation=100), {"width": 4, "size": 16, "stacks": 3}, 1),
    "quick": (ImageSource("cifar10", train=10_000, validation=2_500), {"width": 16}, 10),
    "desk": (ImageSource("cifar10", validation=5_000), {"width": 32}, 15),
    "full": (ImageSource("cifar10", validation=5_000), {"width": 64}, 150),
}


def _vgg(scale: Scale, optimizer: str, init: str, lr: float) -> Training:
    source, sizes, epochs = _VGG[scale]
    recipe = Recipe(
        epochs=epochs,
        batch=128,
        optimizer="adam" if optimizer == "adam" else "nesterov",
        lr=lr,
        weight_decay=5e-4,
        milestones=(100 / 150, 125 / 150),
        augment=True,
    )
    return Training(Net("vgg", sizes), source, recipe, {"ours": "forward", "he": "he"}[init])


def _vgg_arms(drawn: tuple[float, ...], known: int) -> tuple[dict[str, object], ...]:
    return tuple(
        dict(factors)
        for optimizer, rates in _RATES.items()
        for factors in grid(optimizer=(optimizer,), init=("ours", "he"), lr=(*rates[:known], *drawn))
    )


cifar10_vgg = Experiment(
    name="cifar10_vgg",
    source="Figure 4",
    about=(
        "The regularized VGG without batch norm, ours without the backward term against He, each at its best of ten "
        "rates, chosen on 5,000 held out images (the paper does not say by what), so trained on the other 45,000. The "
        "correction also knows what a max-pool does to the signal, which the paper leaves out."
    ),
    arms={"smoke": _vgg_arms((), 1), "quick": _vgg_arms((), 2), "desk": _vgg_arms((), 2), "full": _vgg_arms(_DRAWN, 3)},
    seeds={"smoke": 1, "quick": 3, "desk": 3, "full": 3},
    training=_vgg,
    measure=measures.scores,
    selection=Selection(over="lr", by="validation_error"),
    columns=(Column("test error %", "test_error", 100, 2),),
    published=VGG_ERRORS,
    plots={
        "bars": partial(plots.bars, keys="test_error", groups="optimizer", beside="init", published=VGG_ERRORS),
        "curves": partial(
            plots.curves,
            keys={"training": "train_error", "validation": "validation_eval_error"},
            lines="init",
            columns="optimizer",
            ylabel="error",
        ),
    },
    claims=(
        Claim(
            "The corrected init reaches a lower error than He's.",
            "9.51 against 10.54 (Adam), 7.41 against 24.65 (Nesterov)",
            Between("test_error", {"init": "he"}, {"init": "ours"}, by=("optimizer",)),
        ),
    ),
)

# Table 2: DenseNet, variances re-estimated

_DENSENET = {
    "smoke": (ImageSource("synthetic"), {"depth": 7, "growth": 4}, 2),
    "quick": (ImageSource("cifar10", train=10_000, size=16), {"depth": 10, "growth": 8}, 10),
    "desk": (ImageSource("cifar10"), {"depth": 16, "growth": 12}, 12),
    "full": (ImageSource("cifar10"), {}, 300),
}


def _densenet(scale: Scale, data: str, depth: int, keep: float) -> Training:
    source, sizes, epochs = _DENSENET[scale]
    if scale == "full":
        source, sizes = ImageSource(data), {"depth": depth, "growth": 12}
    recipe = Recipe(
        epochs=40 if data == "svhn" else epochs,
        batch=64,
        lr=0.1,
        weight_decay=1e-4,
        milestones=(0.5, 0.75),
        reset_momentum=5,
        snapshots=(0.5,),
    )
    if scale == "desk":
        recipe = replace(DESK_RECIPE, augment=False, reset_momentum=5, snapshots=(0.5,))
    noise = {"places": "conv", "noise": ["Dropout", round(1 - keep, 6)]}
    return Training(Net("densenet", {**sizes, **noise}), source, recipe)


densenet_bn = Experiment(
    name="densenet_bn",
    source="Table 2",
    about=(
        "DenseNets without bottlenecks, trained without augmentation, momentum reset every 5 epochs; then test errors "
        "as trained and with norm statistics taken over the training images with dropout off: variances only, as the "
        "paper says, and means, too; the net at the end also by what li2018/adjust lists. The paper's are moving "
        "averages, ours are over all images. SVHN is its 73,257 training images; the published nets may have seen its "
        "extra ones. At desk scale: 16 layers, 16 epochs of one cycle."
    ),
    arms={
        "smoke": grid(data=("synthetic",), depth=(7,), keep=(0.8,)),
        "quick": grid(data=("cifar10",), depth=(10,), keep=(0.8, 0.7, 0.5)),
        "desk": grid(data=("cifar10",), depth=(16,), keep=(0.8, 0.7, 0.5)),
        "full": (
            {"data": "svhn", "depth": 40, "keep": 0.8},
            {"data": "cifar10", "depth": 40, "keep": 0.8},
            {"data": "cifar10", "depth": 100, "keep": 0.8},
            {"data": "cifar100", "depth": 100, "keep": 0.7},
            {"data": "cifar100", "depth": 100, "keep": 0.8},
        ),
    },
    seeds={"smoke": 1, "quick": 3, "desk": 3, "full": 3},
    training=_densenet,
    measure=measures.snapshots,
    columns=(
        Column("halfway %", "halfway_error", 100, 2),
        Column("halfway, variances %", "halfway_var_error", 100, 2),
        Column("halfway, both %", "halfway_both_error", 100, 2),
        Column("final %", "final_error", 100, 2),
        Column("final, variances %", "final_var_error", 100, 2),
        Column("final, both %", "final_both_error", 100, 2),
        Column("final, mean kept %", "final_mean_matched_error", 100, 2),
        Column("final, without data %", "final_corrected_error", 100, 2),
        Column("final, masks %", "final_ensemble_error", 100, 2),
    ),
    published=DENSENET_ERRORS,
    plots={
        "bars": partial(
            plots.bars,
            keys={
                f"{stage}, {shown}": f"{stage}_{key}error"
                for stage in ("halfway", "final")
                for key, shown in (("", "as trained"), ("var_", "variances"), ("both_", "means, too"))
            },
            groups=("data", "depth", "keep"),
            published=DENSENET_ERRORS,
        )
    },
    claims=tuple(
        Claim(
            f"{what} with dropout off lower the error of the {stage} net.",
            shown if stats == "var" else OURS,
            Within(f"{stage}_error", f"{stage}_{stats}_error", by=("data", "depth", "keep")),
            headline=(stage, stats) == ("final", "var"),
        )
        for stage, shown in (("halfway", "-0.30 to -2.08 points"), ("final", "-0.07 to -1.43 points"))
        for stats, what in (("var", "Variances"), ("both", "Means and variances"))
    ),
)

PAPER = Paper(
    name="hendrycks2016",
    title="Adjusting for Dropout Variance in Batch Normalization and Weight Initialization",
    authors="Dan Hendrycks and Kevin Gimpel",
    url="https://arxiv.org/abs/1607.02488",
    experiments=(signal, moments, mnist, cifar10_vgg, densenet_bn),
    left_out=LEFT_OUT,
)
