"""Statistics of a new domain from few samples: corruptions of CIFAR-10, and digits as images of several sites.

    python -m benchmarks.adaptation [--parts desk samples domains] [--data-dir DIR] [--nets FOLDER] [--seeds 3]
        [--plot docs/pictures/adaptation.svg] [--page docs/new-domain.md]

Corruptions are made here, each of one strength. Nets are trained once on clean images and kept: small ones without
augmentation, and one PreResNet-20 on all images by the papers' lab, half an hour of a core.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import evenkeel as ek
from benchmarks.architectures import mlp
from benchmarks.measuring import run_parts
from benchmarks.nets import Net, add_options, desk_images, desk_trained, desk_training
from benchmarks.pages import put_into
from evenkeel.demo import train
from evenkeel.output.files import atomic_write

RESULTS, PAGE, PLOT = Path("results/adaptation.json"), Path("docs/new-domain.md"), Path("docs/pictures/adaptation.svg")
RUNS = {1: 32, 2: 32, 4: 32, 8: 16, 16: 8, 32: 8, 64: 4, 128: 2, 256: 1, 512: 1}  # how many batches of a size
SPAN = 32  # images of a value of the large net's: of several batches where these are smaller
DESK_RUNS = {1: 16, 2: 16} | {size: 1024 // max(size, SPAN) for size in RUNS if size > 2}
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


def hits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of every image, whether it is told right, 0 or 1."""
    with torch.no_grad():
        parts = zip(images.split(128), labels.split(128), strict=True)
        return torch.cat([(model(x).argmax(1) == y).double() for x, y in parts])


def right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float(hits(model, images, labels).mean())


def adapted_hits(model: nn.Module, images: Tensor, labels: Tensor, size: int, prior: Any) -> Tensor:
    """The same, the model adapted to each batch of this size by itself."""
    found = list[Tensor]()
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        with ek.adapted(model, x, prior=prior):
            found.append(hits(model, x, y))
    return torch.cat(found)


def accuracies(
    model: nn.Module, images: Tensor, labels: Tensor, runs: Mapping[int, int] = RUNS, span: int = 1
) -> Iterator[tuple[str, int, list[float]]]:
    """Of every method and number of samples, so many, each of a batch, or of batches of so many images together.

    No adaptation and all count for every number.
    """
    model.eval()
    full = copy.deepcopy(model)
    ek.reestimate_(full, images[:1024].split(128), match="variance")
    always = {NONE: hits(model, images, labels), ALL: hits(full, images, labels)}
    for size, count in runs.items():
        each = max(size, span)
        some, their = images[: count * each], labels[: count * each]
        found = {name: told[: len(some)] for name, told in always.items()}
        found |= {name: adapted_hits(model, some, their, size, prior) for name, prior in PRIORS.items()}
        for name, told in found.items():
            yield name, size, [float(part.mean()) for part in told.split(each)]


def rows_of(
    model: nn.Module, seed: int, images: Mapping[str, Tensor], labels: Tensor, **how: Any
) -> Iterator[tuple[str, Any]]:
    """Accuracies on images by the name of their corruption."""
    start = time.process_time()
    for name, given in images.items():
        row: dict[str, dict[str, list[float]]] = {}
        for method, size, found in accuracies(model, given, labels, **how):
            row.setdefault(method, {})[str(size)] = found
        print(f"seed {seed}, {name}: {time.process_time() - start:.0f} s", flush=True)
        yield f"{name}, seed {seed}", row


