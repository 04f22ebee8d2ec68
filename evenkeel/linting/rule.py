"""Rule: what lint asks of a model, and the guideline that it belongs to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # else `evenkeel explain` would wait for torch
    from evenkeel.linting.context import Context
    from evenkeel.linting.findings import Finding

Guideline = Literal["hendrycks2016", "li2018", "chen2019", "kim2023"]
GUIDELINES: dict[Guideline, str] = {
    "hendrycks2016": "traps that harm statistics and weights, wherever dropout is",
    "li2018": "dropout after all norms",
    "chen2019": "independent-component layers before all weight layers",
    "kim2023": "one dropout in a residual branch, after its last norm and before its last weight layer",
}


@dataclass(frozen=True)
class Rule:
    """A rule of one guideline; the file that holds it is its documentation.

    Attributes:
        code: such as "EK201".
        guideline: whose advice it is.
        check: finds the offences.
        module: the file: its docstring is what `explain` prints, `bad()` and `good()` build models, and `EXAMPLE` is
            the shape of their input.
    """

    code: str
    guideline: Guideline
    check: Callable[[Context], Iterable[Finding]]
    module: ModuleType

    @property
    def name(self) -> str:
        """What it forbids, in words joined by hyphens."""
        return self.check.__name__.replace("_", "-")

    @property
    def summary(self) -> str:
        """The docstring's first line without the code."""
        return self.text.partition("\n")[0].partition(": ")[2]

    @property
    def text(self) -> str:
        """The documentation."""
        return (self.module.__doc__ or "").strip()

    def findings(self, context: Context) -> Iterator[Finding]:
        """The offences, with the rule's code and guideline."""
        for finding in self.check(context):
            yield replace(finding, code=self.code, guideline=self.guideline)


def rule(code: str, *, guideline: Guideline) -> Callable[[Callable[[Context], Iterable[Finding]]], Rule]:
    """Make a function that finds offences a rule."""

    def make(check: Callable[[Context], Iterable[Finding]]) -> Rule:
        return Rule(code, guideline, check, sys.modules[check.__module__])

    return make
