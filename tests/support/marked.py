"""Modules whose source marks one call, ⟦F.dropout(⟨x⟩, 0.5)⟧, and twins, in which that call is written otherwise."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F

ACTIONS = ("remove", "replace", "before", "after")
CALL = re.compile(r"⟦(.*?)⟨(.*?)⟩(.*?)⟧", re.DOTALL)
SERIAL = itertools.count()

START = """
import torch
import torch.nn
import torch.nn.functional
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import dropout as drop_out

def identity(function):
    function.known = True
    return function
"""
CLASS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.p, self.function, self.__name = 0.5, F.dropout, "private"
        self.fc, self.drop, self.new = nn.Linear(4, 4), nn.Dropout(0.4), nn.Dropout(0.25)
        self.drops, self.named = nn.ModuleList([nn.Dropout(0.2), nn.Dropout(0.6)]), nn.ModuleDict({"a": nn.Dropout()})
        self.__drop = nn.Dropout(0.3)
"""
# By name: what is called, and the methods of the class; the text before the class goes before a line of dashes.
SHAPES: dict[str, tuple[Any, str]] = {
    "plain": (F.dropout, "return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧"),
    "alias": (F.dropout, "return ⟦drop_out(⟨x⟩, 0.5, self.training)⟧ + 1"),
    "long name": (F.dropout, "return ⟦torch.nn.functional.dropout(⟨self.fc(x)⟩, 0.5, self.training)⟧"),
    "through a package": (F.dropout, "return ⟦nn.functional.dropout(⟨x⟩, 0.5, self.training)⟧"),
    "attribute": (F.dropout, "return ⟦self.function(⟨x⟩, 0.5, self.training)⟧"),
    "keywords": (F.dropout, "return 2 * ⟦F.dropout(p=self.p, input=⟨x + 1⟩, training=self.training)⟧ ** 2"),
    "unpacked keywords": (F.dropout, "return ⟦F.dropout(⟨x⟩, **{'p': 0.5, 'training': self.training})⟧"),
    "sum": (F.dropout, "return 2 * ⟦F.dropout(⟨x + 1⟩, self.p, self.training)⟧"),
    "parentheses": (F.dropout, "return (⟦F.dropout((⟨x + 1⟩), (self.p), self.training)⟧) * 2"),
    "trailing comma": (F.dropout, "return ⟦F.dropout(⟨x⟩, self.p, self.training,)⟧"),
    "no space around": (F.dropout, "return⟦(F.dropout)(⟨x⟩, self.p, self.training)⟧if self.p else(x)"),
    "no space, sum": (F.dropout, "return[⟦(F.dropout)(⟨x-1⟩, self.p, self.training)⟧for _ in'a'][0]"),
    "several lines": (
        F.dropout,
        """
        y = ⟦F.dropout(  # of all
            ⟨x⟩,  # the signal

            p=self.p,
            training=self.training,
        )⟧  # done
        return y * 3
        """,
    ),
    "lines of the signal": (
        F.dropout,
        """
        y = ⟦F.dropout(⟨x
            .add(1)  # kept
            .mul(2)⟩,
            self.p, self.training)⟧
        return y
        """,
    ),
    "backslash": (
        F.dropout,
        """
        y = 1 + \\
            ⟦F.dropout \\
            (⟨x⟩, \\
             self.p, self.training)⟧ \\
            + 1
        return y
        """,
    ),
    "nested": (F.dropout, "return self.fc(⟦F.dropout(⟨F.relu(self.fc(x))⟩, self.p, self.training)⟧).relu()"),
    "inside": (F.relu, "return F.dropout(⟦F.relu(⟨self.drop(x)⟩)⟧, self.p, self.training)"),
    "child": ("drop", "return ⟦self.drop(⟨F.relu(x)⟩)⟧"),
    "child by keyword": ("drop", "return ⟦self.drop(input=⟨F.relu(x)⟩)⟧"),
    "child in a list": ("drops.1", "return ⟦self.drops[1](⟨self.drops[0](x)⟩)⟧"),
    "child at the end": ("drops.1", "return ⟦self.drops[-1](⟨self.drops[0](x)⟩)⟧"),
    "child in a dict": ("named.a", "return ⟦self.named['a'](⟨x⟩)⟧"),
    "private child": ("_Net__drop", "return ⟦self.__drop(⟨x⟩)⟧ if self.__name else x"),
    "child of a property": (
        "drop",
        """
        return ⟦self.dropper(⟨x⟩)⟧

    @property
    def dropper(self):
        return self.drop
    """,
    ),
    "other name of self": (
        "drop",
        """
        return self.helper(x)

    def helper(this, x):
        return ⟦this.drop(⟨x⟩)⟧
    """,
    ),
    "method": (torch.Tensor.relu, "return ⟦⟨x⟩.relu()⟧"),
    "method of a sum": (torch.Tensor.mean, "return -⟦(⟨x + 1⟩).mean(1, keepdim=True)⟧ + x"),
    "method of a call": (torch.Tensor.mean, "return ⟦⟨self.fc(x)⟩.mean((0, 1), keepdim=True)⟧ * x"),
    "method of an item": (torch.Tensor.relu, "return ⟦⟨(x, x)[0]⟩.relu()⟧"),
    "method as a function": (torch.Tensor.relu, "return ⟦torch.Tensor.relu(⟨x⟩)⟧"),
    "method behind a function": (torch.Tensor.tanh, "return ⟦F.tanh(⟨x⟩)⟧"),
    "function of torch": (torch.flatten, "return ⟦torch.flatten(⟨x + 1⟩, 1)⟧"),
    "chain": (
        torch.Tensor.abs,
        """
        return (⟦⟨self.fc(x)
                .relu()
                .add(1).mul(2)⟩
                .abs()⟧.neg())
        """,
    ),
    "same name twice in a chain": (
        torch.Tensor.relu,
        """
        return (⟦⟨self.fc(x)
                .mul(2)⟩
                .relu(
                )⟧
                .neg())
        """,
    ),
    "dot in the next line": (
        F.dropout,
        """
        return (⟦F
                .dropout(⟨x⟩, self.p, self.training)⟧)
        """,
    ),
    "dots in the next lines": (
        F.dropout,
        """
        return (⟦torch.nn
                .functional
                .dropout(⟨x⟩, self.p,
                         training=self.training)⟧)
        """,
    ),
    "keywords in a chain": (
        torch.Tensor.mean,
        """
        return (⟦⟨x
                .relu()⟩
                .mean(1,
                      keepdim=True)⟧
                .sum(1, keepdim=True))
        """,
    ),
    "nothing else": (
        F.dropout,
        """
        '''A comment.'''
        ⟦F.dropout(⟨x⟩, self.p, self.training)⟧
        return x
        """,
    ),
    "assignment": (F.dropout, "x = ⟦F.dropout(⟨x⟩, self.p, self.training)⟧; y = x; return y"),
    "augmented": (F.dropout, "x = x + 0; x += ⟦F.dropout(⟨x * 2⟩, self.p, self.training)⟧; return x"),
    "walrus around": (F.dropout, "return y if (y := ⟦F.dropout(⟨x⟩, self.p, self.training)⟧).sum() else x"),
    "walrus inside": (F.dropout, "return ⟦F.dropout((⟨y := x + 1⟩), self.p, self.training)⟧ + y"),
    "conditional": (F.dropout, "return ⟦F.dropout(⟨x⟩, training=self.training)⟧ if self.p else x"),
    "conditional signal": (F.dropout, "return 1 + ⟦F.dropout(⟨x if self.p else -x⟩, training=self.training)⟧"),
    "if": (
        F.dropout,
        """
        if self.training and self.p > 0: x = ⟦F.dropout(⟨x⟩, self.p)⟧
        return x
        """,
    ),
    "with": (
        F.dropout,
        """
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            y = ⟦F.dropout(⟨x⟩, self.p, self.training)⟧
        return y
        """,
    ),
    "more than letters": (
        F.dropout,
        "é, f = 'é→漢字', f'{x.shape}é'; return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧  # é",
    ),
    "beside an f-string": (F.dropout, "return f'{x.dim():>{2}}' and ⟦F.dropout(⟨x⟩, self.p, self.training)⟧"),
    "string of lines": (
        F.dropout,
        '''
        """
    Not a method:
def forward(self, x): return F.dropout(x)
        """
        text = """
  # F.dropout(x)
"""
        return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧ * len(text)
        ''',
    ),
    "tabs": (
        F.dropout,
        """
        if self.p:
            x =\t⟦F.dropout(⟨x⟩, self.p, self.training)⟧
        return x
        """,
    ),
    "comprehension": (F.dropout, "return sum([⟦F.dropout(⟨y⟩, self.p, self.training)⟧ for y in (x, x)])"),
    "lambda": (F.dropout, "return (lambda y: ⟦F.dropout(⟨y⟩, 0.5)⟧ if self.training else y)(x)"),
    "function inside": (
        F.dropout,
        """
        def drop(y, factor=2):
            return ⟦F.dropout(⟨factor * y⟩, 0.5)⟧
        return drop(x) if self.training else 2 * x
        """,
    ),
    "super": (
        F.dropout,
        """
        return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧ + len(super().extra_repr()) + len(__class__.__name__)
        """,
    ),
    "decorator": (
        F.dropout,
        """
        return self.inner(x)

    @torch.jit.unused
    @identity
    def inner(
        self, x: "torch.Tensor", /, y: int = 2, *, z=(lambda: 3)
    ) -> "torch.Tensor":
        return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧ * y * z()
    """,
    ),
    "private method": (
        F.dropout,
        """
        return self.__inner(x)

    def __inner(self, x):
        return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧
    """,
    ),
    "two names": (
        F.dropout,
        """
        return self.inner(x) + self.outer(x)

    def inner(self, x):
        return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧

    outer = inner
    """,
    ),
    "of a base": (
        F.dropout,
        """
        return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧

class Base(Net):
    def extra_repr(self):
        return "further down"

class Net(Base):
    pass
    """,
    ),
    "overloads": (
        F.dropout,
        """
        pass

    def forward(self, x):
        return ⟦F.dropout(⟨x⟩, self.p, self.training)⟧
    """,
    ),
}
ONLY_REMOVED = ("nothing else",)  # shapes of which no action but removal makes sense


def plain(text: str) -> str:
    """The source without marks."""
    return re.sub("[⟦⟧⟨⟩]", "", text)


def twin(text: str, action: str, child: str = "new") -> str:
    """The source with the marked call written otherwise."""
    receiver = "this" if "(this" in text else "self"
    new = f"{receiver}.{child}"
    form = {
        "remove": r"(\2) ",
        "replace": rf" {new}(\2) ",
        "before": rf"\1{new}(\2)\3 ",
        "after": rf" {new}(\1\2\3) ",
    }
    return CALL.sub(form[action], text)


def whole(methods: str, before: str = "") -> str:
    """The source of a file whose class `Net` has these methods, the first of them the body of its forward."""
    body = methods if methods.startswith("\n") else f"\n        {methods}\n"
    source = f"{before}{START}{CLASS}\n    def forward(self, x):{body}"
    return source.replace("    ", "\t") if "\t" in methods else source


def imported(folder: Path, source: str) -> ModuleType:
    """A file with this source, imported."""
    name = f"marked_{next(SERIAL)}"
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
