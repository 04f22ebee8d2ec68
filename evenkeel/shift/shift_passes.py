"""Passes of the same samples in three ways, which show what a variance shift is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from evenkeel.errors import BatchError, brief
from evenkeel.model.buffers import write_
from evenkeel.model.flags import set_modes
from evenkeel.model.norm_calls import NormCalls
from evenkeel.model.norms import Norm, pools_batch
from evenkeel.model.restoring import restored, seed_all
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.measurement import Measurement
from evenkeel.statistics.population import Population, batch_statistics

_SEED = 0
_SAME = 1e-4  # relative to the mean variance: less is no noise


Met = Mapping[str, Population]  # what each norm meets in a pass, by path


@dataclass(frozen=True)
class Passes:
    """The same samples in three ways.

    Attributes:
        standing: in eval mode, as the model stands.
        quiet: in eval mode, but each norm normalises by what it meets.
        noisy: the same with dropout on: what training stores. None if the model does not run like this.
        within: the variances of single samples in the quiet one, averaged, where these have positions.
        samples: how many there were.
        failure: why there is no noisy pass, if so.
    """

    standing: Met
    quiet: Met
    noisy: Met | None
    within: Met
    samples: int
    failure: str = ""

    def is_noisy(self, path: str) -> bool:
        """Whether any noise of training reaches a norm, as far as is known."""
        if self.noisy is None or path not in self.noisy:
            return True
        return self.noisy[path].distance(self.quiet[path]) > _SAME


def compare(measurement: Measurement, groups: Sequence[Group | None], frozen: Collection[nn.Module]) -> Passes:
    """Run groups, which a measurement has just begun with, twice more; the model and the measurement are restored.

    Args:
        measurement: in eval mode, and of these groups alone.
        groups: the groups.
        frozen: modules that training leaves in eval mode; norms among them keep their statistics.

    Returns:
        The passes.

    Raises:
        BatchError: what was run before failed once norms were settled.
    """
    standing = {path: population.copy() for path, population in measurement.populations.items()}
    noisy, failure = None, ""
    within: dict[str, Population] = {}
    quiet = _run(measurement, groups, frozen, within)
    try:
        noisy = _run(measurement, groups, frozen)
    except BatchError as error:
        failure = brief(error.__cause__ or error)
    return Passes(standing, quiet, noisy, within, measurement.samples, failure)


def _run(
    measurement: Measurement,
    groups: Sequence[Group | None],
    frozen: Collection[nn.Module],
    within: dict[str, Population] | None = None,
) -> Met:
    """Run the groups with norms, unless frozen, normalising by what they met so far; noisy, or to fill `within`."""
    model, before = measurement.model, dict(vars(measurement))

    def store(own: Measurement, path: str, norm: Norm) -> None:
        if norm not in frozen:
            population = own.populations[path]
            population.pool()
            for name, values in (("running_mean", population.mean), ("running_var", population.variance)):
                write_(getattr(norm, name), values)

    measurement.populations, measurement.arrivals, measurement.seen, measurement.spoilt = {}, {}, store, ()
    measurement.called = set()  # in train mode others may be
    try:
        with restored(model, parameters=False):
            if within is None:
                seed_all(_SEED)
                set_modes(model, training=True)
                for module in frozen:
                    module.training = False
            watch = nullcontext() if within is None else NormCalls(measurement.norms, partial(_add_within, within))
            with watch:
                for group in groups:
                    measurement.run(group)
            return measurement.populations
    finally:
        vars(measurement).update(before)


def _add_within(found: dict[str, Population], path: str, norm: Norm, x: Tensor) -> None:
    """Add the variances within the samples of what a norm normalises."""
    if pools_batch(norm) and x.numel() and x.ndim > 2 and x.shape[2:].numel() > 1:
        population = found.setdefault(path, Population(pooled=False))
        population.add([(0, batch_statistics(x, pooled=False))])
        population.pool()
