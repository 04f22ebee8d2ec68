"""What a variance shift is made of: norms upstream, dropout, the initial statistics, other data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.queries import feeding
from evenkeel.model.flags import FROZEN
from evenkeel.model.norms import Norm
from evenkeel.shift.channel_ratios import histogram_of
from evenkeel.shift.shift_passes import Met, Passes
from evenkeel.shift.shift_rows import ShiftRow
from evenkeel.statistics.population import Population
from evenkeel.statistics.stored_values import (
    MUCH,
    NEVER_UPDATED,
    batches_in,
    fault_in_affine,
    fault_of,
    history_of,
    initial_left,
    is_never_updated,
)

_NAMED = 0.03  # log ratio of a part that is worth naming
# Log ratios that show other data, the second behind other norms, or of averages over much of the training.
_FAR, _FAR_BEHIND = math.log(1.5), math.log(2.5)
_LITTLE = 1e-3  # of the initial statistics: with more of them left, an average is over much of the training
_MOST = 0.7  # with more left, the rest tells little
_OFF, _OFF_BEHIND = 0.5, 1.0  # the same of means, in deviations
_MOST_OFF = 5  # that a single channel counts for, such as one that was dead in training
_SIGMAS = 4  # standard errors that they must exceed
_CLOSE = 0.1  # median log ratio over channels of statistics that are the same
_FEW = 3  # batches that statistics are of
_DEAD = 1e-12
OTHERS = "these are not the data of training, or weights have changed since"
_UNSEEN = "train mode, by no dropout that is seen: noise from outside torch, samples that mix, or another path"


@dataclass
class ShiftCauses:
    """Explains the rows of a report, norm by norm, and gathers what they say together.

    Args:
        norms: the norms, by path.
        graph: the model's layers, as far as they are known.
        passes: of some of the samples.
        frozen: modules that training leaves in eval mode.

    Attributes:
        other_data: norms that show that the data are not those of training, by path, each with how far they are off.
    """

    norms: Mapping[str, Norm]
    graph: LayerGraph
    passes: Passes
    frozen: Collection[nn.Module]
    other_data: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        calls = {layer: layer.module for layer in self.graph.of(Kind.NORM)}
        behind = {norm for call, norm in calls.items() if any(layer.stores for layer in self.graph.upstream(call))}
        known = [norm for norm in calls.values() if norm not in behind]
        self._first = known or [self.norms[next(iter(self.passes.standing))]]  # norms with none before them
        self._spoilt = ""  # the first norm that stores what cannot be
        self._single = False  # whether norms before store the statistics of batches of one

    def explain(self, path: str, met: Population) -> ShiftRow:
        """The row of a norm; norms must come in execution order.

        Args:
            path: of the norm.
            met: what all batches send to it in eval mode.
        """
        norm = self.norms[path]
        mean, variance = _stored(norm)
        ratios = (met.variance + norm.eps) / (variance + norm.eps)
        moves = (met.mean - mean).abs() / (variance + norm.eps).sqrt()
        row = ShiftRow(
            path,
            float(variance.mean()),
            float(met.variance.mean()),
            feeding(self.graph, norm),
            moved=float(moves.mean()),
            moved_most=float(moves.max()),
            spread=(float(ratios.min()), float(ratios.max())),
            initial_left=initial_left(norm),
            bad=fault_of(norm) or fault_in_affine(norm),
            channels=histogram_of(ratios),
        )
        if row.bad:
            self._spoilt = self._spoilt or path
            return replace(row, why=row.bad)
        if not (met.variance + met.mean).isfinite().all():
            return replace(row, why=f"fed values that are not finite, because of {self._spoilt}")
        if path not in self.passes.standing or path not in self.passes.quiet:
            return replace(row, why="reached by none of the samples that were looked at closely")
        return self._divided(row, met)

    def _divided(self, row: ShiftRow, met: Population) -> ShiftRow:
        """The row with its parts, and these in words."""
        variance, standing = _stored(self.norms[row.path])[1], self.passes.standing[row.path]
        run = self._as_stored(row.path)
        trained = met.moved(standing, run[row.path])  # what all batches would have sent to it in training
        left = row.initial_left or 0.0
        blend = left + (1 - left) * trained.variance  # what it would store, then
        if left and _apart(variance, blend) > max(2 * _apart(variance, trained.variance), _CLOSE):
            row, blend = replace(row, initial_left=0.0), trained.variance
        parts = {
            "inherited": _over(standing.variance, self.passes.quiet[row.path].variance),
            "dropout": _over(self.passes.quiet[row.path].variance, run[row.path].variance),
            "initial": _over(trained.variance, blend),
        }
        parts["stored"] = row.ratio / math.prod(parts.values())
        row = replace(row, parts=parts)
        return replace(row, why=self._words(row, self._judged(row, met, run)))

    def _as_stored(self, path: str) -> Met:
        """The pass in which a norm meets what it stores: the noisy one, unless that noise was taken out of it."""
        noisy, quiet = self.passes.noisy, self.passes.quiet
        if noisy is None or path not in noisy:
            return quiet
        variance = _stored(self.norms[path])[1]
        with_noise, without = (_apart(variance, run[path].variance) for run in (noisy, quiet))
        return quiet if without < with_noise / 2 else noisy

    def _judged(self, row: ShiftRow, met: Population, run: Met) -> str:
        """What the part that the statistics have in a shift is due to, in words; other data are noted."""
        norm = self.norms[row.path]
        variance = _stored(norm)[1]
        if row.path in self.passes.within:
            apart = _apart(variance, self.passes.within[row.path].variance)
            self._single |= apart < _CLOSE and 3 * apart < _apart(variance, run[row.path].variance)
        if self._single:
            return "statistics of batches of one sample"
        if norm in self.frozen:
            return FROZEN
        uncounted = ", or too few updates, which were not counted" if row.initial_left is None else ""
        if self._is_other(row, met):
            return f"not the data of training, or weights changed since{uncounted}"
        if batches_in(norm) < _FEW:
            return f"statistics of some {batches_in(norm):.1f} batches alone, {history_of(norm)}"
        if row.dropouts and self.passes.noisy is None:
            return "dropout, or other batches or weights"
        return f"other batches or weights{uncounted}"

    def _is_other(self, row: ShiftRow, met: Population) -> bool:
        """Whether a norm meets other data than in training, with or without noise; this is noted."""
        norm, standing = self.norms[row.path], self.passes.standing[row.path]
        first, left = norm in self._first, row.initial_left or 0.0
        averaged = norm.momentum is None or row.initial_left is None  # over much of the training, as weights changed
        if left > _MOST or (not first and (averaged or left > _LITTLE)):
            return False
        mean, variance = _stored(norm)
        mean, variance = mean / (1 - left), ((variance - left) / (1 - left)).clamp_min(0)  # without the initial ones
        if self.passes.is_noisy(row.path) and (not first or (row.dropouts and self.passes.noisy is None)):
            return False
        runs = [run for run in (self.passes.noisy, self.passes.quiet) if run is not None and row.path in run]
        as_trained = [met.moved(standing, run[row.path]) for run in runs]
        ratio = min((_over(one.variance, variance) for one in as_trained), key=_folded)
        moves = [(one.mean - mean).abs() / (variance + norm.eps).sqrt() for one in as_trained]
        off = min(float(one.clamp(max=_MOST_OFF).mean()) for one in moves)
        count = max(self.passes.samples, 2)
        error = max(math.sqrt(2 / count), 0.0 if math.isnan(met.standard_error) else met.standard_error)
        surely = first and not averaged and left <= MUCH
        least, least_off = (_FAR, _OFF) if surely else (_FAR_BEHIND, _OFF_BEHIND)
        if _folded(ratio) > max(least, _SIGMAS * error) or off > max(least_off, _SIGMAS / math.sqrt(count)):
            variance_of = "it stores" if left <= MUCH else "that it met in training, by what it stores"
            how = f"meets x{ratio:.3g} the variance {variance_of}, means {row.moved:.1f} deviations off"
            self.other_data[row.path] = how + ("" if self.passes.is_noisy(row.path) else ", and no dropout reaches it")
        return row.path in self.other_data

    def _words(self, row: ShiftRow, stored: str) -> str:
        """A row's parts in words, the largest first."""
        dropouts = any(layer.kind is not Kind.NOISE for layer in row.dropouts)
        noise = f"{'dropout ' if dropouts else ''}{row.fed_by}" if row.dropouts else self._upstream(row.path)
        initial = f"initial variance 1, {row.initial_left or 0:.0%} left after {history_of(self.norms[row.path])}"
        words = {"inherited": "norms upstream", "dropout": noise, "initial": initial, "stored": stored}
        sizes = {name: _folded(part) for name, part in row.parts.items()}
        least = min(_NAMED, max(sizes.values())) if _folded(row.ratio) > _NAMED else _NAMED
        if is_never_updated(self.norms[row.path]):
            return f"x{row.ratio:.3g} {NEVER_UPDATED}"
        named = [name for name in sorted(sizes, key=lambda name: -sizes[name]) if sizes[name] >= least]
        if row.path in self.other_data and "stored" not in named:
            named.insert(0, "stored")
        return "; ".join(f"x{row.parts[name]:.3g} {words[name]}" for name in named)

    def _upstream(self, path: str) -> str:
        """What makes train mode differ where no noise stands between a norm and those before it, in words."""
        kinds = {layer.kind for layer in feeding(self.graph, self.norms[path], until=())}
        if not kinds:
            return _UNSEEN
        return "noise upstream" if kinds == {Kind.NOISE} else "dropout upstream"


