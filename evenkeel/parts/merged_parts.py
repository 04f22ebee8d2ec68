"""MergedParts: what `merge_parts_` did, how far off it may be, and the start of another round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evenkeel.errors import count_text
from evenkeel.model.buffers import Held
from evenkeel.parts.parts import Start
from evenkeel.reestimation.reestimation_report import Reestimation, largest
from evenkeel.statistics.norm_change import NormChange

NEAR = 0.01
_OFF = "off by about {:.1%}: measure parts once more, on done.start (--start), and merge those"
_ENTANGLED = "its statistics are read by other layers, too, so parts may not settle: use reestimate_"


class MergedParts(Reestimation):
    """What `merge_parts_` did: a `Reestimation`, and how far off it may be.

    Attributes:
        parts: names of the parts, in order.
        round: which this was, from 1.
        changed: how far what was measured is from what was stored meanwhile, by path: log variances, or means in
            deviations, whichever is farther, root mean square over channels. It is known, and says how far off the
            start was.
        doubts: how far off what is stored now may be, likewise, by how differently the probe's batches have changed;
            without one, as far as norms before it have changed. Of a probe unlike the data it says too little: the
            next round's `changed` tells.
        start: for the parts of another round.
        other_data: the first norm, by path, with how far what it meets is from what it stored, if that is too far for
            data of training; unless weights have changed since.

    >>> import torch, evenkeel as ek
    >>> model = torch.nn.BatchNorm1d(2)
    >>> done = ek.merge_parts_(model, [ek.measure_part(model, [torch.randn(64, 2)])])
    >>> done.round, done.doubts, done.start.round
    (1, {'': 0.0}, 1)
    """

    def __init__(
        self,
        rows: Iterable[NormChange],
        *,
        parts: Sequence[str],
        batches: int,
        samples: int,
        untouched: Mapping[str, str],
        entangled: Iterable[str],
        notes: Iterable[str],
        stretch: str,
        held: Held,
        changed: Mapping[str, float],
        doubts: Mapping[str, float],
        start: Start,
        other_data: Mapping[str, str],
    ) -> None:
        self.parts = tuple(parts)
        self.round = start.round
        self.changed = dict(changed)
        self.doubts = dict(doubts)
        self.start = start
        self.other_data = dict(other_data)
        unsure = {path: _OFF.format(off) for path, off in self.doubts.items() if off > NEAR}
        super().__init__(
            rows,
            batches=batches,
            samples=samples,
            passes=start.round,
            untouched=untouched,
            unsure=unsure | dict.fromkeys(entangled, _ENTANGLED),
            notes=[self._said_of_rounds, *notes],
            converged=True,
            held=held,
            stretch=stretch,
        )

    @property
    def doubt(self) -> float:
        """The largest of the norms' doubts."""
        return largest(self.doubts.values())

    @property
    def is_settled(self) -> bool:
        """Whether no norm may be off by more than 1 %, beside its standard error."""
        return self.doubt <= NEAR

    @property
    def _said_of_rounds(self) -> str:
        said = f"round {self.round}, from {count_text(len(self.parts), 'part')}"
        worst = max(self.changed, key=self.changed.__getitem__)
        said += f": what was stored was off by up to {self.changed[worst]:.1%}, at {worst!r}"
        return f"{said}; what is stored now by about {self.doubt:.1%}" if math.isfinite(self.doubt) else said

    def _figures(self) -> dict[str, Any]:
        figures = {"parts": list(self.parts), "round": self.round, "changed": self.changed, "doubts": self.doubts}
        return super()._figures() | figures | {"other_data": self.other_data}
