"""What a case study is: a net built anew with its training-time dropout, its published weights, and data to judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError

Batch = tuple[Tensor, ...]
Scorer = Callable[[nn.Module, Tensor], dict[str, float]]
Draw = Callable[[Tensor, torch.Generator], Tensor]
UPDATES = 10_000  # of norms whose file does not say how often they were updated: often


@dataclass(frozen=True)
class Figure:
    """A score.

    Attributes:
        label: its column.
        better: 1 if more is better, -1 if less is, 0 if it only tells what happened.
        digits: behind the point.
    """

    label: str
    better: int
    digits: int = 1


@dataclass(frozen=True)
class Task:
    """Published weights, and a user's data.

    Attributes:
        net: with the published weights.
        count: number of units, such as recordings or texts, that are split into halves.
        inputs: what the net is fed for some units; the first dimension is the sample.
        score: scores of a net on some units.
        batch: samples in a batch.
        draws: other ways to draw the units whose statistics are taken from a half, by name.
        few: numbers of units of a half, of which means are matched, too.
    """

    net: nn.Module
    count: int
    inputs: Callable[[Tensor], Batch]
    score: Scorer
    batch: int
    draws: dict[str, Draw] = field(default_factory=dict[str, Draw])
    few: tuple[int, ...] = ()

    def batches(self, units: Tensor, generator: torch.Generator) -> list[Batch]:
        """The samples of some units in batches, shuffled as in training."""
        inputs = self.inputs(units)
        order = torch.randperm(len(inputs[0]), generator=generator)
        return [tuple(tensor[chosen] for tensor in inputs) for chosen in order.split(self.batch)]


@dataclass(frozen=True)
class Study:
    """A net of the page.

    Attributes:
        title: of its section.
        build: the net with random weights, and its dropout.
        example: arguments of a forward pass.
        load: the published weights and the data, from a folder.
        figures: the scores, by name.
        splits: random halves.
        passes: over the data with dropout on.
    """

    title: str
    build: Callable[[], nn.Module]
    example: Callable[[], Batch]
    load: Callable[[Path], Task]
    figures: dict[str, Figure]
    splits: int = 10
    passes: int = 4


def required(folder: Path, name: str, source: str) -> Path:
    """A file or folder of --folder.

    Raises:
        EvenkeelError: it is not there; says where it comes from.
    """
    path = folder / name
    if not path.exists():
        raise EvenkeelError(f"{path} is missing: it comes from {source}")
    return path


@torch.no_grad()
def outputs(net: nn.Module, inputs: Batch, size: int) -> Tensor:
    """What a net in eval mode makes of all inputs, `size` samples at a time."""
    net.eval()
    return torch.cat([net(*batch) for batch in zip(*(tensor.split(size) for tensor in inputs), strict=True)])


@torch.no_grad()
def write_norm(norm: nn.Module, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write what a batch norm of another framework stores."""
    values = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    norm.load_state_dict(values | {"num_batches_tracked": torch.tensor(UPDATES)})
