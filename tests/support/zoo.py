"""Small models, each beside the shapes of its example and the picture that its graph must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import evenkeel as ek


@dataclass(frozen=True)
class Entry:
    """A model of the zoo: how to build it, what to call it with, what its graph looks like."""

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[Any, ...]
    named: dict[str, tuple[int, ...]]
    picture: str

    def example(self) -> Any:
        """A fresh example: one tensor, or a tuple of them, or a dict."""
        generator = torch.Generator().manual_seed(1)
        if self.named:
            return {name: torch.randn(shape, generator=generator) for name, shape in self.named.items()}
        given = tuple(s if isinstance(s, Tensor) else torch.randn(s, generator=generator) for s in self.shapes)
        return given[0] if len(given) == 1 else given


ZOO: list[Entry] = []


def zoo(picture: str, *shapes: Any, **named: tuple[int, ...]) -> Callable[[Any], Any]:
    """Put a model class, or a function that builds a model, in the zoo."""

    def add(build: Any) -> Any:
        ZOO.append(Entry(build.__name__, build, shapes, named, picture))
        return build

    return add


# Whole networks


@zoo("i W A D W N o", (4, 6))
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))


@zoo("i W A D W N o", (4, 6))
class FunctionalMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(8, 6), torch.ones(8, 8)])
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        x = F.dropout(F.relu(F.linear(x, self.weights[0])), 0.5, self.training)
        return F.batch_norm(F.linear(x, self.weights[1]), self.mean, self.var, training=self.training)


class PreActivationBlock(nn.Module):
    def __init__(self, width, p=0.3):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(p)

    def forward(self, x):
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.drop(self.relu(self.bn2(out))))
        return x + out


class PreActivationNet(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(PreActivationBlock(4) for _ in range(blocks)))
        self.bn, self.drop, self.fc = nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Linear(4, 10)

    def forward(self, x):
        x = F.relu(self.bn(self.blocks(self.conv(x))))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(self.drop(x))


@zoo("i W N A W N A D W + N A P . D W o", (2, 3, 6, 6))
def pre_activation_net() -> nn.Module:
    return PreActivationNet(blocks=1)


@zoo("i W N A W N A D W + N A W N A D W + N A P . D W o", (2, 3, 6, 6))
def two_block_pre_activation_net() -> nn.Module:
    return PreActivationNet(blocks=2)


@zoo("i W N A W N A W N W N + A P . W o", (2, 3, 6, 6))
class ProjectionResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.long = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.long.extend([nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)])
        self.short = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        out = self.long(x)
        out += self.short(x)
        return self.fc(torch.flatten(F.relu(out).mean((2, 3)), 1))


class DenseLayer(nn.Module):
    def __init__(self, width, growth):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, growth, 3, padding=1)

    def forward(self, x):
        new = F.dropout(self.conv(F.relu(self.norm(x))), p=0.2, training=self.training)
        return torch.cat([x, new], 1)


@zoo("i N A W D c N A W D c P o", (2, 3, 6, 6))
class DenseNetBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(3, 2), DenseLayer(5, 2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return F.avg_pool2d(x, 2)


@zoo("i W P W A W A x o", (2, 3, 4, 4))
class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand, self.act = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.SiLU()

    def forward(self, x):
        x = self.conv(x)
        return x * torch.sigmoid(self.expand(self.act(self.reduce(self.pool(x)))))


@zoo("i W D P W o", torch.zeros(2, 3, dtype=torch.long))
class BagOfWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.drop, self.fc = nn.Embedding(7, 4), nn.Dropout(0.1), nn.Linear(4, 2)

    def forward(self, tokens):
        return self.fc(self.drop(self.embedding(tokens)).mean(1))


# Dropout


@zoo("i D . D . D D D D o", (2, 3, 2, 2, 2))
def dropout_modules() -> nn.Module:
    spatial = (nn.Dropout3d(0.3), nn.Flatten(3), nn.Dropout2d(0.2), nn.Flatten(2), nn.Dropout1d(0.1))
    return nn.Sequential(*spatial, nn.Dropout(0.4, inplace=True), nn.AlphaDropout(0.6), nn.FeatureAlphaDropout(0.7))


@zoo("i D . D . D D D D o", (2, 3, 2, 2, 2))
class FunctionalDropouts(nn.Module):
    def forward(self, x):
        x = F.dropout3d(x, 0.3, self.training).flatten(3)
        x = F.dropout2d(x, p=0.2, training=self.training).flatten(2)
        x = F.dropout1d(x, 0.1, training=self.training)
        x = F.dropout(x, 0.4, self.training, inplace=True)
        return F.feature_alpha_dropout(F.alpha_dropout(x, 0.6, self.training), 0.7, self.training)


@zoo("i D D D D D o", (2, 3, 4))
class TorchDropouts(nn.Module):
    def forward(self, x):
        x = torch.dropout(x, 0.1, self.training)
        x = torch.feature_dropout(x, 0.2, self.training)
        x = torch.alpha_dropout(x, 0.3, train=self.training)
        x = torch.feature_alpha_dropout(x, p=0.4, train=self.training)
        torch.dropout_(x, 0.5, self.training)
        return x


@zoo("i W A D + o", (4, 6))
class StochasticDepth(nn.Module):
    def __init__(self, p=0.2):
        super().__init__()
        self.p, self.fc = p, nn.Linear(6, 6)

    def forward(self, x):
        keep = 1 - self.p
        branch = F.relu(self.fc(x))
        if self.training:
            mask = branch.new_empty(len(x), 1).bernoulli_(keep)
            branch = branch * mask.div_(keep)
        return x + branch


class DeclaredNoise(nn.Module):
    evenkeel_kind = ek.Kind.DROPOUT

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return x * (1 + self.p * torch.rand_like(x)) + 0 if self.training else x


@zoo("i W D A D o", (4, 6))
def declared_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), DeclaredNoise(0.3), nn.ReLU(), DeclaredNoise(0.1))


# Norms


@zoo("i N . N . N N o", (2, 3, 2, 2, 2))
def batch_norms() -> nn.Module:
    norms = (nn.BatchNorm3d(3), nn.Flatten(3), nn.BatchNorm2d(3), nn.Flatten(2), nn.BatchNorm1d(3))
    return nn.Sequential(*norms, nn.SyncBatchNorm(3))


@zoo("i N . N . N o", (2, 3, 2, 2, 2))
def instance_norms() -> nn.Module:
    kinds = (nn.InstanceNorm3d, nn.InstanceNorm2d, nn.InstanceNorm1d)
    volume, image, line = (kind(3, affine=True, track_running_stats=True) for kind in kinds)
    return nn.Sequential(volume, nn.Flatten(3), image, nn.Flatten(2), line)


@zoo("i N N N N N N o", (2, 4, 6))
class OtherNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.group, self.rms = nn.LayerNorm(6), nn.GroupNorm(2, 4), nn.RMSNorm(6)

    def forward(self, x):
        x = self.rms(self.group(self.layer(x)))
        return F.instance_norm(F.group_norm(F.layer_norm(x, (6,)), 2))


class NormAct(nn.BatchNorm2d):
    """A batch norm that carries a dropout and its activation, as timm's BatchNormAct2d does."""

    def __init__(self, width):
        super().__init__(width)
        self.drop, self.act = nn.Dropout(0.25), nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


