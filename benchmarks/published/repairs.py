"""All repairs side by side on one net and one data set: their scores, and the shift at each norm.

Statistics are taken on one half of the data, and scores on the other, for several random halves. What dropout does is
told from what other data do on the same data: with dropout on, as training would have stored it, against off.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import evenkeel as ek
from benchmarks.published.study import Batch, Study, Task

PUBLISHED = "as published"
CORRECTED, CORRECTED_MEAN = (f"`correct_`, {match} matched, no data" for match in ("variance", "mean"))
DROPOUT_ON = "statistics of the half, dropout on"
REESTIMATED, RELATIVE, MEAN = (
    f"`reestimate_` on the half, {match} matched" for match in ("variance", "relative variance", "mean")
)
REPAIRS: dict[str, dict[str, Any]] = {
    REESTIMATED: {"match": "variance"},
    RELATIVE: {"match": "variance", "relative": True},
    MEAN: {"match": "mean"},
}


def forward(net: nn.Module, batch: Batch) -> Any:
    return net(*batch)


@torch.no_grad()
def with_dropout_on(net: nn.Module, batches: Iterable[Batch], passes: int, seed: int) -> nn.Module:
    """A copy that stores what training would have stored of these data: averages of batches, with dropout on."""
    net = copy.deepcopy(net)
    for norm in net.modules():
        if isinstance(norm, _BatchNorm):
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(passes):
            for batch in batches:
                forward(net, batch)
    return net.eval()


def on_few(count: int) -> str:
    """The name of what is measured on a few units of the half."""
    return f"`reestimate_` on {count} of the half, mean matched"


def reestimated(net: nn.Module, batches: list[Batch], seed: int, **options: Any) -> nn.Module:
    net = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ek.StretchWarning)  # the scores judge
        ek.reestimate_(net, batches, forward=forward, seed=seed, **options)
    return net


def corrected(net: nn.Module, example: Batch, match: ek.Match) -> tuple[nn.Module, dict[str, str]]:
    """A copy corrected without data, and the norms that were left as they were, each with the reason."""
    net = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ek.StretchWarning)
        return net, dict(ek.correct_(net, example, match=match).untouched)


def compare(study: Study, task: Task) -> dict[str, Any]:
    """Everything that the page says of a net, as it is kept in JSON."""
    net = task.net.eval()
    without_data, untouched = corrected(net, study.example(), "variance")
    without_data_mean, untouched_mean = corrected(net, study.example(), "mean")
    row: dict[str, Any] = {
        "order": str(ek.trace(net, study.example())),
        "findings": findings(study, net),
        "untouched": untouched | untouched_mean,
        "units": task.count,
        **shifts(study, task),
    }
    scores: dict[str, dict[str, list[float]]] = {}
    for split in range(study.splits):
        generator = torch.Generator().manual_seed(split)
        order = torch.randperm(task.count, generator=generator)
        half, other = order[: task.count // 2], order[task.count // 2 :]
        repaired = {PUBLISHED: net, CORRECTED: without_data, CORRECTED_MEAN: without_data_mean}
        for name, draw in {"": None, **task.draws}.items():
            units = half if draw is None else draw(half, generator)
            batches, suffix = task.batches(units, generator), name and f", {name}"
            repaired[DROPOUT_ON + suffix] = with_dropout_on(net, batches, study.passes, split)
            for repair, options in REPAIRS.items():
                repaired[repair + suffix] = reestimated(net, batches, split, **options)
        for count in task.few:
            batches = task.batches(half[:count], generator)
            repaired[on_few(count)] = reestimated(net, batches, split, **REPAIRS[MEAN])
        for name, candidate in repaired.items():
            for figure, value in task.score(candidate, other).items():
                scores.setdefault(name, {}).setdefault(figure, []).append(round(value, 4))
        print(f"split {split + 1} of {study.splits}", {name: last(found) for name, found in scores.items()}, flush=True)
    return row | {"scores": scores}


def last(found: dict[str, list[float]]) -> list[float]:
    return [values[-1] for values in found.values()]


def findings(study: Study, net: nn.Module) -> list[str]:
    """What lint says of the placement by Li et al. (2018), without lines of source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ek.UnpredictedWarning)
        return [f"{finding.code} {finding.path}" for finding in ek.lint(net, study.example(), guideline="li2018")]


def shifts(study: Study, task: Task) -> dict[str, Any]:
    """Eval against stored variance a norm: as published on these data, by dropout alone, and predicted without data.

    Also which norm shows that the data are not those of training, if evenkeel sees it.
    """
    everything = task.batches(torch.arange(task.count), torch.Generator().manual_seed(0))
    trained = with_dropout_on(task.net, everything, study.passes, 0)
    reports = {
        "published": ek.variance_shift(task.net, everything, forward=forward),
        "dropout": ek.variance_shift(trained, everything, forward=forward),
        "predicted": ek.predict_shift(task.net, study.example()),
    }
    unsure = reports["predicted"].unsure
    rows: dict[str, dict[str, Any]] = {}
    for kind, report in reports.items():
        for row in report:
            rows.setdefault(row.path, {"path": row.path})[kind] = round(row.ratio, 4)
    norms = [row | ({"unsure": str(unsure[path])} if path in unsure else {}) for path, row in rows.items()]
    return {"other_data": reports["published"].accusation, "norms": norms}
