"""EEG, ECG, cells, genomes: models of braindecode, and blocks written anew."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

from benchmarks.field.model import Apply, Built, FieldModel, Residual, dense, swapped

EEG = """
    EEGNet Deep4Net ShallowFBCSPNet TIDNet SPARCNet ATCNet EEGTCNet EEGITNet EEGInceptionERP EEGNeX HybridNet ContraWR
    DeepSleepNet EEGConformer SleepStagerChambon2018"""


def eeg_net(name: str) -> Built:
    length, rate = (3000, 100) if "Sleep" in name else (1000, 250)
    channels = 2 if "Sleep" in name else 22
    models = importlib.import_module("braindecode.models")
    return getattr(models, name)(n_chans=channels, n_outputs=4, n_times=length, sfreq=rate), torch.zeros(
        8, channels, length
    )


# Written anew


class SamePadded(nn.Module):
    """A pre-activation block of resnet1d, two dropouts, the pooled input as its shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, p: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm1d(inputs), nn.ReLU(), nn.Dropout(p))
        self.conv1 = nn.Conv1d(inputs, outputs, 16, stride, 8)
        self.second = nn.Sequential(nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(p))
        self.conv2 = nn.Conv1d(outputs, outputs, 15, 1, 7)
        self.pool, self.more = nn.MaxPool1d(stride), outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv2(self.second(self.conv1(self.first(x))))
        shortcut = nn.functional.pad(self.pool(x), (0, 0, 0, self.more))
        length = min(made.shape[2], shortcut.shape[2])
        return made[..., :length] + shortcut[..., :length]


def resnet1d() -> Built:
    """Eight blocks, half the width."""
    sizes = (32, 32, 32, 64, 64, 64, 128, 128, 128)
    blocks = [SamePadded(i, o, 1 + n % 2, 0.5) for n, (i, o) in enumerate(itertools.pairwise(sizes))]
    first = [nn.Conv1d(1, 32, 16, 1, 8), nn.BatchNorm1d(32), nn.ReLU()]
    head = [nn.BatchNorm1d(128), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 4)]
    return nn.Sequential(*first, *blocks, *head), torch.zeros(8, 1, 512)


def hannun() -> Built:
    """Four residual blocks of width 32 instead of sixteen of 32 to 256."""

    def conv() -> nn.Conv1d:
        return nn.Conv1d(32, 32, 15, padding=7)

    def unit() -> list[nn.Module]:
        return [nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), conv()]

    first = [nn.Conv1d(1, 32, 16), nn.BatchNorm1d(32), nn.ReLU()]
    zeroth = Residual(conv(), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), conv())
    blocks = [Residual(*unit(), *unit()) for _ in range(3)]
    head = [nn.BatchNorm1d(32), nn.ReLU(), Apply(lambda x: x.mean(2)), nn.Linear(32, 4)]
    return nn.Sequential(*first, zeroth, *blocks, *head), torch.zeros(16, 1, 256)


def scvi_layers(layers: int) -> Built:
    """Norms of momentum .01 and eps .001."""
    net = dense(200, *(128,) * layers, p=0.1)
    for module in net:
        if isinstance(module, nn.BatchNorm1d):
            module.momentum, module.eps = 0.01, 1e-3
    return nn.Sequential(net, nn.Linear(128, 10)), torch.zeros(128, 200)


def bases(batch: int, length: int) -> Tensor:
    return torch.zeros(batch, 4, length)


