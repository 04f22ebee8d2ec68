"""What is done to a trained net's statistics, and what each leaves of its scores."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import evenkeel as ek
from benchmarks.matching.data import Split
from benchmarks.matching.scores import HALVES, Task
from benchmarks.matching.settling import behind, best_of, ensemble, mean, settle, variance
from benchmarks.nets import Batches

SAMPLE = 2048  # training samples that the slow rules look at


def by_rule(rule: Any, masks: int) -> Callable[[nn.Module, Batches], nn.Module]:
    return lambda model, batches: settle(model, inputs(batches)[:SAMPLE], rule, masks)


def by_library(**options: Any) -> Callable[[nn.Module, Batches], nn.Module]:
    def treat(model: nn.Module, batches: Batches) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is warned of is what is measured here
            ek.reestimate_(treated := copy.deepcopy(model), batches, **options)
        return treated

    return treat


def inputs(batches: Batches) -> Tensor:
    return torch.cat([x for x, _ in batches])


# Each gives a copy of a net. The first is what others are compared with.
TREATMENTS: dict[str, Callable[[nn.Module, Batches], nn.Module]] = {
    "as trained": lambda model, batches: model,
    "default": by_library(),
    "variance": by_library(match="variance"),
    "mean": by_library(match="mean"),
    "mean behind ReLU": by_rule(behind, masks=4),
}
CHOSEN, EACH, ENSEMBLE = "best of both", "best per norm", "64 noisy passes"
NAMES = (*TREATMENTS, CHOSEN, EACH, ENSEMBLE)


@torch.no_grad()
def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model.eval()(part) for part in x.split(512)])


def judge(model: nn.Module, split: Split, task: Task, seed: int) -> dict[str, list[float]]:
    """The scores of a net by treatment."""
    torch.manual_seed(seed)
    treated = {name: treat(model, split.batches) for name, treat in TREATMENTS.items()}
    found = {name: twice(outputs_of(one, split.held_x)) for name, one in treated.items()}
    both = [treated[name] for name in ("variance", "mean")]
    found[CHOSEN] = halves(lambda loss: outputs_of(min(both, key=loss), split.held_x), split, task)
    found[EACH] = halves(
        lambda loss: outputs_of(best_of(model, split.x[:SAMPLE], both, [variance, mean], loss), split.held_x),
        split,
        task,
    )
    found[ENSEMBLE] = twice(task.finish(ensemble(model, split.held_x, task.combine)))
    return {name: task.crossed(found[name], split.held_y) for name in NAMES}


def twice(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The same whichever half something is chosen by: nothing is."""
    return outputs, outputs


def halves(choose: Callable[[Callable[[nn.Module], float]], Tensor], split: Split, task: Task) -> tuple[Tensor, Tensor]:
    """What is chosen by the loss on the first half of the held-out data, and by that on the second."""

    def loss_on(half: slice) -> Callable[[nn.Module], float]:
        return lambda model: task.loss(outputs_of(model, split.held_x[half]), split.held_y[half])

    first, second = (choose(loss_on(half)) for half in HALVES)
    return first, second
