"""Buffers written in place, with undo, and a mark on the module that they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import ModelError
from evenkeel.model.opacity import require_module

_MARK = "evenkeel_written"  # attribute of modules: by buffer, the sum of what was written
_COUNT = "num_batches_tracked"  # buffer whose value then is in the mark, too
_SHARE, _ALL = "share", 0.95  # of what is stored, that was written; from which on it counts as all
_MEAN = "mean"  # in the mark of norms whose mean was matched
_TRAINED = "evenkeel_trained"  # attribute of modules: by buffer, what training left there
_DOMAINS = "evenkeel_domains"  # attribute of modules: by label and buffer, the statistics of each domain


def write_(tensor: Tensor, value: Tensor) -> None:
    """Write values into a tensor in place, of the same shape, whether or not it was made in inference mode."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(value)


@dataclass(frozen=True)
class Held:
    """What modules held before `write_buffers_`.

    Attributes:
        buffers: what each buffer held, by module and name.
        marks: of every module, what it knew to have been written before; None if nothing.
        trained: of every module, what it knew that training had left, by buffer.
        domains: of every module, the statistics of domains that it had, by label and buffer.
    """

    buffers: Mapping[tuple[nn.Module, str], Tensor] = field(default_factory=dict)
    marks: Mapping[nn.Module, dict[str, float] | None] = field(default_factory=dict)
    trained: Mapping[nn.Module, dict[str, Tensor] | None] = field(default_factory=dict)
    domains: Mapping[nn.Module, dict[Any, dict[str, Tensor]] | None] = field(default_factory=dict)


def write_buffers_(
    values: Mapping[tuple[nn.Module, str], Tensor],
    shares: Mapping[nn.Module, float] | None = None,
    *,
    mean_matched: bool = False,
) -> Held:
    """Write values into modules' buffers in place, mark the modules as written, and return what was there.

    Args:
        values: by module and name.
        shares: how much of a module's values is new, where they are a blend with what was there.
        mean_matched: whether they are to keep the mean of what norms return, not its variance; it is marked, too.

    >>> norm = nn.BatchNorm1d(2)
    >>> held = write_buffers_({(norm, "running_mean"): torch.ones(2)})
    >>> is_as_written(norm)
    True
    >>> _ = put_back_(held)
    >>> norm.running_mean, is_as_written(norm)
    (tensor([0., 0.]), False)
    """
    held = Held(
        {(module, name): getattr(module, name).clone() for module, name in values},
        {module: getattr(module, _MARK, None) for module, _ in values},
        {module: getattr(module, _TRAINED, None) for module, _ in values},
        {module: module.__dict__.pop(_DOMAINS, None) for module in dict.fromkeys(module for module, _ in values)},
    )
    trained = {module: _trained(module) for module in held.marks}
    blends = {module: share for module, share in (shares or {}).items() if share < 1}
    for module, share in blends.items():  # what was there may have been written, too
        left = min(written_left(module, name) for owner, name in values if owner is module)
        blends[module] = share + (1 - share) * left
    for (module, name), value in values.items():
        write_(getattr(module, name), value)
    for module in held.marks:
        written = {name: _sum(getattr(module, name)) for owner, name in values if owner is module}
        count = getattr(module, _COUNT, None)
        counted = {} if count is None else {_COUNT: float(count)}
        share = {_SHARE: blends[module]} if blends.get(module, 1.0) < _ALL else {}
        former = {name: value for name, value in (held.marks[module] or {}).items() if name not in (_SHARE, _MEAN)}
        module.__dict__[_MARK] = former | written | counted | share | ({_MEAN: 1.0} if mean_matched else {})
        found = {name: value for (owner, name), value in held.buffers.items() if owner is module}
        module.__dict__[_TRAINED] = found | trained[module]
    return held


