"""What re-estimation costs, and how right its statistics are: fvcore, torch and evenkeel, interleaved in one run.

    python -m benchmarks.reestimation [--parts cost reach memory truth] [--rows ROW ...] [--rounds 5] [--data-dir DIR]
        [--nets FOLDER]

Times are ratios within a round, the median over rounds with the range of the middle half. CIFAR-10 is read from
--data-dir (or EVENKEEL_DATA); the nets of the parts reach and truth are trained once and kept in --nets.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import evenkeel as ek
from benchmarks.architectures import Batches, bare, densenet121, mlp, resnet18
from benchmarks.measuring import compare, run_parts, seconds, show, spread
from benchmarks.nets import CIFAR, NETS
from evenkeel.model.evaluation import evaluate
from evenkeel.model.norms import norms_of
from evenkeel.output.progress import Bar

Rows = Iterator[tuple[str, Any]]  # each with its figures


def plain12() -> nn.Module:
    """Untrained: twelve convolutions, each with its norm."""
    layers = [(nn.Conv2d(16 if i else 3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for i in range(12)]
    return nn.Sequential(*(layer for block in layers for layer in block))


def with_statistics(model: nn.Module, batches: Batches) -> None:
    """The least that any way of measuring costs: a bare pass that takes the mean and variance at every norm."""
    hooks = [n.register_forward_pre_hook(lambda _, args: _of_batch(args[0])) for n in norms_of(model).values()]
    bare(model, batches)
    for hook in hooks:
        hook.remove()


def _of_batch(x: Tensor) -> None:
    torch.batch_norm_update_stats(x, None, None, 0.0)


def fvcore(model: nn.Module, batches: Batches, count: int | None = None) -> None:
    """As its best users call it: dropout off, only the norms in train mode."""
    from fvcore.nn.precise_bn import update_bn_stats

    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    inputs = (batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches)
    update_bn_stats(model, inputs, count or len(batches))


def torch_swa(model: nn.Module, batches: Batches) -> None:
    update_bn(batches, model)


def evenkeel(model: nn.Module, batches: Batches) -> None:
    ek.reestimate_(model, batches)


Contestant = Callable[[nn.Module, Batches], None]
BARE: dict[str, Contestant] = {"bare forward": bare}
CONTESTANTS: dict[str, Contestant] = {
    "bare forward and statistics": with_statistics,
    "fvcore update_bn_stats": fvcore,
    "torch update_bn": torch_swa,
    "ek.reestimate_": evenkeel,
    "ek.reestimate_, match='mean'": lambda model, batches: ek.reestimate_(model, batches, match="mean"),
}
# net, shape of a batch, batches a round
ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 3 x 256, batch 128": (mlp, (128, 784), 400),
    "MLP 3 x 256, batch 8": (mlp, (8, 784), 400),
    "ResNet-18 at 32 px, batch 128": (resnet18, (128, 3, 32, 32), 24),
    "ResNet-18 at 32 px, batch 128, 512 images": (resnet18, (128, 3, 32, 32), 4),
    "ResNet-18 at 32 px, batch 8": (resnet18, (8, 3, 32, 32), 256),
    "DenseNet-121 at 32 px, batch 64": (densenet121, (64, 3, 32, 32), 48),
}


def run_cost(options: argparse.Namespace) -> Rows:
    """(a) Time of one pass over that of a bare eval-mode forward pass on the same batches."""
    for row in options.rows:
        build, shape, count = ROWS[row]
        torch.manual_seed(0)
        model, batches = build(), [(torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)) for _ in range(count)]
        runs = {name: partial(run, model, batches) for name, run in (BARE | CONTESTANTS).items()}
        figures = compare(runs, options.rounds)
        per_batch = 1000 * figures["seconds"]["bare forward"] / count
        print(f"{row}: bare forward {per_batch:.2f} ms a batch")
        for name in CONTESTANTS:
            print(f"  {name:28} x{show(figures[name])}", flush=True)
        yield row, figures


def run_reach(options: argparse.Namespace) -> Rows:
    """(b) Images and time to the test error of a full pass, on trained nets: tolerance=0.01 stops by itself."""
    for name, net in NETS.items():
        training, test = net.load(options.data_dir, count=469)
        trained = net.trained(0, options.data_dir, options.nets)
        ek.reestimate_(full := copy.deepcopy(trained), training)
        target = evaluate(full, test).error
        rows: dict[str, dict[str, list[float]]] = {}
        for seed in Bar(range(options.rounds), name):
            shuffled, base = shuffle(training, seed), None
            for contestant, run in REACH.items():
                model = copy.deepcopy(trained)
                images: list[int] = []
                taken = seconds(partial(run, model, Counted(shuffled, images)))
                base = base or taken
                row = rows.setdefault(contestant, {"images": [], "time": [], "seconds": [], "off by points": []})
                row["images"].append(sum(images))
                row["seconds"].append(taken)
                row["time"].append(taken / base)
                row["off by points"].append(100 * (evaluate(model, test).error - target))
        print(f"{name}: test error {target:.2%} after a full pass of {sum(len(y) for _, y in training)} images")
        for contestant, row in rows.items():
            off = row["off by points"]
            print(
                f"  {contestant:36} {fmean(row['images']):8.0f} images, time x{show(spread(row['time']))}, "
                f"off by {min(off):+.2f} to {max(off):+.2f} points",
                flush=True,
            )
        found = {who: {figure: spread(values) for figure, values in row.items()} for who, row in rows.items()}
        yield name, {"error of a full pass": target} | found


REACH: dict[str, Contestant] = {
    "ek.reestimate_, tolerance=0.01": lambda model, batches: ek.reestimate_(model, batches, tolerance=0.01),
    "ek.reestimate_, full pass": evenkeel,
    "torch update_bn, full pass": torch_swa,
    "fvcore update_bn_stats, 200 batches": partial(fvcore, count=200),
}


def shuffle(batches: Batches, seed: int) -> Batches:
    """As training loaders do, image by image: MNIST's neighbours are of one hand, and so tell less than they count."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).split(128)
    return [(images[chosen], labels[chosen]) for chosen in order]


