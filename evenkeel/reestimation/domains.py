"""reestimate_domains_: statistics of all data into the norms, and those of each site, subject or domain beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from evenkeel.errors import BatchError, EvenkeelError, ModelError, brief, listed
from evenkeel.model.batches import Forward, each
from evenkeel.model.batches import samples as samples_in
from evenkeel.model.buffers import keep_domains_
from evenkeel.model.domains import Label, as_label
from evenkeel.model.norms import Norm, norms_of
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.tables import grouped
from evenkeel.reestimation.attempt import Attempt
from evenkeel.reestimation.domain_report import DomainReport, DomainRow
from evenkeel.reestimation.prior import Weight
from evenkeel.reestimation.reestimation_report import Reestimation
from evenkeel.statistics.batch_merging import Piece, copied, form_of
from evenkeel.statistics.distributed import default_group
from evenkeel.statistics.group_limits import MEMORY
from evenkeel.statistics.norm_change import NormChange
from evenkeel.statistics.stretching import warn

By = Callable[[Any], Any] | str | int
Values = dict[str, dict[str, Tensor]]  # by path of the norm and buffer


def reestimate_domains_(
    model: nn.Module,
    batches: Iterable[Any],
    by: By,
    *,
    prior: Weight = 0,
    forward: Forward | None = None,
    max_batches: int | None = None,
    samples: Callable[[Any], int] | int | None = None,
    memory: int = MEMORY,
    unsure: Literal["leave", "write"] = "leave",
) -> DomainReport:
    """Re-estimate norm statistics over all data, as `reestimate_` does, and those of each domain beside them.

    The norms then store the statistics of all, the pool. `in_domain` switches them to those of one site, subject or
    domain: FedBN's local norms (Li et al. 2021) and domain-specific batch norm (Chang et al. 2019), at test time and
    without training. `save` keeps both in one file.

    The batches are read once, and held in the memory of the CPU meanwhile. Samples of one batch may be of several
    domains: it is divided then, for which every tensor needs the samples as its leading dimension. Each domain is
    settled on its own samples, in their order, exactly as `reestimate_(model, its_batches, match="variance")` does on
    the model as found: to the bit with `prior=0`.

    Args:
        model: the model, changed in place.
        batches: what `reestimate_` takes.
        by: what tells domains apart: a function of a batch that returns one label, or a tensor or sequence of one a
            sample; or the key or place in the batch where they are, which the model does not get then: of a pair
            (labels, inputs) it is called on the inputs. Labels are texts or whole numbers.
        prior: how many samples the pool counts for in each domain, as for `reestimate_`: domains of few samples are
            then near the pool; "auto" leaves each norm there as far as its standard errors say.
        forward: how to run anything else: `lambda model, batch: ...`; gets batches as they are, with the labels.
        max_batches: how many batches to use; all if None.
        samples: how many samples a batch holds, where its tensors do not tell; it is not divided then.
        memory: as for `reestimate_`.
        unsure: as for `reestimate_`.

    Returns:
        A `DomainReport`: how far each domain is from the pool, and `undo()`.

    Raises:
        ModelError, BatchError: as `reestimate_`, with the domain's label; or a batch of several domains cannot be
            divided. The model is as it was.

    Warns:
        StretchWarning: as for `reestimate_`, of all data.

    >>> import torch
    >>> model, site = nn.Sequential(nn.BatchNorm1d(2)), torch.tensor([0, 1]).repeat(32)
    >>> _ = model(torch.randn(64, 2))
    >>> done = reestimate_domains_(model, [(torch.randn(64, 2) + 9 * site[:, None], site)], by=1)
    >>> [(row.label, row.samples) for row in done], bool(4 < model[0].running_mean[0] < 5)
    ([(0, 32), (1, 32)], True)
    """
    _require_alone()
    held, parts = _read(batches, by, max_batches, samples, forward)
    made = partial(Attempt, forward=forward, samples=samples, memory=memory, leave=unsure == "leave")
    pooled = made(held).reestimated(model, "variance")
    try:
        with unwrapped(model) as plain:
            norms = {row.path: norms_of(plain)[row.path] for row in pooled}
        pool = _values(norms)
        if prior == 0:  # so that nothing of the pool is in a domain
            pooled.undo()
        own = {label: made(part, prior=prior) for label, part in parts.items()}
        found = {label: _of_domain(model, norms, attempt, label) for label, attempt in own.items()}
        pooled.redo()
    except BaseException:
        pooled.undo()
        raise
    by_path: dict[str, dict[Label, Mapping[str, Tensor]]] = {}
    for label, (values, _) in found.items():
        for path, of in values.items():
            by_path.setdefault(path, {})[label] = of
    keep_domains_(plain, by_path)
    rows = [
        DomainRow(label, done.samples, done.batches, _changes(norms, pool, values, done))
        for label, (values, done) in found.items()
    ]
    notes = [note for label, (_, done) in found.items() for note in _notes(label, pooled, done)]
    warn(pooled.stretch)
    return DomainReport(rows, pooled, {label: values for label, (values, _) in found.items()}, notes)


def _notes(label: Label, pooled: Reestimation, done: Reestimation) -> list[str]:
    """What the reader must know of one domain: norms that stay on the statistics of all, and doubts."""
    reached = {row.path for row in done}
    missed = [row.path for row in pooled if row.path not in reached]
    notes = [f"domain {label!r} has no statistics of its own at {listed(missed)}: those of all hold"] if missed else []
    return notes + [f"domain {label!r}: {line}" for line in grouped(done.unsure)]


def _require_alone() -> None:
    if default_group() is not None:
        from torch import distributed

        if distributed.get_world_size() > 1:
            raise ModelError(
                f"{distributed.get_world_size()} processes have joined torch.distributed, and domains are measured by "
                "one: call this in a process of its own"
            )


def _read(
    batches: Iterable[Any], by: By, max_batches: int | None, samples: Any, forward: Forward | None
) -> tuple[list[Any], dict[Label, list[Any]]]:
    """All batches, and those of each domain in order of label, read once."""
    is_held = isinstance(batches, (list, tuple, Tensor))  # else the next batch may be written over this one
    held, parts = list[Any](), dict[Label, list[Any]]()
    for number, batch in enumerate(each(batches, nn.Module(), max_batches), 1):
        labels = _labels(batch, by, number)
        kept = _without(batch, by) if forward is None else batch
        kept = kept if is_held else copied(kept)
        held.append(kept)
        for label, part in _divided(kept, labels, number, samples).items():
            parts.setdefault(label, []).append(part)
    return held, dict(sorted(parts.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _labels(batch: Any, by: By, number: int) -> Label | list[Label]:
    """The label of a batch, or those of its samples."""
    try:
        found = by(batch) if callable(by) else batch[by]
    except Exception as error:
        raise BatchError(f"by={by!r} raised {brief(error)} on batch {number}") from error
    if isinstance(found, Tensor) and found.ndim > 1 and found.numel() == len(found):
        found = found.flatten()
    found = found.tolist() if hasattr(found, "tolist") else found
    try:
        if isinstance(found, Sequence) and not isinstance(found, (str, bytes)):
            return [as_label(label) for label in found]
        return as_label(found)
    except EvenkeelError as error:
        raise BatchError(f"batch {number}: {error}; by= says where they are") from error


def _without(batch: Any, by: By) -> Any:
    """The batch without the labels: the model would be called on them, or they be taken for those of classes."""
    if callable(by):
        return batch
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key != by}
    if isinstance(batch, (tuple, list)) and isinstance(by, int):
        rest = [item for place, item in enumerate(batch) if place != by % len(batch)]
        return rest if isinstance(batch, list) else tuple(rest)
    return batch


def _divided(batch: Any, labels: Label | list[Label], number: int, samples: Any) -> dict[Label, Any]:
    """A batch by domain."""
    each_of = labels if isinstance(labels, list) else [labels]
    if len(set(each_of)) == 1:
        return {each_of[0]: batch}
    count = samples_in(batch)
    if len(each_of) != count:
        raise BatchError(f"batch {number} holds {count} samples, and by= gives {len(each_of)} labels: one each, or one")
    if samples is not None or form_of(batch, count) is None:
        raise BatchError(
            f"batch {number} holds samples of {len(set(each_of))} domains and cannot be divided: not all that is in it "
            "is tensors with the samples as leading dimension; give batches of one domain each"
        )
    piece = Piece(number, batch, count)
    places = {label: [i for i, one in enumerate(each_of) if one == label] for label in dict.fromkeys(each_of)}
    return {label: piece.chosen(chosen).batch for label, chosen in places.items()}


def _of_domain(
    model: nn.Module, norms: Mapping[str, Norm], attempt: Attempt, label: Label
) -> tuple[Values, Reestimation]:
    """What the norms store for a domain, and how it was found; the model is as before."""
    try:
        done = attempt.reestimated(model, "variance")
    except BatchError as error:
        raise BatchError(f"domain {label!r}: {error}") from error
    try:
        return _values({row.path: norms[row.path] for row in done if row.path in norms}), done
    finally:
        done.undo()


def _values(norms: Mapping[str, Norm]) -> Values:
    return {
        path: {name: getattr(norm, name).detach().clone() for name in ("running_mean", "running_var")}
        for path, norm in norms.items()
    }


def _changes(norms: Mapping[str, Norm], pool: Values, values: Values, done: Reestimation) -> tuple[NormChange, ...]:
    """How far a domain's norms are from the pool, with the standard errors of what was measured."""
    result = list[NormChange]()
    for row in done:
        if row.path in values:
            norm, measured, of = norms[row.path], done.measured[row.path], pool[row.path]
            chance = measured.chance(of["running_mean"], of["running_var"])
            result.append(NormChange.between(row.path, norm.eps, of, values[row.path], row.standard_error, chance))
    return tuple(result)
