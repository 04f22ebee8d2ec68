"""explain: a rule's own text, with the source of its bad and its good example; read from its file, without torch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evenkeel.errors import EvenkeelError, similar
from evenkeel.linting.rule import GUIDELINES, Guideline
from evenkeel.output.files import atomic_write

_RULES = Path(__file__).parent / "rules"


@dataclass(frozen=True)
class Page:
    """What a rule's file says.

    Attributes:
        code: of the rule.
        guideline: whose advice it is.
        text: the file's docstring.
        bad, good: source of the examples.
    """

    code: str
    guideline: Guideline
    text: str
    bad: str
    good: str

    @classmethod
    def read(cls, file: Path) -> Page:
        """Read a rule's file: the docstring, the decorator `@rule(code, guideline=...)`, `bad` and `good`."""
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        made = next(
            call
            for function in functions.values()
            for call in function.decorator_list
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "rule"
        )
        code, guideline = (ast.literal_eval(node) for node in (made.args[0], made.keywords[0].value))
        bad, good = (ast.get_source_segment(source, functions[name]) or "" for name in ("bad", "good"))
        return cls(code, guideline, (ast.get_docstring(tree) or "").strip(), bad, good)

    @property
    def summary(self) -> str:
        """The first line without the code."""
        return self.text.partition("\n")[0].partition(": ")[2].rstrip(".")

    def __str__(self) -> str:
        """The page, in Markdown."""
        title, _, rest = self.text.partition("\n")
        about = f"Guideline {self.guideline}: {GUIDELINES[self.guideline]}."
        examples = (
            f"## {name}\n\n```python\n{source}\n```\n" for name, source in (("Bad", self.bad), ("Good", self.good))
        )
        return "\n".join([f"# {title.rstrip('.')}\n", f"{about}\n", f"{rest.strip()}\n", *examples])


@cache
def pages() -> dict[str, Page]:
    """The pages of all rules, by code, in the order of codes."""
    found = map(Page.read, sorted(_RULES.glob("ek*.py")))
    return {page.code: page for page in found}


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
    if code.upper() not in pages():
        advice = similar(code.upper(), pages()) or f"choose {', '.join(pages())}"
        raise EvenkeelError(f"there is no rule {code!r}: {advice}")
    return str(pages()[code.upper()])


def overview() -> str:
    """All rules in a table, in Markdown.

    >>> print(overview().splitlines()[4])
    | [EK101](EK101.md) | hendrycks2016 | dropout that stays on in eval mode |
    """
    rows = [f"| [{code}]({code}.md) | {page.guideline} | {page.summary} |" for code, page in pages().items()]
    return "\n".join(["# Rules\n", "| code | guideline | finds |", "|---|---|---|", *rows, ""])


def without_links(text: str) -> str:
    """A page for a terminal: links of Markdown are their texts.

    >>> without_links("see [EK201](EK201.md)")
    'see EK201'
    """
    return re.sub(r"\[([^\]]+)\]\([^)\s]+\)", r"\1", text)


def write_pages(folder: str | Path) -> list[Path]:
    """Write a page for every rule, and README.md with the table of all.

    Raises:
        EvenkeelError: the folder does not exist.
    """
    folder = Path(folder)
    texts = {"README": overview(), **{code: str(page) for code, page in pages().items()}}
    for name, text in texts.items():
        with atomic_write(folder / f"{name}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / f"{name}.md" for name in texts]
