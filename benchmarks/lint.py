"""What ek.lint says of models in use, and whether ek.fix repairs it: all of torchvision's classifiers, and all of timm.

    python -m benchmarks.lint [--library torchvision|timm|all] [--only PATTERN] [--resume] [--fix N]
        [--out results/lint.json]

Every model is built as in benchmarks.zoo, with its drop rates, where the constructor takes them, switched on, and
linted by the guidelines on placement, li2018 and kim2023 (rules only: no shifts are predicted); then all its rates are
set to 0, and it is linted again: whatever is found then is a false alarm. With --fix, of every N-th model with
findings the fixed copy is compared, bit for bit in eval mode on real weights.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from typing import Any
from zlib import crc32

import torch
from torch import nn

import evenkeel as ek
from benchmarks.zoo import BUILDERS, LARGE, Row, build_model, failing_into, parser_of, run
from evenkeel.linting.context import Context
from evenkeel.linting.linter import examine, wanted

GUIDELINES: tuple[ek.Guideline, ...] = ("li2018", "kim2023")
RATES = ("p", "drop_rate", "drop_prob", "attn_drop_rate", "drop_path_rate", "dropout", "dropout_p")  # of modules


class Measure:
    """A model's row; can be sent to another process."""

    def __init__(self, every: int | None) -> None:
        self.every = every  # of how many models with findings one is fixed

    def __call__(self, target: str) -> Row:
        row: Row = {"model": target}
        with failing_into(row):
            row["step"] = "build"
            model, example, row["parameters"] = build_model(target)
            row["step"] = "lint"
            start = time.perf_counter()
            row["found"] = {guideline: codes(model, example, guideline) for guideline in GUIDELINES}
            row["seconds"] = round(time.perf_counter() - start, 3)
            row["step"] = "fix"
            if self.every and row["parameters"] <= LARGE and crc32(target.encode()) % self.every == 0:
                if any(row["found"].values()):
                    fill_(model)
                row["fixed"] = {g: fixed(model, example, g) for g in GUIDELINES if row["found"][g]}
            row["step"] = "lint without rates"
            without_rates_(model)
            row["false alarms"] = {g: found for g in GUIDELINES if (found := codes(model, example, g))}
        return row


def codes(model: nn.Module, example: Any, guideline: ek.Guideline) -> dict[str, int]:
    """How many findings of each code there are."""
    return Counter(finding.code for finding in examine(Context(model, example), wanted(guideline, (), ())))


def fixed(model: nn.Module, example: Any, guideline: ek.Guideline) -> Row:
    """What fix makes of a model."""
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always", ek.UnappliedWarning)
        copy = ek.fix(model, example, guideline=guideline)
    x = torch.randn(example.shape)
    with torch.no_grad():
        same = torch.equal(model.eval()(x), copy.eval()(x))
    model.train()
    return {
        "left": codes(copy, example, guideline),
        "same bits": same,
        "same keys": list(model.state_dict()) == list(copy.state_dict()),
        "by hand": [str(w.message)[:300] for w in caught if issubclass(w.category, ek.UnappliedWarning)],
    }


def fill_(model: nn.Module) -> None:
    """Give weights that were left uninitialized values that a forward pass can take."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)


def without_rates_(model: nn.Module) -> None:
    """Set every drop rate to 0, as if the model had been built so."""
    for module in model.modules():
        for name in RATES:
            rate = getattr(module, name, None)
            if isinstance(rate, float):
                setattr(module, name, 0.0)
            elif isinstance(rate, list):  # one a layer, as in PyG's MLP
                setattr(module, name, [0.0] * len(rate))


def totals(rows: dict[str, Row]) -> Row:
    groups = {library: [r for r in rows.values() if r["model"].startswith(f"{library}:")] for library in BUILDERS}
    return {library: figures(group) for library, group in groups.items() if group}


def figures(rows: list[Row]) -> Row:
    good = [row for row in rows if "error" not in row]
    found = Counter(code for row in good for codes in row["found"].values() for code in codes)
    repaired = {f"{row['model']} {g}": result for row in good for g, result in row.get("fixed", {}).items()}
    return {
        "models": len(rows),
        "failed": {row["model"]: row["error"] for row in rows if "error" in row},
        "models with findings, by code": dict(sorted(found.items())),
        "false alarms at zero rates": {r["model"]: r["false alarms"] for r in good if r["false alarms"]},
        "fixed": len(repaired),
        "of these with nothing left": sum(not result["left"] for result in repaired.values()),
        "of these with other bits or keys": [m for m, r in repaired.items() if not (r["same bits"] and r["same keys"])],
        "left": {m: r["by hand"] or r["left"] for m, r in repaired.items() if r["left"]},
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--fix", type=int, metavar="N", help="fix one in N models with findings")
    options = parser.parse_args()
    run(options, Measure(options.fix), totals)


if __name__ == "__main__":
    main()
