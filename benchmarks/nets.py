"""Networks trained on real images, whose statistics the benchmarks put right: trained once, then read from a folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.architectures import mlp
from evenkeel.demo import build_net, train
from evenkeel.io.datasets import load_data
from evenkeel.model.evaluation import evaluate
from evenkeel.output.files import atomic_write
from evenkeel.papers import li2018
from evenkeel.papers.lab.hardware import hardware_at
from evenkeel.papers.lab.images import Images, load_images
from evenkeel.papers.lab.specs import Training
from evenkeel.papers.lab.training import Trained
from evenkeel.papers.lab.training import train as train_in_lab

Batches = list[tuple[Tensor, Tensor]]


def residual_a() -> nn.Sequential:
    """li2018's type (a): dropout right before each block's last norm."""
    return build_net(p=0.5, widths=(16, 16, 32, 32, 64, 64), channels=3)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many nets of a kind, where the data lie, and where the nets are kept."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("EVENKEEL_DATA"))
    parser.add_argument("--nets", type=Path, default=Path("data/nets"), help="folder of trained nets")


@dataclass(frozen=True)
class Net:
    """A network, the set it is trained on, how many batches of 128 of it, how long, and its name in a folder."""

    build: Callable[[], nn.Module]
    data: str
    batches: int
    epochs: int
    name: str

    def load(self, data_dir: Path | None, count: int | None = None) -> tuple[Batches, Batches]:
        """Training and test batches of 128 images."""
        data = load_data(self.data, data_dir=data_dir, batch_size=128)
        return list(islice(data.train, count or self.batches)), list(data.test or ())

    def trained(self, seed: int, data_dir: Path | None, folder: Path) -> nn.Module:
        """The net of this seed, in train mode."""
        recipe = f"{self.data}-{self.name}-{self.batches}x{self.epochs}"
        return kept(self.build, lambda net: self._train(net, seed, data_dir), seed, folder / f"{recipe}-{seed}.pt")

    def _train(self, net: nn.Module, seed: int, data_dir: Path | None) -> nn.Module:
        training, test = self.load(data_dir)
        train(net, training, self.epochs, batch_size=128)
        print(f"trained on {self.data}, seed {seed}: test error {evaluate(net, test).error:.2%}", flush=True)
        return net


def kept(build: Callable[[], nn.Module], fit: Callable[[nn.Module], Any], seed: int, path: Path) -> nn.Module:
    """The net in the file, in train mode; built and trained from this seed, and written there, if there is none."""
    if path.exists():
        net = build()
        net.load_state_dict(torch.load(path, weights_only=True))
        return net
    torch.manual_seed(seed)
    fit(net := build())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        torch.save(net.state_dict(), temporary)
    return net


def desk_training(place: str, p: float) -> Training:
    """A PreResNet-20 on all of CIFAR-10, 16 epochs, as `evenkeel reproduce li2018/adjust --scale desk` trains it."""
    assert li2018.adjust.training is not None
    return li2018.adjust.training("desk", data="cifar10", net="preresnet", place=place, p=p)


def desk_images(data_dir: Path | None) -> Images:
    """What it is trained and tested on."""
    return load_images("cifar10", data_dir=data_dir)


def desk_trained(training: Training, seed: int, images: Images, folder: Path) -> Trained:
    """The net of this seed: half an hour of a core, unless the checkpoint of the papers' lab is in the folder."""
    return train_in_lab(training, seed, images, folder=folder, hardware=hardware_at("desk"), progress=True)


MNIST, CIFAR = "MLP 3 x 256, MNIST", "residual CNN (a), 10,000 CIFAR-10 images"
NETS = {MNIST: Net(mlp, "mnist", 469, 10, "mlp"), CIFAR: Net(residual_a, "cifar10", 78, 15, "residual_a")}