def other_than_stored(norm: Norm, met: Population) -> str:
    """How far what a norm meets, with none before it, is from what it stores, in words; empty if noise may explain it.

    Or if what it stores tells nothing, as where much of the initial statistics is left, or the average is a long one.

    >>> import torch
    >>> from evenkeel.statistics.population import Statistics
    >>> norm, met = nn.BatchNorm1d(2), Population()
    >>> for _ in range(99):
    ...     _ = norm(torch.randn(64, 2))
    >>> met.add([(1, Statistics(64, torch.zeros(2), 9 * torch.ones(2)))])
    >>> met.merge()
    >>> other_than_stored(norm, met)[:7], other_than_stored(nn.BatchNorm1d(2), met)
    ('meets x', '')
    """
    left = initial_left(norm)
    if norm.momentum is None or left is None or left > MUCH or fault_of(norm):
        return ""
    mean, variance = _stored(norm)
    ratio = _over(met.variance.to(variance), variance)
    moves = (met.mean.to(mean) - mean).abs() / (variance + norm.eps).sqrt()
    if _folded(ratio) <= _FAR_BEHIND and float(moves.clamp(max=_MOST_OFF).mean()) <= _OFF_BEHIND:
        return ""
    return f"meets x{ratio:.3g} the variance it stores, means {float(moves.mean()):.1f} deviations off"


def _stored(norm: Norm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean.double(), norm.running_var.double()


def _over(one: Tensor, other: Tensor) -> float:
    """The ratio of two variances averaged over channels; of nothing to nothing, 1."""
    return (float(one.mean()) + _DEAD) / (float(other.mean()) + _DEAD)


def _folded(ratio: float) -> float:
    """How far a ratio is from 1, as the absolute value of its logarithm."""
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def _apart(one: Tensor, other: Tensor) -> float:
    """The median over channels of the absolute log ratio of two variances."""
    return float(((one + _DEAD) / (other + _DEAD)).log().abs().median())
