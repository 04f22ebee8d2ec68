"""The main job on real images: train nets with dropout before norms, find the shift, repair it, score it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from evenkeel.io.datasets import Data, load_data
from evenkeel.model.evaluation import Score, evaluate
from evenkeel.model.threads import single_threaded
from evenkeel.output.progress import Bar
from evenkeel.reestimation.reestimation import reestimate_
from evenkeel.shift.shift import variance_shift
from evenkeel.shift.shift_report import ShiftReport

if TYPE_CHECKING:
    from rich.console import Group

TREATMENTS = ("as trained", "torch update_bn", "ek.reestimate_")


class Block(nn.Module):
    """A pre-activation residual block with dropout right before its last norm, li2018's type (a).

    Args:
        inputs: channels that come in.
        outputs: output channels; if there are more than inputs, the block also halves height and width.
        p: drop probability.
    """

    def __init__(self, inputs: int, outputs: int, p: float) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.drop = nn.Dropout(p)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (samples, inputs, height, width) to (samples, outputs, height, width)."""
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.norm2(self.drop(h))
        return self.shortcut(x) + self.conv2(F.relu(h))


def build_net(
    p: float = 0.5, widths: tuple[int, ...] = (16, 16, 16, 32, 32, 32), *, channels: int = 1
) -> nn.Sequential:
    """The demo's network: a pre-activation residual CNN for images of ten classes.

    >>> sum(1 for module in build_net().modules() if isinstance(module, nn.Dropout))
    6
    """
    blocks = [Block(inputs, outputs, p) for inputs, outputs in zip((widths[0], *widths), widths, strict=False)]
    head = (nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    return nn.Sequential(nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), *blocks, *head)


@dataclass(frozen=True)
class DemoResult:
    """What one run of the demo found.

    Attributes:
        shift: the variance shift of the first seed's net as trained.
        scores: test scores of every seed's net, by treatment.
    """

    shift: ShiftReport
    scores: dict[str, list[Score]]

    @property
    def better(self) -> int:
        """In how many seeds re-estimation lowers the test error below that as trained."""
        pairs = zip(self._errors(TREATMENTS[0]), self._errors(TREATMENTS[2]), strict=True)
        return sum(after < before for before, after in pairs)

    def _errors(self, treatment: str) -> list[float]:
        return [score.error for score in self.scores[treatment] if score.error is not None]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain numbers, strings and lists, for JSON."""
        scores = {treatment: [asdict(score) for score in scores] for treatment, scores in self.scores.items()}
        return {"shift": self.shift.to_dict(), "scores": scores, "seeds_better": self.better}

    def __rich__(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table

        seeds = len(self.scores[TREATMENTS[0]])
        samples = self.scores[TREATMENTS[0]][0].samples
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column(f"eval mode, {samples} test images")
        for heading in ("test error %", "per seed", "log loss", "per seed"):
            table.add_column(heading, justify="right")
        for treatment, scores in self.scores.items():
            errors, losses = [100 * error for error in self._errors(treatment)], [score.loss for score in scores]
            deviations = [
                " ".join(f"{value:.{digits}f}" for value in values) for values, digits in ((errors, 1), (losses, 2))
            ]
            table.add_row(treatment, _summary(errors, 2), deviations[0], _summary(losses, 3), deviations[1])
        count = f"{self.better} of {seeds} seeds have a lower test error after ek.reestimate_ than as trained."
        return Group("Variance shift of the first net, as trained:\n", self.shift, "", table, "", count)


@single_threaded()
def run_demo(*, seeds: int = 5, epochs: int = 15) -> DemoResult:
    """Train one net a seed on the digits embedded in scikit-learn, and treat its statistics three ways.

    Returns:
        The shift of the first net and the test scores of all.

    Raises:
        EvenkeelError: scikit-learn is not installed.
    """
    data = load_data("digits", batch_size=100)
    report: ShiftReport | None = None
    scores: dict[str, list[Score]] = {treatment: [] for treatment in TREATMENTS}
    for net in Bar(_trained_nets(data, seeds, epochs), f"training {seeds} nets", total=seeds):
        report = report or variance_shift(net, data.train)
        for treatment, treat in zip(TREATMENTS, (_as_trained, _with_torch, reestimate_), strict=True):
            treated = copy.deepcopy(net)
            treat(treated, data.train)
            scores[treatment].append(evaluate(treated, data.test or ()))
    assert report is not None
    return DemoResult(report, scores)


def _trained_nets(data: Data, seeds: int, epochs: int) -> Iterator[nn.Module]:
    for seed in range(seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield train(build_net(), data.train, epochs)


def train(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], epochs: int, batch_size: int = 50) -> nn.Module:
    """Train a classifier by Nesterov SGD at a one-cycle rate of up to 0.1, with weight decay 5e-4.

    Args:
        net: changed in place, and left in train mode.
        batches: images and labels, which are pooled, and drawn anew in every epoch.
        epochs: passes over them.
        batch_size: images in a step.
    """
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return net


def _as_trained(net: nn.Module, batches: Any) -> None:
    """Leave the statistics that training gathered."""


def _with_torch(net: nn.Module, batches: Any) -> None:
    """Let torch recompute them, in train mode: dropout stays on."""
    update_bn(batches, net)


def _summary(values: list[float], digits: int) -> str:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f}"
