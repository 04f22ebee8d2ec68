"""Passes: what is measured of a merged model and its end points, and what that makes of the model's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError
from evenkeel.merging.folds import Fold, Target, write_weights_
from evenkeel.merging.match_report import distance
from evenkeel.merging.unit_norm import UnitNorm, watch_
from evenkeel.merging.units import Units
from evenkeel.model.batches import Forward
from evenkeel.model.buffers import write_
from evenkeel.model.flags import frozen_in
from evenkeel.model.norms import Norm, has_running_statistics
from evenkeel.model.restoring import restored
from evenkeel.reestimation.settling import Settled, settle
from evenkeel.reestimation.sweeps import distance_between
from evenkeel.statistics.measurement import Measurement
from evenkeel.statistics.population import Population

_NEAR = 1e-4  # deviations: a unit that is no further from its target is there
_MOST = 6  # times that what was found is corrected by what is then measured
_GAIN = 0.5  # of what was off before, that a correction must leave less of to be followed by another


@dataclass(frozen=True)
class Matched:
    """New weights and statistics, and what is measured with these in place.

    Attributes:
        weights: by parameter.
        populations: what norms are to store, by path.
        after: what was then measured at units and norms, by path.
        off: how far the worst unit or norm then was from where it should be.
        passes: how many times all the data were run.
        is_random: whether the model draws at random in eval mode, too.
    """

    weights: Mapping[nn.Parameter, Tensor]
    populations: Mapping[str, Population]
    after: Mapping[str, Population]
    off: float
    passes: int
    is_random: bool

    def statistics(self, norms: Mapping[str, Norm]) -> dict[tuple[nn.Module, str], Tensor]:
        """What norms are to store, by norm and name."""
        return {
            (norms[path], name): value.to(getattr(norms[path], name).dtype)
            for path, population in self.populations.items()
            for name, value in (("running_mean", population.mean), ("running_var", population.variance))
        }


def settled_norms(model: nn.Module) -> dict[str, Norm]:
    """The norms that are settled, by path: those with stored statistics that are not frozen."""
    frozen = frozen_in(model)
    found = {p: m for p, m in model.named_modules() if has_running_statistics(m) and m not in frozen}
    return found  # type: ignore[return-value]


@dataclass(frozen=True)
class Passes:
    """Runs batches; its attributes are the arguments of `match_`."""

    batches: Iterable[Any]
    forward: Forward | None
    max_batches: int | None
    memory: int

    def measured(self, net: nn.Module, units: Mapping[str, Units]) -> Measurement:
        """What a network's units and norms are, by one pass; the network is as it was."""
        with restored(net), torch.no_grad():
            measurement = self._measurement(net, {path: UnitNorm(one) for path, one in units.items()}, units)
            for group in measurement.groups(self.batches, self.max_batches):
                measurement.add(group)
        return measurement

    def matched(self, model: nn.Module, units: Mapping[str, Units], targets: Mapping[str, Target]) -> Matched:
        """What gives a model's units their targets, each fed by units that have theirs; the model is as it was."""
        settled = self._settled(model, units, targets)
        folds = {
            path: Fold.to(target, settled.populations[path], has_bias=units[path].has_bias)
            for path, target in targets.items()
        }
        stored: Mapping[str, Population] = {p: s for p, s in settled.populations.items() if p not in units}
        held = {parameter: parameter.detach().clone() for one in units.values() for parameter in one.parameters}
        best: Matched | None = None
        with restored(model), torch.no_grad():
            for number in range(1, _MOST + 1):
                new: dict[nn.Parameter, Tensor] = {}
                for path, one in units.items():
                    new |= one.folded(held, folds[path])
                found = self._tried(model, units, targets, Matched(new, stored, {}, 0.0, 0, settled.is_random))
                is_gain = best is None or found.off < _GAIN * best.off
                best = found if best is None or found.off < best.off else best
                best = replace(best, passes=settled.passes + number)
                if best.off < _NEAR or not is_gain:
                    break
                folds = {
                    path: Fold.to(target, found.after[path], has_bias=units[path].has_bias).after(folds[path])
                    for path, target in targets.items()
                }
                stored = {path: found.after[path] for path in stored}
        assert best is not None
        return best

    def _tried(
        self, model: nn.Module, units: Mapping[str, Units], targets: Mapping[str, Target], new: Matched
    ) -> Matched:
        """The same, with what is measured once it is written into the model."""
        norms = settled_norms(model)
        names = {parameter: name for name, parameter in model.named_parameters()}
        for parameter, value in new.weights.items():
            _require_finite(names[parameter], value)
        write_weights_(new.weights)
        for (norm, name), value in new.statistics(norms).items():
            _require_finite(f"{name} of {norm}", value)
            write_(getattr(norm, name), value)
        after = self.measured(model, units).populations
        offs = [distance(after[path], target, has_bias=units[path].has_bias) for path, target in targets.items()]
        moved = distance_between({path: after[path] for path in new.populations}, new.populations)
        return replace(new, after=after, off=max([moved, *offs]))

    def _settled(self, model: nn.Module, units: Mapping[str, Units], targets: Mapping[str, Target]) -> Settled:
        """What every unit and norm is fed once those before it are as they are to be."""
        behind, norms = {path: UnitNorm(one) for path, one in units.items()}, settled_norms(model)

        def store(path: str, population: Population, _count: float) -> None:
            population.pool()
            if path in behind:
                fold = Fold.to(targets[path], population, has_bias=units[path].has_bias)
                behind[path].fill_(population, fold)
            else:
                write_(norms[path].running_mean, population.mean)  # type: ignore[arg-type]
                write_(norms[path].running_var, population.variance)  # type: ignore[arg-type]

        with restored(model), torch.no_grad():
            measurement = self._measurement(model, behind, units)
            return settle(measurement, self.batches, store, max_batches=self.max_batches)

    def _measurement(self, net: nn.Module, behind: Mapping[str, UnitNorm], units: Mapping[str, Units]) -> Measurement:
        """A measurement of a network's units, by the norms behind them, and of its own norms."""
        parameters = dict(net.named_parameters())
        run = watch_(net, {parameters[units[path].name]: norm for path, norm in behind.items()}, self.forward)
        return Measurement(net, {**behind, **settled_norms(net)}, forward=run, memory=self.memory)


def _require_finite(name: str, value: Tensor) -> None:
    if not value.isfinite().all():
        raise BatchError(f"{name!r} would reach {float(value.abs().max())}: it overflows {value.dtype}")
