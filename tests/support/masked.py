"""Small nets with noise of every kind, and a slow and obvious oracle of what match="mean" stores."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek

WIDTH = 8
SHAPES = {"vector": (6,), "image": (3, 5, 5)}


class Functional(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


class Path(Functional):
    """Drops whole samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x * _kept(x.new_empty(len(x), *[1] * (x.ndim - 1)), self.p) if self.training else x


class Mask(Functional):
    """Drops values by a mask made by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.p) / (1 - self.p) if self.training else x


class Added(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.p * torch.randn_like(x) if self.training else x


def _kept(empty: Tensor, p: float) -> Tensor:
    return empty.bernoulli_(1 - p) / (1 - p)


NOISES: dict[str, Callable[[float], nn.Module]] = {
    "module": nn.Dropout,
    "functional": Functional,
    "alpha": nn.AlphaDropout,
    "uout": ek.Uout,
    "path": Path,
    "mask": Mask,
    "added": Added,
}
OF_CHANNELS: dict[str, Callable[[float], nn.Module]] = {"vector": nn.Dropout, "image": nn.Dropout2d}
ORDERS = ("LDNA", "LADN", "LNAD")
TOPOLOGIES = ("chain", "residual", "dense")


class MaskedBlock(nn.Module):
    def __init__(self, form: str, width: int, order: str, noise: str, p: float) -> None:
        super().__init__()
        made = OF_CHANNELS[form] if noise == "channels" else NOISES[noise]
        is_image = form == "image"
        layers = {
            "L": nn.Conv2d(width, WIDTH, 3, padding=1) if is_image else nn.Linear(width, WIDTH),
            "N": nn.BatchNorm2d(WIDTH) if is_image else nn.BatchNorm1d(WIDTH),
            "A": nn.ReLU(),
            "D": made(p),
        }
        self.layers = nn.Sequential(*(layers[letter] for letter in order))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MaskedNet(nn.Module):
    """Blocks in a chain, with a shortcut around each, or each fed by all before it; a linear head."""

    def __init__(self, form: str, topology: str, blocks: Sequence[tuple[str, str, float]], outputs: int = 1) -> None:
        super().__init__()
        self.topology, width, self.blocks = topology, SHAPES[form][0], nn.ModuleList()
        for order, noise, p in blocks:
            self.blocks.append(MaskedBlock(form, width, order, noise, p))
            width = width + WIDTH if topology == "dense" else WIDTH
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            out = block(x)
            if self.topology == "dense":
                x = torch.cat([x, out], 1)
            else:
                x = x + out if self.topology == "residual" and x.shape == out.shape else out
        return self.head(x.flatten(2).mean(2) if x.ndim > 2 else x)


@dataclass(frozen=True)
class Masked:
    """A net of this sort, and how its data come."""

    form: str
    topology: str
    blocks: tuple[tuple[str, str, float], ...]
    loader: str
    seed: int = 0

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return as_if_trained(MaskedNet(self.form, self.topology, self.blocks), self.data())

    def data(self, count: int = 768) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(count, *SHAPES[self.form], generator=generator)


@st.composite
def masked(draw: st.DrawFn) -> Masked:
    block = st.tuples(st.sampled_from(ORDERS), st.sampled_from((*NOISES, "channels")), st.sampled_from((0.1, 0.3, 0.5)))
    return Masked(
        draw(st.sampled_from(sorted(SHAPES))),
        draw(st.sampled_from(TOPOLOGIES)),
        tuple(draw(st.lists(block, min_size=1, max_size=3))),
        draw(st.sampled_from(sorted(LOADERS))),
        draw(st.integers(0, 99)),
    )


def as_if_trained(model: nn.Module, data: Tensor, passes: int = 4) -> nn.Module:
    """Norms with statistics of train mode, and weights and biases of their own; the model in eval mode."""
    for norm in norms_in(model).values():
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    momenta = {norm: norm.momentum for norm in norms_in(model).values()}
    model.train()
    with torch.no_grad():
        for number in range(passes):
            for norm in momenta:
                norm.momentum = 1 / (1 + number)  # all passes averaged; None is no update to an instance norm
            model(data)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    return model.eval()


def unequal(x: Tensor) -> list[Tensor]:
    ends = [0, 5, 40, 41, 300, len(x)]
    return [x[a:b] for a, b in pairwise(ends) if a < b]


LOADERS: dict[str, Callable[[Tensor], Iterable[Tensor]]] = {
    "8": lambda x: list(x.split(8)),
    "64": lambda x: list(x.split(64)),
    "one": lambda x: [x],
    "once": lambda x: iter(x.split(32)),
    "unequal": unequal,
}


def norms_in(model: nn.Module) -> dict[str, nn.Module]:
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}


def statistics_in(model: nn.Module) -> list[Tensor]:
    return [t.clone() for norm in norms_in(model).values() for t in (norm.running_mean, norm.running_var)]


def same_bits(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@dataclass(frozen=True)
class Answer:
    """What a norm is to store, and k with its standard error, of so many masks.

    Attributes:
        chance: of the mean of what reaches it with one mask, the standard error.
        spread: over how many values the variance with noise off is spread: few tell no standard error.
    """

    slope: Tensor
    error: Tensor
    mean: Tensor
    variance: Tensor
    chance: Tensor
    spread: Tensor


def fed(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What reaches the norms, all calls of each one after the other, in float64: (values, channels)."""
    got: dict[str, list[Tensor]] = defaultdict(list)
    hooks = [
        norm.register_forward_pre_hook(
            lambda _, args, path=path: got[path].append(args[0].detach().transpose(0, 1).flatten(1).T.double())
        )
        for path, norm in norms_in(model).items()
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(calls) for path, calls in got.items()}


