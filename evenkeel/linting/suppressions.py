"""Comments in a model's source that ask lint to be silent: `# evenkeel: ignore[EK201]`."""

from __future__ import annotations

import ast
import io
import linecache
import re
import tokenize
import warnings
from collections.abc import Iterator
from functools import lru_cache

# a bracket that is never closed asks for nothing, rather than for silence about everything
_REMARK = re.compile(r"#\s*evenkeel\s*:\s*ignore(?![\w-])(?:\s*\[([^\]]*)\]|(?!\s*\[))", re.IGNORECASE)


def is_ignored(code: str, file: str | None, line: int | None) -> bool:
    r"""Whether a comment in the source asks for silence about a rule at a line.

    `# evenkeel: ignore` asks for silence about all rules, `# evenkeel: ignore[EK201, EK4]` about those whose codes
    begin so; a reason may follow. The comment is on the line, or on any line of the call that starts there: of the
    innermost, if several do.

    Args:
        code: the rule's code, in full.
        file: the source's name, as `linecache` knows it, if there is one.
        line: the line's number, from 1.

    Returns:
        Whether one does; False where there is no source to read.

    >>> source = "x = drop(  # evenkeel: ignore[EK2] on purpose\n    x\n)\n"
    >>> linecache.cache["<example>"] = len(source), None, source.splitlines(True), "<example>"
    >>> is_ignored("EK201", "<example>", 1), is_ignored("EK301", "<example>", 1)
    (True, False)
    """
    if file is None or line is None:
        return False
    linecache.checkcache(file)
    remarks, ends = _read("".join(linecache.getlines(file)))
    return any(code.startswith(remarks.get(number, ())) for number in range(line, ends.get(line, line) + 1))


@lru_cache(maxsize=32)
def _read(source: str) -> tuple[dict[int, tuple[str, ...]], dict[int, int]]:
    """The beginnings of codes ignored, by line, and the last line of the innermost call that starts at a line."""
    if "evenkeel" not in source.lower():  # most files: no need to read them closely
        return {}, {}
    remarks: dict[int, tuple[str, ...]] = {}
    for number, comment in _comments(source):
        for remark in _REMARK.finditer(comment):
            codes = ("",) if remark[1] is None else tuple(filter(None, re.split(r"[\s,]+", remark[1].upper())))
            remarks[number] = remarks.get(number, ()) + codes
    return remarks, _ends_of_calls(source) if remarks else {}


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every comment; from where the source is no Python on, of each line read by itself."""
    read = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            read = token.end[0]
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    except (tokenize.TokenError, SyntaxError, ValueError):
        if len(lines := source.split("\n")) > 1:
            for number, text in enumerate(lines[read:], read + 1):
                yield from ((number, comment) for _, comment in _comments(text))


def _ends_of_calls(source: str) -> dict[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that its author has been warned of
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    ends: dict[int, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.end_lineno is not None:
            # Python reports a method's call at the line of the method's name, which may be further down
            name = node.func.end_lineno if isinstance(node.func, ast.Attribute) else None
            for start in {node.lineno, name or node.lineno}:
                ends[start] = min(node.end_lineno, ends.get(start, node.end_lineno))
    return ends
