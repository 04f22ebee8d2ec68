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
