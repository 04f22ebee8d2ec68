"""Point clouds, poses, skeletons, traffic: blocks written anew from their published order."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from benchmarks.field.model import Built, FieldModel, Residual, dense


def shared(inputs: int, *sizes: int, ndim: int = 1) -> nn.Sequential:
    """Weights that all points share, each with norm and ReLU."""
    make, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[ndim - 1]
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [make(inputs, size, 1), norm(size), nn.ReLU()]
        inputs = size
    return nn.Sequential(*layers)


class SpatialTransform(nn.Module):
    """A matrix made of the whole cloud, and the cloud multiplied by it."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.cloud = shared(3, 64, 128, 256), dense(256, 128, 64, order="WNA", p=0.0)
        self.matrix = nn.Linear(64, 9)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.cloud(self.points(x).amax(2))).view(-1, 3, 3)
        return (matrix + torch.eye(3)) @ x


class PointNet(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.transform = SpatialTransform()
        self.points = shared(3, 64, 128, 512)
        self.fc1, self.bn1 = nn.Linear(512, 256), nn.BatchNorm1d(256)
        self.fc2, self.dropout, self.bn2 = nn.Linear(256, 128), nn.Dropout(p), nn.BatchNorm1d(128)
        self.fc3 = nn.Linear(128, 40)

    def forward(self, x: Tensor) -> Tensor:
        x = self.points(self.transform(x)).amax(2)
        x = relu(self.bn1(self.fc1(x)))
        return self.fc3(relu(self.bn2(self.dropout(self.fc2(x)))))


def pointnet(p: float) -> Built:
    return PointNet(p), torch.zeros(32, 3, 128)


class PointNet2(nn.Module):
    """One grouping instead of two, and that the input's own."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.points = shared(3, 64, 64, 128, ndim=2), shared(128, 128, 256, 512)
        self.head = nn.Sequential(dense(512, 512, 256, p=0.4), nn.Linear(256, 40))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.points(self.groups(x).amax(3)).amax(2))


class EdgeConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, neighbours: int = 8) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.conv = nn.Sequential(
            nn.Conv2d(2 * inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2)
        nearest = torch.cdist(rows, rows).topk(self.neighbours, largest=False).indices
        near = torch.stack([row[index] for row, index in zip(rows, nearest, strict=True)])
        own = rows.unsqueeze(2).expand_as(near)
        return self.conv(torch.cat([near - own, own], 3).permute(0, 3, 1, 2)).amax(3)


class DGCNN(nn.Module):
    """Two edge convolutions instead of four."""

    def __init__(self) -> None:
        super().__init__()
        self.edge1, self.edge2 = EdgeConv(3, 64), EdgeConv(64, 64)
        self.points = nn.Sequential(nn.Conv1d(128, 256, 1, bias=False), nn.BatchNorm1d(256), nn.LeakyReLU(0.2))
        self.head = nn.Sequential(dense(512, 512, 256, p=0.5), nn.Linear(256, 40))

    def forward(self, x: Tensor) -> Tensor:
        first = self.edge1(x)
        x = self.points(torch.cat([first, self.edge2(first)], 1))
        return self.head(torch.cat([x.amax(2), x.mean(2)], 1))


class VideoPose(nn.Module):
    """Temporal blocks of filter width 3, an eighth of the width, 27 frames."""

    def __init__(self, width: int = 128, p: float = 0.25) -> None:
        super().__init__()
        self.expand, self.expand_bn = nn.Conv1d(34, width, 3, bias=False), nn.BatchNorm1d(width)
        self.wide = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=d, bias=False) for d in (3, 9))
        self.narrow = nn.ModuleList(nn.Conv1d(width, width, 1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(4))
        self.drop, self.shrink = nn.Dropout(p), nn.Conv1d(width, 51, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(relu(self.expand_bn(self.expand(x))))
        for i, dilation in enumerate((3, 9)):
            kept = x[:, :, dilation:-dilation]
            x = self.drop(relu(self.norms[2 * i](self.wide[i](x))))
            x = kept + self.drop(relu(self.norms[2 * i + 1](self.narrow[i](x))))
        return self.shrink(x)


def pose_baseline() -> Built:
    """A quarter of the width."""
    blocks = [Residual(dense(256, 256, 256, p=0.5)) for _ in range(2)]
    return nn.Sequential(dense(32, 256, p=0.5), *blocks, nn.Linear(256, 48)), torch.zeros(64, 32)


class GraphBlock(nn.Module):
    """ST-GCN: weights, sums over neighbours by part, then norm and convolution over time."""

    def __init__(self, inputs: int, outputs: int, joints: int, p: float) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.softmax(torch.randn(3, joints, joints), 2))
        self.weights = nn.Conv2d(inputs, 3 * outputs, 1)
        time = nn.Conv2d(outputs, outputs, (9, 1), padding=(4, 0))
        self.time = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU(), time, nn.BatchNorm2d(outputs), nn.Dropout(p))
        match = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if inputs == outputs else match

    def forward(self, x: Tensor) -> Tensor:
        parts = self.weights(x).unflatten(1, (3, -1))
        return relu(self.time(torch.einsum("nkctv,kvw->nctw", parts, self.adjacency)) + self.shortcut(x))


class STGCN(nn.Module):
    """Six blocks instead of ten, half the width."""

    def __init__(self, joints: int = 18, p: float = 0.5) -> None:
        super().__init__()
        self.data_bn = nn.BatchNorm1d(3 * joints)
        sizes = (3, 32, 32, 32, 64, 64, 64)
        self.blocks = nn.Sequential(*(GraphBlock(i, o, joints, p) for i, o in itertools.pairwise(sizes)))
        self.fc = nn.Conv2d(64, 60, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v = x.shape
        x = self.data_bn(x.permute(0, 3, 1, 2).reshape(n, v * c, t)).view(n, v, c, t).permute(0, 2, 3, 1)
        return self.fc(self.blocks(x).mean((2, 3), keepdim=True)).flatten(1)


class GraphWaveNet(nn.Module):
    """Eight gated layers in four blocks of dilations 1 and 2, with diffusion over a graph."""

    def __init__(self, nodes: int = 20, width: int = 32, p: float = 0.3) -> None:
        super().__init__()
        self.register_buffer("support", torch.softmax(torch.randn(nodes, nodes), 1))
        self.dilations, self.start = (1, 2) * 4, nn.Conv2d(2, width, 1)

        def each(outputs: int, inputs: int = width, time: int = 1) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(inputs, outputs, (1, time), dilation=(1, d)) for d in self.dilations)

        self.filters, self.gates, self.skips = each(width, time=2), each(width, time=2), each(128)
        self.graphs, self.norms = each(width, 3 * width), nn.ModuleList(nn.BatchNorm2d(width) for _ in self.dilations)
        self.dropout = nn.Dropout(p)
        self.end = nn.Sequential(nn.ReLU(), nn.Conv2d(128, 256, 1), nn.ReLU(), nn.Conv2d(256, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skip = self.start(x), torch.zeros(())
        for i in range(len(self.dilations)):
            before, x = x, torch.tanh(self.filters[i](x)) * torch.sigmoid(self.gates[i](x))
            made = self.skips[i](x)
            skip = made + (skip[..., -made.shape[3] :] if skip.dim() else 0)
            near = torch.einsum("ncvl,vw->ncwl", x, self.support)
            far = torch.einsum("ncvl,vw->ncwl", near, self.support)
            x = self.dropout(self.graphs[i](torch.cat([x, near, far], 1)))
            x = self.norms[i](x + before[..., -x.shape[3] :])
        return self.end(skip)


def keras_pointnet() -> Built:
    """The main network, without its two transforms."""
    head = nn.Sequential(dense(512, 256, 128, p=0.3), nn.Linear(128, 10))
    return nn.Sequential(shared(3, 32, 64, 512), nn.AdaptiveMaxPool1d(1), nn.Flatten(), head), torch.zeros(32, 3, 128)


MODELS = (
    FieldModel(
        "PointNet (yanx27)",
        "yanx27/Pointnet_Pointnet2_pytorch",
        ".4",
        lambda: pointnet(0.4),
        anew="models/pointnet_cls.py:17-25 at eb64fe0",
    ),
    FieldModel(
        "PointNet (fxia22)",
        "fxia22/pointnet.pytorch",
        ".3",
        lambda: pointnet(0.3),
        anew="pointnet/model.py:137-145 at bafbf40",
    ),
    FieldModel(
        "PointNet++ classifier",
        "yanx27/Pointnet_Pointnet2_pytorch",
        ".4",
        lambda: (PointNet2(), torch.zeros(32, 3, 32, 8)),
        anew="models/pointnet2_cls_ssg.py:16-34 at eb64fe0",
    ),
    FieldModel(
        "PointNet (Keras example)", "keras-team/keras-io", ".3", keras_pointnet, anew="examples/vision/pointnet.py"
    ),
    FieldModel(
        "DGCNN",
        "WangYueFt/dgcnn",
        ".5",
        lambda: (DGCNN(), torch.zeros(16, 3, 64)),
        anew="pytorch/model.py:148-151 at f765b46",
    ),
    FieldModel(
        "VideoPose3D",
        "facebookresearch/VideoPose3D",
        ".25",
        lambda: (VideoPose(), torch.zeros(32, 34, 40)),
        anew="common/model.py:127-135 at 1afb1ca",
    ),
    FieldModel(
        "3d-pose-baseline",
        "una-dinosauria/3d-pose-baseline",
        ".5",
        pose_baseline,
        anew="src/linear_model.py:105-190 at 666080d",
    ),
    FieldModel(
        "ST-GCN",
        "yysijie/st-gcn",
        ".5",
        lambda: (STGCN(), torch.zeros(8, 3, 32, 18)),
        anew="net/st_gcn.py:159-195 at 221c0e1",
    ),
    FieldModel(
        "Graph WaveNet",
        "nnzhan/Graph-WaveNet",
        ".3",
        lambda: (GraphWaveNet(), torch.zeros(16, 2, 20, 24)),
        anew="model.py:45, 198-201 at 6b162e8",
    ),
)
