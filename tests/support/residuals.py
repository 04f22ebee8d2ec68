"""A hypothesis strategy for residual and dense networks with dropout in all the right and wrong places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 4
PLACES = 8  # kim2023's P0 to P7, counted along the branch
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "in place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def conv(size: int, n_in: int = WIDTH) -> nn.Module:
    return nn.Conv2d(n_in, WIDTH, size, padding=size // 2, bias=False)


class Noisy(nn.Module):
    """What all blocks share: a rate for each place, 0 for none, and dropouts called in one of several ways."""

    def __init__(self, rates: tuple[float, ...], form: str, activation: str) -> None:
        super().__init__()
        self.rates = rates
        self.act = ACTIVATIONS[activation]()
        kinds = {"module": nn.Dropout, "channels": nn.Dropout2d}
        shared = nn.Dropout(max(rates))
        for place, p in enumerate(rates):
            own = {"shared": shared, "in place": nn.Dropout(p, inplace=True)}.get(form) or kinds.get(form, nn.Dropout)(
                p
            )
            self.add_module(f"drop{place}", own if p else nn.Identity())


class PreActivation(Noisy):
    """BN A W BN A W, dropout by modules."""

    def __init__(self, rates, form, activation, project) -> None:
        super().__init__(rates, form, activation)
        self.bn1, self.conv1, self.bn2, self.conv2 = nn.BatchNorm2d(WIDTH), conv(3), nn.BatchNorm2d(WIDTH), conv(3)
        self.short = conv(1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop0(x)
        y = self.bn1(self.drop1(x))
        y = self.drop2(y)
        y = self.conv1(self.drop3(self.act(y)))
        y = self.bn2(self.drop4(y))
        y = self.drop5(y)
        y = self.drop7(self.conv2(self.drop6(self.act(y))))
        return self.short(x) + y


class FunctionalPreActivation(Noisy):
    """The same, dropout by functions, the join in place."""

    def __init__(self, rates, form, activation, project) -> None:
        super().__init__(rates, form, activation)
        self.bn1, self.conv1, self.bn2, self.conv2 = nn.BatchNorm2d(WIDTH), conv(3), nn.BatchNorm2d(WIDTH), conv(3)
        self.short = conv(1) if project else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.rates[0], self.training)
        y = F.dropout(x, p=self.rates[1], training=self.training)
        y = F.dropout(self.bn1(y), self.rates[2], training=self.training)
        y = self.conv1(
            F.dropout(
                self.act(y),
                p=self.rates[3],
                training=self.training,
            )
        )
        y = self.bn2(F.dropout2d(y, self.rates[4], self.training))
        y = F.dropout(input=y, p=self.rates[5], training=self.training)
        y = nn.functional.dropout(self.act(y), self.rates[6], self.training)
        y = self.conv2(y)
        y = torch.dropout(y, self.rates[7], self.training)
        y += x if self.short is None else self.short(x)
        return y


class Bottleneck(Noisy):
    """BN A W BN A W BN A W; the shortcut may have dropout, too."""

    def __init__(self, rates, form, activation, project) -> None:
        super().__init__(rates, form, activation)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(WIDTH) for _ in range(3))
        self.conv1, self.conv2, self.conv3 = conv(1), conv(3), conv(1)
        self.short = nn.Sequential(nn.AvgPool2d(1), conv(1)) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.drop1(self.act(self.bn1(x))))
        y = self.conv2(self.drop2(self.act(self.bn2(y))))
        y = self.drop3(y)
        y = self.act(self.drop4(self.bn3(y)))
        y = self.drop6(self.conv3(self.drop5(y)))
        return torch.add(self.drop0(self.short(x)), self.drop7(y))


class PostActivation(Noisy):
    """W BN A W BN + A."""

    def __init__(self, rates, form, activation, project) -> None:
        super().__init__(rates, form, activation)
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(3), nn.BatchNorm2d(WIDTH), conv(3), nn.BatchNorm2d(WIDTH)
        self.short = nn.Sequential(conv(1), nn.BatchNorm2d(WIDTH)) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(self.drop1(x)))
        y = self.drop3(self.act(self.drop2(y)))
        y = self.drop6(self.bn2(self.drop5(self.conv2(self.drop4(y)))))
        out = self.short(x) + y
        return self.drop7(self.act(self.drop0(out)))


class Gated(Noisy):
    """An inverted residual with squeeze and excitation: W BN A W BN A x W BN +."""

    def __init__(self, rates, form, activation, project) -> None:
        super().__init__(rates, form, activation)
        self.conv1, self.conv2, self.conv3 = conv(1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), conv(1)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(WIDTH) for _ in range(3))
        self.squeeze, self.excite = nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(2, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(self.drop1(x))))
        y = self.act(self.bn2(self.conv2(self.drop2(y))))
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        y = self.drop3(y * gate)
        y = self.drop5(self.bn3(self.drop4(self.conv3(y))))
        if self.training and self.rates[6]:
            y = y * (y.new_empty(len(y), 1, 1, 1).bernoulli_(1 - self.rates[6]) / (1 - self.rates[6]))
        return x + y


class Dense(Noisy):
    """A dense layer, BN A W BN A W beside the identity, and weights that bring the width back."""

    def __init__(self, rates, form, activation, project) -> None:
        super().__init__(rates, form, activation)
        self.bn1, self.conv1, self.bn2, self.conv2 = nn.BatchNorm2d(WIDTH), conv(1), nn.BatchNorm2d(WIDTH), conv(3)
        self.transition = conv(1, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.drop2(self.act(self.bn1(self.drop1(x)))))
        new = self.conv2(F.dropout(self.act(self.bn2(new)), self.rates[3], self.training))
        new = F.dropout(new, p=self.rates[4], training=self.training)
        return self.transition(self.drop7(torch.cat([x, new], 1)))


class Head(nn.Module):
    """Norm, activation, global average pool and classifier, dropout before the pool or after it."""

    def __init__(self, pool: str, before: float, after: float) -> None:
        super().__init__()
        self.bn, self.fc, self.pool, self.before, self.after = (
            nn.BatchNorm2d(WIDTH),
            nn.Linear(WIDTH, 3),
            pool,
            before,
            after,
        )
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.bn(x)), self.before, self.training)
        if self.pool == "module":
            x = self.drop(self.gap(x).flatten(1))
        elif self.pool == "function":
            x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
            x = F.dropout(x, p=self.after, training=self.training)
        else:
            x = self.drop(x.mean((2, 3)))
        return self.fc(x)


BLOCKS: dict[str, type[Noisy]] = {
    "pre": PreActivation,
    "functional": FunctionalPreActivation,
    "bottleneck": Bottleneck,
    "post": PostActivation,
    "gated": Gated,
    "dense": Dense,
}


@dataclass(frozen=True)
class Block:
    """One block: its class, the rate at each place, how its dropouts are called, and its shortcut."""

    kind: str
    rates: tuple[float, ...]
    form: str
    activation: str
    project: bool


@dataclass(frozen=True)
class Spec:
    """A network of such blocks."""

    blocks: tuple[Block, ...]
    pool: str
    before: float
    after: float

    def build(self) -> nn.Module:
        """The network, trained for a step so that its statistics are its own; the same for the same spec."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            blocks = [BLOCKS[b.kind](b.rates, b.form, b.activation, b.project) for b in self.blocks]
            net = nn.Sequential(nn.Conv2d(3, WIDTH, 3), *blocks, Head(self.pool, self.before, self.after))
            net(torch.randn(16, 3, 8, 8))
        return net

    def example(self) -> Tensor:
        """An input."""
        return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def rates(places: int) -> st.SearchStrategy[tuple[float, ...]]:
    return st.lists(st.sampled_from((0.0, 0.0, 0.0, 0.3, 0.5)), min_size=places, max_size=places).map(tuple)


blocks = st.builds(
    Block,
    kind=st.sampled_from(sorted(BLOCKS)),
    rates=rates(PLACES),
    form=st.sampled_from(("module", "channels", "shared", "in place")),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    project=st.booleans(),
)
specs = st.builds(
    Spec,
    blocks=st.lists(blocks, min_size=1, max_size=2).map(tuple),
    pool=st.sampled_from(("module", "function", "mean")),
    before=st.sampled_from((0.0, 0.0, 0.2)),
    after=st.sampled_from((0.0, 0.2)),
)


def dropouts_of(model: nn.Module) -> list[nn.Module]:
    """All modules that drop."""
    return [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
