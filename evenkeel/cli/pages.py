"""Pages that commands write by --html, and the command `evenkeel compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType

from evenkeel.cli.inputs import require_name
from evenkeel.cli.showing import console
from evenkeel.errors import EvenkeelError

if TYPE_CHECKING:
    from evenkeel.cli.calls import Call
    from evenkeel.output.page import Page

Html = Annotated[Path | None, typer.Option("--html", help="Also write a page to look at: one file, without network.")]

_OF_SHIFT = "li2018"  # the guideline that names every dropout that a norm reads
_ONE_GUIDELINE = (
    "Ask for one guideline, as they contradict each other: li2018 for plain and dense networks, kim2023 for residual "
    "ones, hendrycks2016 for what all agree on"
)


class Shown(Group):
    """What a command prints, and the page that says the same.

    >>> from evenkeel.output.page import Page
    >>> Shown(Page("repair", "Even."), "a table").page.verdict
    'Even.'
    """

    def __init__(self, page: Page, *renderables: RenderableType) -> None:
        super().__init__(*renderables)
        self.page = page


def require_page(html: Path | None, *others: Path | None) -> None:
    """Refuse a page that cannot be written before the work begins, or one in the place of another file.

    Raises:
        EvenkeelError: jinja2 is missing, the folder does not exist, or the file is one of the others, or is -.
    """
    if html is None:
        return
    from evenkeel.output.files import require_folder
    from evenkeel.output.rendering import environment

    environment()
    require_name("--html", html)
    require_folder(html)
    if html.resolve() in [path.resolve() for path in others if path is not None]:
        raise EvenkeelError(f"--html {html} is the checkpoint's own file: name another")


def next_steps(call: Call, *, is_even: bool, is_trained: bool, inputs: Sequence[str]) -> list[tuple[str, str]]:
    """What to do after `evenkeel shift`, each with its command.

    Args:
        call: of shift.
        is_even: whether no norm is off.
        is_trained: whether there is something to repair.
        inputs: what the model is called with, as --input says it, where data show it.
    """
    if is_even:
        watched = call.then("shift", fail_above=1.1)
        return [("Keep it so: in continuous integration, exit code 1 if a norm is off by more than 10 %", watched)]
    weights = call.path("weights")
    out = Path("repaired.pt") if weights is None else weights.with_name(f"{weights.stem}-repaired{weights.suffix}")
    steps: list[tuple[str, str]] = []
    if not call.text("data"):
        measured = call.then("shift", data="NAME", **_page(call, "shift"))
        steps += [("Measure it on data, which is exact: with your data set in place of NAME", measured)]
    if is_trained:
        steps += [("Repair the checkpoint", call.then("repair", out=out, **_page(call, "repair")))]
    else:
        named = call.then("shift", weights="FILE", **_page(call, "shift"))
        steps += [("Nothing of this was trained: name a checkpoint in place of FILE", named)]
    found, known = "Find the dropouts that cause it", call.text("input") or call.text("example")
    if known or inputs:
        given = {} if known else {"input": list(inputs)}
        return [*steps, (found, call.then("lint", guideline=_OF_SHIFT, **given, **_page(call, "lint")))]
    made = call.then("lint", guideline=_OF_SHIFT, example="MODULE:FUNCTION", **_page(call, "lint"))
    return [*steps, (f"{found}: MODULE:FUNCTION stands for what returns what the model is called with", made)]


def _page(call: Call, name: str) -> dict[str, str]:
    """A page of the next command, too, if this one writes one."""
    return {"html": f"{name}.html"} if call.has_page else {}


def steps_of_lint(call: Call, codes: Sequence[str], guideline: str | None) -> list[tuple[str, str]]:
    """What to do after `evenkeel lint`, each with its command.

    Args:
        call: of lint.
        codes: of the rules that have findings.
        guideline: whose findings they are; of all guidelines if None.
    """
    steps = [(f"Read the rule {code}, with a bad and a good example", f"evenkeel explain {code}") for code in codes[:3]]
    if codes and guideline:
        steps += [("See the changes as a patch of the source", call.then("fix", guideline=guideline, diff=True))]
    elif codes:
        steps += [(_ONE_GUIDELINE, call.then("lint", guideline=_OF_SHIFT, **_page(call, "lint")))]
    return [*steps, ("See what it does to every norm", call.then("shift", **_page(call, "shift")))]


def steps_of_repair(call: Call, out: Path, *, is_plain: bool = True) -> list[tuple[str, str]]:
    """What to do after `evenkeel repair`: check OUT, and load it, by `load_state_dict` if what it holds is plain."""
    is_alone = out.suffix.lower() == ".safetensors"  # which holds one state dict, without a key
    key = "" if is_alone else call.text("key")
    checked = call.then("shift", weights=out, key=key or None)
    loaded = f'evenkeel.load_(model, "{out}"' + (f', key="{key}")' if key else ")")
    if is_plain and not key:
        read = f'safetensors.torch.load_file("{out}")' if is_alone else f'torch.load("{out}", weights_only=True)'
        loaded = f"model.load_state_dict({read})"
    return [("Check the repaired checkpoint", checked), ("Load it in Python", loaded)]


def completed(page: Page, call: Call, steps: Sequence[tuple[str, str]], **facts: str) -> Page:
    """A page with what the command was given, and what to do next."""
    from evenkeel.output.rendering import with_facts

    facts = {name: call.text(name) for name in ("target", "weights", "data")} | facts
    return with_facts(replace(page, subject=page.subject or call.text("target")), facts, steps)


def compare(
    a: Annotated[Path, typer.Argument(help="What `shift`, `repair` or `lint` printed as JSON.", metavar="A.json")],
    b: Annotated[Path, typer.Argument(help="The same of another checkpoint or another day.", metavar="B.json")],
    html: Html = None,
) -> None:
    """Lay two reports side by side: what changed at which norm, or which findings came and went.

    The reports are what `evenkeel shift --json`, `repair --json` and `lint --format json` print; of a repair, the shift
    that it leaves.
    """
    from evenkeel.cli.comparison import compared
    from evenkeel.output.rendering import write_page
    from evenkeel.output.tables import Cells, FittedTable

    require_page(html, a, b)
    page = compared(a, b)
    (grid,) = page.grids
    console().print(FittedTable(Cells(grid.columns, grid.rows, [page.verdict, *page.notes], grid.words)))
    if html is not None:
        write_page(html, page)
        typer.echo(f"written: {html}")