def teacher_of(model: nn.Module) -> nn.Module:
    """A copy in train mode, but for its norms."""
    teacher = copy.deepcopy(model).train()
    for norm in norms_in(teacher).values():
        norm.eval()
    return teacher


def oracle(
    model: nn.Module, x: Tensor, masks: int = 256, known: Mapping[str, Tensor] | None = None, parts: int = 8
) -> dict[str, Answer]:
    """Averages masks: norm after norm in execution order, each fed by those before it as they are settled by then.

    Args:
        model: as trained.
        x: data.
        masks: how many.
        known: of each norm, the channels whose slope is to be used; the others store what they stored.
        parts: of the masks, that tell the standard error.
    """
    teacher, student = teacher_of(model), copy.deepcopy(model).eval()
    sums: list[dict[str, Tensor]] = []
    means = defaultdict[str, list[Tensor]](list)
    for _ in range(parts):
        total: dict[str, Tensor] = {}
        for _ in range(masks // parts):
            for path, value in fed(teacher, x).items():
                total[path] = total[path] + value if path in total else value
                means[path].append(value.mean(0))
        sums.append({path: value / (masks // parts) for path, value in total.items()})
    answers: dict[str, Answer] = {}
    for path, norm in ((path, norms_in(student)[path]) for path in sums[0]):
        off, on = fed(student, x)[path], torch.stack([part[path] for part in sums])
        centered = off - off.mean(0)
        slopes = (centered * (on - on.mean(1, keepdim=True))).mean(1) / centered.square().mean(0)
        mean, variance = norm.running_mean.double(), norm.running_var.double()
        k = slopes.mean(0)
        used = k if known is None else torch.where(known[path], k, 1.0)
        answers[path] = Answer(
            k,
            slopes.std(0) / parts**0.5,
            off.mean(0) - (on.mean((0, 1)) - mean) / used,
            (variance + norm.eps) / used**2 - norm.eps,
            torch.stack(means[path]).std(0),
            centered.square().sum(0) ** 2 / (centered**4).sum(0),
        )
        norm.running_mean.copy_(answers[path].mean)
        norm.running_var.copy_(answers[path].variance)
    return answers