@zoo("i W N D A W o", (2, 3, 4, 4))
def norm_act() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4), nn.Conv2d(4, 2, 1))


# Weight layers


@zoo("i W W . W W . W W . W W o", (2, 2, 4, 4, 4))
class WeightModules(nn.Module):
    def __init__(self):
        super().__init__()
        self.volume = nn.Sequential(nn.Conv3d(2, 3, 2), nn.ConvTranspose3d(3, 2, 2), nn.Flatten(3))
        self.image = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(3, 2, 2), nn.Flatten(2))
        self.line = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ConvTranspose1d(3, 2, 2), nn.Flatten(1))
        self.linear, self.bilinear = nn.Linear(128, 4), nn.Bilinear(4, 4, 3)

    def forward(self, x):
        x = self.linear(self.line(self.image(self.volume(x))))
        return self.bilinear(x, x)


@zoo("i W W . W W . W W . W W o", (2, 2, 4, 4, 4))
class FunctionalWeights(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = [(3, 2, *[2] * d) for d in (3, 2, 1)]
        self.w = nn.ParameterList([torch.ones(shape) for shape in (*shapes, (4, 128), (3, 4, 4))])

    def forward(self, x):
        w = self.w
        x = F.conv_transpose3d(F.conv3d(x, w[0]), w[0]).flatten(3)
        x = F.conv_transpose2d(F.conv2d(x, w[1]), w[1]).flatten(2)
        x = F.conv_transpose1d(F.conv1d(x, w[2]), w[2]).flatten(1)
        x = F.linear(x, w[3])
        return F.bilinear(x, x, w[4])


@zoo("i W . W W W W o", (3, 4))
class MatrixProducts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = x @ self.w + self.b
        x = torch.matmul(x, self.w).mm(self.w)
        return torch.addmm(self.b, torch.einsum("bi,io->bo", x, self.w), self.w)


@zoo("i W A W A o", (4, 6))
def weight_norm() -> nn.Module:
    normed = nn.utils.parametrizations.weight_norm
    return nn.Sequential(normed(nn.Linear(6, 6)), nn.ReLU(), normed(nn.Linear(6, 2)), nn.Tanh())


# Everything elementwise


@zoo("i W A A A A A A A o", (4, 6))
class Activations(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.relu, self.elu = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.ELU()

    def forward(self, x):
        x = F.gelu(self.elu(self.relu(self.fc(x))))
        F.leaky_relu_(x, 0.1)
        x.tanh_()
        return torch.sigmoid(x).relu()


@zoo("i W P W P W P P o", (2, 3, 16, 16))
class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 3, 1), nn.MaxPool2d(2)

    def forward(self, x):
        x = F.avg_pool2d(self.conv(self.pool(self.conv(x))), 2)
        x, _ = F.max_pool2d(self.conv(x), 2, return_indices=True)
        return x.mean((2, 3))


@zoo("i W + W + W + W + W + o", (4, 6))
class Joins(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(6, 6) for _ in range(5)])

    def forward(self, x):
        x = x + self.fc[0](x)
        x += self.fc[1](x)
        x = torch.add(x, self.fc[2](x))
        x = x.add_(self.fc[3](x), alpha=0.5)
        return x - self.fc[4](x)


