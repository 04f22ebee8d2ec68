"""Hand-written residual networks, with dropout where people put it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WideBasic(nn.Module):
    """A Wide ResNet's block in the order that users got wrong: conv, dropout, norm."""

    def __init__(self, n_in: int, n_out: int, stride: int, p: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(n_out), nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.dropout = nn.Dropout(p)
        self.shortcut = (
            nn.Conv2d(n_in, n_out, 1, stride, bias=False) if (n_in, 1) != (n_out, stride) else nn.Sequential()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.conv1(F.relu(self.bn1(x))))  # the offender
        out = self.conv2(F.relu(self.bn2(out)))
        return out + self.shortcut(x)


class WideResNet(nn.Module):
    """Three blocks of different widths and strides, and a head with dropout after the pool."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(WideBasic(8, 8, 1, p), WideBasic(8, 16, 2, p), WideBasic(16, 16, 1, p))
        self.bn, self.fc, self.p = nn.BatchNorm2d(16), nn.Linear(16, 10), p

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.blocks(self.conv(x))))
        out = F.avg_pool2d(out, out.shape[-1]).view(len(out), -1)
        out = F.dropout(out, self.p, self.training)
        return self.fc(out)


class PreActBasic(nn.Module):
    """A basic block, dropout by a function before both convolutions."""

    def __init__(self, n: int, p: float) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = nn.BatchNorm2d(n), conv3(n), nn.BatchNorm2d(n), conv3(n)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.dropout(F.relu(self.bn1(x)), self.p, self.training))
        y = self.conv2(F.dropout(F.relu(self.bn2(y)), p=self.p, training=self.training))
        y += x
        return y


class PreActBottleneck(nn.Module):
    """A bottleneck block, dropout of channels after the last convolution."""

    def __init__(self, n: int, p: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, n // 4, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(n // 4), conv3(n // 4)
        self.bn3, self.conv3 = nn.BatchNorm2d(n // 4), nn.Conv2d(n // 4, n, 1, bias=False)
        self.drop = nn.Dropout2d(p)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.bn1(x)))
        y = self.conv2(F.silu(self.bn2(y)))
        return x + self.drop(self.conv3(F.silu(self.bn3(y))))


class PreResNet(nn.Module):
    """Blocks of one kind, dropout on the trunk between them, and in the head."""

    def __init__(self, block: type[nn.Module], p: float = 0.3) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), block(16, p), block(16, p)
        self.between, self.drop = nn.Dropout(p), nn.Dropout(p)
        self.bn, self.pool, self.fc = nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.between(self.first(self.conv(x))))
        x = torch.flatten(self.pool(F.relu(self.bn(x))), 1)
        return self.fc(self.drop(x))


def conv3(n: int) -> nn.Module:
    return nn.Conv2d(n, n, 3, padding=1, bias=False)
