"""The package's wings and the imports between them; `python tests/support/wings.py [PACKAGE]` counts them."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from paths import ROOT

PACKAGE = ROOT / "evenkeel"

# Top down: a wing imports from those below its own line, never from one beside or above it.
WINGS = """
    __main__
    cli  compat  hf  lightning
    rewriting
    papers  linting
    demo  integrations  prediction  init  merging  parts
    reestimation
    layers  shift  signals
    statistics
    io  graph
    theory  output  model
    errors
"""
FLOOR = {wing: floor for floor, line in enumerate(WINGS.split("\n")) for wing in line.split()}


def modules_in(package: Path) -> dict[str, Path]:
    """The modules below a package's root: `graph/kinds.py` is `graph.kinds`, and a folder's own file the folder."""
    names = {path: ".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}


def imported(source: str, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a source text imports, wherever in the text; "" is its root."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"evenkeel.relative.{alias.name}" for alias in node.names]  # no module's name: shows as the root
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for top, _, rest in (name.partition(".") for name in names):
            if top == "evenkeel":
                yield next((m for m in (rest, rest.rpartition(".")[0]) if m in modules), "")


def arrows_of(package: Path) -> set[tuple[str, str]]:
    """Which module imports which."""
    modules = modules_in(package)
    return {(name, m) for name, p in modules.items() for m in imported(p.read_text(encoding="utf-8"), modules)}


def wing_of(module: str) -> str:
    """The folder, or the file beside the folders, that a module is in."""
    return module.partition(".")[0]


def wing_arrows(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Which wing imports from which other."""
    return {(wing_of(a), wing_of(b)) for a, b in arrows if wing_of(a) != wing_of(b)}


def circle_in(arrows: set[tuple[str, str]]) -> list[str]:
    """Modules that import each other in a circle; nothing if there is none."""
    below: dict[str, set[str]] = {}
    for a, b in arrows:
        below.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def main() -> None:
    """Print what a package's structure counts."""
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE
    modules, arrows = modules_in(package), arrows_of(package)
    rooms, between = {wing_of(module) for module in modules}, wing_arrows(arrows)
    order = list(TopologicalSorter({r: {b for a, b in between if a == r} for r in rooms}).static_order())
    floors: dict[str, int] = {}
    for room in order:
        floors[room] = 1 + max((floors[b] for a, b in between if a == room), default=0)
    table = FLOOR if rooms <= set(FLOOR) else {room: -floor for room, floor in floors.items()}
    upward = [(a, b) for a, b in between if table[a] >= table[b]]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py"))
    print(f"{len(rooms)} rooms on {max(floors.values())} floors, {len(modules)} modules, {lines} lines")
    print(f"{len(between)} arrows between rooms, {len(arrows)} between modules, {len(upward)} upward")


if __name__ == "__main__":
    main()
