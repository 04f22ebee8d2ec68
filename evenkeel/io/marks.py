"""Marks: which statistics of a weights file a repair wrote, what training left there, and those of domains.

No key is added to the state dict, so that `load_state_dict(strict=True)` and `safetensors.torch.load_file` go on as
before: in files of torch.save the marks are among the `_metadata` that torch keeps with a state dict and passes to the
module of the same path, if there is one; in safetensors files they are texts in the header.
"""

from __future__ import annotations

import base64
import copy
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError
from evenkeel.model.buffers import domains_in, keep_domains_, mark_, marks_of, trained_of

_WRITTEN, _TRAINED, _DOMAINS = "evenkeel", "evenkeel.trained", "evenkeel.domains"
_KEYS = (_WRITTEN, _TRAINED, _DOMAINS)
_LONGEST = 90_000_000  # bytes of text: safetensors reads no header over 100 MB


@dataclass(frozen=True)
class Marks:
    """What a file says of repaired statistics.

    Attributes:
        written: by path of the norm, what `is_as_written` goes by.
        trained: by path and buffer, what training left there.
        domains: by path, label and buffer, the statistics of domains.

    >>> Marks.of(nn.BatchNorm1d(2)).header()
    {}
    """

    written: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    trained: dict[str, dict[str, Tensor]] = field(default_factory=dict[str, dict[str, Tensor]])
    domains: dict[str, dict[Any, dict[str, Tensor]]] = field(default_factory=dict[str, dict[Any, dict[str, Tensor]]])

    @classmethod
    def of(cls, model: nn.Module) -> Marks:
        """Those of a model."""
        return cls(marks_of(model), trained_of(model), domains_in(model))

    @classmethod
    def in_header(cls, header: Mapping[str, str]) -> Marks:
        """Those in the header of a safetensors file; none where they are not of this form."""
        try:
            written, trained = _numbers(json.loads(header.get(_WRITTEN, "{}"))), _from_text(header.get(_TRAINED, "{}"))
            listed = json.loads(header.get(_DOMAINS, "{}"))
            return cls(written, trained, {path: _labelled(of) for path, of in listed.items()})
        except (ValueError, TypeError, AttributeError):
            return cls()

    @classmethod
    def in_state(cls, state: Any) -> Marks:
        """Those beside a state dict; none where they are not of this form."""
        found = getattr(state, "_metadata", None) or {}
        domains = {path: _tensors(of) for path, of in _tables(found.get(_DOMAINS)).items()}
        return cls(_numbers(found.get(_WRITTEN)), _tensors(found.get(_TRAINED)), domains)

    def apply_(self, model: nn.Module) -> None:
        """Mark a model's norms; a mark that does not fit what they hold has no effect."""
        mark_(model, self.written, self.trained)
        keep_domains_(model, {path: of for path, of in self.domains.items() if path in self.written})

    def header(self) -> dict[str, str]:
        """The marks as texts for the header of a safetensors file.

        Raises:
            EvenkeelError: they are too long for one.
        """
        if not self.written:
            return {}
        trained = {path: {name: _text(tensor) for name, tensor in of.items()} for path, of in self.trained.items()}
        texts = {_WRITTEN: json.dumps(self.written), _TRAINED: json.dumps(trained)}
        if self.domains:
            texts[_DOMAINS] = json.dumps({path: _listed(of) for path, of in self.domains.items()})
        if (size := sum(map(len, texts.values()))) > _LONGEST:
            raise EvenkeelError(
                f"{max(map(len, self.domains.values()), default=0)} domains take {size / 1e6:.0f} MB of the "
                "header of a safetensors file, which holds 100: write a file of torch.save, named .pt"
            )
        return texts

    def beside(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A state dict with these marks beside it, and no others: a copy, unless there are and were none."""
        if not self.written and not set(_KEYS) & set(getattr(state, "_metadata", None) or {}):
            return state
        marked: Any = copy.copy(state) if hasattr(state, "_metadata") else OrderedDict(state)
        trained = {path: {name: _own(tensor) for name, tensor in of.items()} for path, of in self.trained.items()}
        marks: dict[str, Any] = {_WRITTEN: dict(self.written), _TRAINED: trained} if self.written else {}
        if marks and self.domains:
            marks[_DOMAINS] = {path: {label: _owned(s) for label, s in of.items()} for path, of in self.domains.items()}
        marked._metadata = OrderedDict({**(layouts_of(state) or {}), **marks})
        return marked


def layouts_of(state: Any) -> Any:
    """The versions of the modules' layouts, by path, as torch keeps them with a state dict, without marks."""
    found = getattr(state, "_metadata", None)
    return OrderedDict((key, value) for key, value in found.items() if key not in _KEYS) if found else found


def without_marks(header: Mapping[str, str]) -> dict[str, str]:
    """The header of a safetensors file without marks."""
    return {key: text for key, text in header.items() if key not in _KEYS}


def _listed(of: Mapping[Any, Mapping[str, Tensor]]) -> list[Any]:
    """Statistics by label as lists, since JSON has no keys but texts."""
    return [[label, {name: _text(t) for name, t in statistics.items()}] for label, statistics in of.items()]


def _labelled(listed: Any) -> dict[Any, dict[str, Tensor]]:
    return {label: {name: _tensor(text) for name, text in statistics.items()} for label, statistics in listed}


def _owned(statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _own(tensor) for name, tensor in statistics.items()}


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()  # without the storage that it may be a view of


def _text(tensor: Tensor) -> str:
    """The bytes of float64, least first."""
    return base64.b64encode(tensor.detach().cpu().double().numpy().astype("<f8").tobytes()).decode()


def _from_text(text: str) -> dict[str, dict[str, Tensor]]:
    return {path: {name: _tensor(value) for name, value in of.items()} for path, of in json.loads(text).items()}


def _tensor(text: str) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype("f8"))


def _numbers(marks: Any) -> dict[str, dict[str, float]]:
    """What is of the form of marks: a file may be of another origin."""
    return {path: of for path, of in _tables(marks).items() if all(isinstance(v, (int, float)) for v in of.values())}


def _tensors(trained: Any) -> dict[str, dict[str, Tensor]]:
    return {path: of for path, of in _tables(trained).items() if all(isinstance(v, Tensor) for v in of.values())}


def _tables(value: Any) -> dict[str, dict[str, Any]]:
    found = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
    return {path: dict(of) for path, of in found.items() if isinstance(of, Mapping)}
