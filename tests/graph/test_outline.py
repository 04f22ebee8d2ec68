"""The outline: what repeats is folded, what skips is known, every layer that does not only rearrange is there once."""

import pytest
import torch
from torch import nn

import evenkeel as ek
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.graph.kinds import Kind
from evenkeel.graph.outline import outline


def traced(model, *inputs):
    return outline(ek.trace(model, inputs if len(inputs) > 1 else inputs[0]))


def labels(node):
    return [child.label for child in node.children]


def child(node, label):
    return next(found for found in node.children if found.label == label)


class Residual(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.norm, self.drop, self.conv = nn.BatchNorm2d(width), nn.Dropout(0.2), nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x + self.conv(self.drop(self.norm(x)))


class Encoder(nn.Module):
    def __init__(self, width=8, depth=4):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, 0.1, batch_first=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.right = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, left, right):
        return self.head(torch.cat([self.left(left), self.right(right)], 1))


def test_a_chain_is_a_list():
    whole = traced(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.BatchNorm1d(8)), torch.ones(2, 4))
    assert labels(whole) == ["input", "0", "1", "2", "output"]
    assert whole.name == "Sequential" and whole.edges == ((0, 1), (1, 2), (2, 3), (3, 4))
    drop = child(whole, "1")
    assert (drop.letter, drop.word, drop.detail, drop.is_block) == ("D", "dropout", "p=0.3", False)
    assert child(whole, "2").path == "2" and child(whole, "0").detail == "8"


def test_blocks_of_alike_layers_are_folded_whatever_their_widths():
    blocks = [*(Residual(4) for _ in range(5)), nn.Conv2d(4, 6, 1), Residual(6)]
    whole = traced(nn.Sequential(*blocks), torch.ones(2, 4, 3, 3))
    assert labels(whole) == ["input", "0 to 4", "5", "6", "output"]
    folded = child(whole, "0 to 4")
    assert folded.repeats and len(folded.children) == 5
    assert folded.children[0].edges == ((-1, 0), (-1, 3), (0, 1), (1, 2), (2, 3), (3, 4))  # the shortcut, into the sum


@pytest.mark.parametrize(("times", "folds"), [(2, False), (3, True), (7, True)])
def test_a_pattern_without_a_block_of_its_own_is_folded_from_three_on(times, folds):
    layers = [layer for _ in range(times) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())]
    whole = traced(nn.Sequential(*layers), torch.ones(2, 4))
    assert any(node.repeats and len(node.children) == times for node in whole.children) == folds


def test_layers_that_differ_are_not_folded():
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))
    whole = traced(nn.Sequential(plain, other), torch.ones(2, 4))
    assert labels(whole) == ["input", "0", "1", "output"] and not any(node.repeats for node in whole.children)


def test_a_transformer_is_its_layers_folded_without_what_only_rearranges():
    whole = traced(Encoder(), torch.ones(2, 5, 8))
    layers = child(whole, "layers")
    assert layers.repeats and len(layers.children) == 4
    assert not any(leaf.letter == Kind.PASS.value for leaf in whole.leaves)
    assert sum(leaf.letter == "N" for leaf in whole.leaves) == 9


def test_two_inputs_stand_above_two_towers_that_meet():
    whole = traced(Towers(), torch.ones(2, 3), torch.ones(2, 5))
    assert labels(whole) == ["input", "input#2", "left to right", "cat", "head", "output"]
    towers = child(whole, "left to right")
    assert towers.repeats and towers.edges == ((-1, 0), (-1, 1), (0, 2), (1, 2))  # side by side
    assert {(0, 2), (1, 2)} <= set(whole.edges)


class Unet(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.down, self.up, self.dec = (nn.ModuleList() for _ in range(3))
        for _ in range(3):
            self.down.append(nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)))
            self.up.append(nn.ConvTranspose2d(width, width, 2, 2))
            self.dec.append(nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width)))
        self.mid = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, x):
        kept = []
        for down in self.down:
            kept.append(down(x))
            x = nn.functional.max_pool2d(kept[-1], 2)
        x = self.mid(x)
        for up, dec in zip(self.up, self.dec, strict=True):
            x = dec(torch.cat([up(x), kept.pop()], 1))
        return x


def test_the_middle_of_a_unet_is_none_of_its_decoders_blocks():
    whole = traced(Unet(), torch.ones(1, 4, 16, 16))
    assert labels(whole) == ["input", "down.0 to max_pool2d#3", "mid", "up.0 to dec.2", "output"]
    assert {(1, 2), (2, 3), (1, 3)} <= set(whole.edges)  # what the encoder keeps passes by the middle
    folded = child(whole, "up.0 to dec.2")
    assert [labels(block) for block in folded.children] == [
        ["up.0", "cat", "dec.0"],
        ["up.1", "cat#2", "dec.1"],
        ["up.2", "cat#3", "dec.2"],
    ]


