"""Two networks trained with dropout before norms, on real images: test scores as trained, after peers, after ours.

    python -m benchmarks.trained [--seeds 3] [--data-dir DIR] [--nets FOLDER]

MNIST and CIFAR-10 are read from --data-dir (or EVENKEEL_DATA); every net is trained once and kept in --nets.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

import evenkeel as ek
from benchmarks.measuring import run_parts
from benchmarks.nets import NETS, Batches, add_options
from benchmarks.reestimation import fvcore, torch_swa
from evenkeel.model.evaluation import evaluate


def fvcore_in_train_mode(model: nn.Module, batches: Batches) -> None:
    """As its documentation shows it: modes are the caller's, and dropout stays on."""
    from fvcore.nn.precise_bn import update_bn_stats

    model.train()
    update_bn_stats(model, (x for x, _ in batches), len(batches))


TREATMENTS: dict[str, Callable[[nn.Module, Batches], Any]] = {
    "as trained": lambda model, batches: None,
    "torch update_bn": torch_swa,
    "fvcore, train mode": fvcore_in_train_mode,
    "fvcore, dropout off": fvcore,
    "ek.reestimate_, tolerance=0.01": lambda model, batches: ek.reestimate_(model, batches, tolerance=0.01),
    "ek.reestimate_": ek.reestimate_,
}
FIGURES = {
    "error": ("test error %", 100.0, 2),
    "log_loss": ("log loss", 1.0, 4),
    "calibration_error": ("ECE %", 100, 2),
}


def run_scores(options: argparse.Namespace) -> dict[str, Any]:
    """Test error, log loss and calibration error, mean and standard deviation over seeds, then seed by seed."""
    table: dict[str, Any] = {}
    for name, net in NETS.items():
        training, test = net.load(options.data_dir)
        scores: dict[str, list[dict[str, float]]] = {treatment: [] for treatment in TREATMENTS}
        for seed in range(options.seeds):
            trained = net.trained(seed, options.data_dir, options.nets)
            for treatment, treat in TREATMENTS.items():
                treat(model := copy.deepcopy(trained), training)
                result = evaluate(model, test)
                scores[treatment].append({name: getattr(result, name) for name in (*FIGURES, "samples")})
        print(f"{name}, {options.seeds} seeds, {len(test) and scores['as trained'][0]['samples']} test images")
        for treatment, found in scores.items():
            cells = [f"  {treatment:32}"]
            for figure, (label, factor, digits) in FIGURES.items():
                values = [factor * score[figure] for score in found]
                each = " ".join(f"{value:.{digits}f}" for value in values)
                deviation = stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{label} {fmean(values):.{digits}f} ± {deviation:.{digits}f} [{each}]")
            print("  ".join(cells), flush=True)
        table[name] = scores
    return table


def main() -> None:
    torch.set_num_threads(2)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    run_parts(parser, {"scores": run_scores}, Path("results/trained.json"))


if __name__ == "__main__":
    main()
