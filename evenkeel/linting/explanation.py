"""explain: a rule's own text, with the source of its bad and its good example."""

from __future__ import annotations

import inspect
from pathlib import Path

from evenkeel.errors import EvenkeelError, similar
from evenkeel.linting.rule import GUIDELINES, Rule
from evenkeel.linting.rules import ALL
from evenkeel.output.files import atomic_write


def explain(code: str) -> str:
    """What a rule finds and why it matters, who disagrees, and an example of bad and of good.

    The text is the docstring of the rule's file, and the examples are the source of functions that the tests run.

    Args:
        code: of the rule, such as "EK201".

    Returns:
        A page in Markdown.

    Raises:
        EvenkeelError: there is no such rule.

    >>> print(explain("EK201").splitlines()[0])
    # EK201: dropout right before a norm
    """
    rules = {rule.code: rule for rule in ALL}
    if code.upper() not in rules:
        advice = similar(code.upper(), rules) or f"choose {', '.join(rules)}"
        raise EvenkeelError(f"there is no rule {code!r}: {advice}")
    return _page(rules[code.upper()])


def _page(rule: Rule) -> str:
    title, _, rest = rule.text.partition("\n")
    examples = [f"## {name.title()}\n\n```python\n{_source(rule, name)}\n```\n" for name in ("bad", "good")]
    about = f"Guideline {rule.guideline}: {GUIDELINES[rule.guideline]}."
    return "\n".join([f"# {title.rstrip('.')}\n", f"{about}\n", f"{rest.strip()}\n", *examples])


def _source(rule: Rule, name: str) -> str:
    return inspect.getsource(getattr(rule.module, name)).strip()


def overview() -> str:
    """All rules in a table, in Markdown.

    >>> print(overview().splitlines()[4])
    | [EK101](EK101.md) | hendrycks2016 | dropout that stays on in eval mode |
    """
    rows = [f"| [{rule.code}]({rule.code}.md) | {rule.guideline} | {rule.summary.rstrip('.')} |" for rule in ALL]
    return "\n".join(["# Rules\n", "| code | guideline | finds |", "|---|---|---|", *rows, ""])


def write_pages(folder: str | Path) -> list[Path]:
    """Write a page for every rule, and README.md with the table of all.

    Raises:
        EvenkeelError: the folder does not exist.
    """
    folder = Path(folder)
    pages = {"README": overview(), **{rule.code: _page(rule) for rule in ALL}}
    for name, text in pages.items():
        with atomic_write(folder / f"{name}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / f"{name}.md" for name in pages]
