"""Statistics of a new domain from few samples: corruptions of CIFAR-10, and digits as images of several sites.

    python -m benchmarks.adaptation [--parts samples domains] [--data-dir DIR] [--nets FOLDER] [--seeds 3]
        [--plot docs/pictures/adaptation.svg] [--page docs/new-domain.md]

Corruptions are made here, each of one strength. Nets are trained once on clean images, without augmentation, and kept.
"""

from __future__ import annotations

import argparse
import copy
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import evenkeel as ek
from benchmarks.measuring import run_parts
from benchmarks.nets import Net, add_options

RESULTS, PAGE, PLOT = Path("results/adaptation.json"), Path("docs/new-domain.md"), Path("docs/pictures/adaptation.svg")
RUNS = {1: 32, 2: 32, 4: 32, 8: 16, 16: 8, 32: 8, 64: 4, 128: 2, 256: 1, 512: 1}  # how many batches of a size
PRIORS: dict[str, Any] = {"batch statistics": 0, "prior 16": 16, "auto": "auto"}
NONE, ALL = "no adaptation", "reestimate_ on 1,024"


def small_net() -> nn.Sequential:
    """Four convolutions, each with its norm, for 32 pixels."""
    widths, strides, layers = (3, 16, 32, 64, 64), (2, 1, 2, 2), list[nn.Module]()
    for i, stride in enumerate(strides):
        conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        if i == 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


CIFAR = Net(small_net, "cifar10", 78, 6, "small_net")


def blur(images: Tensor) -> Tensor:
    """A Gaussian of one pixel."""
    ramp = torch.arange(-3.0, 4.0)
    kernel = torch.exp(-(ramp**2) / 2)
    kernel = (kernel / kernel.sum()).outer(kernel / kernel.sum()).expand(3, 1, 7, 7)
    padded = nn.functional.pad(images, (3, 3, 3, 3), mode="reflect")
    return nn.functional.conv2d(padded, kernel, groups=3)


def noise(images: Tensor) -> Tensor:
    """Gaussian, of deviation 0.1 for values from 0 to 1."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 0.1 * drawn).clamp(0, 1)


def contrast(images: Tensor) -> Tensor:
    """Three tenths of the distance from the image's mean."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + 0.3 * (images - mean)


def brightness(images: Tensor) -> Tensor:
    """0.3 brighter."""
    return (images + 0.3).clamp(0, 1)


def jpeg(images: Tensor) -> Tensor:
    """JPEG of quality 10."""
    from PIL import Image

    found = list[Tensor]()
    for image in images:
        file = io.BytesIO()
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(file, "JPEG", quality=10)
        found.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255)
    return torch.stack(found)


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    found.__name__: found for found in (blur, noise, contrast, brightness, jpeg)
}


class Pixels:
    """Images from 0 to 1 and back to what nets are trained on, channel by channel."""

    def __init__(self, training: Tensor) -> None:
        self.least, self.most = (getattr(training, name)((0, 2, 3), keepdim=True) for name in ("amin", "amax"))

    def corrupted(self, images: Tensor, corruption: Callable[[Tensor], Tensor]) -> Tensor:
        width = self.most - self.least
        return corruption((images - self.least) / width) * width + self.least


def right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def accuracies(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[tuple[str, int, list[float]]]:
    """Of every method and number of samples, those of its batches; no adaptation and all count for every number."""
    model.eval()
    full = copy.deepcopy(model)
    ek.reestimate_(full, images[:1024].split(128), match="variance")
    for size, runs in RUNS.items():
        batches = list(zip(images.split(size), labels.split(size), strict=True))[:runs]
        yield NONE, size, [right(model, *batch) for batch in batches]
        yield ALL, size, [right(full, *batch) for batch in batches]
        for name, prior in PRIORS.items():
            found = list[float]()
            for x, y in batches:
                with ek.adapted(model, x, prior=prior):
                    found.append(right(model, x, y))
            yield name, size, found


def run_samples(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Accuracy on corrupted CIFAR-10 by the number of samples that there are of the corruption."""
    training, test = CIFAR.load(options.data_dir)
    pixels = Pixels(torch.cat([x for x, _ in training]))
    images, labels = (torch.cat(parts)[:1024] for parts in zip(*test, strict=True))
    for seed in range(options.seeds):
        model, start = CIFAR.trained(seed, options.data_dir, options.nets), time.process_time()
        for name, corruption in ({"clean": None} | CORRUPTIONS).items():
            given = images if corruption is None else pixels.corrupted(images, corruption)
            row: dict[str, dict[str, list[float]]] = {}
            for method, size, found in accuracies(model, given, labels):
                row.setdefault(method, {})[str(size)] = found
            print(f"seed {seed}, {name}: {time.process_time() - start:.0f} s", flush=True)
            yield f"{name}, seed {seed}", row


PARTS = {"samples": run_samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    run_parts(parser, PARTS, RESULTS)


if __name__ == "__main__":
    main()
