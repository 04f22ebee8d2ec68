"""Domains: statistics of each site, subject or domain beside those of all, and norms switched between them."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Hashable, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from evenkeel.errors import EvenkeelError, ModelError
from evenkeel.model.buffers import domains_in, keep_domains_, modules_in, put_back_, stale_domains, write_buffers_
from evenkeel.model.opacity import require_module

Label = str | int
Statistics = Mapping[str, Mapping[str, Tensor]]  # by path of the norm and buffer
_FEW = 8  # labels named in an error


@contextmanager
def in_domain(model: nn.Module, label: Label, *, unknown: Literal["raise", "pool"] = "raise") -> Generator[None]:
    """Norms on the statistics of one domain while entered: domain-specific batch norm at test time.

    `reestimate_domains_` measures them, and files of `save` hold them; what `save` writes meanwhile has those of this
    domain in place of those of all. Norms of which the domain has none stay on those of all. On leaving,
    also after an exception, all is as found, bit for bit. Flags are left as they are: call `model.eval()`. Statistics
    belong to the weights: that these were trained on is noticed where norms were, too, not where norms were frozen
    meanwhile.

    Args:
        model: the model.
        label: the domain's.
        unknown: what to do with a label that has no statistics: raise, or stay on those of all, the pool.

    Raises:
        EvenkeelError: there is no such domain, and the error says which there are; or `unknown` is neither.
        ModelError: the model has no domains, or its norms have been changed since they were measured.

    >>> import evenkeel as ek, torch
    >>> model, site = nn.Sequential(nn.BatchNorm1d(2)).eval(), torch.tensor([0, 1]).repeat(32)
    >>> done = ek.reestimate_domains_(model, [(torch.randn(64, 2) + 9 * site[:, None], site)], by=1, unsure="write")
    >>> with in_domain(model, 1):
    ...     bool((model[0].running_mean > 8).all())
    True
    """
    if unknown not in ("raise", "pool"):
        raise EvenkeelError(f"unknown must be 'raise' or 'pool', not {unknown!r}")
    domains, label = domains_of(model), as_label(label)
    if stale := stale_domains(model):
        raise ModelError(
            f"{stale[0]!r} and {len(stale) - 1} more store other statistics than when those of domains were measured, "
            "as after training: call reestimate_domains_ again"
        )
    if not domains:
        raise ModelError(
            "the model has no statistics of domains, or they went with another repair: call reestimate_domains_, or "
            "load_ a file that was saved behind it"
        )
    if label not in domains and unknown == "pool":
        yield
        return
    modules, kept = modules_in(model), domains_in(model)
    found = domains[_known(label, domains)]
    held = write_buffers_({(modules[path], name): t for path, of in found.items() for name, t in of.items()})
    keep_domains_(model, {path: kept[path] for path in found})  # of which writing knows nothing
    try:
        yield
    finally:
        put_back_(held)


def domains_of(model: nn.Module) -> Mapping[Label, Statistics]:
    """The statistics of each domain that a model has, by label, path of the norm and buffer; read-only.

    Those of norms whose buffers were changed since are not among them.

    >>> domains_of(nn.BatchNorm1d(2))
    mappingproxy({})
    """
    found: dict[Label, dict[str, Mapping[str, Tensor]]] = {}
    for path, of in domains_in(require_module(model)).items():
        for label, statistics in of.items():
            found.setdefault(label, {})[path] = MappingProxyType(statistics)
    return MappingProxyType({label: MappingProxyType(of) for label, of in found.items()})


def as_label(value: object) -> Label:
    """A label as it is kept: a text, or a whole number.

    Raises:
        EvenkeelError: it is neither.
    """
    is_single = getattr(value, "size", None) == 1 or (isinstance(value, Tensor) and value.numel() == 1)
    value = value.item() if is_single else value  # type: ignore[attr-defined]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        hint = ", bytes: decode() them" if isinstance(value, bytes) else ""
        raise EvenkeelError(f"a domain's label is a text or a whole number, not {value!r}{hint}")
    return value


def _known(label: Hashable, domains: Mapping[Label, Statistics]) -> Label:
    if label in domains:
        return label  # type: ignore[return-value]
    names = [repr(name) for name in domains]
    near = difflib.get_close_matches(repr(label), names, n=1)
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    raise EvenkeelError(
        f"the model has no domain {label!r}: it has {', '.join(names[:_FEW])}{more}"
        + (f"; did you mean {near[0]}?" if near else "")
        + "; unknown='pool' stays on the statistics of all"
    )
