"""Parts measured apart, round after round: how far off statistics are, and what is said of it, by what the probe is.

    python -m benchmarks.parts [--rounds 4] [--nets NAME ...]
    python -m benchmarks.parts --page

Data are cut into two sites that share no class (of the convolutions: no level of brightness). What is true is settled
norm after norm on all data. Results go to results/parts.json, tables to docs/federated.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek
from benchmarks.measuring import run_parts
from benchmarks.pages import put_into
from evenkeel.demo import build_net
from evenkeel.io.datasets import load_data
from evenkeel.model.evaluation import evaluate
from evenkeel.model.norms import norms_of
from evenkeel.papers.lab.nets.densenets import densenet
from evenkeel.papers.lab.nets.noises import Noise

RESULTS, PAGE = Path("results/parts.json"), Path("docs/federated.md")
BATCH, PROBE = 32, 256
SITES = tuple[list[Tensor], list[Tensor]]


def convolutions() -> tuple[nn.Module, SITES, Callable[[nn.Module], float | None]]:
    """Twelve, untrained, each with its norm and dropout, on images that differ by a level of their own."""
    torch.manual_seed(0)
    layers = [
        (nn.Conv2d(16 if i else 3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2)) for i in range(12)
    ]
    model = nn.Sequential(*(layer for block in layers for layer in block))
    x = torch.randn(1024, 3, 1, 1) + torch.randn(1024, 3, 8, 8) / 2
    for batch in x[torch.randperm(len(x))].split(BATCH):
        model(batch)
    is_bright = x.mean((1, 2, 3)) > 0
    return model, (list(x[is_bright].split(BATCH)), list(x[~is_bright].split(BATCH))), lambda _: None


def trained(build: Callable[[], nn.Module]) -> tuple[nn.Module, SITES, Callable[[nn.Module], float | None]]:
    """A net trained on the digits that scikit-learn embeds, and how often it errs on the rest of them."""
    torch.manual_seed(0)
    data, model = load_data("digits"), build()
    x, y = (torch.cat([batch[i] for batch in data.train]) for i in (0, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        for places in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[places]), y[places]).backward()
            optimizer.step()
    sites = (list(x[y < 5].split(BATCH)), list(x[y >= 5].split(BATCH)))
    return model, sites, lambda one: evaluate(one, data.test).error  # type: ignore[arg-type]


NETS: dict[str, Callable[[], tuple[nn.Module, SITES, Callable[[nn.Module], float | None]]]] = {
    "12 convolutions": convolutions,
    "residual net, digits": lambda: trained(lambda: build_net(p=0.3)),
    "DenseNet, digits": lambda: trained(
        lambda: densenet(22, bottleneck=True, channels=1, places="a", noise=Noise("Dropout", 0.3))
    ),
}


def probes(sites: SITES) -> dict[str, list[Tensor] | None]:
    """What shows how norms change: samples of both sites, of one, noise of their shape, or nothing."""
    left, right = sites
    half = PROBE // BATCH // 2
    return {
        "both sites": left[:half] + right[:half],
        "one site": left[: 2 * half],
        "noise": [torch.randn(BATCH, *left[0].shape[1:]) for _ in range(2 * half)],
        "none": None,
    }


def settled_in_order(model: nn.Module, x: Tensor) -> nn.Module:
    """The model whose norms, one after the other, store the statistics of their input of all data at once."""
    model = copy.deepcopy(model).double().eval()
    for norm in norms_of(model).values():
        held: list[Tensor] = []
        hook = norm.register_forward_pre_hook(lambda _, args, held=held: held.append(args[0]))
        with torch.no_grad():
            model(x.double())
        hook.remove()
        rows = held[0].transpose(0, 1).flatten(1)
        norm.running_mean, norm.running_var = rows.mean(1), rows.var(1)
    return model


def off(model: nn.Module, truth: nn.Module) -> float:
    """How far statistics are from others, at the worst norm: as `MergedParts.changed` has it."""
    worst = 0.0
    for one, other in zip(norms_of(model).values(), norms_of(truth).values(), strict=True):
        mean, variance = one.running_mean.double(), one.running_var.double()  # type: ignore[union-attr]
        scale = other.running_var.mean()  # type: ignore[union-attr]
        moved = (mean - other.running_mean).square().mean() / scale
        logs = (variance + scale / 100).log() - (other.running_var + scale / 100).log()  # type: ignore[operator]
        worst = max(worst, float(moved.sqrt()), float(logs.square().mean().sqrt()))
    return worst


def rounds_of(model: nn.Module, sites: SITES, probe: Any, count: int, truth: nn.Module) -> list[dict[str, float]]:
    """What each round finds."""
    model, start, found = copy.deepcopy(model), None, list[dict[str, float]]()
    for _ in range(count):
        parts = [ek.measure_part(model, site, name=f"{i}", start=start) for i, site in enumerate(sites)]
        done = ek.merge_parts_(model, parts, probe)
        found.append({"changed": max(done.changed.values()), "doubt": done.doubt, "off": off(model, truth)})
        start = done.start
        done.undo()
    return found


def measure(options: argparse.Namespace) -> Any:
    """Rounds: what norms were off by, what is said of what is left, and what is true."""
    warnings.simplefilter("ignore", ek.StretchWarning)
    for name in options.nets:
        model, sites, error = NETS[name]()
        truth = settled_in_order(model, torch.cat([*sites[0], *sites[1]]))
        before = {"off": off(model, truth), "error": error(model)}
        row: dict[str, Any] = {"norms": len(norms_of(model)), "before": before, "settled": error(truth.float())}
        truth = truth.double()
        one = copy.deepcopy(model)
        ek.reestimate_(one, sites[0] + sites[1], match="variance")
        row["reestimate_"] = off(one, truth)
        for kind, probe in probes(sites).items():
            row[kind] = rounds_of(model, sites, probe, options.rounds, truth)
            print(name, kind, [f"{one['off']:.2g} ({one['doubt']:.2g})" for one in row[kind]], flush=True)
        yield name, row


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The table of the page."""
    rounds = max(len(row["both sites"]) for row in found["rounds"].values())
    lines = [
        "| network | probe | " + " | ".join(f"round {i + 1}" for i in range(rounds)) + " |",
        "|---|---|" + "---|" * rounds,
    ]
    for name, row in found["rounds"].items():
        for kind in ("both sites", "one site", "noise", "none"):
            cells = " | ".join(f"{_percent(one['off'])} ({_percent(one['doubt'])})" for one in row[kind])
            lines.append(
                f"| {name}: {row['norms']} norms, off by {_percent(row['before']['off'])} | {kind} | {cells} |"
            )
    return {"rounds": "\n".join(lines) + "\n"}


def _percent(value: float) -> str:
    if value > 10:
        return "> 1000 %"
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %" if value >= 1e-4 else "< .01 %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--page", action="store_true", help="only write the page's table, of the results there are")
    if not parser.parse_known_args()[0].page:
        run_parts(parser, {"rounds": measure}, RESULTS)
    put_into(PAGE, tables(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
