"""Settings: which findings a project wants, from [tool.evenkeel] in its pyproject.toml."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError, brief, similar

_SECTION = "tool.evenkeel"
_KEYS = ("guideline", "select", "ignore", "per-path-ignores")


@dataclass(frozen=True)
class Settings:
    """What lint is to look for; a code may be the beginning of codes, such as "EK2".

    Attributes:
        guideline: whose advice to follow; None leaves that to the caller.
        select: the codes wanted; all if empty.
        ignore: the codes not wanted.
        per_path_ignores: the codes not wanted at layers whose name, such as "head.drop#2", a pattern matches.
    """

    guideline: str | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    per_path_ignores: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def read_settings(folder: Path, *, known: Collection[str], guidelines: Collection[str]) -> Settings:
    r"""Read the section [tool.evenkeel] of the nearest pyproject.toml.

    Args:
        folder: where to look first; the folders above it follow.
        known: the codes of all rules, in full.
        guidelines: the names of all guidelines.

    Returns:
        The settings; the defaults if there is no such file, or no such section in it.

    Raises:
        EvenkeelError: the file cannot be read, or a key, a type, a code or a guideline is not one of those known; in
            one line with the file and the key.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "pyproject.toml").write_text('[tool.evenkeel]\nignore = ["EK3"]')
    ...     read_settings(Path(folder), known=["EK201", "EK301"], guidelines=["li2018"]).ignore
    ('EK3',)
    """
    here = folder.absolute()
    file = next((path for above in (here, *here.parents) if (path := above / "pyproject.toml").is_file()), None)
    tool = {} if file is None else _parse(file).get("tool")
    section = tool.get("evenkeel", {}) if isinstance(tool, dict) else {}
    items = _table(section, f"{file}: {_SECTION}", example=f"[{_SECTION}]")
    for key in (key for key in items if key not in _KEYS):
        advice = similar(key, _KEYS) or f"the keys are {', '.join(_KEYS)}"
        raise EvenkeelError(f"{file}: {_SECTION} has no key {key!r}: {advice}")
    guideline, select, ignore, per_path = (f"{file}: {_SECTION}.{key}" for key in _KEYS)
    paths = _table(items.get("per-path-ignores", {}), per_path, example='{ "head.*" = ["EK2"] }')
    return Settings(
        guideline=_guideline(items.get("guideline"), guidelines, guideline),
        select=_codes(items.get("select", []), known, select),
        ignore=_codes(items.get("ignore", []), known, ignore),
        per_path_ignores={name: _codes(codes, known, f'{per_path}."{name}"') for name, codes in paths.items()},
    )


def require_codes(codes: Iterable[str], known: Collection[str], *, place: str) -> tuple[str, ...]:
    """Refuse a code that no rule's code begins with.

    Args:
        codes: codes, or beginnings of codes.
        known: the codes of all rules, in full.
        place: what the codes were given as, such as "--select".

    Returns:
        The codes in capitals, without spaces around them.

    Raises:
        EvenkeelError: no rule's code begins with one of them.

    >>> require_codes("EK2, EK301".split(","), ["EK201", "EK301"], place="--select")
    ('EK2', 'EK301')
    """
    given = tuple(code.strip().upper() for code in codes)
    for code in given:
        if not code or not any(full.startswith(code) for full in known):
            advice = similar(code, known) or f"the codes are {', '.join(sorted(known))}"
            raise EvenkeelError(f"{place}: no code begins with {code!r}: {advice}")
    return given


def chosen(code: str, path: str, settings: Settings) -> bool:
    """Whether a finding is wanted.

    Args:
        code: the finding's code, in full.
        path: the path of its layer.
        settings: what is wanted. Where a code is both selected and ignored, the longer of the two beginnings counts,
            and ignoring if they are as long as each other; what is ignored at a path is not wanted there.

    >>> settings = Settings(select=("EK201",), ignore=("EK2",))
    >>> chosen("EK201", "drop", settings), chosen("EK202", "drop", settings)
    (True, False)
    """
    ignored = (fnmatchcase(path, name) and code.startswith(codes) for name, codes in settings.per_path_ignores.items())
    return is_asked(code, settings) and not any(ignored)


def is_asked(code: str, settings: Settings) -> bool:
    """Whether findings of a code are wanted anywhere.

    >>> is_asked("EK301", Settings(select=("EK2",)))
    False
    """
    return _longest(code, settings.select or ("",)) > _longest(code, settings.ignore)


def _longest(code: str, beginnings: Iterable[str]) -> int:
    """The length of the longest of the beginnings that the code has; -1 if it has none of them."""
    return max((len(beginning) for beginning in beginnings if code.startswith(beginning)), default=-1)


def _parse(file: Path) -> dict[str, Any]:
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:  # some editors begin a file with a byte order mark
        return toml.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # what is no TOML, or not UTF-8, is a ValueError
        raise EvenkeelError(f"{file} cannot be read: {brief(error)}: fix that first") from error


def _table(value: Any, place: str, *, example: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EvenkeelError(f"{place} is {_a(value)}, not a table: write {example}")
    return value


def _codes(value: Any, known: Collection[str], place: str) -> tuple[str, ...]:
    wrong = next((code for code in value if not isinstance(code, str)), None) if isinstance(value, list) else value
    if wrong is not None:
        holds = "holds" if isinstance(value, list) else "is"
        raise EvenkeelError(f'{place} {holds} {_a(wrong)}: write a list of strings, such as ["EK2", "EK301"]')
    return require_codes(value, known, place=place)


def _guideline(value: Any, guidelines: Collection[str], place: str) -> str | None:
    names = ", ".join(guidelines)
    if value is not None and not isinstance(value, str):
        raise EvenkeelError(f"{place} is {_a(value)}, not a string: write one of {names}")
    if value is not None and value not in guidelines:
        raise EvenkeelError(f"{place}: there is no guideline {value!r}: {similar(value, guidelines) or names}")
    return value


def _a(value: object) -> str:
    names: dict[type, str] = {bool: "a boolean", str: "a string", list: "a list", dict: "a table"}
    names |= dict.fromkeys((int, float), "a number")
    return names.get(type(value), "a date or a time")  # TOML has nothing else
