"""Pages that commands write by --html, and the command `evenkeel compare`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType

from evenkeel.cli.showing import console
from evenkeel.errors import EvenkeelError

if TYPE_CHECKING:
    from evenkeel.output.page import Page

Html = Annotated[Path | None, typer.Option("--html", help="Also write a page to look at: one file, without network.")]


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
        EvenkeelError: jinja2 is missing, the folder does not exist, or the file is one of the others.
    """
    if html is None:
        return
    from evenkeel.output.files import require_folder
    from evenkeel.output.rendering import environment

    environment()
    require_folder(html)
    if html.resolve() in [path.resolve() for path in others if path is not None]:
        raise EvenkeelError(f"--html {html} is the checkpoint's own file: name another")


def written_by(command: str, target: str, **options: object) -> str:
    """A command to copy, with the options that were given.

    >>> written_by("shift", "my.nets:net", input="3x8x8", weights=None, arg=["classes=3"])
    'evenkeel shift my.nets:net --input 3x8x8 --arg classes=3'
    """
    words = ["evenkeel", command, target]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                words += [f"--{name.replace('_', '-')}", str(one)]
    return shlex.join(words)


def shift_page(
    page: Page, target: str, called: Mapping[str, object], *, weights: Path | None, data: str | None
) -> Page:
    """The page of `evenkeel shift`, with the commands to go on with; `called` is how the model is made and called."""
    from evenkeel.output.rendering import with_facts

    model = dict(called)
    alone = without_data(called)
    if page.tone == "even":
        watched = written_by("shift", target, **model, weights=weights, data=data, fail_above=1.1)
        commands = [("Keep it so: in continuous integration, exit code 1 if a norm is off by more than 10 %", watched)]
    else:
        source = weights or Path("NET.pt")
        out = source.with_name(f"{source.stem}-repaired{source.suffix}")
        repaired = written_by("repair", target, **model, weights=source, out=out, data=data, html="repair.html")
        found = written_by("lint", target, **with_input(alone), weights=weights, html="lint.html")
        commands = [("Repair the checkpoint", repaired), ("Find the dropouts that cause it", found)]
        if data is None:
            measured = written_by("shift", target, **model, weights=weights, data="NAME", html="shift.html")
            commands.insert(0, ("Measure it on data, which is exact", measured))
    return with_facts(replace(page, subject=page.subject or target), _facts(target, weights, data), commands)


def without_data(called: Mapping[str, object]) -> dict[str, object]:
    """How a model is made and called, without the options that say how to use data.

    >>> without_data({"arg": ["p=0.5"], "forward": "my.nets:run", "mean": "0.5"})
    {'arg': ['p=0.5']}
    """
    return {name: called[name] for name in ("arg", "input", "example", "key") if name in called}


def with_input(called: Mapping[str, object]) -> dict[str, object]:
    """How a model is called, with a place for the shape of its input where that is not known."""
    known = called.get("input") or called.get("example")
    return dict(called) if known else {**called, "input": "SHAPE"}


def lint_page(page: Page, target: str, called: Mapping[str, object], *, weights: Path | None) -> Page:
    """The page of `evenkeel lint`, with the commands to go on with."""
    from evenkeel.output.rendering import with_facts

    codes = list(dict.fromkeys(notice.code for notice in page.notices))
    commands = [(f"Read the rule {code}, with a bad and a good example", f"evenkeel explain {code}") for code in codes]
    looked = written_by("shift", target, **called, weights=weights, html="shift.html")
    commands = [*commands[:3], ("See what it does to every norm", looked)]
    return with_facts(replace(page, subject=page.subject or target), _facts(target, weights, None), commands)


def repair_page(
    page: Page,
    target: str,
    called: Mapping[str, object],
    *,
    weights: Path | None,
    out: Path,
    data: str | None,
    is_plain: bool = True,
) -> Page:
    """The page of `evenkeel repair`: how to check and load OUT; `is_plain`: `load_state_dict` takes what it holds."""
    from evenkeel.output.rendering import with_facts

    given = without_data(called) if data is None else dict(called)
    is_alone = out.suffix.lower() == ".safetensors"  # which holds one state dict, without a key
    given |= {"key": None} if is_alone else {}
    checked = written_by("shift", target, **given, weights=out, data=data)
    key = f', key="{given["key"]}"' if given.get("key") else ""
    loaded = f'evenkeel.load_(model, "{out}"{key})'
    if is_plain and not key:
        read = f'safetensors.torch.load_file("{out}")' if is_alone else f'torch.load("{out}", weights_only=True)'
        loaded = f"model.load_state_dict({read})"
    commands = [("Check the repaired checkpoint", checked), ("Load it in Python", loaded)]
    facts = {**_facts(target, weights, data), "written": str(out)}
    return with_facts(replace(page, subject=page.subject or target), facts, commands)


def _facts(target: str, weights: Path | None, data: str | None) -> dict[str, str]:
    return {"target": target, "weights": "" if weights is None else str(weights), "data": data or ""}


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