def run_desk(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The same of a PreResNet-20, trained on all images."""
    data = desk_images(options.data_dir)
    images, labels = data.test.images[:1024], data.test.labels[:1024]
    given = {name: (255 * make(images / 255)).round().byte() for name, make in CORRUPTIONS.items()}
    shown = {name: data.standardize(found) for name, found in ({"clean": images} | given).items()}
    model = desk_trained(desk_training("none", 0.0), 0, data, options.nets).model(data)
    yield from rows_of(model, 0, shown, labels, runs=DESK_RUNS, span=SPAN)


def run_samples(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Accuracy on corrupted CIFAR-10 by the number of samples that there are of the corruption."""
    training, test = CIFAR.load(options.data_dir)
    pixels = Pixels(torch.cat([x for x, _ in training]))
    images, labels = (torch.cat(parts)[:1024] for parts in zip(*test, strict=True))
    corrupted = {name: pixels.corrupted(images, make) for name, make in CORRUPTIONS.items()}
    for seed in range(options.seeds):
        model = CIFAR.trained(seed, options.data_dir, options.nets)
        yield from rows_of(model, seed, {"clean": images} | corrupted, labels)


def site(images: Tensor, number: int) -> Tensor:
    """Digits, of values from 0 to 1, as one of four sites takes them."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(number))
    return (images, 0.4 + 0.6 * images, 0.3 * images, (images + 0.3 * drawn).clamp(0, 1))[number]


SITES = ("plain", "brighter", "contrast 0.3", "noise 0.3")


def run_domains(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Accuracy on digits of four sites: statistics as trained, of all sites, and of each."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    pixels = pixels.float() / 16
    for seed in range(options.seeds):
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
        (x, y), (held_x, held_y) = ((pixels[part], labels[part]) for part in (order[:1000], order[1000:]))
        sites = torch.arange(1000) % len(SITES)
        taken = torch.stack([site(x, number) for number in range(len(SITES))])[sites, torch.arange(1000)]
        for place, given in (("one site", x), ("all sites", taken)):
            torch.manual_seed(seed)
            model = train(mlp((64, 64, 64), p=0.2), [(given, y)], 30).eval()
            row = {"as trained": _by_site(model, held_x, held_y)}
            ek.reestimate_domains_(model, zip(taken.split(100), sites.split(100), strict=True), by=1)
            row |= {"all": _by_site(model, held_x, held_y), "each": _by_site(model, held_x, held_y, switched=True)}
            print(f"seed {seed}, trained on {place}: " + ", ".join(f"{k} {fmean(v):.1%}" for k, v in row.items()))
            yield f"trained on {place}, seed {seed}", row


def _by_site(model: nn.Module, x: Tensor, y: Tensor, *, switched: bool = False) -> list[float]:
    found = list[float]()
    for number in range(len(SITES)):
        with ek.in_domain(model, number) if switched else nullcontext():
            found.append(right(model, site(x, number), y))
    return found


def seeds_of(rows: Mapping[str, Any], names: tuple[str, ...]) -> list[list[Any]]:
    """The rows of these corruptions, seed by seed."""
    found: dict[str, list[Any]] = {}
    for key, row in rows.items():
        name, _, seed = key.rpartition(", ")
        if name in names:
            found.setdefault(seed, []).append(row)
    return list(found.values())


def accuracy(rows: Mapping[str, Any], names: tuple[str, ...], method: str, size: int) -> float:
    """In percent, over corruptions and seeds."""
    return 100 * fmean(fmean(row[method][str(size)]) for seed in seeds_of(rows, names) for row in seed)


def gain(rows: Mapping[str, Any], names: tuple[str, ...], method: str, size: int) -> tuple[float, float]:
    """By how many points a method is more accurate than none on the same images: mean, and standard error over batches.

    Corruptions of one batch, and nets that see it, count as one: their images are the same.
    """
    batches = [
        [100 * (a - b) for a, b in zip(row[method][str(size)], row[NONE][str(size)], strict=True)]
        for seed in seeds_of(rows, names)
        for row in seed
    ]
    means = [fmean(values) for values in zip(*batches, strict=True)]
    by_seed = [
        100 * fmean(fmean(row[method][str(size)]) - fmean(row[NONE][str(size)]) for row in seed)
        for seed in seeds_of(rows, names)
    ]
    errors = [stdev(v) / math.sqrt(len(v)) for v in (means, by_seed) if len(v) > 1]
    return fmean(means), max(errors, default=math.nan)


def samples_table(rows: Mapping[str, Any]) -> str:
    """Accuracy without adaptation, and what each method gains on the same images."""
    methods = (*PRIORS, ALL)
    lines = [f"| samples | {NONE} | " + " | ".join(methods) + " |", "|--:|--:|" + "--:|" * len(methods)]
    for title, names in PANELS.items():
        lines.append(f"| **{title}** |" + " |" * (len(methods) + 1))
        for size in RUNS:
            cells = ["{:+.1f} ± {:.1f}".format(*gain(rows, names, method, size)) for method in methods]
            lines.append(f"| {size} | {accuracy(rows, names, NONE, size):.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def corruptions_table(rows: Mapping[str, Any], sizes: tuple[int, ...] = (1, 8, 64, 512)) -> str:
    """What an automatic prior gains, corruption by corruption."""
    lines = [f"| corruption | {NONE} | " + " | ".join(f"auto, {n}" for n in sizes) + f" | {ALL} |"]
    lines.append("|---|--:|" + "--:|" * (len(sizes) + 1))
    for name in ("clean", *CORRUPTIONS):
        cells = ["{:+.1f} ± {:.1f}".format(*gain(rows, (name,), "auto", n)) for n in sizes]
        cells.append("{:+.1f} ± {:.1f}".format(*gain(rows, (name,), ALL, 512)))
        lines.append(f"| {name} | {accuracy(rows, (name,), NONE, 512):.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def domains_table(rows: Mapping[str, Any]) -> str:
    """Accuracy at every site."""
    lines = ["| trained on | statistics | " + " | ".join(SITES) + " | mean |", "|---|---|" + "--:|" * (len(SITES) + 1)]
    for place in ("one site", "all sites"):
        runs = [row for key, row in rows.items() if key.startswith(f"trained on {place}")]
        for name in ("as trained", "all", "each"):
            sites = [[100 * run[name][i] for run in runs] for i in range(len(SITES))]
            cells = [_mean(values) for values in [*sites, [fmean(values) for values in zip(*sites, strict=True)]]]
            lines.append(f"| {place} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{fmean(values):.1f} ± {error:.1f}"


def draw(rows: Mapping[str, Any], plot: Path) -> None:
    """Points of accuracy gained, by the number of samples."""
    from matplotlib.figure import Figure

    from evenkeel.papers.lab.drawings import to_svg

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    colors = dict(zip((*PRIORS, ALL), ("#d55e00", "#0072b2", "#009e73", "#000000"), strict=True))
    panels: Any = figure.subplots(1, 2)
    for axes, (title, names) in zip(panels, PANELS.items(), strict=True):
        axes.axhline(0, color="#888888", label=NONE)
        for method, color in colors.items():
            means, errors = zip(*(gain(rows, names, method, size) for size in RUNS), strict=True)
            axes.errorbar(list(RUNS), means, errors, fmt="o-", ms=3, color=color, label=method, capsize=2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(RUNS), [str(size) for size in RUNS])
        axes.set_xlabel("samples of the new domain")
        axes.set_ylabel("points of accuracy gained")
        axes.set_title(f"CIFAR-10, {title}", fontsize="medium")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize="small", loc="lower right")
    with atomic_write(plot) as temporary:
        temporary.write_text(to_svg(figure), encoding="utf-8")


PARTS = {"desk": run_desk, "samples": run_samples, "domains": run_domains}
PANELS = {"five corruptions": tuple(CORRUPTIONS), "clean images": ("clean",)}


def largest(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rows of the large net, or, where it was not run, of the small ones."""
    return known.get("desk", known["samples"])


def tables(known: Mapping[str, Any]) -> dict[str, str]:
    """The page's tables, by name."""
    found = {"samples": samples_table(known["samples"]), "corruptions": corruptions_table(largest(known))}
    found |= {"desk": samples_table(known["desk"])} if "desk" in known else {}
    return found | {"domains": domains_table(known["domains"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = run_parts(parser, PARTS, RESULTS)
    known = json.loads(options.out.read_text())
    if all(part in known for part in ("samples", "domains")):
        put_into(options.page, tables(known))
        draw(largest(known), options.plot)


if __name__ == "__main__":
    main()