@zoo("i W c W c c o", (4, 6))
class Concats(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        left = torch.cat([x, self.fc(x)], dim=1)
        right = torch.hstack((x, self.fc(x)))
        return torch.stack([left, right])


@zoo("i . . . . . . W . o", (4, 6))
class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain, self.bias, self.fc = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6)), nn.Linear(6, 6)

    def forward(self, x):
        x = 1 - (x * 0.5 + self.bias) / 2
        x *= self.gain
        x += torch.ones(6)
        return torch.add(self.fc(x), 1)


@zoo("i W . . . . . . . . . . o", (4, 6))
class Reshapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        x = self.fc(x).view(-1, 2, 3).permute(0, 2, 1).reshape(len(x), 6)
        x = x[:, None].squeeze(1).transpose(0, 1).T.contiguous()
        first, second = x.chunk(2, dim=1)
        return first, torch.flatten(second)


# Containers, calls, inputs and outputs


@zoo("i W A D W A D o", (4, 6))
class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5)

    def forward(self, x):
        for _ in range(2):
            x = self.drop(self.act(self.fc(x)))
        return x


@zoo("i W N A W N A W o", (4, 6))
class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        block = [nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), nn.ReLU()) for _ in range(2)]
        self.parts = nn.ModuleDict({"body": nn.ModuleList(block), "head": nn.Linear(6, 2)})

    def forward(self, x):
        for block in self.parts["body"]:
            x = block(x)
        return self.parts["head"](x)


@zoo("i i W W + o", left=(4, 6), right=(4, 3))
class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 2), nn.Linear(3, 2)

    def forward(self, *, right, left):
        left, right = self.left(left), self.right(right)
        return {"sum": left + right, "parts": {"left": left}, "count": 2}


@zoo("i i W W c o", (4, 6), (4, 3))
class Tuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 2), nn.Linear(3, 2)

    def forward(self, left, right, scale=None):
        pair = self.left(left), self.right(right)
        return torch.cat(pair, 1), [pair, scale]


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.stem, self.use_reentrant = nn.Linear(6, 6), use_reentrant
        self.block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3))

    def forward(self, x):
        return checkpoint(self.block, self.stem(x), use_reentrant=self.use_reentrant)


@zoo("i W W N D o", (4, 6))
def reentrant_checkpoint() -> nn.Module:
    return Checkpointed(use_reentrant=True)


@zoo("i W W N D o", (4, 6))
def checkpoint_without_reentry() -> nn.Module:
    return Checkpointed(use_reentrant=False)


# Where fake tensors cannot go, and what no table knows


@zoo("i W W D W o", (4, 6))
class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(6, 6), nn.Dropout(0.3)

    def forward(self, x):
        x = self.fc(x)
        if torch.isfinite(x).all():  # fake tensors have no data to ask about
            x = self.fc(x)
        return self.fc(self.drop(x))


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        return gradient


@zoo("i W ? W o", (4, 6))
class CustomFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(StraightThrough.apply(self.fc(x)))


@zoo("i W W x A x W o", (2, 3, 4))
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        scores = torch.einsum("bie,bje->bij", self.query(x), self.key(x))  # no layer of its own: two signals
        return self.out(torch.bmm(scores.softmax(-1), x))


BY_NAME = {entry.name: entry for entry in ZOO}
