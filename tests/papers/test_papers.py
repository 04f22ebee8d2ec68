"""The papers' experiments: what they name exists, what they build can be built, and every scale runs as it says."""

from __future__ import annotations

import json
import math
import pickle
import string
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from labs import CPU

from evenkeel.errors import EvenkeelError
from evenkeel.io.readers import LabelledImages
from evenkeel.papers.catalogue import ALL, find
from evenkeel.papers.lab.claims import Between, Equal, Within
from evenkeel.papers.lab.images import Images
from evenkeel.papers.lab.results import Record, Results, read_results
from evenkeel.papers.lab.runner import is_made, make, runs_of
from evenkeel.papers.lab.specs import SCALES, arm_name, digest
from evenkeel.papers.lab.training import build_net
from evenkeel.papers.lab.trials import Run, Workplace
from evenkeel.prediction import correction

EXPERIMENTS = {
    f"{paper.name}/{experiment.name}": (paper, experiment) for paper in ALL for experiment in paper.experiments
}
SHAPES = {
    "synthetic": ((3, 16, 16), 10),
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "svhn": ((3, 32, 32), 10),
}

every = pytest.mark.parametrize("name", EXPERIMENTS)


def tuned_arms(experiment, scale):
    """Names of arms once a tuned factor has been chosen."""
    over = experiment.selection and experiment.selection.over
    return {arm_name({k: v for k, v in arm.items() if k != over}) for arm in experiment.arms[scale]}


def claimed_keys(claim):
    differences = claim.differences
    return (differences.higher, differences.lower) if isinstance(differences, Within) else (differences.key,)


def blank(source):
    """Images of a source's shape, without any content."""
    shape, classes = SHAPES[source.name]
    shape = (shape[0], source.size or shape[1], source.size or shape[2])
    split = LabelledImages(torch.empty(2, *shape, dtype=torch.uint8, device="meta"), torch.empty(2, device="meta"))
    moments = torch.empty(shape[0], device="meta")
    return Images(split, None, split, moments, moments, classes)


# names


def test_names_are_found_and_unique():
    assert len(EXPERIMENTS) == sum(len(paper.experiments) for paper in ALL)
    for paper in ALL:
        assert find(paper.name) == [(paper, experiment) for experiment in paper.experiments]
        assert paper.url.startswith("https://") and paper.title and paper.authors
    for name, found in EXPERIMENTS.items():
        assert find(name) == [found]
    for name in ("li2019", "li2018/shifts", "", "li2018/shift/x"):
        with pytest.raises(EvenkeelError, match="choose from"):
            find(name)


@every
@pytest.mark.parametrize("scale", SCALES)
def test_arms_have_names_of_their_own_that_files_can_have(name, scale):
    paper, experiment = EXPERIMENTS[name]
    names = [arm_name(factors) for factors in experiment.arms[scale]]
    assert names and len(set(names)) == len(names)
    assert set("".join(names)) <= set(string.ascii_letters + string.digits + ".-_")
    assert experiment.seeds[scale] >= 1
    assert all(list(arm) == list(experiment.arms[scale][0]) for arm in experiment.arms[scale])
    runs = runs_of(paper, experiment, scale)
    assert len({run.path(Path("results")) for run in runs}) == len(names) * experiment.seeds[scale]


@every
def test_what_was_published_is_of_arms_and_columns_that_exist(name):
    _, experiment = EXPERIMENTS[name]
    assert set(experiment.published) <= tuned_arms(experiment, "full")
    keys = {column.key for column in experiment.columns}
    assert all(set(figures) <= keys for figures in experiment.published.values())
    assert all(math.isfinite(value) for figures in experiment.published.values() for value in figures.values())
    headings = [column.heading for column in experiment.columns]
    assert headings and len(set(headings)) == len(headings)
    assert len({claim.text for claim in experiment.claims}) == len(experiment.claims)


def test_what_is_left_out_is_not_encoded():
    for paper in ALL:
        encoded = {claim.text for experiment in paper.experiments for claim in experiment.claims}
        assert len(set(paper.left_out)) == len(paper.left_out) and not encoded & set(paper.left_out)


