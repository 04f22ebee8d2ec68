"""Tiny trainings for the tests of the papers' laboratory, and measures that other processes can import."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from evenkeel.papers.lab import measures, simulations
from evenkeel.papers.lab.hardware import Hardware
from evenkeel.papers.lab.images import Images, load_images
from evenkeel.papers.lab.results import Record, Results
from evenkeel.papers.lab.specs import ImageSource, Net, Recipe, Training, arm_name
from evenkeel.papers.lab.training import Trained, train
from evenkeel.papers.lab.trials import Run, Trial, Workplace

CPU = Hardware(accelerator="cpu")
SOURCE = ImageSource("synthetic", train=128, test=64)
MLP = Net("mlp", {"widths": [8]})
WRN = Net("wrn", {"depth": 10, "widen": 1, "width": 4})


def noisy(net: Net, places: str, amount: float = 0.5) -> Net:
    return Net(net.name, {**net.arguments, "places": places, "noise": ["Dropout", amount]})


def images_of(source: ImageSource = SOURCE) -> Images:
    return load_images(source.name, train=source.train, test=source.test, validation=source.validation)


def a_training(
    net: Net = MLP,
    *,
    source: ImageSource = SOURCE,
    init: str = "given",
    epochs: int = 2,
    batch: int = 32,
    **recipe: Any,
) -> Training:
    return Training(net, source, Recipe(epochs=epochs, batch=batch, **recipe), init)


def trained_in(folder: Path, training: Training, seed: int = 0, hardware: Hardware = CPU) -> Trained:
    return train(training, seed, images_of(training.source), folder=folder, hardware=hardware)


def same(first: Trained, second: Trained) -> bool:
    """Whether two trainings ended in the same history and the same weights, to the bit."""
    weights, others = first.weights, second.weights
    return (
        str(first.history) == str(second.history)
        and list(weights) == list(others)
        and all(list(weights[epoch]) == list(others[epoch]) for epoch in weights)
        and all(torch.equal(weights[e][name], others[e][name]) for e in weights for name in weights[e])
    )


def a_run(measure: Any, seed: int = 0, *, training: Training | None = None, **factors: Any) -> Run:
    return Run("paper", "experiment", "smoke", factors or {"p": 0.5}, seed, measure, training)


def a_workplace(out: Path) -> Workplace:
    return Workplace(out, hardware=CPU)


def a_record(seed: int = 0, *, scale: str = "smoke", **factors: Any) -> Any:
    """A maker of records without a run: `a_record(seed, p=0.5)(error=0.25)`."""

    def with_figures(**figures: Any) -> Record:
        content = {"factors": factors, "seed": seed, "scale": scale, "figures": figures, "history": []}
        return Record.of(content)

    return with_figures


def results_of(key: str, values: dict[tuple[tuple[Any, ...], int], float], *names: str) -> Results:
    """Results with one figure, by the levels of the named factors and the seed."""
    return Results(
        a_record(seed, **dict(zip(names, levels, strict=True)))(**{key: value})
        for (levels, seed), value in values.items()
    )


def drawn(trial: Trial) -> dict[str, Any]:
    """Figures that show every source of chance, without training."""
    return {"seed": trial.seed, "name": arm_name(trial.factors), "draw": float(torch.rand(()))}


def raises(trial: Trial) -> dict[str, Any]:
    raise ValueError(f"no luck\nwith {trial.seed}")


def dies_once(trial: Trial) -> dict[str, Any]:
    """The signals of an untrained net, at the second go: at the first, the process is lost."""
    marker = Path(trial.factors["marker"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return simulations.signal(Trial({"keep": 0.6, "init": "he"}, trial.scale, trial.seed))


def runs_that_die_once(folder: Path) -> list[Run]:
    """An untrained run that takes its process along once, and a trained one, which images are sent to."""
    dying = a_run(dies_once, training=None, marker=str(folder / "marker"))
    return [dying, a_run(measures.scores, seed=1, training=a_training())]
