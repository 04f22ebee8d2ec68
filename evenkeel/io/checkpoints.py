"""Weights files: read safely, loaded strictly, written back with nothing but what a repair changed."""

from __future__ import annotations

import copy
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError, brief
from evenkeel.io.marks import Marks, layouts_of, without_marks
from evenkeel.io.state_dicts import AVERAGED, find_wrapper, first_few, without_prefixes
from evenkeel.io.weight_files import is_safetensors, read_safetensors, read_torch, write_safetensors
from evenkeel.model.opacity import require_module
from evenkeel.output.files import atomic_write

_STATISTICS = ("running_mean", "running_var")
_MASKED = ("orig", "mask")  # the parts of a weight that torch.nn.utils.prune masks, as keys end


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A weights file, read.

    Attributes:
        path: where it was read from.
        content: all that the file holds, tensors on the CPU.
        wrapper: the key of the content under which the state dict lies; None if the content is the state dict.
        metadata: the texts in the header of a safetensors file; None for other files.

    >>> import tempfile
    >>> model = nn.BatchNorm1d(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"state_dict": model.state_dict(), "epoch": 3}, Path(folder, "old.pt"))
    ...     checkpoint = Checkpoint.read(Path(folder, "old.pt"))
    ...     checkpoint.apply_(model)
    ...     _ = model.running_var.fill_(2.0)
    ...     checkpoint.write(Path(folder, "new.pt"), model)
    ...     new = torch.load(Path(folder, "new.pt"))
    >>> new["epoch"], new["state_dict"]["running_var"].tolist()
    (3, [2.0, 2.0])
    """

    path: Path
    content: Mapping[str, Any] = field(repr=False)
    wrapper: str | None = None
    metadata: dict[str, str] | None = None

    @classmethod
    def read(cls, path: str | Path, *, key: str | None = None) -> Checkpoint:
        """Read a weights file without running any code that it may hold.

        Args:
            path: a `.safetensors` file, or anything that `torch.load(weights_only=True)` reads: a state dict, or a
                dictionary with one in it, such as `{"state_dict": ..., "epoch": 3}`.
            key: which of its state dicts, where it holds several, such as "ema".

        Raises:
            EvenkeelError: no such file, damaged, more than tensors in it, no state dict in it, or several.
        """
        path = Path(path)
        if not path.is_file():
            what = "is a pipe or a device, not a weights file" if path.exists() else "does not exist"
            what = "is a folder, not a weights file" if path.is_dir() else what
            raise EvenkeelError(f"{path} {what}: name a .safetensors file or one that torch.save wrote")
        content, metadata = read_safetensors(path) if is_safetensors(path) else (read_torch(path), None)
        return cls(path, content, find_wrapper(path, content, key), metadata)

    @classmethod
    def of(cls, model: nn.Module, name: str = "TARGET") -> Checkpoint:
        """What a file would hold that the model's state dict was just saved to."""
        state = model.state_dict()
        held: Any = OrderedDict((key, copy.deepcopy(value)) for key, value in state.items())
        held._metadata = getattr(state, "_metadata", None)
        return cls(Path(name), held)

    @property
    def state(self) -> Mapping[str, Any]:
        """The state dict, with the keys as they are in the file."""
        return self.content if self.wrapper is None else self.content[self.wrapper]

    def apply_(self, model: nn.Module) -> None:
        """Load the weights into a model, every one of them, or none.

        Prefixes such as `module.` and `_orig_mod.` may differ, and of tied weights one may be left out of the file.
        Where the model is not pruned by a mask (`weight_orig`, `weight_mask`) and the file is, it gets the product.
        Norms whose statistics `write` had marked as repaired are marked again (see `is_as_written`).

        Raises:
            EvenkeelError: keys are missing, unexpected, or of another shape; the model is then as it was.
        """
        ours: dict[str, Any] = model.state_dict()
        pairs, rest = self._match(ours)
        rest.pop(AVERAGED, None)
        masked = [name for name in ours if name not in pairs and all(f"{name}_{part}" in rest for part in _MASKED)]
        products = {name: math.prod(self.state[rest.pop(f"{name}_{part}")] for part in _MASKED) for name in masked}
        state: Any = OrderedDict((name, self.state[key]) for name, key in (pairs | rest).items())
        state.update(products)
        if all(name == key for name, key in pairs.items()):
            state._metadata = layouts_of(self.state)
        before = copy.deepcopy(ours)
        try:
            model.load_state_dict(state, strict=True)
        except Exception as error:
            _restore(model, before)
            reason = self._mismatch(pairs | dict.fromkeys(products, ""), ours, list(rest)) or brief(error)
            raise EvenkeelError(
                f"{self.path} does not fit the model {type(model).__name__}: {reason}; "
                "build the model with the arguments that it was trained with"
            ) from error
        self.marks.apply_(model)

    def write(self, path: str | Path, model: nn.Module, *, weights: bool = False) -> None:
        """Write the file again with the buffers that changed in the model since `apply_`, and all else as it was read.

        Keys, dtypes and, in files of torch.save, whatever lies beside the state dict are kept. The file appears at
        once and whole, or not at all. Which statistics were repaired is said beside the state dict, what training had
        left in them, so that `shift`, `lint`, `repair`, `noisy` and `undo_` know, and statistics of domains: as JSON
        in the header of a safetensors file, under "evenkeel", "evenkeel.trained" and "evenkeel.domains", and under the
        same keys among the `_metadata` that torch keeps with a state dict, which `load_state_dict` passes over.

        Args:
            path: where to; the suffix `.safetensors` asks for that format, which holds the state dict alone, any other
                for that of torch.save.
            model: the model, after `apply_`.
            weights: whether parameters that changed are written, too.

        Raises:
            EvenkeelError: the folder does not exist, writing failed, or the file was read for another model.
        """
        path = Path(path)
        state = copy.copy(self.state)  # keeps the type, and the attributes that torch puts on a state dict
        cast("dict[str, Any]", state).update(self._changed(model, weights=weights))
        marks = Marks.of(model)
        try:
            with atomic_write(path) as temporary:
                if is_safetensors(path):
                    header = {"format": "pt"} if self.metadata is None else without_marks(self.metadata)
                    write_safetensors(temporary, state, header | marks.header())
                else:
                    state = marks.beside(state)
                    torch.save(state if self.wrapper is None else _with(self.content, self.wrapper, state), temporary)
        except EvenkeelError:
            raise
        except Exception as error:
            raise EvenkeelError(f"{path} cannot be written: {brief(error)}; nothing was written") from error

    def is_plain_for(self, model: nn.Module) -> bool:
        """Whether `model.load_state_dict` takes the file's content as it is: nothing around it, no other keys."""
        return self.wrapper is None and set(self.state) == set(model.state_dict())

    @property
    def marks(self) -> Marks:
        """What the file says of repaired statistics."""
        return Marks.in_state(self.state) if self.metadata is None else Marks.in_header(self.metadata)

    def _match(self, ours: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
        """The file's keys by the model's, tied weights sharing one, and the rest of the file's keys by their names."""
        bare = without_prefixes(self.state)
        direct = {key: key for key in ours if key in self.state}
        pairs = {key: bare[name] for name, key in without_prefixes(ours).items() if name in bare}
        if len(pairs) <= len(direct):
            pairs, bare = direct, {key: key for key in self.state}
        paired = set(pairs.values())
        rest = {name: key for name, key in bare.items() if key not in paired}
        places = {place: pairs[key] for key in pairs if (place := _place(ours[key]))}
        tied = {key: places[place] for key in ours if key not in pairs and (place := _place(ours[key])) in places}
        return pairs | tied, rest

    def _mismatch(self, pairs: Mapping[str, str], ours: Mapping[str, Any], unexpected: list[str]) -> str:
        """What keeps the file from fitting, with numbers and the first few keys."""
        missing = [key for key in ours if key not in pairs and not key.endswith("num_batches_tracked")]
        shapes = [
            f"{key} {_shape(self.state[theirs])} in the file, {_shape(ours[key])} in the model"
            for key, theirs in pairs.items()
            if theirs and _shape(self.state[theirs]) != _shape(ours[key])
        ]
        found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        reason = ", ".join(f"{len(keys)} {kind} ({first_few(keys)})" for kind, keys in found.items() if keys)
        counts = Counter(key.partition(".")[0] for key in unexpected)
        nets = [f"{name} ({count})" for name, count in counts.items() if count >= len(missing) > 1]
        several = (
            f"; it holds several nets, by how keys begin, {', '.join(nets)}: save one alone" if len(nets) > 1 else ""
        )
        return reason + several

    def _changed(self, model: nn.Module, *, weights: bool) -> dict[str, Tensor]:
        """The model's buffers that differ from the file's entries, by the file's keys and in the file's dtypes.

        And parameters, where `weights` are asked for.
        """
        ours: dict[str, Any] = model.state_dict()
        pairs, _ = self._match(ours)
        changed: dict[str, Tensor] = {}
        parameters = model.named_parameters(remove_duplicate=False) if weights else ()
        for key, buffer in (*model.named_buffers(remove_duplicate=False), *parameters):
            if key not in pairs:
                if key in ours and key.endswith(_STATISTICS):
                    raise EvenkeelError(f"{self.path} has no entry for {key!r}: write what was read for this model")
                continue
            entry: Tensor = self.state[pairs[key]]
            if entry.numel() != buffer.numel():
                shapes = f"{_shape(entry)} in the file, {_shape(buffer)} in the model"
                raise EvenkeelError(f"{key} is {shapes}: write what {self.path} was read for")
            if not _is_same(entry, buffer):
                changed[pairs[key]] = buffer.detach().to("cpu", entry.dtype).clone().reshape(entry.shape)
        return changed


def load_(model: nn.Module, path: str | Path, *, key: str | None = None) -> nn.Module:
    """Load a weights file into a model as the program does, with what it says of a repair; return the model.

    `model.load_state_dict(torch.load(path))` loads the same numbers, but the model does not know then that its
    statistics were repaired, nor what training had left, which `noisy`, `undo_`, `lint` and `predict_shift` go by.

    Args:
        model: the model, changed in place; prefixes such as `module.` may differ.
        path: a `.safetensors` file, or one that `torch.load(weights_only=True)` reads.
        key: which of its state dicts, where it holds several, such as "ema".

    Raises:
        EvenkeelError: the model is no module, or the file cannot be read, or does not fit; the model is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(nn.Linear(2, 2).state_dict(), Path(folder, "net.pt"))
    ...     load_(nn.Linear(2, 2), Path(folder, "net.pt"))
    Linear(in_features=2, out_features=2, bias=True)
    """
    require_module(model)
    Checkpoint.read(path, key=key).apply_(model)
    return model


def save(model: nn.Module, path: str | Path) -> None:
    """Save a model's state dict with what a repair left beside it, for `load_`; plain torch loads it strictly, too.

    Args:
        model: the model.
        path: where to; the suffix `.safetensors` asks for that format, any other for that of torch.save (see
            `Checkpoint.write`).

    Raises:
        EvenkeelError: it is no module, or the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(nn.Linear(2, 2), Path(folder, "net.pt"))
    ...     nn.Linear(2, 2).load_state_dict(torch.load(Path(folder, "net.pt")))
    <All keys matched successfully>
    """
    Checkpoint.of(require_module(model)).write(path, model)


def _place(value: Any) -> tuple[object, ...] | None:
    """What two tensors have in common exactly if they are one: their place in memory and their layout."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or not value.numel():
        return None
    return (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)


def _is_same(entry: Tensor, buffer: Tensor) -> bool:
    """Whether loading the entry into the buffer, whatever its dtype, would change nothing."""
    left, right = entry.to(buffer.dtype).flatten(), buffer.detach().cpu().flatten()
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


def _with(content: Mapping[str, Any], key: str, value: Any) -> Any:
    changed: Any = copy.copy(content)
    changed[key] = value
    return changed


def _restore(model: nn.Module, before: Mapping[str, Any]) -> None:
    """Write a copy of the state back in place, without the model's own loading, which may just have failed."""
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            value.copy_(before[key])
    for path, module in model.named_modules():
        key = f"{path}._extra_state".lstrip(".")
        if key in before:
            module.set_extra_state(before[key])


def _shape(value: Any) -> list[int] | None:
    return list(value.shape) if isinstance(value, Tensor) else None
