"""The architecture: imports go strictly downward, and the root only re-exports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "evenkeel"

FLOORS = (
    ("errors", "kinds"),
    (
        "attachments",
        "batches",
        "calls",
        "comments",
        "files",
        "graph",
        "independent_component",
        "marginals",
        "modes",
        "moments",
        "names",
        "norms",
        "population",
        "progress",
        "replicas",
        "tables",
        "theory",
        "theory.chen2019",
        "theory.kim2023",
        "theory.li2018",
        "uniform_dropout",
    ),
    (
        "branches",
        "causes",
        "checkpoints",
        "downloads",
        "edits",
        "evaluation",
        "fields",
        "loaders",
        "merging",
        "methods",
        "noise",
        "papers.lab.nets.noises",
        "papers.lab.specs",
        "ranks",
        "recorder",
        "settings",
        "signals",
        "stored",
        "targets",
        "weights",
    ),
    ("activations", "exposures", "measurement", "papers.lab.nets.parts", "papers.lab.results", "readers", "tracing"),
    (
        "datasets",
        "layouts",
        *(f"papers.lab.nets.{name}" for name in ("densenets", "mlps", "residuals", "vggs")),
        "papers.lab.claims",
        "papers.lab.drawings",
        "papers.lab.images",
        "papers.lab.sheets",
        "sampling",
        "settling",
    ),
    ("papers.lab.nets.resnets", "papers.lab.plots", "transfers"),
    ("papers.lab.nets", "propagation"),
    ("gains", "reestimation", "shift", "signal_check"),
    ("initialization", "prediction"),
    ("compat", "correction", "demo", "hf", "lightning", "subject"),
    ("findings", "papers.lab", "papers.lab.training", "places", "surgery"),
    (
        *(f"rules.{path.stem}" for path in sorted((PACKAGE / "rules").glob("ek*.py"))),  # siblings, all of them
        "sarif",
    ),
    ("papers.lab.trials", "rules"),
    (
        "explanation",
        "linter",
        "papers.lab.engines",
        "papers.lab.experiments",
        "papers.lab.measures",
        "papers.lab.simulations",
    ),
    ("fixer", "papers.hendrycks2016", "papers.lab.report", "papers.lab.runner", "papers.li2018"),
    ("papers",),
    ("papers.commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
ROOT = "__init__"


def module_name(path: Path) -> str:
    """`evenkeel/rules/ek201.py` is `rules.ek201`, and a package carries the name of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == ROOT else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(source: str, package: str = "evenkeel") -> Iterator[str]:
    """The modules of evenkeel that a source text imports, wherever in the text it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "evenkeel":
                yield next((m for m in (rest, rest.rpartition(".")[0]) if m in FILES), ROOT)


def test_every_module_has_a_floor_and_every_floor_its_modules():
    assert set(FLOOR) == set(FILES) - {ROOT}
    assert len(FLOOR) == sum(map(len, FLOORS)), "a module stands on two floors"


@pytest.mark.parametrize("module", sorted(set(FLOOR) & set(FILES)))
def test_imports_go_strictly_downward(module):
    path = FILES[module]
    package = ".".join(("evenkeel", *path.relative_to(PACKAGE).parts[:-1]))
    imported = set(imported_modules(path.read_text(encoding="utf-8"), package))
    assert ROOT not in imported, "a module imports the package's root"
    assert [name for name in sorted(imported) if FLOOR[name] >= FLOOR[module]] == []


def test_the_root_only_re_exports():
    docstring, *body = ast.parse(FILES[ROOT].read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert {type(node) for node in body} <= {ast.ImportFrom, ast.Assign}


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import torch, evenkeel.errors", ["errors"]),
        ("from evenkeel.errors import EvenkeelError", ["errors"]),
        ("from evenkeel import errors, kinds", ["errors", "kinds"]),
        ("from . import errors", ["errors"]),
        ("from .errors import EvenkeelError", ["errors"]),
        ("def f():\n    from evenkeel.errors import EvenkeelError", ["errors"]),
        ("if TYPE_CHECKING:\n    import evenkeel.errors as e", ["errors"]),
        ("import evenkeel", [ROOT]),
        ("from evenkeel import __version__", [ROOT]),
        ("import evenkeeled, torch.nn", []),
    ],
)
def test_no_way_to_import_escapes(source, imported):
    assert list(imported_modules(source)) == imported
