"""What re-estimation costs: fvcore, torch and evenkeel over a bare eval-mode forward pass, side by side in one run.

    python -m benchmarks.reestimation [--rounds 9] [--data-dir DIR] [--out results/reestimation.json]

Every round times all contestants one after the other on the same batches; the figures are the medians over the rounds
of a contestant's time over the bare pass's time in the same round, with the range of the middle half. With CIFAR-10 in
--data-dir (or EVENKEEL_DATA) the last part runs on its 391 batches of 128 training images, else on noise images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import evenkeel as ek
from benchmarks.torchvision_cpu import import_torchvision
from evenkeel.datasets import load_data


def mlp() -> nn.Module:
    widths = (784, 256, 256, 256)
    hidden = [
        layer
        for inputs, outputs in pairwise(widths)
        for layer in (nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.5))
    ]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def resnet18() -> nn.Module:
    model = import_torchvision().models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # the usual form for 32 pixels
    return model


def densenet121() -> nn.Module:
    return import_torchvision().models.densenet121(num_classes=10, drop_rate=0.2)


def bare(model: nn.Module, batches: list[Tensor]) -> None:
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(batch)


def fvcore(model: nn.Module, batches: list[Tensor]) -> None:
    """As its best users call it: dropout off, only the norms in train mode."""
    from fvcore.nn.precise_bn import update_bn_stats

    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    update_bn_stats(model, batches, len(batches))


def torch_swa(model: nn.Module, batches: list[Tensor]) -> None:
    update_bn(batches, model)


def evenkeel(model: nn.Module, batches: list[Tensor]) -> None:
    ek.reestimate_(model, batches)


CONTESTANTS: dict[str, Callable[[nn.Module, list[Tensor]], None]] = {
    "bare forward": bare,
    "fvcore update_bn_stats": fvcore,
    "torch update_bn": torch_swa,
    "ek.reestimate_": evenkeel,
}
# net, shape of a batch, batches a round
ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 3 x 256, batch 128": (mlp, (128, 784), 200),
    "ResNet-18 at 32 px, batch 128": (resnet18, (128, 3, 32, 32), 3),
    "DenseNet-121 at 32 px, batch 64": (densenet121, (64, 3, 32, 32), 4),
}


def measure_cost(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Cost of every contestant over the bare pass, per row."""
    table = {}
    for row, (build, shape, count) in ROWS.items():
        torch.manual_seed(0)
        model, batches = build(), [torch.randn(shape) for _ in range(count)]
        seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        for number in range(rounds + 1):
            for name, run in CONTESTANTS.items():
                start = time.perf_counter()
                run(model, batches)
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
        table[row] = {name: ratios(seconds[name], seconds["bare forward"]) for name in CONTESTANTS}
        table[row]["bare forward"]["ms per batch"] = 1000 * median(seconds["bare forward"]) / count
        print(f"\n{row}: bare forward {table[row]['bare forward']['ms per batch']:.2f} ms a batch")
        for name, figures in table[row].items():
            print(f"  {name:24} x{figures['median']:.2f}  ({figures['low']:.2f} to {figures['high']:.2f})", flush=True)
    return table


def ratios(seconds: list[float], bare_seconds: list[float]) -> dict[str, float]:
    values = [a / b for a, b in zip(seconds, bare_seconds, strict=True)]
    low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median(values), "low": low, "high": high}


def measure_tolerance(data_dir: Path | None) -> dict[str, float | str]:
    """How much of an epoch of 391 batches tolerance=0.01 takes, and how far its statistics are from the epoch's."""
    try:
        loader = load_data("cifar10", data_dir=data_dir, batch_size=128).train
        source = "CIFAR-10"
    except ek.EvenkeelError as error:
        print(f"\n{error}")
        loader = [(torch.rand(128, 1, 1, 1) + 0.5) * torch.randn(128, 3, 32, 32) for _ in range(391)]
        source = "noise"
    batches = list(loader)
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [batches[i] for i in order]
    torch.manual_seed(0)
    model = resnet18()
    seconds = {}
    for name, tolerance in (("full", None), ("tolerance", 0.01)):
        start = time.perf_counter()
        done = ek.reestimate_(model, batches, tolerance=tolerance, progress=True)
        seconds[name] = time.perf_counter() - start
        means = [float(m.running_var.mean()) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        if tolerance is None:
            full = means
    off = max(abs(a / b - 1) for a, b in zip(means, full, strict=True))
    figures: dict[str, float | str] = {
        "data": source,
        "batches of the epoch": len(batches),
        "batches taken": done.batches,
        "standard error": done.standard_error,
        "worst mean variance off the full pass": off,
        "time over the full pass": seconds["tolerance"] / seconds["full"],
    }
    print(f"\nResNet-18 on {source}, tolerance=0.01:")
    for name, value in figures.items():
        print(f"  {name}: {value if isinstance(value, str) else f'{value:.4g}'}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    figures = {
        "versions": {"torch": torch.__version__, "evenkeel": ek.__version__},
        "cost over a bare forward pass": measure_cost(options.rounds),
        "tolerance": measure_tolerance(options.data_dir),
    }
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
