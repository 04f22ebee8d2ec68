"""The rows of the field report on disk, one a line, and a reader's verdicts on their findings."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import evenkeel as ek
from benchmarks.field.catalogue import DOMAINS
from benchmarks.zoo import Row
from evenkeel.output.files import atomic_write, finite

OUT, VERDICTS = Path("results/field.json"), Path("results/field_verdicts.json")
UNREAD = "unread"
Verdicts = dict[str, dict[str, dict[str, str]]]  # by model, code and layer


def read_rows(path: Path) -> dict[str, Row]:
    """The rows by model, in the catalogue's order."""
    known: dict[str, Row] = {}
    if path.exists():
        known = {row["model"]: row for row in json.loads(path.read_text(encoding="utf-8"))["models"]}
    names = [model.name for models in DOMAINS.values() for model in models]
    return {name: known[name] for name in names if name in known}


def read_verdicts(path: Path) -> Verdicts:
    """What a person has read: "right" or "wrong", by model, code and layer."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def judge_(rows: dict[str, Row], verdicts: Verdicts) -> None:
    """Write into every finding the verdict on it."""
    for name, row in rows.items():
        for finding in row.get("findings", []):
            of_code = verdicts.get(name, {}).get(finding["code"], {})
            finding["verdict"] = of_code.get(finding["path"], UNREAD)


def save(rows: dict[str, Row], verdicts: Verdicts, out: Path) -> None:
    """Write the rows, in the catalogue's order."""
    judge_(rows, verdicts)
    names = [model.name for models in DOMAINS.values() for model in models if model.name in rows]
    versions = json.dumps({"torch": torch.__version__, "evenkeel": ek.__version__})
    lines = ",\n".join(json.dumps(finite(rows[name])) for name in names)
    with atomic_write(out) as temporary:
        temporary.write_text(f'{{"versions": {versions},\n"models": [\n{lines}\n]}}\n', encoding="utf-8")
