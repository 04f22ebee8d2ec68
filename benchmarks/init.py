"""What init_ costs, and what it leaves: against torch's initializers and LSUV, side by side in one run.

    python -m benchmarks.init [--parts cost left layers] [--rounds 7] [--threads 1 2] [--draws 10]
        [--out results/init.json]

Cost: every round times all contestants one after the other; the figures are medians over the rounds of a contestant's
time over kaiming_normal_'s in the same round, with the range of the middle half. What is left: Hendrycks & Gimpel's
20-layer network, the largest and the smallest layer's mean square over draws, in train mode (where 1 is asked for), of
signals after mode forward and of gradients after mode backward.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

import evenkeel as ek
from benchmarks.measuring import compare, run_parts, seconds, show, spread
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.output.progress import Bar

Init = Callable[[nn.Module, Tensor], Any]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "leaky_relu": nn.LeakyReLU,
}
DROPS = (0.0, 0.2, 0.4, 0.5, 0.7)
WIDTHS = (500,) * 16 + (250,) * 5


def resnet50() -> tuple[nn.Module, Tensor]:
    return import_torchvision().models.resnet50(), torch.zeros(2, 3, 64, 64)


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [layer for _ in range(6) for layer in (nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5))]
    return nn.Sequential(*layers, nn.Linear(4096, 10)), torch.zeros(2, 4096)


def deep_net(activation: Callable[[], nn.Module], p: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (n_in, n_out) in enumerate(pairwise(WIDTHS)):
        layers += [activation(), nn.Dropout(p)] if index else []
        layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


def by_torch(initializer: Callable[[Tensor], Tensor], model: nn.Module, example: Tensor) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            initializer(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def lsuv(model: nn.Module, example: Tensor) -> None:
    from lsuv import lsuv_with_singlebatch

    lsuv_with_singlebatch(model, torch.randn(max(len(example), 16), *example.shape[1:]), verbose=False)


FAST: dict[str, Init] = {
    "kaiming_normal_": partial(by_torch, nn.init.kaiming_normal_),
    "init_ sphere": ek.init_,
    "init_ normal": lambda model, example: ek.init_(model, example, weights="normal"),
    "init_ uniform": lambda model, example: ek.init_(model, example, weights="uniform"),
}
SLOW: dict[str, Init] = {
    "orthogonal_": partial(by_torch, nn.init.orthogonal_),
    "init_ orthogonal": lambda model, example: ek.init_(model, example, weights="orthogonal"),
    "LSUV": lsuv,
}
LEFT: dict[str, Init] = {
    "xavier_uniform_": partial(by_torch, nn.init.xavier_uniform_),
    "kaiming_normal_": FAST["kaiming_normal_"],
    "orthogonal_": SLOW["orthogonal_"],
    "LSUV": lsuv,
    "init_ hendrycks2016": lambda model, example: ek.init_(model, example, mode="hendrycks2016"),
    "init_ mean": lambda model, example: ek.init_(model, example, mode="mean"),
    "init_ forward": FAST["init_ sphere"],
}


def costs(model: nn.Module, example: Tensor, rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = compare({name: partial(run, model, example) for name, run in FAST.items()}, rounds)
    base = figures["seconds"]["kaiming_normal_"]
    for name, initialize in SLOW.items():
        taken = seconds(partial(initialize, model, example))
        figures[name], figures["seconds"][name] = spread([taken / base]), taken
    return figures


def measured(initialize: Init, build: Callable[[], nn.Module], draws: int) -> list[dict[str, float]]:
    """Mean squares at every layer in train and eval mode, over draws of the weights."""
    reports = []
    for seed in range(draws):
        torch.manual_seed(seed)
        model, example = build(), torch.zeros(500, WIDTHS[0])
        initialize(model, example)
        reports.append(ek.check_signals(model, example, draws=1).to_dict()["rows"])
    names = ("train_variance", "eval_variance", "train_grad_variance", "eval_grad_variance")
    return [{n: fmean(r[layer]["measured"][n] for r in reports) for n in names} for layer in range(len(reports[0]))]


def extremes(layers: list[dict[str, float]], name: str) -> list[float]:
    return [min(layer[name] for layer in layers), max(layer[name] for layer in layers)]


def run_cost(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Time over kaiming_normal_, on one thread, two, and as many as there are."""
    models = {"ResNet-50 at 64 px": resnet50, "MLP, 6 x 4096 (100 M)": mlp}
    most = torch.get_num_threads()
    for threads, (model, build) in product(options.threads or sorted({1, 2, most}), models.items()):
        torch.set_num_threads(threads)
        name = f"{model}, {threads} thread{'s' * (threads > 1)}"
        figures = costs(*build(), options.rounds)
        for contestant, taken in figures["seconds"].items():
            print(f"  {name}: {contestant:18} x{show(figures[contestant])}  {taken:.2f} s", flush=True)
        yield name, figures
    torch.set_num_threads(most)


def run_left(options: argparse.Namespace) -> dict[str, Any]:
    """20 layers, ReLU, dropout 0.5: mean square at layer 20 in train and in eval mode; gradients at layer 1."""
    results = {}
    for name, initialize in LEFT.items():
        layers = measured(initialize, partial(deep_net, nn.ReLU, 0.5), options.draws)
        results[name] = {"last": layers[-1], "first": layers[0]}
        last, first = layers[-1], layers[0]
        shown = f"{last['train_variance']:10.3g} {last['eval_variance']:10.3g} {first['train_grad_variance']:10.3g}"
        print(f"  {name:20} {shown}", flush=True)
    return results


def run_layers(options: argparse.Namespace) -> dict[str, Any]:
    """20 layers, train mode: smallest and largest layer's mean square, mean over draws: forward, backward, He."""
    results = {}
    for name, p in Bar(list(product(ACTIVATIONS, DROPS)), "20-layer nets"):
        build = partial(deep_net, ACTIVATIONS[name], p)
        forward = measured(FAST["init_ sphere"], build, options.draws)
        backward = measured(lambda model, example: ek.init_(model, example, mode="backward"), build, options.draws)
        he = measured(FAST["kaiming_normal_"], build, options.draws)
        found = {
            "forward": extremes(forward, "train_variance"),
            "backward": extremes(backward, "train_grad_variance"),
            "he": extremes(he, "train_variance"),
        }
        results[f"{name} {p}"] = found
        cells = "  ".join(f"{low:9.3g} ..{high:9.3g}" for low, high in found.values())
        print(f"  {name:12}{p:5}  {cells}", flush=True)
    torch.manual_seed(0)
    net = deep_net(nn.GELU, 0.5)
    ek.init_(net, torch.zeros(500, WIDTHS[0]))
    ek.check_signals(net, torch.zeros(500, WIDTHS[0])).plot(options.plot)
    return results


PARTS = {"cost": run_cost, "left": run_left, "layers": run_layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, nargs="+", help="of the costs; 1, 2 and as many as there are if not given"
    )
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--plot", type=Path, default=Path("docs/pictures/init.svg"))
    warnings.simplefilter("ignore")  # LSUV's, of layers that a model does not call
    run_parts(parser, PARTS, Path("results/init.json"))


if __name__ == "__main__":
    main()