def basenji() -> Built:
    """Three dilated residual blocks instead of eleven, a quarter of the width."""

    def unit(i: int, o: int, size: int, dilation: int = 1) -> list[nn.Module]:
        weights = nn.Conv1d(i, o, size, padding=dilation * (size // 2), dilation=dilation, bias=False)
        return [nn.GELU(), weights, nn.BatchNorm1d(o)]

    stem = [*unit(4, 72, 15), nn.MaxPool1d(2), *unit(72, 72, 5), nn.MaxPool1d(2)]
    blocks = [Residual(*unit(72, 36, 3, 2**n), *unit(36, 72, 1), nn.Dropout(0.3)) for n in range(3)]
    return nn.Sequential(*stem, *blocks, *unit(72, 192, 1), nn.Dropout(0.05), nn.GELU(), nn.Conv1d(192, 8, 1)), bases(
        8, 128
    )


def basset() -> Built:
    """A quarter of the width."""
    layers, inputs = list[nn.Module](), 4
    for outputs, size, pool in ((72, 19, 3), (48, 11, 4), (48, 7, 4)):
        weights = nn.Conv1d(inputs, outputs, size, padding=size // 2)
        layers += [weights, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(pool)]
        inputs = outputs
    return nn.Sequential(
        *layers, nn.Flatten(), dense(48 * 4, 250, 250, order="WNAD", p=0.3), nn.Linear(250, 16)
    ), bases(32, 200)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, dropout=0.05, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def enformer() -> Built:
    """Two attention layers instead of eleven, width 96, ordinary attention in the place of the relative one."""

    def unit(i: int, o: int, size: int = 1) -> list[nn.Module]:
        return [nn.BatchNorm1d(i), nn.GELU(), nn.Conv1d(i, o, size, padding=size // 2)]

    def layer() -> list[nn.Module]:
        attention = Residual(nn.LayerNorm(96), Attention(96), nn.Dropout(0.4))
        feed = [nn.LayerNorm(96), nn.Linear(96, 192), nn.Dropout(0.4), nn.ReLU(), nn.Linear(192, 96), nn.Dropout(0.4)]
        return [attention, Residual(*feed)]

    stem = [nn.Conv1d(4, 48, 15, padding=7), Residual(*unit(48, 48)), nn.MaxPool1d(2)]
    tower = [*unit(48, 96, 5), Residual(*unit(96, 96)), nn.MaxPool1d(2)]
    final = [*unit(96, 192), nn.Dropout(0.05), nn.GELU(), nn.Conv1d(192, 8, 1)]
    return nn.Sequential(*stem, *tower, swapped(*layer(), *layer()), *final), bases(8, 128)


def heart_enn() -> Built:
    """A tenth of the width."""
    layers, inputs = list[nn.Module](), 4
    for outputs, p in ((60, 0.4), (60, 0.6), (90, 0.6)):
        for i in (inputs, outputs):
            layers += [nn.Conv1d(i, outputs, 8, padding=4), nn.ReLU()]
        layers += [nn.MaxPool1d(4), nn.BatchNorm1d(outputs), *([nn.Dropout(p)] if outputs == 60 else [])]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(90, 16)), bases(16, 200)


class Isomorphism(nn.Module):
    """Graph isomorphism convolutions, a functional dropout behind each, over a graph given as pairs of nodes."""

    def __init__(self, width: int = 96, layers: int = 4, p: float = 0.5) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(dense(width if n else 16, width, order="WNA", p=0.0), nn.Linear(width, width))
            for n in range(layers)
        )
        self.lin, self.p = nn.Linear(width, 32), p

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for conv in self.convs:
            x = relu(conv(x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])))
            x = dropout(x, self.p, self.training)
        return self.lin(x)


def pka() -> Built:
    generator = torch.Generator().manual_seed(0)
    return Isomorphism(), (torch.zeros(200, 16), torch.randint(200, (2, 400), generator=generator))


BRAIN: dict[str, Any] = {"library": "braindecode", "requires": "braindecode"}

MODELS = (
    *(
        FieldModel(f"{name} (braindecode)", rate="", build=lambda name=name: eeg_net(name), **BRAIN)
        for name in EEG.split()
    ),
    FieldModel("ECG net of Hannun et al.", "awni/ecg", ".2", hannun, anew="ecg/network.py:6-72 at fc2d0e2"),
    FieldModel("resnet1d", "hsd1503/resnet1d", ".5", resnet1d, anew="resnet1d.py:114-155 at 9cccb9f"),
    FieldModel(
        "scVI encoder, three layers",
        "scverse/scvi-tools",
        ".1",
        lambda: scvi_layers(3),
        anew="nn/_base_components.py:104-115 at 93dc4fa",
    ),
    FieldModel(
        "scVI encoder, one layer",
        "scverse/scvi-tools",
        ".1",
        lambda: scvi_layers(1),
        anew="nn/_base_components.py:104-115 at 93dc4fa",
    ),
    FieldModel("Basenji", "calico/basenji", ".3, .05", basenji, anew="blocks.py:63-97 at 74b8671"),
    FieldModel("Basset", "calico/basenji", ".3", basset, anew="manuscripts/basset/params_basset.json at 74b8671"),
    FieldModel(
        "Enformer", "lucidrains/enformer-pytorch", ".4, .05", enformer, anew="modeling_enformer.py:357-380 at 5a5974d"
    ),
    FieldModel("HeartENN", "FunctionLab/selene", ".4, .6", heart_enn, anew="models/heartenn.py:44-65 at 9f8c441"),
    FieldModel("pkasolver GIN", "mayrf/pkasolver", ".5", pka, anew="torch_geometric 2.0's GIN"),
)
