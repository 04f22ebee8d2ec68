"""A hypothesis strategy for small random networks whose forwards do all sorts of things on the side."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek

WIDTH = 4
SHAPES = {"vector": (6, WIDTH), "image": (4, WIDTH, 5, 5)}

WEIGHTS: dict[str, Callable[[], nn.Module]] = {
    "vector": lambda: nn.Linear(WIDTH, WIDTH),
    "image": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
}
NORMS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "vector": {"batch": lambda: nn.BatchNorm1d(WIDTH), "layer": lambda: nn.LayerNorm(WIDTH), "none": nn.Identity},
    "image": {
        "batch": lambda: nn.BatchNorm2d(WIDTH),
        "instance": lambda: nn.InstanceNorm2d(WIDTH, track_running_stats=True),
        "layer": lambda: nn.GroupNorm(2, WIDTH),
        "none": nn.Identity,
    },
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "in place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
}

# What a forward may do on the side; each must come back undone.
HABITS = (
    "counter",
    "history",
    "table",
    "recent",
    "cache",
    "average",
    "new attribute",
    "buffer in place",
    "buffer replaced",
    "buffer that is not saved",
    "late module",
    "changes momentum",
    "changes mode",
    "adds a hook",
    "draws from torch",
    "draws from numpy",
    "draws from Python",
    "draws from its own generator",
    "looks at the data",
)


@dataclass(frozen=True)
class Block:
    """One block of a network, residual or not."""

    norm: str
    activation: str
    dropout: str
    residual: bool
    habit: str
    p: float = 0.3


@dataclass(frozen=True)
class Spec:
    """A network, its train/eval flags and momenta, and where its forward fails, if it does."""

    form: str
    blocks: tuple[Block, ...]
    momentum: float | None
    in_eval: int  # bit i: module i is in eval mode
    hooks: bool
    fails_in: int | None = None  # number of the block
    fails_after: int = 0  # calls that go well first
    error: type[BaseException] = RuntimeError

    def build(self) -> nn.Module:
        """The network, the same for the same spec."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = Net(self)
        for i, module in enumerate(net.modules()):
            module.training = not self.in_eval >> i & 1
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.momentum = self.momentum
            if self.hooks:
                module.register_forward_hook(_count)
                module.register_forward_pre_hook(_pre_count, with_kwargs=True)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        return net

    def batches(self, count: int = 2) -> list[Tensor]:
        """Random batches that the network takes."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(SHAPES[self.form], generator=generator) for _ in range(count)]


def _count(module: Any, args: Any, output: Any) -> None:
    module.hooked = getattr(module, "hooked", 0) + 1


def _pre_count(module: Any, args: Any, kwargs: Any) -> None:
    module.hooked = getattr(module, "hooked", 0) + 1


class Noise(nn.Module):
    """A module that declares what it is."""

    evenkeel_kind = ek.Kind.DROPOUT

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.p * torch.randn_like(x)) if self.training else x


class BlockModule(nn.Module):
    def __init__(self, spec: Block, form: str) -> None:
        super().__init__()
        self.spec = spec
        self.weight, self.norm = WEIGHTS[form](), NORMS[form][spec.norm]()
        self.act = ACTIVATIONS[spec.activation]()
        self.drop = {"module": nn.Dropout, "declared": Noise}.get(spec.dropout, nn.Identity)(spec.p)
        self.calls, self.last = 0, None
        self.history: list[Any] = []
        self.table: dict[str, Any] = {}
        self.recent: deque[Any] = deque([0], maxlen=1)
        self.average, self.generator = torch.zeros(()), torch.Generator().manual_seed(0)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self._indulge(x)
        out = self.act(self.norm(self.weight(x)))
        if self.spec.dropout == "functional":
            out = F.dropout(out, self.spec.p, self.training)
        if self.spec.dropout == "mask" and self.training:
            out = out * out.new_empty(len(out), *[1] * (out.ndim - 1)).bernoulli_(1 - self.spec.p)
        out = self.drop(out)
        return x + out if self.spec.residual else out

    def _indulge(self, x: Tensor) -> None:  # noqa: PLR0912
        match self.spec.habit:
            case "counter":
                self.calls += 1
            case "history":
                self.history.append(x.mean())
            case "table":
                self.table["last"] = x
            case "recent":
                self.recent.append(x)
            case "average":
                self.average.mul_(0.9).add_(x.detach().mean())
            case "cache":
                self.last = x.detach()
            case "new attribute":
                self.seen = x.shape
                self.kept = x
            case "buffer in place":
                self.steps.add_(1)
            case "buffer replaced":
                self.steps = self.steps + 1
            case "buffer that is not saved":
                self.scratch.copy_(x.flatten(1)[0, :WIDTH])
            case "late module":
                self.late = nn.Linear(2, 2)
            case "changes momentum":
                self.norm.momentum = 0.77
            case "changes mode":
                self.train(not self.training)
            case "adds a hook":
                self.act.register_forward_hook(_count)
            case "draws from torch":
                torch.rand(3)
            case "draws from numpy":
                np.random.rand(3)
            case "draws from Python":
                random.random()
            case "draws from its own generator":
                torch.rand(3, generator=self.generator)
            case "looks at the data":
                if not torch.isfinite(x).all():
                    raise ValueError("not finite")


class Net(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.blocks = nn.ModuleList([BlockModule(block, spec.form) for block in spec.blocks])
        self.head = nn.Linear(WIDTH, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.spec.fails_in and self.calls > self.spec.fails_after:
                raise self.spec.error("half-way")
        return self.head(x.flatten(2).mean(2) if x.ndim > 2 else x)


def blocks(form: str, norms: tuple[str, ...]) -> st.SearchStrategy[Block]:
    return st.builds(
        Block,
        norm=st.sampled_from(norms),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        dropout=st.sampled_from(("none", "module", "functional", "mask", "declared")),
        residual=st.booleans(),
        habit=st.sampled_from(HABITS),
    )


@st.composite
def specs(draw: st.DrawFn, *, fails: bool, running_statistics: bool = False) -> Spec:
    """Random networks.

    Args:
        draw: hypothesis' own.
        fails: whether the forward raises, half-way through some block.
        running_statistics: whether there must be a norm that keeps them.
    """
    form = draw(st.sampled_from(sorted(SHAPES)))
    found = draw(st.lists(blocks(form, tuple(NORMS[form])), min_size=1, max_size=4))
    if running_statistics:
        found.insert(draw(st.integers(0, len(found))), draw(blocks(form, ("batch",))))
    return Spec(
        form,
        tuple(found),
        momentum=draw(st.sampled_from((0.1, 1.0, None))),
        in_eval=draw(st.one_of(st.just(0), st.integers(0, 2**24))),
        hooks=draw(st.booleans()),
        fails_in=draw(st.integers(0, len(found) - 1)) if fails else None,
        fails_after=draw(st.integers(0, 1)) if fails else 0,
        error=draw(st.sampled_from((RuntimeError, KeyboardInterrupt))) if fails else RuntimeError,
    )
