"""DomainReport: the domains that data consist of, and how far the statistics of each are from those of all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from evenkeel.model.domains import Label, Statistics
from evenkeel.output.tables import Cells, Report, grouped
from evenkeel.reestimation.reestimation_report import Reestimation
from evenkeel.statistics.norm_change import NormChange


@dataclass(frozen=True)
class DomainRow:
    """One domain.

    Attributes:
        label: the domain's.
        samples: how many there are of it.
        batches: how many batches had any.
        norms: how far each norm is from the pool, in execution order: `before` is the pool's variance and `after` the
            domain's, `moved` the largest move of a channel's mean in the pool's deviations, `standard_error` that of
            the domain's variance, and `chance` the part of the squared distance that so few samples make by chance.
    """

    label: Label
    samples: int
    batches: int
    norms: tuple[NormChange, ...]

    @property
    def worst(self) -> NormChange | None:
        """The norm that is farthest from the pool, by its mean or by the logarithm of its variance."""
        return max(self.norms, key=_distance, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain numbers and strings."""
        found = {"label": self.label, "samples": self.samples, "batches": self.batches}
        return found | {"worst": self.worst and self.worst.path, "norms": [norm.to_dict() for norm in self.norms]}


class DomainReport(Report[DomainRow]):
    """What `reestimate_domains_` did, a row a domain; `str()` is the table.

    Attributes:
        rows: one a domain, in order of label.
        pooled: what was done with the statistics of all.
        domains: the statistics of each, by label, path of the norm and buffer; read-only.

    >>> import torch, evenkeel as ek
    >>> data = [(torch.randn(64, 2) + site, site) for site in (0, 5)]
    >>> done = ek.reestimate_domains_(torch.nn.BatchNorm1d(2), data, by=1)
    >>> [row.label for row in done], list(done.domains), round(done[1].worst.moved)
    ([0, 5], [0, 5], 1)
    """

    _title = "domains"

    def __init__(
        self,
        rows: Iterable[DomainRow],
        pooled: Reestimation,
        domains: Mapping[Label, dict[str, dict[str, Tensor]]],
        notes: Iterable[str] = (),
    ) -> None:
        rows, notes = tuple(rows), (*pooled.notes, *notes)
        super().__init__(rows, untouched=pooled.untouched, unsure=pooled.unsure, notes=(*notes, *_too_few(rows)))
        self.pooled = pooled
        self.domains: Mapping[Label, Statistics] = MappingProxyType(
            {
                label: MappingProxyType({path: MappingProxyType(statistics) for path, statistics in of.items()})
                for label, of in domains.items()
            }
        )

    def undo(self) -> None:
        """Put the statistics found before back, in place; those of domains are gone from the model."""
        self.pooled.undo()

    def __repr__(self) -> str:
        return f"DomainReport({self._kept})"

    @property
    def _kept(self) -> str:
        count = f"{len(self)} domain{'' if len(self) == 1 else 's'}"
        return f"{count}; the norms store the statistics of all, {self.pooled.summary}"

    def __getstate__(self) -> dict[str, Any]:
        plain = {label: {path: dict(s) for path, s in of.items()} for label, of in self.domains.items()}
        return super().__getstate__() | {"domains": plain}

    def _figures(self) -> dict[str, Any]:
        return {"samples": self.pooled.samples, "batches": self.pooled.batches, "pooled": self.pooled.to_dict()}

    def _cells(self) -> Cells:
        columns = ("domain", "samples", "worst norm", "var / pool", "standard error", "mean moved, deviations")
        rows = [(str(row.label), str(row.samples), *_cells_of(row.worst)) for row in self]
        caption = [self._kept, *grouped(self.untouched, "untouched"), *grouped(self.unsure), *self.notes]
        return Cells(columns, rows, caption, words=(columns[0], columns[2]))


def _cells_of(norm: NormChange | None) -> tuple[str, str, str, str]:
    if norm is None:
        return ("reached none", "", "", "")
    error = "not known" if math.isnan(norm.standard_error) else f"{norm.standard_error:.2%}"
    return norm.path, f"{norm.ratio:.3f}", error, f"{norm.moved:.2f}"


def _distance(norm: NormChange) -> float:
    ratio = abs(math.log(norm.ratio)) if norm.ratio > 0 and math.isfinite(norm.ratio) else math.inf
    return max(ratio, norm.moved)


def _too_few(rows: Iterable[DomainRow]) -> list[str]:
    """Domains whose samples do not tell them from the pool."""
    labels = [row.label for row in rows if any(norm.is_within_error for norm in row.norms)]
    if not labels:
        return []
    more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
    return [
        f"domain {labels[0]!r}{more}: some norms differ from the pool by less than two standard errors: take more "
        "samples, or prior='auto', which leaves such norms near the pool"
    ]
