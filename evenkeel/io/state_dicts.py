"""State dicts: where one lies in what a file holds, and the names that its keys have in the bare model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from evenkeel.errors import EvenkeelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict, most usual first
_PREFIXES = ("module.", "_orig_mod.", "model.")  # what DDP, torch.compile and Lightning put before every key
AVERAGED = "n_averaged"  # the one key that AveragedModel adds without a prefix
_FEW = 3  # keys named in an error


def find_wrapper(path: Path, content: Any, asked: str | None) -> str | None:
    """Under which key of a file's content the state dict lies; None if it is the content.

    Args:
        path: of the file.
        content: what it holds.
        asked: the key asked for, if any.

    Raises:
        EvenkeelError: there is no state dict, not the one asked for, or several.
    """
    entries = cast("Mapping[Any, Any]", content) if isinstance(content, Mapping) and not _is_state(content) else {}
    found = [key for key, value in entries.items() if isinstance(key, str) and _is_state(value)]
    if asked is not None:
        if asked not in found:
            what = f"its state dicts are {_sized(found, entries)}" if found else "it is a state dict itself"
            what = what if found or _is_state(content) else "it holds none"
            raise EvenkeelError(f"{path} has no state dict {asked!r}: {what}")
        return asked
    if _is_state(content):
        return None
    usual = next((key for key in _WRAPPERS if key in found), None)
    alike = found if usual is None else [key for key in found if _is_alike(entries[key], entries[usual])]
    if len(alike) == 1:
        return alike[0]
    if found:
        raise EvenkeelError(
            f"{path} holds {len(alike)} state dicts: {_sized(alike, entries)}: name the one that counts: "
            f"--key {alike[0]}, in Python key={alike[0]!r}"
        )
    what = f" with {len(entries)} entries ({first_few(entries)})" if entries else ""
    raise EvenkeelError(f"{path} holds a {type(content).__name__}{what}, no state dict: save model.state_dict()")


def _sized(keys: Iterable[str], entries: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key} ({len(entries[key])} entries)" for key in keys)


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two state dicts may be of one net: they have half of their names in common."""
    names, others = set(without_prefixes(one)), set(without_prefixes(other))
    return 2 * len(names & others) >= max(len(names), len(others))


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    items = cast("Mapping[Any, Any]", value).items()
    return all(isinstance(k, str) and (isinstance(v, Tensor) or k.endswith("_extra_state")) for k, v in items)


def without_prefixes(keys: Iterable[str]) -> dict[str, str]:
    """The keys by the names that they have in the bare model.

    >>> without_prefixes(["module.model.fc.weight", "module.model.fc.bias"])
    {'fc.weight': 'module.model.fc.weight', 'fc.bias': 'module.model.fc.bias'}
    """
    names = {key: key for key in keys}
    bare = [name for name in names if name != AVERAGED]
    while bare and (prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in bare)), None)):
        names = {name.removeprefix(prefix): key for name, key in names.items()}
        bare = [name.removeprefix(prefix) for name in bare]
    whole = {name.replace("_orig_mod.", ""): key for name, key in names.items()}  # parts may be compiled too
    return whole if len(whole) == len(names) else names


def first_few(keys: Iterable[Any]) -> str:
    """The first of some keys, for an error."""
    names = [str(key) for key in keys]
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
