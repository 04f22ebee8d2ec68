"""Classification, segmentation, faces: models of vision libraries, and blocks written anew."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.field.model import Built, FieldModel, Residual
from benchmarks.torchvision_cpu import import_torchvision


def images(batch: int, size: int) -> Tensor:
    return torch.zeros(batch, 3, size, size)


def torchvision_model(name: str, size: int = 64, **options: Any) -> Built:
    return import_torchvision().models.get_model(name, weights=None, **options), images(8, size)


def segmentation_models(name: str) -> Built:
    import_torchvision()
    library = importlib.import_module("segmentation_models_pytorch")
    return getattr(library, name)("resnet18", encoder_weights=None), images(8, 64)


def monai_net(name: str, *size: int, **options: Any) -> Built:
    nets = importlib.import_module("monai.networks.nets")
    return getattr(nets, name)(**options), torch.zeros(2, 1, *size)


def facenet() -> Built:
    import_torchvision()
    return importlib.import_module("facenet_pytorch").InceptionResnetV1(), images(4, 96)


def efficientnet() -> Built:
    library = importlib.import_module("efficientnet_pytorch")
    return library.EfficientNet.from_name("efficientnet-b0"), images(8, 64)


def timm_net(name: str) -> Built:
    import_torchvision()
    return importlib.import_module("timm").create_model(name), images(8, 64)


# Written anew


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def wide_block(order: str, inputs: int, width: int, stride: int, p: float) -> Residual:
    """A pre-activation block, dropout behind the first weights or before the second."""
    first = [nn.BatchNorm2d(inputs), nn.ReLU(), conv(inputs, width)]
    second = [nn.BatchNorm2d(width), nn.ReLU()]
    drop = nn.Dropout(p)
    middle = [drop, *second] if order == "WDNA" else [*second, drop]
    shortcut = None if inputs == width and stride == 1 else conv(inputs, width, 1, stride)
    return Residual(*first, *middle, conv(width, width, stride=stride), shortcut=shortcut)


def wide_resnet(order: str, p: float) -> Built:
    """WRN-16-2."""
    layers: list[nn.Module] = [conv(3, 16)]
    inputs = 16
    for width, stride in ((32, 1), (64, 2), (128, 2)):
        layers += [wide_block(order, inputs, width, stride, p), wide_block(order, width, width, 1, p)]
        inputs = width
    head = [nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *head), images(16, 32)


class Beside(nn.Module):
    """Strided weights and a max pool side by side, concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.pool = conv(inputs, outputs - inputs, stride=2), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.pool(x)], 1)


def factored(width: int, dilation: int, p: float) -> Residual:
    """ERFNet's block of one-dimensional convolutions."""

    def pair(d: int) -> list[nn.Module]:
        tall = nn.Conv2d(width, width, (3, 1), padding=(d, 0), dilation=(d, 1))
        return [tall, nn.ReLU(), nn.Conv2d(width, width, (1, 3), padding=(0, d), dilation=(1, d))]

    first, second = [*pair(1), nn.BatchNorm2d(width), nn.ReLU()], [*pair(dilation), nn.BatchNorm2d(width)]
    return Residual(*first, *second, nn.Dropout2d(p), after=nn.ReLU())


def erfnet() -> Built:
    def down(i: int, o: int) -> list[nn.Module]:
        return [Beside(i, o), nn.BatchNorm2d(o), nn.ReLU()]

    def up(i: int, o: int) -> list[nn.Module]:
        transposed = nn.ConvTranspose2d(i, o, 3, 2, 1, 1)
        return [transposed, nn.BatchNorm2d(o), nn.ReLU(), factored(o, 1, 0.0), factored(o, 1, 0.0)]

    encoder = [*down(3, 16), *down(16, 64), *(factored(64, 1, 0.03) for _ in range(5)), *down(64, 128)]
    encoder += [factored(128, d, 0.3) for d in (2, 4, 8, 16) * 2]
    return nn.Sequential(*encoder, *up(128, 64), *up(64, 16), nn.ConvTranspose2d(16, 20, 2, 2)), images(4, 64)


def enet_block(width: int, p: float) -> Residual:
    inner, layers = width // 4, list[nn.Module]()
    for convolution in (conv(width, inner, 1), conv(inner, inner), conv(inner, width, 1)):
        layers += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.PReLU()]
    return Residual(*layers, nn.Dropout2d(p), after=nn.PReLU())


def enet() -> Built:
    """The encoder's two stages, and one transposed convolution in the decoder's place."""
    layers = [Beside(3, 16), nn.BatchNorm2d(16), nn.PReLU(), Beside(16, 64), nn.BatchNorm2d(64), nn.PReLU()]
    layers += [enet_block(64, 0.01) for _ in range(4)]
    layers += [Beside(64, 128), nn.BatchNorm2d(128), nn.PReLU(), *(enet_block(128, 0.1) for _ in range(8))]
    return nn.Sequential(*layers, nn.ConvTranspose2d(128, 12, 8, 8)), images(4, 64)


