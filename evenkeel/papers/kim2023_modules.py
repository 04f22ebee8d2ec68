"""Kim et al. 2023: the module tests, and how the shift accumulates over a stack; simulated, nothing is trained."""

from __future__ import annotations

from functools import partial

from evenkeel.papers.lab import blocks, plots
from evenkeel.papers.lab.claims import OURS, Between, Claim, Equal, Within
from evenkeel.papers.lab.experiments import Column, Experiment
from evenkeel.papers.lab.specs import SCALES, arm_name, grid

# Figures 1 and 2: one branch, untrained

_MODULE_ARMS = grid(p=(0.1, 0.2, 0.3, 0.4, 0.5))

module_tests = Experiment(
    name="module_tests",
    source="Figures 1 and 2",
    about=(
        "Delta = Var_eval / Var_train, of units of a branch of width 128 with normal weights and inputs, untrained, by "
        "the authors' code: behind W D x and D W x over the mean of the weights (Proposition 2), and behind f(x) and "
        "x + f(x) with dropout at P6 over the deviation of x (Propositions 3 and 4); closed forms beside. The code "
        "takes 201 and 961 points; here they are 21 of one draw of weights, inputs and masks, at every rate for both."
    ),
    arms=dict.fromkeys(SCALES, _MODULE_ARMS),
    seeds={"smoke": 1, "quick": 3, "desk": 3, "full": 3},
    measure=blocks.module_tests,
    columns=(
        Column("W D x, mean 0", "pre_at_0"),
        Column("W D x, mean .02", "pre_at_end"),
        Column("D W x, mean 0", "post_at_0"),
        Column("D W x, mean .02", "post_at_end"),
        Column("f(x)", "branch_at_least"),
        Column("x + f(x), deviation .2", "block_at_least"),
        Column("x + f(x), deviation 5", "block_at_most"),
        Column("off the closed forms by", "worst", digits=4),
    ),
    plots={
        "figure1": partial(
            plots.sweeps,
            x="weight_mean",
            keys={"W D x": "pre", "same, closed form": "pre_theory", "D W x": "post", "its closed form": "post_theory"},
            panels="p",
            xlabel="mean of the weights",
            ylabel="Delta",
        ),
        "figure2": partial(
            plots.sweeps,
            x="deviation",
            keys={
                "f(x)": "branch",
                "same, closed form": "branch_theory",
                "x + f(x)": "block",
                "its closed form": "block_theory",
            },
            panels="p",
            xlabel="deviation of x",
            ylabel="Delta",
        ),
    },
    claims=(
        Claim(
            "With weights of mean .02 or -.02, dropout before a weight layer shifts less than behind it.",
            "Proposition 2, Figure 1",
            Within("pre_at_end", "post_at_end", by=("p",), log=True),
            unit="Delta",
            headline=True,
        ),
        Claim(
            "Dropout behind a weight layer shifts more the further the mean of the weights is from 0.",
            "Figure 1",
            Within("post_at_0", "post_at_end", by=("p",), log=True),
            unit="Delta",
        ),
        Claim(
            "The addition to the trunk dilutes the shift of the branch.",
            "Propositions 3 and 4, Figure 2",
            Within("block_at_least", "branch_at_least", by=("p",), log=True),
            unit="Delta",
        ),
        Claim(
            "The larger the trunk, the more its addition dilutes the shift of the branch.",
            "Figure 2",
            Within("block_at_most", "block_at_least", by=("p",), log=True),
            unit="Delta",
        ),
        Claim(
            "The closed forms are what is drawn, to .01 (ours).",
            OURS,
            Equal("worst", {arm_name(arm): 0.0 for arm in _MODULE_ARMS}, tolerance=0.01),
            exact=True,
        ),
    ),
)

# How the shift accumulates

_DESIGNS = ("P6", "P7", "P3", "P4", "P3-P6", "ic", "ic-last")


def _deeper(text: str, key: str, more: str, less: str) -> Claim:
    """That a design shifts more than another, by a ratio that is the lower, the larger the shift is."""
    return Claim(text, OURS, Between(key, {"design": less}, {"design": more}, by=("p",), log=True), unit="Delta")


depth = Experiment(
    name="depth",
    source="a stack of blocks",
    about=(
        "Nine residual blocks of two weight layers of width 128, normal weights and inputs, untrained: Var_eval / "
        "Var_train at the norms in branches (geometric mean) and on the trunk behind the last block, measured, and "
        "predicted from the weights and the statistics alone by `evenkeel.predict_shift`."
    ),
    arms=dict.fromkeys(SCALES, grid(design=_DESIGNS, p=(0.05, 0.1, 0.3))),
    seeds={"smoke": 1, "quick": 3, "desk": 3, "full": 3},
    measure=blocks.depth,
    columns=(
        Column("in branches", "in_branch"),
        Column("in branches, predicted", "predicted_in_branch"),
        Column("trunk, first block", "trunk_first"),
        Column("trunk, last block", "trunk"),
        Column("same, predicted", "predicted_trunk"),
        Column("prediction off by, |ln|", "log_error"),
    ),
    plots={
        "profile": partial(
            plots.profiles,
            keys={"trunk": "trunks", "in branches": "in_branches"},
            lines="design",
            panels="p",
            xlabel="block",
            ylabel="Delta",
        )
    },
    claims=(
        Claim(
            "With P6, too, the shift on the trunk grows with depth (ours).",
            OURS,
            Within("trunk_first", "trunk", by=("p",), where={"design": "P6"}, log=True),
            unit="Delta",
        ),
        _deeper(
            "A second dropout in each branch (P3-P6) shifts the trunk more than P6 alone (ours).",
            "trunk",
            "P3-P6",
            "P6",
        ),
        _deeper(
            "Dropout before the last norm (P4) shifts the norms in branches more than P6 (ours).",
            "in_branch",
            "P4",
            "P6",
        ),
        _deeper("On the trunk alone, P6 shifts more than P4 (ours).", "trunk", "P6", "P4"),
    ),
)
