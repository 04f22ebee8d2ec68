"""Documentation pages: their python blocks and what these print, their links and headings."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import sys
import unicodedata
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from paths import ROOT

from benchmarks.torchvision_cpu import declare_operators

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ ]*$", re.M | re.S)
_FENCED = re.compile(r"^ *(```+|~~~+).*?^ *\1[ ]*$", re.M | re.S)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|\b(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s*(\S+)", re.M)
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)? *$", re.M)
_NAMED = re.compile(r"\bid=\"([^\"]+)\"")
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


class Program(NamedTuple):
    """A python block, and what the page says that it prints: the text block right behind it, if there is one."""

    code: str
    shown: str | None


def programs(page: Path) -> list[Program]:
    """The python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(_BLOCK.finditer(text))
    made: list[Program] = []
    for block, after in zip_longest(found, found[1:]):
        is_output = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
        if block[1] == "python":
            made.append(Program(block[2], after[2] if after is not None and is_output else None))
    return made


def imported(code: str) -> set[str]:
    """The packages that a program imports.

    >>> sorted(imported("import torch.nn as nn\\nfrom timm import create_model"))
    ['timm', 'torch']
    """
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}


def masked(text: str) -> list[str]:
    """The lines with every number as # and runs of spaces or rules as one, without what shifts are made of.

    >>> masked("conv2  0.4  x0.41 dropout\\n\\nmedian x1.39, worst x2.46 at 1.norm2  (x1.00 is even)")
    ['conv# #', 'median x#, worst x#x# is even)']
    """
    kept = [line for line in text.splitlines() if not line.startswith(" " * 20)]
    even = [re.sub(r"  x[\d.]+ .*| at [\w.]+ +\(", "", line) for line in kept]
    lines = [re.sub(r"[ ─]+", " ", _NUMBER.sub("#", line)).strip() for line in even]
    return [line for line in lines if line]


def links(page: Path) -> list[str]:
    """What a page links to and which pictures it shows, without what its code holds."""
    text = _CODE.sub("", _FENCED.sub("", page.read_text(encoding="utf-8")))
    return [next(filter(None, match)) for match in _LINK.findall(text)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them; where these differ, neither."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    return {_of_github(h) for h in _HEADING.findall(text)} & {_of_mkdocs(h) for h in _HEADING.findall(text)} | set(
        _NAMED.findall(text)
    )


def _plain(heading: str) -> str:
    return re.sub(r"[`*]|!?\[|\]\([^)]*\)", "", heading).strip().lower()


def _of_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", _plain(heading)).replace(" ", "-")


def _of_mkdocs(heading: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", _plain(heading)).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip())


def run(page: Path, file: Path, work: Path) -> list[str]:
    """Run a page's python blocks in order, in one namespace and the folder `work`; what each of them printed.

    It is done in a process of its own. The blocks are written to `file`, so that what reads source lines finds them.
    """
    os.chdir(work)
    sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).is_relative_to(ROOT / "tests"))]
    declare_operators()  # timm and others import torchvision
    codes = [program.code for program in programs(page)]
    file.write_text("".join(codes), encoding="utf-8")
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__ = str(file)
    printed, line = list[str](), 0
    for code in codes:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("\n" * line + code, str(file), "exec"), vars(module))
        printed.append(out.getvalue())
        line += code.count("\n")
    return printed