def test_dense_layers_without_blocks_are_folded_from_the_first_on():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm1d(4 * n) for n in range(1, 6))
            self.fcs = nn.ModuleList(nn.Linear(4 * n, 4) for n in range(1, 5))

        def forward(self, x):
            for norm, fc in zip(self.norms, self.fcs, strict=False):
                x = torch.cat([x, fc(norm(x))], 1)
            return self.norms[-1](x)

    assert labels(traced(Dense(), torch.ones(2, 4))) == ["input", "norms.0 to cat#4", "norms.4", "output"]


def test_a_tensor_made_of_parameters_and_constants_is_no_input():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.place = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(1, 6, 4))
            self.register_buffer("scale", torch.full((4,), 2.0))
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
            return self.norm(x * self.scale + torch.arange(4))

    assert labels(traced(Tokens(), torch.ones(2, 5, 4))) == ["input", "cat", "norm", "output"]


@pytest.mark.parametrize("order", [("x", "labels"), ("labels", "x")])
def test_the_labels_of_a_batch_are_no_input_of_the_model(order):
    x, labels_of = torch.randn(8, 3), torch.zeros(8).long()
    batch = {name: {"x": x, "labels": labels_of}[name] for name in order}
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    report = ek.variance_shift(model, [batch], forward=lambda net, given: net(given["x"]))
    assert labels(report.network) == ["input", "0", "1", "2", "output"]
    assert report.network.edges == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert child(report.network, "input").detail == "8\N{MULTIPLICATION SIGN}3"
    assert labels(ek.variance_shift(model, [(x, labels_of)]).network) == ["input", "0", "1", "2", "output"]


def test_an_input_that_the_model_takes_and_does_not_read_says_so():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, mask, x):
            return self.norm(x)

    whole = traced(Takes(), torch.ones(2, 1), torch.ones(2, 3))
    assert labels(whole) == ["input", "input#2", "norm", "output"]
    assert child(whole, "input").detail == "read by no layer"
    assert child(whole, "input#2").detail == "2\N{MULTIPLICATION SIGN}3"


def test_an_outline_is_read_back_from_plain_data():
    import json

    whole = traced(Encoder(), torch.ones(2, 5, 8))
    assert type(whole).from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    with pytest.raises(ValueError, match="leads nowhere"):
        type(whole).from_dict({"name": "net", "children": [{"name": "0"}], "edges": [[0, 7]]})


def test_a_bare_norm_has_the_empty_path():
    (norm,) = [leaf for leaf in traced(nn.BatchNorm1d(3), torch.ones(2, 3)).leaves if leaf.letter == "N"]
    assert norm.path == ""


def test_a_report_makes_its_outline_once_and_keeps_it_when_stored():
    import pickle

    report = ek.predict_shift(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)), torch.ones(2, 4))
    assert report.network is report.network
    assert labels(pickle.loads(pickle.dumps(report)).network) == labels(report.network)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "densenet121", "shufflenet_v2_x1_0", "mobilenet_v3_small", "vit_b_16"])
def test_every_layer_of_a_known_net_is_there_once_and_every_edge_goes_forward(name):
    model = import_torchvision().models.get_model(name, weights=None)
    graph = ek.trace(model, torch.ones(1, 3, 224, 224))
    whole = outline(graph)
    assert [leaf.name for leaf in whole.leaves] == [layer.name for layer in graph if layer.kind is not Kind.PASS]

    def walk(node):
        assert all(-1 <= a < b <= len(node.children) for a, b in node.edges)
        for inner in node.children:
            walk(inner)

    walk(whole)


@pytest.mark.slow
def test_resnet_and_densenet_are_folded_stage_by_stage():
    models = import_torchvision().models
    whole = traced(models.resnet50(), torch.ones(1, 3, 64, 64))
    assert [labels(child(whole, f"layer{n}")) for n in (1, 2, 3, 4)] == [["0", f"1 to {last}"] for last in (2, 3, 5, 2)]
    whole = traced(models.DenseNet(8, (4, 6), 16, drop_rate=0.1), torch.ones(1, 3, 64, 64))
    dense = child(child(child(whole, "features"), "denseblock2"), "denselayer1 to denselayer6")
    assert len(dense.children) == 6
    assert {(0, 5), (1, 4), (-1, 5)} <= set(dense.edges)  # each layer reads all those before
