"""Trials: one arm with one seed, from a trained network or from nothing to the record of what was found."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from evenkeel.output.files import finite
from evenkeel.papers.lab.hardware import Hardware, device_name
from evenkeel.papers.lab.images import Images, load_images
from evenkeel.papers.lab.specs import Factors, ImageSource, Precision, Scale, Training, arm_name, digest, plain
from evenkeel.papers.lab.training import Trained, deterministic, device_of, train

_PACKAGE = Path(__file__).resolve().parents[2]
_PACKAGES = ("evenkeel", "torch", "numpy", "lightning-fabric")


@dataclass(frozen=True)
class Workplace:
    """Where runs are made: folders and hardware.

    Args:
        out: folder of results; checkpoints lie in its sub-folder `trained`.
        data_dir: where data sets lie; the environment's EVENKEEL_DATA if None.
        download: fetch data sets that are not there.
        hardware: on what networks are trained.
        progress: show a bar for each training.
        anew: a name that no others have, for runs whose trainings are to begin anew; None to go on with those begun.
    """

    out: Path
    data_dir: Path | None = None
    download: bool = False
    hardware: Hardware = field(default_factory=Hardware)
    progress: bool = False
    anew: str | None = None

    def images(self, source: ImageSource) -> Images:
        """The images of a source; those asked for last are kept in memory."""
        return _images(source, self.data_dir, self.download)

    @property
    def checkpoints(self) -> Path:
        """Where trained networks are kept, to be gone on with and to be shared by experiments."""
        return self.out / "trained"


@dataclass(frozen=True)
class Run:
    """One arm of an experiment with one seed: what an engine sends to a process, and a record answers to.

    Args:
        paper, experiment: names.
        scale: smoke, quick, desk or full.
        factors: of the arm.
        seed: of everything drawn.
        measure: what is found out.
        training: what has to be trained first, if anything.
    """

    paper: str
    experiment: str
    scale: Scale
    factors: Factors
    seed: int
    measure: Callable[[Trial], dict[str, Any]]
    training: Training | None

    @property
    def name(self) -> str:
        """As it is shown: PAPER/EXPERIMENT/ARM-SEED."""
        return f"{self.paper}/{self.experiment}/{arm_name(self.factors)}-{self.seed}"

    @property
    def work(self) -> str:
        """The same for runs that need the same training, and so are made one after the other by one process."""
        return self.name if self.training is None else digest(plain(self.training), self.seed)

    def path(self, out: Path) -> Path:
        """Where its record is written."""
        return out / f"{self.name}.json"

    def spec(self) -> dict[str, Any]:
        """All that decides what is found, as plain data."""
        return {
            "paper": self.paper,
            "experiment": self.experiment,
            "scale": self.scale,
            "factors": dict(self.factors),
            "seed": self.seed,
            "training": None if self.training is None else plain(self.training),
        }


@dataclass(frozen=True)
class Trial:
    """What a measure is given.

    Attributes:
        factors: of the arm.
        scale: smoke, quick, desk or full.
        seed: of the run; torch's generator has been set for it.
        trained: the trained network; None where nothing is trained.
        images: on the device to measure on; None where nothing is trained.
        precision: that of training.
    """

    factors: Factors
    scale: Scale
    seed: int
    trained: Trained | None = None
    images: Images | None = None
    precision: Precision = "32-true"


def perform(run: Run, workplace: Workplace, images: Images | None = None) -> dict[str, Any]:
    """Make a run.

    Returns:
        Its record, as JSON holds it: the run's `spec()`, `history` (figures an epoch), `figures`, `versions`,
        `commit`, `hardware` and `seconds` (of training, over all starts and for whomever it was, and of measuring).

    Raises:
        EvenkeelError: data are missing, or what the run itself raises.
    """
    trained = None
    if run.training is not None:
        images = images or workplace.images(run.training.source)
        trained = train(
            run.training,
            run.seed,
            images,
            folder=workplace.checkpoints,
            hardware=workplace.hardware,
            progress=workplace.progress,
            anew=workplace.anew,
        )
        images = images.to(device_of(workplace.hardware))
    began = time.perf_counter()
    # Where nothing is trained, all arms of a seed draw the same inputs: they are pairs.
    torch.manual_seed(run.seed if trained is None else int(digest(run.spec()), 16) % 2**63)
    with deterministic(workplace.hardware.threads):
        figures = run.measure(Trial(run.factors, run.scale, run.seed, trained, images, workplace.hardware.precision))
    return finite(
        {
            **run.spec(),
            "history": trained.history if trained else [],
            "figures": figures,
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
            "commit": commit(),
            "hardware": {**asdict(workplace.hardware.resolved()), "device": device_name(workplace.hardware)},
            "seconds": {"training": trained.seconds if trained else 0.0, "measuring": time.perf_counter() - began},
        }
    )


@lru_cache
def commit() -> str | None:
    """The commit that evenkeel is run from, with "-dirty" where files differ from it; None outside a checkout."""
    with suppress(OSError, subprocess.SubprocessError):
        if Path(_git("rev-parse", "--show-toplevel")).resolve() == _PACKAGE.parent:
            return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return None


def _git(*asked: str) -> str:
    done = subprocess.run(["git", "-C", _PACKAGE, *asked], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):  # what is not trained needs no lightning-fabric
        return version(name)
    return None


@lru_cache(maxsize=1)
def _images(source: ImageSource, data_dir: Path | None, download: bool) -> Images:
    return load_images(**asdict(source), data_dir=data_dir, download=download)
