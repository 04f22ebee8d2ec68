"""Part: what reaches the norms on some of the data, as sums that add up to those of all; Start: what norms stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from evenkeel.errors import EvenkeelError, brief
from evenkeel.io.weight_files import read_safetensors
from evenkeel.output.files import atomic_write
from evenkeel.parts.fingerprints import fingerprint
from evenkeel.parts.norm_sums import NormSums

_PAIR = ("mean", "var")
_PART, _START, _VERSION = "evenkeel.part", "evenkeel.start", 1
_WRITERS = {
    _PART: "a part, such as `Part.save` and `evenkeel reestimate-part` write",
    _START: "a start, such as `Start.save` and `evenkeel merge --next` write",
}


@dataclass(frozen=True)
class Start:
    """What norms store while the parts of one round are measured.

    Attributes:
        weights: fingerprint of the model's weights.
        round: how many rounds led to it; 0 of what a checkpoint stores.
        values: mean and variance by path, each of shape (channels,).
        off: how far off the start of the round that led to it was found to be, as the largest of
            `MergedParts.changed`; None of what a checkpoint stores.
    """

    weights: str
    round: int
    values: Mapping[str, tuple[Tensor, Tensor]]
    off: float | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What is not tensors."""
        return {"weights": self.weights, "round": self.round, "off": self.off}

    @cached_property
    def fingerprint(self) -> str:
        """Equal exactly for equal statistics."""
        return fingerprint(_named(self.values))

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, whole or not at all.

        Raises:
            EvenkeelError: the file cannot be written.
        """
        _write(path, dict(_named(self.values)), _START, self.about | {"check": self.fingerprint})


@dataclass(frozen=True)
class Part:
    """What reaches each norm of a model on some of the data: what `measure_part` returns, and `merge_parts_` takes.

    It holds sums by channel, no samples and no statistics of single batches: by channel, sums over all batches of
    values, of their squares, and of products of these, for standard errors.

    Attributes:
        name: of the data, to tell parts apart; may be empty.
        batches: how many were run.
        samples: how many they held.
        start: what the norms stored.
        found: fingerprint of what they stored in the checkpoint.
        sums: of every norm reached, by path, in execution order.
        untouched: norms not measured, by path, each with the reason.
        entangled: norms whose statistics are read by anything but their own normalising, by path.
        is_random: whether the model draws at random in eval mode, too, as far as the first batch tells.
        repeated: norms called several times a pass, by path: what they store reaches them again.
    """

    name: str
    batches: int
    samples: int
    start: Start
    found: str
    sums: Mapping[str, NormSums]
    untouched: Mapping[str, str]
    entangled: tuple[str, ...] = ()
    is_random: bool = False
    repeated: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Equal exactly for equal sums."""
        values = {f"{path}/{i}": t for path, sums in self.sums.items() for i, t in enumerate(sums.values)}
        return fingerprint(values.items())

    @property
    def label(self) -> str:
        """How errors and reports name it."""
        return repr(self.name) if self.name else f"the part without a name ({self.samples} samples)"

    def __repr__(self) -> str:
        return f"Part({self.label}: {len(self.sums)} norms, {self.samples} samples in {self.batches} batches)"

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, whole or not at all.

        Raises:
            EvenkeelError: the file cannot be written.
        """
        tensors = dict(_named(self.start.values))
        tensors |= {f"{path}/{name}": t for path, sums in self.sums.items() for name, t in sums.tensors().items()}
        about = {key: value for key, value in vars(self).items() if key in _ABOUT}
        about |= {"start": self.start.about, "sums": {path: sums.pooled for path, sums in self.sums.items()}}
        _write(path, tensors, _PART, about | {"check": [self.fingerprint, self.start.fingerprint]})


_ABOUT = ("name", "batches", "samples", "found", "untouched", "entangled", "is_random", "repeated")


def load_part(path: str | Path) -> Part:
    """Read what `Part.save` wrote, without running any code that the file may hold.

    Raises:
        EvenkeelError: there is no such file, or it is damaged, or no part.

    >>> import tempfile, torch, evenkeel as ek
    >>> part = ek.measure_part(torch.nn.BatchNorm1d(2), [torch.randn(8, 2)], name="a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     part.save(Path(folder, "a.part"))
    ...     load_part(Path(folder, "a.part"))
    Part('a': 1 norms, 8 samples in 1 batches)
    """
    tensors, about = _read(path, _PART)
    try:
        sums = {
            norm: NormSums.of_tensors({n: tensors[f"{norm}/{n}"] for n in ("center", "channels", "all")}, pooled=pooled)
            for norm, pooled in about["sums"].items()
        }
        start = Start(**about["start"], values=_values(tensors))
        about.setdefault("repeated", [])
        rest: dict[str, Any] = {key: about[key] for key in _ABOUT}
        rest |= {"entangled": tuple(about["entangled"]), "repeated": tuple(about["repeated"])}
        part = Part(**rest, start=start, sums=sums)
        _require_sound(part)
        if about.get("check") not in (None, [part.fingerprint, start.fingerprint]):
            raise ValueError("its sums are not those that were written")
        return part
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvenkeelError(f"{path} is damaged ({brief(error)}): measure the part again") from error


def load_start(path: str | Path) -> Start:
    """Read what `Start.save` wrote, without running any code that the file may hold.

    Raises:
        EvenkeelError: there is no such file, or it is damaged, or no start.

    >>> import tempfile, torch
    >>> start = Start("", 1, {"bn": (torch.zeros(2), torch.ones(2))})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     start.save(Path(folder, "next"))
    ...     load_start(Path(folder, "next")).fingerprint == start.fingerprint
    True
    """
    tensors, about = _read(path, _START)
    try:
        start = Start(**{key: about[key] for key in ("weights", "round", "off")}, values=_values(tensors))
        _require_sound_start(start)
        if about.get("check") not in (None, start.fingerprint):
            raise ValueError("its statistics are not those that were written")
        return start
    except (KeyError, TypeError, ValueError) as error:
        raise EvenkeelError(f"{path} is damaged ({brief(error)}): merge again") from error


def _require_sound(part: Part) -> None:
    """Raise ValueError where a part is none that `measure_part` makes: a file may be of any origin."""
    _require_sound_start(part.start)
    texts = [part.name, part.found, *part.entangled, *part.repeated, *part.untouched, *part.untouched.values()]
    _require_kinds({str: texts, bool: [part.is_random, *(sums.pooled for sums in part.sums.values())]})
    if any(type(count) is not int or count < 0 for count in (part.batches, part.samples)):
        raise ValueError(f"it is of {part.samples!r} samples in {part.batches!r} batches")
    for path, sums in part.sums.items():
        if path not in part.start.values or not sums.center.equal(part.start.values[path][0].double()):
            raise ValueError(f"the sums of {path!r} are not about the mean of the start")


def _require_sound_start(start: Start) -> None:
    """The same of a start."""
    _require_kinds({str: [start.weights], (float, int, type(None)): [start.off]})
    if type(start.round) is not int or start.round < 0:
        raise ValueError(f"it is of round {start.round!r}")


def _require_kinds(values: Mapping[Any, Sequence[Any]]) -> None:
    for kind, listed in values.items():
        if wrong := [value for value in listed if not isinstance(value, kind)]:
            raise ValueError(f"{wrong[0]!r} stands where there should be another kind of value")


def _named(values: Mapping[str, tuple[Tensor, Tensor]]) -> list[tuple[str, Tensor]]:
    return [
        (f"{path}/{name}", t) for path, pair in values.items() for name, t in zip(("mean", "var"), pair, strict=True)
    ]


def _values(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    paths = [name.removesuffix("/mean") for name in tensors if name.endswith("/mean")]
    values = {path: (tensors[f"{path}/mean"], tensors[f"{path}/var"]) for path in paths}
    for path, pair in values.items():
        if not all(t.ndim == 1 and bool(t.isfinite().all()) for t in pair):
            raise ValueError(f"the statistics of {path!r} are not finite")
        if pair[0].shape != pair[1].shape:
            raise ValueError(f"{path!r} has {len(pair[0])} means and {len(pair[1])} variances")
    return values


def _write(path: str | Path, tensors: Mapping[str, Tensor], kind: str, about: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    header = {kind: json.dumps({"version": _VERSION, **about})}
    with atomic_write(Path(path)) as temporary:
        save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, temporary, header)


def _read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = Path(path)
    if not path.is_file():
        raise EvenkeelError(f"{path} {'is no file' if path.exists() else 'does not exist'}: name {_WRITERS[kind]}")
    tensors, header = read_safetensors(path)
    if kind not in header:
        other = next((f"it is {what}" for key, what in _WRITERS.items() if key in header), "other tensors are in it")
        raise EvenkeelError(f"{path} is not {_WRITERS[kind]}: {other}")
    try:
        about: dict[str, Any] = json.loads(header[kind])
        version = about["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise EvenkeelError(f"{path} is damaged ({brief(error)})") from error
    if version != _VERSION:
        raise EvenkeelError(f"{path} has version {version}, and this evenkeel reads {_VERSION}: use one")
    return tensors, about