@every
def test_nothing_is_tuned_by_what_is_reported(name):
    _, experiment = EXPERIMENTS[name]
    if experiment.selection is not None:
        assert not experiment.selection.by.startswith("test")
        for scale in SCALES:
            assert all(experiment.selection.over in arm for arm in experiment.arms[scale])
            assert len(tuned_arms(experiment, scale)) < len(experiment.arms[scale]) or scale == "smoke"
            sources = {run.training.source for run in runs_of(*EXPERIMENTS[name], scale)}
            assert all(source.validation > 0 for source in sources)


# runs


@every
@pytest.mark.parametrize("scale", SCALES)
def test_runs_come_through_pickle_and_json(name, scale):
    runs = runs_of(*EXPERIMENTS[name], scale, seeds=[0])
    if scale != "smoke":
        runs = runs[:: max(1, len(runs) // 8)]
    for run in runs:
        assert json.loads(json.dumps(run.spec())) == run.spec()
    assert pickle.loads(pickle.dumps(runs)) == runs and isinstance(runs[0], Run)


def test_the_records_that_are_published_answer_to_their_specifications():
    """So that `--resume` makes none of them anew."""
    results = Workplace(Path(__file__).parents[2] / "results")
    for paper, experiment in EXPERIMENTS.values():
        folder = results.out / paper.name / experiment.name
        for scale in SCALES:
            there = {(row.arm, row.seed) for row in read_results(folder, experiment.arms[scale], scale)}
            runs = [run for run in runs_of(paper, experiment, scale) if (arm_name(run.factors), run.seed) in there]
            assert all(is_made(run, results) for run in runs)


@every
def test_smoke_needs_no_files(name):
    trainings = [run.training for run in runs_of(*EXPERIMENTS[name], "smoke", seeds=[0])]
    assert {training.source.name for training in trainings if training} <= {"synthetic", "digits"}
    assert all(training.recipe.epochs <= 2 for training in trainings if training)


@pytest.mark.slow
def test_every_net_can_be_built_for_its_images(monkeypatch):
    """At desk and full scale; of those that differ in an amount of noise only, one."""
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda weight, **_: weight)  # on meta, it draws nothing
    kinds = {}
    for found in EXPERIMENTS.values():
        for run in (run for scale in ("desk", "full") for run in runs_of(*found, scale, seeds=[0])):
            if run.training is not None:
                net, source = run.training.net, run.training.source
                noise = net.arguments.get("noise", ["none"])[0]
                kind = digest(net.name, {**net.arguments, "noise": noise}, SHAPES[source.name], source.size)
                kinds.setdefault(kind, run.training)
    assert len(kinds) > 30
    for training in kinds.values():
        images = blank(training.source)
        with torch.device("meta"):
            net = build_net(training, images)
        last = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
        assert last.out_features == images.classes
        if training.net.name != "mlp":
            first = next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d))
            assert first.in_channels == images.shape[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "millions"), [("preresnet", "1.70"), ("resnext", "34.43"), ("wrn", "36.48"), ("densenet", "0.77")]
)
def test_full_nets_of_li2018_have_the_published_number_of_parameters(net, millions):
    for name in ("li2018/shift", "li2018/uout", "li2018/last_layer", "li2018/angles"):
        run = runs_of(*EXPERIMENTS[name], "full", arms=f"cifar10-{net}*", seeds=[0])[-1]
        with torch.device("meta"):
            model = build_net(run.training, blank(run.training.source))
        assert f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}" == millions
        assert run.training.recipe.optimizer == "sgd" and run.training.recipe.augment


# claims


def made_up(experiment, scale, figure):
    """Results of all arms and seeds of a scale, every claimed figure drawn by `figure` of arm, seed and key."""
    keys = {key for claim in experiment.claims for key in claimed_keys(claim)}
    keys |= {experiment.selection.by} if experiment.selection else set()
    return Results(
        Record.of(
            {
                "factors": dict(arm),
                "seed": seed,
                "scale": scale,
                "figures": {key: figure(arm_name(arm), seed, key) for key in keys},
                "history": [],
            }
        )
        for arm in experiment.arms[scale]
        for seed in range(experiment.seeds[scale])
    ).tuned(experiment.selection)