def put_back_(held: Held) -> Held:
    """Undo `write_buffers_`, in place; return what puts back what was there until now."""
    now = Held(
        {(module, name): getattr(module, name).clone() for module, name in held.buffers},
        {module: getattr(module, _MARK, None) for module in held.marks},
        {module: getattr(module, _TRAINED, None) for module in held.trained},
        {module: getattr(module, _DOMAINS, None) for module in held.domains},
    )
    for (module, name), value in held.buffers.items():
        write_(getattr(module, name), value)
    for name, found in ((_MARK, held.marks), (_TRAINED, held.trained), (_DOMAINS, held.domains)):
        for module, value in found.items():
            module.__dict__.pop(name, None)
            if value is not None:
                module.__dict__[name] = value
    return now


def trained_buffer(module: nn.Module, name: str) -> Tensor | None:
    """What training left in a buffer, a copy: what it holds, or, once that was written, held before.

    None if it was written and what was there is not known, as after loading a state dict. `copy.deepcopy` and pickle
    keep it, and so do files of `evenkeel repair` that are read by `load_`.

    >>> norm = nn.BatchNorm1d(2)
    >>> held = write_buffers_({(norm, "running_mean"): torch.ones(2)})
    >>> norm.running_mean, trained_buffer(norm, "running_mean")
    (tensor([1., 1.]), tensor([0., 0.]))
    """
    value = getattr(module, name)
    if name in (getattr(module, _MARK, None) or {}) and _is_unchanged(module):
        found = _trained(module).get(name)
        return None if found is None else found.to(value, copy=True)
    return value.detach().clone()


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """What training left, of buffers written since; nothing once they hold something else than was written."""
    return (getattr(module, _TRAINED, None) or {}) if _is_unchanged(module) else {}


def is_as_written(module: nn.Module, *names: str) -> bool:
    """Whether a module's buffers hold what `write_buffers_` wrote there, these names among them, and no blend.

    `copy.deepcopy` and pickle keep the mark; a state dict does not.
    """
    return _SHARE not in (getattr(module, _MARK, None) or {}) and _is_unchanged(module, *names)


def is_mean_matched(module: nn.Module) -> bool:
    """Whether a module's buffers hold what was written to keep the mean of what it returns, over masks.

    >>> norm = nn.BatchNorm1d(2)
    >>> _ = write_buffers_({(norm, "running_mean"): torch.ones(2)}, mean_matched=True)
    >>> is_mean_matched(norm)
    True
    """
    return _MEAN in (getattr(module, _MARK, None) or {}) and _is_unchanged(module)


def _is_unchanged(module: nn.Module, *names: str) -> bool:
    """The same, of a blend, too."""
    mark: dict[str, float] | None = getattr(module, _MARK, None)
    return mark is not None and all(
        math.isclose(_sum(getattr(module, name)), written, rel_tol=1e-3, abs_tol=1e-6)
        for name, written in (dict.fromkeys(names, math.nan) | mark).items()
        if name not in (_COUNT, _SHARE, _MEAN)
    )


def written_left(norm: nn.Module, name: str) -> float:
    """How much of what `write_buffers_` wrote is left in a norm's moving average that was trained on since, 0 to 1.

    >>> norm = nn.BatchNorm1d(2, momentum=0.5)
    >>> _ = write_buffers_({(norm, "running_var"): torch.full((2,), 9.0)})
    >>> _ = norm(torch.randn(8, 2))
    >>> written_left(norm, "running_var")
    0.5
    """
    mark: dict[str, float] = getattr(norm, _MARK, None) or {}
    share = mark.get(_SHARE, 1.0)
    if _is_unchanged(norm, name):
        return share
    count, momentum = getattr(norm, _COUNT, None), getattr(norm, "momentum", 0)
    if name not in mark or _COUNT not in mark or count is None or float(count) <= mark[_COUNT] or momentum == 0:
        return 0.0
    left = mark[_COUNT] / float(count) if momentum is None else (1 - momentum) ** (float(count) - mark[_COUNT])
    return share * left


def marks_of(model: nn.Module) -> dict[str, dict[str, float]]:
    """What `is_as_written` goes by, by path: of all modules whose buffers are as written, or a blend; to be saved."""
    return {path: dict(getattr(module, _MARK)) for path, module in modules_in(model).items() if _is_unchanged(module)}


