"""Blocks: one branch of a residual net, and a stack of them, fully connected, just initialized and never trained."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from statistics import fmean, geometric_mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evenkeel.papers.lab.specs import Scale
from evenkeel.papers.lab.trials import Trial
from evenkeel.prediction.shift_prediction import predict_shift
from evenkeel.shift.shift import variance_shift
from evenkeel.theory.kim2023 import post_dropout_variance, pre_dropout_variance, residual_dilution

WIDTH = 128

# Branches of a block by kim2023's positions, and with chen2019's IC, a norm and dropout.
DESIGNS = {
    "P3": "norm act drop fc norm act fc",
    "P4": "norm act fc drop norm act fc",
    "P6": "norm act fc norm act drop fc",
    "P7": "norm act fc norm act fc drop",
    "P3-P6": "norm act drop fc norm act drop fc",
    "ic": "act norm drop fc act norm drop fc",
    "ic-last": "act norm fc act norm drop fc",
}


class Size(NamedTuple):
    """How much is drawn.

    Attributes:
        samples: rows of the batch that one branch is given.
        points: of each curve.
        blocks: of a stack.
        rows: of the batch that a stack is given.
    """

    samples: int
    points: int
    blocks: int
    rows: int


_SIZES: dict[Scale, Size] = {
    "smoke": Size(2_000, 3, 3, 2_000),
    "quick": Size(20_000, 21, 9, 10_000),
    "desk": Size(100_000, 21, 9, 20_000),
    "full": Size(100_000, 21, 9, 20_000),
}


def module_tests(trial: Trial) -> dict[str, Any]:
    """Delta = Var_eval / Var_train of one unit, averaged over 128 of them, drawn and by the closed form (kim2023).

    Figure 1: of a weight layer that reads a rectified norm, with dropout before it (`pre`) and behind it (`post`), over
    the `weight_mean`. Figure 2: of the branch with dropout at P6 (`branch`) and of the block, with the trunk added
    (`block`), over the trunk's `deviation`. Each curve has a `_theory` beside it; weights, inputs and masks are drawn
    once, so that neighbours on a curve differ in nothing else.

    Factors: `p`, the drop rate.

    Figures: the curves; `pre_at_0`, `post_at_0`, `pre_at_end`, `post_at_end`, at a weight mean of 0 and averaged over
    both ends; `block_at_least`, `block_at_most`, at the smallest and the largest deviation, and `branch_at_least`,
    `branch_at_most`; `worst`, the largest distance between what is drawn and its closed form.
    """
    size, p = _SIZES[trial.scale], trial.factors["p"]
    curves = _over_weight_means(size, p) | _over_deviations(size, p)
    middle = size.points // 2
    pairs = [(curves[name], curves[f"{name}_theory"]) for name in ("pre", "post", "branch", "block")]
    return {
        **curves,
        **{f"{name}_at_0": curves[name][middle] for name in ("pre", "post")},
        **{f"{name}_at_end": (curves[name][0] + curves[name][-1]) / 2 for name in ("pre", "post")},
        **{f"{name}_at_least": curves[name][0] for name in ("branch", "block")},
        **{f"{name}_at_most": curves[name][-1] for name in ("branch", "block")},
        "worst": max(abs(drawn - theory) for found, law in pairs for drawn, theory in zip(found, law, strict=True)),
    }


def depth(trial: Trial) -> dict[str, Any]:
    """How the shift of norms accumulates over a stack of residual blocks, untrained, measured and predicted.

    The statistics are those of one batch of normal inputs, which is then met in eval mode.

    Factors: `design`, a name in `DESIGNS`, and `p`, the drop rate.

    Figures: `trunk`, Var_eval / Var_train behind the last block, and `trunk_first` behind the first; `in_branch`, that
    at the last norm of a branch, averaged over blocks; `trunks` and `in_branches`, block by block; the same with
    `predicted_` before it, by `evenkeel.predict_shift`; `log_error`, how far that is off over all norms, as the mean
    |ln|.
    """
    size = _SIZES[trial.scale]
    net = stack(trial.factors["design"], size.blocks, trial.factors["p"])
    inputs = torch.randn(size.rows, WIDTH)
    with torch.no_grad():
        net.train()(inputs)
    measured = [row.ratio for row in variance_shift(net, [inputs])]
    predicted = [row.ratio for row in predict_shift(net, inputs[:2])]
    errors = [abs(math.log(guess / found)) for guess, found in zip(predicted, measured, strict=True)]
    return {
        **_by_place(measured),
        **{f"predicted_{name}": value for name, value in _by_place(predicted).items()},
        "log_error": fmean(errors),
    }


def stack(design: str, blocks: int, p: float, width: int = WIDTH) -> nn.Sequential:
    """Residual blocks of two weight layers, a norm that reads the last one, and a classifier; norms average exactly.

    Args:
        design: a name in `DESIGNS`.
        blocks: how many.
        p: drop rate.
        width: features of every layer.

    >>> [name for name, _ in stack("P6", 1, 0.1, width=4)[0].branch.named_children()]
    ['norm1', 'act1', 'fc1', 'norm2', 'act2', 'drop1', 'fc2']
    """
    made = [Block(_branch(DESIGNS[design], p, width)) for _ in range(blocks)]
    return nn.Sequential(*made, nn.BatchNorm1d(width, momentum=1.0), nn.Linear(width, 10))


class Block(nn.Module):
    """A residual block: its input, and what the branch makes of it, added.

    Args:
        branch: keeps the shape.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Shape (samples, features), kept."""
        return x + self.branch(x)


def _branch(design: str, p: float, width: int) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module]()
    for kind in design.split():
        name = f"{kind}{1 + sum(other.startswith(kind) for other in layers)}"
        if kind == "norm":
            layers[name] = nn.BatchNorm1d(width, momentum=1.0)
        elif kind == "fc":
            layers[name] = nn.Linear(width, width, bias=False)
            nn.init.normal_(layers[name].weight, std=math.sqrt(2 / width))  # type: ignore[arg-type]
        else:
            layers[name] = nn.ReLU() if kind == "act" else nn.Dropout(p)
    return nn.Sequential(layers)


def _by_place(ratios: Sequence[float]) -> dict[str, Any]:
    """Ratios of all norms, two a block and one behind them, as those that read the trunk and those in a branch."""
    trunks, branches = list(ratios[2::2]), list(ratios[1::2])
    return {
        "trunk": trunks[-1],
        "trunk_first": trunks[0],
        "in_branch": geometric_mean(branches),
        "trunks": trunks,
        "in_branches": branches,
    }


def _over_weight_means(size: Size, p: float) -> dict[str, list[float]]:
    x, spread = _features(torch.randn(size.samples, WIDTH)), _weight()
    mean, covariance = _moments(x)
    before, behind = _mask(size, p), _mask(size, p)
    curves: dict[str, list[float]] = {"weight_mean": torch.linspace(-0.02, 0.02, size.points).tolist()}
    for m in curves["weight_mean"]:
        weight = spread + m
        outputs = x @ weight.T
        clean, pre, post = _variance(outputs), (before * x) @ weight.T, behind * outputs
        signal = pre_dropout_variance(weight.double(), mean, covariance, 0)
        laws = (pre_dropout_variance, post_dropout_variance)
        for name, drawn, law in zip(("pre", "post"), (pre, post), laws, strict=True):
            curves.setdefault(name, []).append(_mean(clean / _variance(drawn)))
            theory = signal / law(weight.double(), mean, covariance, p)
            curves.setdefault(f"{name}_theory", []).append(_mean(theory))
    return curves


def _over_deviations(size: Size, p: float) -> dict[str, list[float]]:
    unit, inner, outer, mask = torch.randn(size.samples, WIDTH), _weight(), _weight(), _mask(size, p)
    curves: dict[str, list[float]] = {"deviation": torch.linspace(0.2, 5, size.points).tolist()}
    for deviation in curves["deviation"]:
        trunk = deviation * unit
        x = _features(trunk, inner)
        clean, noisy = x @ outer.T, (mask * x) @ outer.T
        law = (outer.double(), *_moments(x))
        branch = pre_dropout_variance(*law, 0)
        shift = branch / pre_dropout_variance(*law, p)
        found = {
            "branch": _variance(clean) / _variance(noisy),
            "block": _variance(trunk + clean) / _variance(trunk + noisy),
            "branch_theory": shift,
            "block_theory": residual_dilution(shift, trunk=_variance(trunk), branch=branch),
        }
        for name, values in found.items():
            curves.setdefault(name, []).append(_mean(torch.as_tensor(values)))
    return curves


def _features(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Norm, activation, weight, norm and activation: what the last weight layer of a branch reads."""
    return torch.relu(_normalized(torch.relu(_normalized(x)) @ (_weight() if weight is None else weight).T))


def _normalized(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def _weight() -> Tensor:
    return torch.randn(WIDTH, WIDTH) * math.sqrt(2 / WIDTH)


def _mask(size: Size, p: float) -> Tensor:
    return F.dropout(torch.ones(size.samples, WIDTH), p)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0, dtype=torch.float64)
    return mean, (x.T @ x).double() / len(x) - mean[:, None] * mean


def _variance(x: Tensor) -> Tensor:
    return (x - x.mean(0)).square().mean(0).double()


def _mean(values: Tensor) -> float:
    return float(values.mean())