class Counted:
    """Batches that tell how many images they gave."""

    def __init__(self, batches: Batches, images: list[int]) -> None:
        self.batches, self.images = batches, images

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.images.append(len(batch[0]))
            yield batch


def run_memory(options: argparse.Namespace) -> dict[str, Any]:
    """(c) Peak of memory on top of the model's and the program's, ResNet-18 at 32 px, each in a process of its own."""
    table: dict[str, Any] = {}
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # or else what was freed counts in part
    for batch_size in (4, 16, 128):
        row = {}
        for name in PEAKS:
            command = [sys.executable, "-m", "benchmarks.reestimation", "--peak", name, str(batch_size)]
            row[name] = float(subprocess.run(command, check=True, capture_output=True, env=env).stdout)
            print(f"  batch {batch_size:3}: {name:32} {row[name]:6.0f} MiB", flush=True)
        table[f"batch {batch_size}, MiB"] = row
    return table


PEAKS: dict[str, Contestant] = (
    BARE
    | CONTESTANTS
    | {"ek.reestimate_, memory=16 MiB": lambda model, batches: ek.reestimate_(model, batches, memory=1 << 24)}
)


def peak(name: str, batch_size: int) -> float:
    """MiB by which memory in use grows at most while a contestant works on 512 images."""
    torch.manual_seed(0)
    model, status = resnet18(), Path("/proc/self/status")
    batches = [torch.randn(batch_size, 3, 32, 32) for _ in range(512 // batch_size)]
    bare(model, batches[:1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    found = dict(line.split(":", 1) for line in status.read_text().splitlines())
    PEAKS[name](model, batches)
    after = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return (int(after["VmHWM"].split()[0]) - int(found["VmRSS"].split()[0])) / 1024


def run_truth(options: argparse.Namespace) -> dict[str, Any]:
    """(d) Worst norm: how far the stored variance is off what eval mode then shows; the mean in deviations."""
    cifar = torch.cat([x for x, _ in NETS[CIFAR].load(options.data_dir)[0]])
    levels = torch.randn(2048, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    cases: dict[str, tuple[nn.Module, Tensor]] = {
        CIFAR: (NETS[CIFAR].trained(0, options.data_dir, options.nets), cifar),
        "12 convolutions, untrained, on images of different level": (plain12(), torch.randn(2048, 3, 16, 16) + levels),
    }
    table: dict[str, Any] = {}
    for case, (model, data) in cases.items():
        print(case)
        for batch_size in (4, 16, 128):
            row = {}
            for name, run in CONTESTANTS.items():
                treated = copy.deepcopy(model)
                run(treated, data.split(batch_size))
                row[name] = worst(treated, data)
                print(f"  batch {batch_size:3}: {name:24} variance {row[name][0]:8.3%}  mean {row[name][1]:8.3%}")
            table[f"{case}, batch {batch_size}"] = row
    return table


def worst(model: nn.Module, data: Tensor) -> tuple[float, float]:
    """Of the worst norm, the mean over channels: |eval variance / running variance - 1|, and means in deviations."""
    model.eval()
    sums: dict[str, list[Tensor]] = {}

    def read(path: str, norm: nn.Module, args: tuple[Tensor]) -> None:
        x = args[0].transpose(0, 1).flatten(1).double()
        rows = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), (x**2).sum(1)])
        sums.setdefault(path, []).append(rows)

    hooks = [norm.register_forward_pre_hook(partial(read, path)) for path, norm in norms_of(model).items()]
    bare(model, data.split(256))
    for hook in hooks:
        hook.remove()
    off_variance, off_mean = [], []
    for path, norm in norms_of(model).items():
        count, total, squares = torch.stack(sums[path]).sum(0)
        mean = total / count
        variance = (squares / count - mean**2) * count / (count - 1)
        off_variance.append(abs(float(variance.mean() / norm.running_var.double().mean()) - 1))
        off_mean.append(float(((mean - norm.running_mean).abs() / variance.sqrt().clamp_min(1e-12)).mean()))
    return max(off_variance), max(off_mean)


PARTS = {"cost": run_cost, "reach": run_reach, "memory": run_memory, "truth": run_truth}


def main() -> None:
    torch.set_num_threads(2)
    warnings.simplefilter("ignore", ek.StretchWarning)  # classifiers all, if on batches without labels
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], int(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="of the part cost; others are kept")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("EVENKEEL_DATA"))
    parser.add_argument("--nets", type=Path, default=Path("data/nets"), help="folder of trained nets")
    run_parts(parser, PARTS, Path("results/reestimation.json"))


if __name__ == "__main__":
    main()
