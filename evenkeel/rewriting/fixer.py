"""fix: a copy of a model with the edits of one guideline's findings carried out."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn

from evenkeel.errors import EvenkeelError, ModelError, TraceError, UnappliedWarning, count_text
from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding
from evenkeel.linting.linter import examine, wanted
from evenkeel.linting.rule import Guideline
from evenkeel.model.wrappers import unwrapped
from evenkeel.rewriting.fix_report import FixReport, FixRow
from evenkeel.rewriting.halves import Halves
from evenkeel.rewriting.operations import EditError, EditPlan, Operation, carry_out_, recompute_
from evenkeel.rewriting.source_calls import file_of

_ROUNDS = 8
_NO_EDIT = "no edit does it"
_UNSAFE = "it changes what the model computes in eval mode, or is a guess, which needs unsafe=True"
_UNEQUAL = "the model would compute something else in eval mode, or hold other keys"
_MISSED = "there would be more or fewer dropouts afterwards than there are to be"
_BARE = "the copy is without its wrapper ({}): wrap it anew, or compile it"
_NO_USE = "it is still there after the edit"
_ENDLESS = f"{_ROUNDS} rounds of edits did not come to an end"

Key = tuple[str, str, str, int | None]
Reasons = dict[Key, str]  # why findings are left


def fix(
    model: nn.Module,
    example: Any,
    *,
    guideline: Guideline,
    unsafe: bool = False,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> nn.Module:
    """Copy a model, and move, remove, insert or swap dropout in the copy as one guideline's findings say.

    What the copy computes in eval mode is the same, bit for bit, which is checked on the example with random values;
    its state dict has the same keys, train() and eval() switch every dropout, and it can be copied, pickled and
    compiled. A dropout module is replaced by `nn.Identity`; one inserted is a child of the layer that it acts
    on, run by a hook. One that is called as a function is taken out of the source of the one method that calls it, and
    the module gets a class of its own, derived from its class, with that method. Like `lint`, it heeds comments in the
    source, and not pyproject.toml.

    Args:
        model: the model, which stays as it is.
        example: as for `trace`, or what `trace` made of the model.
        guideline: whose findings are fixed: hendrycks2016, li2018, chen2019 or kim2023.
        unsafe: also carry out edits that change what the model computes in eval mode: all of chen2019's, which also
            change the state dict, and of the traps EK101 to EK103.
        select: codes, or beginnings of codes: only these.
        ignore: likewise: all but these.

    Returns:
        The copy, without wrappers (DistributedDataParallel, torch.compile), and not sharded. Its attribute
        `evenkeel_fix` is a `FixReport`: what was done, and what was left, with the reason. The model itself needs no
        undo.

    Raises:
        EvenkeelError: there is no such guideline or code; the model cannot be copied; or there are findings, all of
            which need `unsafe=True`.
        ModelError: parameters or buffers are on the meta device, or the model is scripted or exported.
        TraceError: the forward pass raised.

    Warns:
        UnappliedWarning: there are findings left, each named with its edit, to be done by hand, and the reason.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    >>> fixed = fix(model, torch.zeros(2, 4), guideline="li2018")
    >>> fixed[1], fixed[3]
    (Identity(), Linear(
      in_features=8, out_features=2, bias=True
      (input_dropout): Dropout(p=0.5, inplace=False)
    ))
    >>> print(fixed.evenkeel_fix)
    rule    layer   edit                 done
    ─────────────────────────────────────────
    EK201   1       move 1 to before 3   yes
    li2018: 1 fixed, 0 left
    >>> torch.equal(fixed.eval()(torch.ones(2, 4)), model.eval()(torch.ones(2, 4)))
    True
    """
    settings = wanted(guideline, select, ignore)
    with unwrapped(model) as plain:
        _require_values(plain)
        context, left, applied = Context(plain, example), Reasons(), Counter[Key]()
        found, rows = list[Finding](), list[FixRow]()
        for _ in range(_ROUNDS):
            found = examine(context, settings)
            counts = Counter(map(_key, found))
            for finding in found:
                useless = counts[_key(finding)] >= applied.get(_key(finding), math.inf)
                if reason := _NO_USE if useless else _obstacle(finding, unsafe=unsafe):
                    left.setdefault(_key(finding), reason)
            open_ = [finding for finding in found if _key(finding) not in left]
            if not open_:
                break
            todo = [finding for finding in open_ if is_safe(finding)] or open_  # these can be checked by themselves
            context, failed = _apply(context, todo)
            left |= failed
            done = [finding for finding in todo if _key(finding) not in failed]
            rows += map(FixRow.of, done)
            applied = Counter({_key(finding): counts[_key(finding)] for finding in done})
        fixed = copy_of(plain) if context.model is plain else context.model
    undone = [FixRow.of(finding, left.get(_key(finding), _ENDLESS)) for finding in found]
    still = Counter((row.code, row.path) for row in undone if row.reason == _NO_USE)
    bare = [_BARE.format(type(model).__name__)] if plain is not model else []
    report = FixReport([*(row for row in rows if not still[row.code, row.path]), *undone], guideline, bare)
    _warn_of(report)
    fixed.evenkeel_fix = report  # type: ignore[assignment]
    return fixed


def _obstacle(finding: Finding, *, unsafe: bool) -> str | None:
    """Why a finding cannot be fixed, as far as that is known before trying."""
    if not finding.edits:
        return _NO_EDIT
    return None if unsafe or is_safe(finding) else _UNSAFE


def is_safe(finding: Finding) -> bool:
    """Whether all edits of a finding may be made without asking."""
    return all(edit.safe for edit in finding.edits)


def _apply(context: Context, findings: list[Finding]) -> tuple[Context, Reasons]:
    """Carry out the edits of findings on a copy, all together, or, if that goes wrong, those that go well."""

    def attempt(some: Sequence[Finding]) -> tuple[tuple[Context, Reasons], str]:
        copied, unplanned, reason = _attempt(context, some)
        return (copied, unplanned), reason

    halves = Halves(attempt)
    halves.keep(findings)
    result, unplanned = halves.result or (context, Reasons())
    return result, unplanned | {_key(finding): reason for finding, reason in halves.reasons}


def _attempt(context: Context, findings: Sequence[Finding]) -> tuple[Context, Reasons, str]:
    """Carry out edits on a copy.

    Returns:
        The copy; why findings were left out whose edits nothing carries out; and what is wrong with the copy.
    """
    plan, operations, failed = _planned(context, findings)
    copied = Context(copy_of(context.model), context.example)
    try:
        carry_out_(copied.model, operations)
        if not plan.holds(copied.graph):
            return copied, failed, _MISSED
        recompute_(copied.model, operations, copied.graph)
    except (EditError, TraceError) as error:
        return copied, failed, str(error)
    fine = not all(map(is_safe, findings)) or agree(context, copied)
    return copied, failed, "" if fine else _UNEQUAL


def _planned(context: Context, findings: Sequence[Finding]) -> tuple[EditPlan, list[Operation], Reasons]:
    """The operations for findings, without those that cannot be carried out, on which others may depend."""
    failed = Reasons()
    while True:
        active = [finding for finding in findings if _key(finding) not in failed]
        plan = EditPlan(context.model, context.graph, [edit for finding in active for edit in finding.edits])
        operations, refused = list[Operation](), Reasons()
        for finding in active:
            try:
                operations += [operation for edit in finding.edits for operation in plan.operations(edit)]
            except EditError as error:
                refused[_key(finding)] = str(error)
        if not refused:
            return plan, operations, failed
        failed |= refused


def agree(before: Context, after: Context) -> bool:
    """Whether two models have the same keys and return the same bits in eval mode."""
    same_keys = list(before.model.state_dict()) == list(after.model.state_dict())
    return same_keys and _same(before.outputs, after.outputs)


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())
        for x, y in zip(first, second, strict=True)
    )


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        EvenkeelError: there is none, or it would run layers of the original.
    """
    modules = set(model.modules())
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and modules.intersection(_enclosed(value)):
                raise EvenkeelError(
                    f"{f'{path}.{name}'.lstrip('.')} is a function ({file_of(value.__code__.co_filename)}:"
                    f"{value.__code__.co_firstlineno}) that holds the module, and a copy would call the original's "
                    "layers: make it a method"
                )
    computed = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and t.grad_fn is not None]
    try:  # what a hook computes anew in each pass, as a pruned weight, is no leaf, which deepcopy refuses
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})
    except Exception as error:
        raise EvenkeelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and fix edits a copy: "
            "detach tensors that it keeps from earlier passes"
        ) from error


