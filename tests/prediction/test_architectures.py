"""Predicted against true shifts of small trained nets of many kinds, on real digits; run as a file, it prints them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from made import Made
from torch import nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.io.datasets import load_data

pytestmark = pytest.mark.samples(1024)  # fewer than users get, which makes no bound easier to keep

C = 16


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), *layers, nn.Linear(48, 48), nn.BatchNorm1d(48)
    )


def maps(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, C, 3, padding=1), nn.BatchNorm2d(C), *layers, conv(), nn.BatchNorm2d(C))


def conv(size: int = 3, groups: int = 1) -> nn.Module:
    return nn.Conv2d(C, C, size, padding=size // 2, groups=groups)


def drop_path(x, p, training):
    return x * (torch.rand(len(x), 1, 1, 1) >= p).to(x) / (1 - p) if training else x


def rows(x):
    """An image as a sequence of eight rows."""
    return x[:, 0]


def by_channel(norm, x):
    return norm(x.transpose(1, 2)).transpose(1, 2)


def residual(run: Callable, **layers: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU(), Made(run, **layers), nn.BatchNorm2d(C)
    )


def transformer(drop: float = 0.2) -> nn.Module:
    def run(m, x):
        x = m.drop(m.embed(rows(x)) + m.place)
        y = m.attention(x, x, x, need_weights=False)[0]
        x = by_channel(m.norm1, x + m.drop(y))
        return by_channel(m.norm2, x + m.drop(m.narrow(m.drop(F.gelu(m.widen(x))))))

    return Made(
        run,
        embed=nn.Linear(8, C),
        place=nn.Parameter(torch.randn(8, C) * 0.02),
        attention=nn.MultiheadAttention(C, 4, dropout=drop, batch_first=True),
        widen=nn.Linear(C, 2 * C),
        narrow=nn.Linear(2 * C, C),
        norm1=nn.BatchNorm1d(C),
        norm2=nn.BatchNorm1d(C),
        drop=nn.Dropout(drop),
    )


def recurrent(kind: type[nn.Module]) -> nn.Module:
    def run(m, x):
        return m.last(m.read(m.drop(by_channel(m.norm, m.embed(rows(x))).relu()))[0].mean(1))

    parts = {"embed": nn.Linear(8, C), "norm": nn.BatchNorm1d(C), "drop": nn.Dropout(0.3), "last": nn.BatchNorm1d(C)}
    return Made(run, read=kind(C, C, 2, batch_first=True, dropout=0.3), **parts)


def joined(join: Callable, p: float = 0.4) -> nn.Module:
    """Two branches from a norm, joined before the next."""

    def run(m, x):
        x = m.first(m.stem(x)).relu()
        return m.last(join(m.one(m.drop(x)), m.other(m.drop(x))))

    return Made(
        run,
        stem=conv_in(),
        first=nn.BatchNorm2d(C),
        one=conv(),
        other=conv(1),
        drop=nn.Dropout(p),
        last=nn.LazyBatchNorm2d(),
    )


def conv_in() -> nn.Module:
    return nn.Conv2d(1, C, 3, padding=1)


def embedded() -> nn.Module:
    """Pixels as tokens."""

    def run(m, x):
        tokens = (x[:, 0].flatten(1) > 0).long()
        x = m.norm(m.drop(m.embed(tokens).transpose(1, 2)))
        return m.last(m.conv(m.drop(x.relu())))

    parts = {"embed": nn.Embedding(2, C), "norm": nn.BatchNorm1d(C), "drop": nn.Dropout1d(0.2)}
    return Made(run, conv=nn.Conv1d(C, C, 5), last=nn.BatchNorm1d(C), **parts)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "perceptron, ReLU": lambda: flat(nn.ReLU(), nn.Dropout(0.5)),
    "perceptron, tanh, dropout before": lambda: flat(nn.Dropout(0.3), nn.Tanh()),
    "perceptron, SELU, alpha dropout": lambda: flat(nn.SELU(), nn.AlphaDropout(0.2)),
    "perceptron, Uout": lambda: flat(nn.ReLU(), ek.Uout(0.8)),
    "perceptron, two dropouts": lambda: flat(nn.Dropout(0.2), nn.GELU(), nn.Dropout(0.3)),
    "LayerNorm between": lambda: flat(nn.ReLU(), nn.Dropout(0.4), nn.LayerNorm(48)),
    "maps, ReLU": lambda: maps(nn.ReLU(), nn.Dropout(0.3)),
    "maps, whole channels": lambda: maps(nn.ReLU(), nn.Dropout2d(0.3)),
    "maps, largest of a window": lambda: maps(nn.ReLU(), nn.Dropout(0.3), nn.MaxPool2d(2)),
    "maps, mean of a window": lambda: maps(nn.ReLU(), nn.Dropout(0.3), nn.AvgPool2d(2)),
    "maps, GroupNorm between": lambda: maps(nn.ReLU(), nn.Dropout(0.3), nn.GroupNorm(4, C)),
    "maps, separable": lambda: maps(nn.ReLU(), nn.Dropout(0.3), conv(3, C), conv(1)),
    "maps, resized": lambda: maps(nn.ReLU(), nn.Dropout(0.3), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)),
    "maps, IC": lambda: maps(nn.ReLU(), ek.IC(C, 0.2)),
    "branches added": lambda: joined(torch.add),
    "branches' larger": lambda: joined(torch.maximum),
    "branches' smaller, stacked": lambda: joined(lambda a, b: torch.stack([a, b]).amin(0)),
    "branches gated": lambda: joined(lambda a, b: a * b.sigmoid()),
    "branches concatenated": lambda: joined(lambda a, b: torch.cat([a, b], 1)),
    "residual, pre-activation": lambda: residual(
        lambda m, x: x + m.second(m.drop(m.norm(m.first(x)).relu())),
        first=conv(),
        norm=nn.BatchNorm2d(C),
        drop=nn.Dropout(0.4),
        second=conv(),
    ),
    "residual, drop path": lambda: residual(
        lambda m, x: x + drop_path(m.norm(m.conv(x)), 0.3, m.training), conv=conv(), norm=nn.BatchNorm2d(C)
    ),
    "residual, squeezed": lambda: residual(
        lambda m, x: x + m.drop(m.conv(x) * m.gate(x.mean((2, 3), keepdim=True)).sigmoid()),
        conv=conv(),
        gate=conv(1),
        drop=nn.Dropout(0.3),
    ),
    "transformer": transformer,
    "long short-term memory": lambda: recurrent(nn.LSTM),
    "gated recurrent units": lambda: recurrent(nn.GRU),
    "tokens": embedded,
}
QUICK = ("perceptron, ReLU", "branches' larger", "transformer")
# Every third one is a test, for its time's sake; run as a file, this prints them all.
TESTED = [name for place, name in enumerate(ARCHITECTURES) if name in QUICK or place % 3 == 1]


def trained(build: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    """A net trained for a moment, with statistics of the whole data, dropout on; and the data."""
    train = load_data("digits").train
    x, y = (torch.cat(parts)[:600] for parts in zip(*train, strict=True))
    torch.manual_seed(0)
    body = build()
    body(x[:8])
    head = nn.Linear(math.prod(body(x[:8]).shape[1:]), 10)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 3e-3)
    for _ in range(2):
        for part in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(head(body(x[part]).flatten(1)), y[part]).backward()
            optimizer.step()
    for norm in body.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.reset_running_stats()
            norm.momentum = None
    with torch.no_grad():
        for _ in range(5):
            body.train()(x)
    return body, x


def compared(name: str) -> list[tuple[str, float, float, float, str, bool]]:
    """Per norm: true and predicted log shift, what `correct_` leaves of it, doubts, and whether it was corrected."""
    body, x = trained(ARCHITECTURES[name])
    true = {row.path: math.log(row.ratio) for row in ek.variance_shift(body, [x])}
    predicted = ek.predict_shift(body, x[:2])
    corrected = copy.deepcopy(body)
    done = ek.correct_(corrected, x[:2])
    left = {row.path: math.log(row.ratio) for row in ek.variance_shift(corrected, [x])}
    written = {row.path for row in done}
    return [
        (r.path, true[r.path], math.log(r.ratio), left[r.path], done.untouched.get(r.path, ""), r.path in written)
        for r in predicted
    ]


@pytest.mark.filterwarnings("ignore::evenkeel.errors.StretchWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TESTED])
def test_what_is_predicted_is_true_or_named_and_what_is_corrected_is_no_worse(name):
    for path, true, predicted, left, reason, written in compared(name):
        assert reason or abs(predicted - true) < 0.2, path
        assert not written or abs(left) < max(0.12, 0.6 * abs(true)), path


if __name__ == "__main__":
    print(f"{'architecture':34s} {'norm':8s} {'true':>6s} {'pred.':>6s} {'left':>6s}  doubt")
    for name in ARCHITECTURES:
        for path, true, predicted, left, reason, _ in compared(name):
            ratios = " ".join(f"{math.exp(value):6.3f}" for value in (true, predicted, left))
            print(f"{name:34s} {path:8s} {ratios}  {reason[:90]}", flush=True)
