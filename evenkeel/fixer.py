"""fix: a copy of a model with the edits of one guideline's findings carried out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.batches import map_tensors, tensors
from evenkeel.errors import EvenkeelError, UnappliedWarning
from evenkeel.findings import Finding
from evenkeel.linter import examine, wanted
from evenkeel.modes import restored, unwrapped
from evenkeel.subject import Subject
from evenkeel.surgery import Operation, Plan, SurgeryError, operate_
from evenkeel.tracing import prepared, runner

_ROUNDS = 8
_NO_EDIT = "nothing does it by itself"
_UNSAFE = "it changes what the model computes in eval mode, which needs unsafe=True"
_UNEQUAL = "the model would compute something else in eval mode, or hold other keys"
_NO_USE = "it is still there after the edit"

Failures = dict[tuple[str, str], tuple[Finding, str]]  # by code and path, with the reason


def fix(
    model: nn.Module,
    example: Any,
    *,
    guideline: str,
    unsafe: bool = False,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> nn.Module:
    """Copy a model, and move, remove, insert or swap dropout in the copy as one guideline's findings say.

    What the copy computes in eval mode is the same, bit for bit, which is checked on the example with random values;
    its state dict has the same keys, train() and eval() switch every dropout, and it can be copied, pickled and
    compiled. A dropout that is a module gives way to `nn.Identity`; one inserted is a child of the layer that it acts
    on, run by a hook. One that is called as a function is taken out of the source of the one method that calls it, and
    the module gets a class of its own, derived from its class, with that method.

    Args:
        model: the model, which stays as it is.
        example: as for `trace`.
        guideline: whose findings are fixed: hendrycks2016, li2018, chen2019 or kim2023.
        unsafe: also carry out edits that change what the model computes in eval mode: all of chen2019's, which also
            change the state dict, and of the traps EK101 to EK103.
        select: codes, or beginnings of codes: only these.
        ignore: likewise: all but these.

    Returns:
        The copy, without what wraps the model (DistributedDataParallel, torch.compile).

    Raises:
        EvenkeelError: there is no such guideline or code; the model cannot be copied; or there are findings, all of
            which need `unsafe=True`.
        TraceError: the forward pass raised.

    Warns:
        UnappliedWarning: there are findings left, each named with its edit, to be done by hand, and the reason.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    >>> fixed = fix(model, torch.zeros(2, 4), guideline="li2018")
    >>> fixed[1], fixed[3]
    (Identity(), Linear(
      in_features=8, out_features=2, bias=True
      (input_dropout): Dropout(p=0.5, inplace=False)
    ))
    >>> torch.equal(fixed.eval()(torch.ones(2, 4)), model.eval()(torch.ones(2, 4)))
    True
    """
    settings = wanted(guideline, select, ignore)
    with unwrapped(model) as plain:
        fixed, left, applied = _copy(plain), Failures(), set[tuple[str, str]]()
        for _ in range(_ROUNDS):
            subject = Subject(fixed, example)
            found = [finding for finding in examine(subject, settings) if _key(finding) not in left]
            for finding in found:
                if reason := _obstacle(finding, applied, unsafe=unsafe):
                    left[_key(finding)] = finding, reason
            found = [finding for finding in found if _key(finding) not in left]
            if not found:
                break
            fixed, failed = _apply(subject, found)
            left |= failed
            applied |= {_key(finding) for finding in found if _key(finding) not in failed}
    _report(left, applied)
    return fixed


def _obstacle(finding: Finding, applied: set[tuple[str, str]], *, unsafe: bool) -> str | None:
    """Why a finding cannot be fixed, as far as that can be told before trying."""
    if not finding.edits:
        return _NO_EDIT
    if _key(finding) in applied:
        return _NO_USE
    return None if unsafe or all(edit.safe for edit in finding.edits) else _UNSAFE


def _apply(subject: Subject, findings: list[Finding]) -> tuple[nn.Module, Failures]:
    """Carry out the edits of findings on a copy, all together, or, if that goes wrong, those that go well."""
    failed = Failures()
    together, reason = _attempt(subject, findings, failed)
    if not reason:
        return together, failed
    good: list[Finding] = []
    result = subject.model
    for finding in findings:
        if _key(finding) in failed:
            continue
        copied, reason = _attempt(subject, [*good, finding], Failures())
        if reason:
            failed[_key(finding)] = finding, reason
        else:
            good.append(finding)
            result = copied
    return result, failed


def _attempt(subject: Subject, findings: list[Finding], failed: Failures) -> tuple[nn.Module, str]:
    """Carry out edits on a copy; return it, and what is wrong with it, if anything.

    Findings whose edits nothing carries out are added to `failed`.
    """
    active = [finding for finding in findings if _key(finding) not in failed]
    planned: list[Operation] | None = None
    while planned is None:
        plan = Plan(subject.model, subject.graph, [edit for finding in active for edit in finding.edits])
        planned = []
        for finding in active:
            try:
                planned += [operation for edit in finding.edits for operation in plan.operations(edit)]
            except SurgeryError as error:
                failed[_key(finding)] = finding, str(error)
                active, planned = [other for other in active if other is not finding], None
                break
    copied = _copy(subject.model)
    try:
        operate_(copied, planned, subject.example)
    except SurgeryError as error:
        return copied, str(error)
    safe = all(edit.safe for finding in active for edit in finding.edits)
    return copied, "" if not safe or _agree(subject.model, copied, subject.example) else _UNEQUAL


def _agree(before: nn.Module, after: nn.Module, example: Any) -> bool:
    """Whether two models have the same keys and return the same bits in eval mode."""
    if list(before.state_dict()) != list(after.state_dict()):
        return False
    return _same(_evaluated(before, example), _evaluated(after, example))


def _evaluated(model: nn.Module, example: Any) -> list[Tensor]:
    """What a model returns in eval mode for the example's tensors, floating ones filled with random values."""
    run, inputs = runner(model, example)
    with restored(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = torch.Generator().manual_seed(0)
        given = map_tensors(
            lambda t: torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t,
            prepared(inputs, model),
        )
        model.eval()
        return tensors(run(given))


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())
        for x, y in zip(first, second, strict=True)
    )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise EvenkeelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and fix edits a copy: "
            "detach tensors that it keeps from earlier passes"
        ) from error


def _report(left: Failures, applied: set[tuple[str, str]]) -> None:
    """Warn of what could not be fixed; raise if that is all for want of `unsafe=True`."""
    if not left:
        return
    if not applied and all(reason == _UNSAFE for _, reason in left.values()):
        (finding, _), *rest = left.values()
        raise EvenkeelError(f"{finding.code} at {finding.path} and {len(rest)} more cannot be fixed: {_UNSAFE}")
    lines = [_by_hand(finding, reason) for finding, reason in left.values()]
    warnings.warn(UnappliedWarning("\n".join([f"{len(left)} findings are left to do by hand:", *lines])), stacklevel=3)


def _by_hand(finding: Finding, reason: str) -> str:
    where = f" ({finding.where})" if finding.where else ""
    edits = "; ".join(map(str, finding.edits)) or finding.advice
    return f"{finding.code} {finding.path}{where}: {edits}, since {reason}"


def _key(finding: Finding) -> tuple[str, str]:
    return finding.code, finding.path
