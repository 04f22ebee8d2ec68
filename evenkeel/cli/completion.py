"""What the shell offers after a tab, each with a word on it; read from files, since torch takes seconds to import."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

_PAPERS = Path(__file__).parents[1] / "papers"


def guidelines(incomplete: str) -> list[tuple[str, str]]:
    """Guidelines that begin so.

    >>> guidelines("li")
    [('li2018', 'dropout after all norms')]
    """
    from evenkeel.linting.rule import GUIDELINES

    return _beginning(GUIDELINES.items(), incomplete)


def codes(incomplete: str) -> list[tuple[str, str]]:
    """Codes of rules that begin so, after those that stand before the last comma.

    >>> codes("EK1,EK201")
    [('EK1,EK201', 'dropout right before a norm')]
    """
    from evenkeel.linting.explanation import pages

    before, comma, last = incomplete.rpartition(",")
    known = [(code, page.summary) for code, page in pages().items()]
    return [(f"{before}{comma}{code}", words) for code, words in _beginning(known, last)]


def experiments(incomplete: str) -> list[tuple[str, str]]:
    """Papers that begin so, or, after a slash, experiments of one.

    >>> experiments("li2018/an")
    [('li2018/angles', 'Table 1')]
    """
    paper, slash, _ = incomplete.partition("/")
    if not slash:
        return guidelines(incomplete)  # they are named after the papers
    if paper not in [name for name, _ in guidelines("")]:
        return []
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted(_PAPERS.glob(f"{paper}*.py"))]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Experiment"]
    named = [{key.arg: key.value for key in call.keywords} for call in made]
    texts = [[ast.literal_eval(found[key]) for key in ("name", "source")] for found in named]
    return _beginning([(f"{paper}/{name}", source) for name, source in texts], incomplete)


def data_sets(incomplete: str) -> list[tuple[str, str]]:
    """Data sets that begin so.

    >>> [name for name, _ in data_sets("cifar")]
    ['cifar10', 'cifar100']
    """
    from evenkeel.io.downloads import SETS

    return _beginning([*((name, "") for name in SETS), ("folder:", "images in a folder")], incomplete)


def targets(incomplete: str) -> list[tuple[str, str]]:
    """The libraries whose models a TARGET can name.

    >>> targets("ti")
    [('timm:', 'a model of timm, by name')]
    """
    known = [(f"{name}:", f"a model of {name}, by name") for name in ("torchvision", "timm")]
    return _beginning(known, incomplete)


def _beginning(known: Iterable[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    return [(name, words) for name, words in known if name.startswith(incomplete)]