def trained_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What training left in modules whose buffers were written since, by path and buffer; to be saved.

    >>> norm = nn.BatchNorm1d(2)
    >>> _ = write_buffers_({(norm, "running_mean"): torch.ones(2)})
    >>> trained_of(norm)
    {'': {'running_mean': tensor([0., 0.])}}
    """
    return {path: dict(found) for path, module in modules_in(model).items() if (found := _trained(module))}


def mark_(
    model: nn.Module,
    marks: Mapping[str, Mapping[str, float]],
    trained: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Mark modules, by path, as written over what training left; a mark that does not fit what they hold does nothing.

    >>> norm, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    >>> _ = write_buffers_({(norm, "running_mean"): torch.ones(2)})
    >>> _ = other.load_state_dict(norm.state_dict())
    >>> mark_(other, marks_of(norm))
    >>> is_as_written(other)
    True
    """
    modules = modules_in(model)
    for path, mark in marks.items():
        if path in modules:
            modules[path].__dict__[_MARK] = {
                name: value for name, value in mark.items() if name in (_SHARE, _MEAN) or hasattr(modules[path], name)
            }
    for path, found in (trained or {}).items():
        if path in modules and path in marks:
            module = modules[path]
            fitting = {n: t for n, t in found.items() if getattr(getattr(module, n, None), "shape", None) == t.shape}
            module.__dict__[_TRAINED] = {name: value.to(getattr(module, name)) for name, value in fitting.items()}


def keep_domains_(model: nn.Module, domains: Mapping[str, Mapping[Any, Mapping[str, Tensor]]]) -> None:
    """Keep statistics of domains beside modules whose buffers were written, by path of the module, label and buffer."""
    modules = modules_in(model)
    for path, of in domains.items():
        if path in modules:
            modules[path].__dict__[_DOMAINS] = {label: dict(statistics) for label, statistics in of.items()}


def domains_in(model: nn.Module) -> dict[str, dict[Any, dict[str, Tensor]]]:
    """The statistics of domains beside modules that hold what was written, by path of the module, label and buffer."""
    kept = {
        path: getattr(module, _DOMAINS, None) for path, module in modules_in(model).items() if _is_unchanged(module)
    }
    return {path: of for path, of in kept.items() if of}


def stale_domains(model: nn.Module) -> list[str]:
    """Paths of modules that have statistics of domains, but no longer hold what was written with them."""
    kept = {path for path, module in modules_in(model).items() if getattr(module, _DOMAINS, None)}
    return sorted(kept - domains_in(model).keys())


def untrained_paths(model: nn.Module) -> list[str]:
    """Paths of modules that hold what was written, whose values of training are not known."""
    return [path for path in marks_of(model) if not _trained(modules_in(model)[path])]


def undo_(model: nn.Module) -> tuple[str, ...]:
    """Put back, in place, what training left in norms that a repair has written, also after reading a repaired file.

    Args:
        model: a model that `reestimate_` or `correct_` repaired, or that `load_` read from a file of `evenkeel repair`.

    Returns:
        The norms put back, by path; none if nothing was repaired.

    Raises:
        ModelError: it is no module, or what training left in a repaired norm is not known; the model is as it was.

    >>> norm = nn.BatchNorm1d(2)
    >>> _ = write_buffers_({(norm, "running_mean"): torch.ones(2)})
    >>> undo_(nn.Sequential(norm)), norm.running_mean, is_as_written(norm)
    (('0',), tensor([0., 0.]), False)
    """
    if unknown := untrained_paths(require_module(model)):
        raise ModelError(
            f"what training left in {unknown[0]!r} is not known, nor in {len(unknown) - 1} more: load the checkpoint "
            "as it was trained, or read a repaired file by load_"
        )
    found = trained_of(model)
    for path, values in found.items():
        module = modules_in(model)[path]
        for name, value in values.items():
            write_(getattr(module, name), value)
        for name in (_MARK, _TRAINED, _DOMAINS):
            module.__dict__.pop(name, None)
    return tuple(found)


def modules_in(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by their paths in the model as it is without torch.compile and parallel replicas."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return {path.replace("_orig_mod.", ""): module for path, module in model.named_modules()}


def _sum(tensor: Tensor) -> float:
    return math.nan if tensor.is_meta else float(tensor.detach().double().sum())