def at_random(arm, seed, key):
    return NormalDist(1, 0.1).inv_cdf((int(digest(arm, seed, key), 16) % 9973 + 0.5) / 9973)


@every
def test_every_claim_can_be_judged_on_full_results(name):
    _, experiment = EXPERIMENTS[name]
    results = made_up(experiment, "full", at_random)
    for claim in experiment.claims:
        verdict = claim.judge(results)
        assert verdict.holds in ("yes", "no", "undecided"), claim.text
        assert len(verdict.pairs) >= 2 or isinstance(claim.differences, Equal)
        assert "\n" not in verdict.ours and claim.text.endswith(".")
        assert claim.judge(Results([])).holds == "not run"


@every
def test_a_claim_holds_where_its_higher_side_is_higher(name):
    """And not where it is lower, for every claim that compares runs."""
    _, experiment = EXPERIMENTS[name]
    for claim in experiment.claims:
        between = claim.differences
        if isinstance(between, Between):
            assert set(between.higher) == set(between.lower), claim.text
            for sign, holds in ((1, "yes"), (-1, "no")):

                def figure(arm, seed, key, sign=sign):
                    return at_random(arm, seed, key) / 10 + 1

                rows = made_up(experiment, "full", figure)
                moved = Results(
                    replace(row, figures={between.key: row.figures[between.key] + sign})
                    if between.higher.items() <= row.factors.items()
                    else row
                    for row in rows
                )
                assert claim.judge(moved).holds == holds, claim.text


# at the scale that proves that all of it runs

SMOKE_ARMS = {
    "hendrycks2016/signal": "0.6-he",
    "hendrycks2016/moments": "tanh",
    "hendrycks2016/mnist": "relu-0.5-ours-0.001",
    "hendrycks2016/cifar10_vgg": "nesterov-ours-*",
    "hendrycks2016/densenet_bn": "*",
    "li2018/angles": "*-wrn",
    "li2018/shift": "*-wrn-a-0.5",
    "li2018/adjust": "*-wrn-a-0.5",
    "li2018/train_eval": "*-wrn-a-0.5",
    "li2018/last_layer": "*-wrn-0.5",
    "li2018/uout": "*-wrn-uout-0.5",
    "chen2019/theorem": "0.05",
    "chen2019/orders": "*-conv-relu-ic-0.05",
    "chen2019/ablation": "*-bn-relu-conv-0.1",
    "chen2019/compromise": "*-ic-last-0.1",
    "kim2023/module_tests": "0.5",
    "kim2023/positions": "*-P6-0.3",
    "kim2023/head": "*-preresnet-before-equal-noise-0.2",
    "kim2023/depth": "P6-0.1",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where the smoke runs' results and the networks that they share are."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.slow
@every
def test_a_smoke_run_finds_every_figure_that_is_shown_or_claimed(name, out, monkeypatch):
    monkeypatch.setattr(correction, "_ELEMENTS", 1 << 20)  # a small sample finds no less
    paper, experiment = EXPERIMENTS[name]
    runs = runs_of(paper, experiment, "smoke", arms=SMOKE_ARMS[name], seeds=[0])
    workplace = Workplace(out, hardware=CPU)
    summary = make(runs, workplace, workers=1, resume=True)
    assert (summary.made, summary.skipped, summary.failed) == (len(runs), 0, {})
    found = read_results(out / paper.name / experiment.name, experiment.arms["smoke"], "smoke")
    assert [row.arm for row in found] == [arm_name(run.factors) for run in runs]
    keys = {column.key for column in experiment.columns} | {key for c in experiment.claims for key in claimed_keys(c)}
    keys |= {experiment.selection.by} if experiment.selection else set()
    for row in found:
        assert all(isinstance(row.figures[key], float | int) for key in keys), keys - set(row.figures)
        assert all(math.isfinite(row.figures[key]) for key in keys)
    assert found.tuned(experiment.selection).arms()
