"""Models in use: a sample of torchvision and timm, one or two of a family; benchmarks/zoo.py runs all of them."""

import importlib
import inspect

import pytest
import torch
from torch import nn

import evenkeel as ek
from benchmarks import zoo
from evenkeel.io.targets import load_target
from evenkeel.model.norms import has_running_statistics

pytestmark = pytest.mark.slow

SAMPLE = """
    torchvision:alexnet torchvision:vgg11_bn torchvision:googlenet torchvision:inception_v3 torchvision:squeezenet1_1
    torchvision:resnet18 torchvision:mnasnet0_5 torchvision:mobilenet_v3_small torchvision:shufflenet_v2_x0_5
    torchvision:regnet_y_400mf torchvision:convnext_tiny torchvision:swin_t torchvision:vit_b_16 torchvision:maxvit_t
    timm:seresnext26t_32x4d timm:skresnet18 timm:nfnet_l0 timm:vit_tiny_patch16_224 timm:mixer_s32_224 timm:levit_128s
    timm:dla34 timm:convnextv2_atto timm:efficientformerv2_s0 timm:ghostnet_100 timm:pvt_v2_b0
    """.split()

# What a recorder must not lose: modules that are layers whoever calls them.
LAYERS = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.modules.dropout._DropoutNd,
)


@pytest.fixture(autouse=True)
def _libraries():
    """Both libraries, importable beside a CPU build of torch; skipped where one is not installed."""
    try:
        zoo.import_torchvision()
        importlib.import_module("timm")
    except ImportError as error:
        pytest.skip(str(error))


def build(target):
    model, example, _ = zoo.build_model(target)
    return model, example


def called(model):
    """The layers that passes of the model call from now on."""
    seen = set()
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.register_forward_pre_hook(lambda module, _: seen.add(module))
    return seen


@pytest.mark.parametrize("target", SAMPLE)
def test_sample(target):
    model, example = build(target)
    seen = called(model)
    graph = ek.trace(model, example)

    (start,), (output,) = graph.of(ek.Kind.INPUT), graph.of(ek.Kind.OUTPUT)
    assert output.inputs
    assert set(graph.downstream(start)) == set(graph) - {start}  # no layer, the output included, has lost its input
    layers = [layer for layer in graph if isinstance(layer.module, LAYERS)]
    assert {layer.module for layer in layers} == seen
    assert set(layers) <= set(graph.upstream(output))
    assert all(layer.p is not None for layer in graph.of(ek.Kind.DROPOUT))

    norms = [layer for layer in graph.of(ek.Kind.NORM) if layer.module and has_running_statistics(layer.module)]
    assert bool(norms) is any(map(has_running_statistics, model.modules()))
    assert zoo.between(graph, norms) == set()


def test_densenet_shows_its_functional_dropouts():
    densenet = importlib.import_module("torchvision.models.densenet")
    with zoo.SkipInitializers():
        graph = ek.trace(densenet.densenet121(drop_rate=0.2), torch.ones(2, 3, 64, 64))
    lines = inspect.getsource(densenet).splitlines()
    (line,) = (number for number, text in enumerate(lines, 1) if "F.dropout(" in text)
    dropouts = graph.of(ek.Kind.DROPOUT)
    assert len(dropouts) == 6 + 12 + 24 + 16
    assert {layer.p for layer in dropouts} == {0.2}
    assert {layer.where for layer in dropouts} == {f"densenet.py:{line}"}


def test_efficientnet_shows_its_stochastic_depth():
    model, example = build("torchvision:efficientnet_b0")
    graph = ek.trace(model, example)
    rates = {layer.path: layer.p for layer in graph.of(ek.Kind.DROPOUT) if layer.path.endswith(".stochastic_depth")}
    joins = graph.of(ek.Kind.JOIN)
    assert len(rates) == len(joins) == 9
    assert rates == pytest.approx({path: model.get_submodule(path).p for path in rates})
    assert 0 < min(rates.values()) < max(rates.values()) < 0.2
    assert len(graph.of(ek.Kind.DROPOUT)) == 9 + 1  # the one in the classifier
    assert zoo.between(graph, graph.of(ek.Kind.NORM)) == set()


class Hidden(nn.Module):
    def forward(self, x):
        return x @ torch.linalg.pinv(x) @ x


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ((nn.Dropout(), Hidden(), nn.BatchNorm1d(4)), 1),
        ((nn.Dropout(), nn.Linear(4, 4), Hidden(), nn.ReLU(), Hidden(), nn.BatchNorm1d(4)), 2),
        ((Hidden(), nn.Dropout(), nn.BatchNorm1d(4)), 0),
        ((nn.Dropout(), nn.LayerNorm(4), Hidden(), nn.BatchNorm1d(4)), 0),
        ((nn.Dropout(0), Hidden(), nn.BatchNorm1d(4)), 0),
        ((nn.Dropout(), nn.BatchNorm1d(4), Hidden()), 0),
    ],
)
def test_what_lies_between_dropout_and_norm(layers, found):
    graph = ek.trace(nn.Sequential(*layers), torch.ones(2, 4))
    norms = [layer for layer in graph if isinstance(layer.module, nn.BatchNorm1d)]
    assert len(zoo.between(graph, norms)) == found


@pytest.mark.parametrize("target", ["torchvision:resnet18", "timm:resnet18"])
def test_a_target_names_a_model_of_either_library(target):
    model = load_target(target, {"num_classes": 7})
    assert model.fc.out_features == 7