def _require_values(model: nn.Module) -> None:
    meta = [path for path, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if meta:
        raise ModelError(
            f"{meta[0]!r} and {len(meta) - 1} more are on the meta device, and fix compares what the model computes: "
            "load the weights first"
        )


def _enclosed(function: FunctionType) -> list[nn.Module]:
    """The modules that a function got hold of where it was defined."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    return [value for value in (*cells, *(function.__defaults__ or ())) if isinstance(value, nn.Module)]


def _warn_of(report: FixReport) -> None:
    """Warn of what could not be fixed; raise if that is all, for want of `unsafe=True`."""
    if not report.left:
        return
    if len(report.left) == len(report) and all(row.reason == _UNSAFE for row in report):
        more = f" and {len(report) - 1} more" if report.rows[1:] else ""
        raise EvenkeelError(f"{report[0].code} at {report[0].path}{more} cannot be fixed: {_UNSAFE}")
    count = f"{count_text(len(report.left), 'finding')} left to do by hand:"
    warnings.warn(UnappliedWarning("\n".join([count, *map(str, report.left)])), stacklevel=3)


def _key(finding: Finding) -> Key:
    """What identifies a finding from round to round: when a call is removed, those behind it are renumbered."""
    return finding.code, finding.path.partition("#")[0], file_of(finding.file or ""), finding.line