class UnetBlock(nn.Module):
    """One level of pix2pix's generator: what it makes is concatenated to its input, but for the outermost."""

    def __init__(self, outer: int, inner: int, inside: nn.Module | None, *, p: float = 0.0, first: int = 0) -> None:
        super().__init__()
        self.outermost = bool(first)
        down = nn.Conv2d(first or outer, inner, 4, 2, 1, bias=False)
        up = nn.ConvTranspose2d(2 * inner if inside else inner, outer, 4, 2, 1, bias=False)
        if first:
            layers = [down, inside, nn.ReLU(), up, nn.Tanh()]
        else:
            layers = [nn.LeakyReLU(0.2), down, *([nn.BatchNorm2d(inner), inside] if inside else []), nn.ReLU(), up]
            layers += [nn.BatchNorm2d(outer), *([nn.Dropout(p)] if p else [])]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if self.outermost else torch.cat([x, self.layers(x)], 1)


def pix2pix() -> Built:
    """Seven levels instead of eight, a quarter of the width."""
    width = 16
    block = UnetBlock(8 * width, 8 * width, None)
    for _ in range(2):
        block = UnetBlock(8 * width, 8 * width, block, p=0.5)
    for factor in (4, 2, 1):
        block = UnetBlock(factor * width, 2 * factor * width, block)
    return UnetBlock(3, width, block, first=3), images(4, 128)


def arcface() -> Built:
    """The head "E" on a small body."""
    body = [conv(3, 32), nn.BatchNorm2d(32), nn.PReLU(32), conv(32, 64, stride=4), nn.BatchNorm2d(64), nn.PReLU(64)]
    head = [nn.BatchNorm2d(64), nn.Dropout(0.4), nn.Flatten(), nn.Linear(64 * 49, 512), nn.BatchNorm1d(512)]
    return nn.Sequential(*body, *head), images(32, 28)


SMP = "segmentation-models-pytorch", "segmentation_models_pytorch"
WIDE = "networks/wide_resnet.py:38 at 292b3ed"

MODELS = (
    FieldModel(
        "DeepLabV3 (torchvision)",
        "torchvision",
        ".5",
        lambda: torchvision_model("deeplabv3_mobilenet_v3_large", weights_backbone=None),
        requires="torchvision",
    ),
    FieldModel(
        "FCN (torchvision)",
        "torchvision",
        ".1",
        lambda: torchvision_model("fcn_resnet50", weights_backbone=None),
        requires="torchvision",
    ),
    FieldModel(
        "EfficientNet-B0 (torchvision)",
        "torchvision",
        ".2; depth 0 to .2",
        lambda: torchvision_model("efficientnet_b0"),
        requires="torchvision",
    ),
    FieldModel(
        "MobileNetV2 (torchvision)",
        "torchvision",
        ".2",
        lambda: torchvision_model("mobilenet_v2"),
        requires="torchvision",
    ),
    FieldModel(
        "DenseNet-121 (torchvision)",
        "torchvision",
        "0",
        lambda: torchvision_model("densenet121"),
        requires="torchvision",
    ),
    FieldModel("EfficientNet-B0 (timm)", "timm", "0", lambda: timm_net("efficientnet_b0"), requires="timm"),
    *(
        FieldModel(f"{name} (smp)", SMP[0], rate, lambda name=name: segmentation_models(name), requires=SMP[1])
        for name, rate in (("DeepLabV3", ".5"), ("DeepLabV3Plus", ".5"), ("PSPNet", ".2"), ("FPN", ".2"))
    ),
    FieldModel("V-Net (MONAI)", "monai", ".5", lambda: monai_net("VNet", 32, 32, 32), requires="monai"),
    FieldModel(
        "DenseNet-121 (MONAI)",
        "monai",
        "0; .2 here",
        lambda: monai_net("DenseNet121", 64, 64, spatial_dims=2, in_channels=1, out_channels=4, dropout_prob=0.2),
        requires="monai",
    ),
    FieldModel("FaceNet Inception-ResNet-v1", "facenet-pytorch", ".6", facenet, requires="facenet_pytorch"),
    FieldModel(
        "EfficientNet-B0 (efficientnet-pytorch)",
        "efficientnet-pytorch",
        ".2; depth 0 to .2",
        efficientnet,
        requires="efficientnet_pytorch",
    ),
    FieldModel(
        "WRN-16-2, dropout before the norm",
        "meliketoy/wide-resnet.pytorch",
        "asked for; .3 in its README",
        lambda: wide_resnet("WDNA", 0.3),
        anew=WIDE,
    ),
    FieldModel(
        "WRN-16-2, dropout before the weights",
        "xternalz/WideResNet-pytorch",
        "0; .3 here",
        lambda: wide_resnet("WNAD", 0.3),
        anew="wideresnet.py:28-29 at 1171f93",
    ),
    FieldModel("ERFNet", "Eromera/erfnet_pytorch", ".03, .3", erfnet, anew="train/erfnet.py:55-81 at d4a46fa"),
    FieldModel("ENet", "davidtvs/PyTorch-ENet", ".01, .1", enet, anew="models/enet.py:194-512 at e17d404"),
    FieldModel(
        "pix2pix generator",
        "junyanz/pytorch-CycleGAN-and-pix2pix",
        ".5",
        pix2pix,
        anew="models/networks.py, UnetSkipConnectionBlock",
    ),
    FieldModel(
        "ArcFace head E",
        "deepinsight/insightface",
        ".4",
        arcface,
        anew="recognition/arcface_mxnet/symbol/symbol_utils.py:62-76 at 7fadd42",
    ),
)
