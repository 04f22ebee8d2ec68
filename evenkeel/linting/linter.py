"""lint: the findings of the guidelines' rules on a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from evenkeel.errors import EvenkeelError, UnpredictedWarning
from evenkeel.graph.drop_rates import at_ending_rates
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.outline import outline
from evenkeel.linting.context import Context
from evenkeel.linting.findings import Finding, Findings, joined
from evenkeel.linting.rule import GUIDELINES, Guideline
from evenkeel.linting.rules import ALL
from evenkeel.linting.rules.ek104_op_not_understood import unseen_parts
from evenkeel.linting.sample_dropout import stochastic_depth
from evenkeel.linting.settings import Settings, chosen, is_asked, require_codes
from evenkeel.linting.suppressions import is_ignored
from evenkeel.model.norms import foreign_norms
from evenkeel.model.wrappers import unwrapped

_SCHEDULED = "drop rates are read as the DropoutSchedule that is on ends with them, not as they are now."


def lint(
    model: nn.Module,
    example: Any,
    *,
    guideline: Guideline | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Findings:
    """Find what breaks the guidelines on where dropout belongs, and the traps beside it.

    The guidelines contradict each other, so each finding names its own, and `fix` takes one. A source line with the
    comment `# evenkeel: ignore[EK201]` is left alone; pyproject.toml is read by the command line only. By chen2019
    nearly every network has findings: so name a guideline in a check. Under a `DropoutSchedule` rates are read as it
    ends with them. The model is restored.

    Args:
        model: the model, in train or eval mode.
        example: as for `trace`, or what `trace` made of it.
        guideline: hendrycks2016 (traps), li2018, chen2019 or kim2023; all of them if None.
        select: codes, or beginnings of codes such as "EK2": only these.
        ignore: likewise: all but these.

    Returns:
        The findings, rule by rule, each with the variance shift predicted where it shows most: a list, whose `notes`
        give the shift that stochastic depth makes, which li2018's rules on placement do not cover, and what would be
        findings at norms that a repair has written (`reestimate_`, `correct_`, or a file of `evenkeel repair`), and
        whether rates are those that a schedule ends with.

    Raises:
        EvenkeelError: there is no such guideline or code.
        TraceError: the forward pass raised.
        ModelError: the model is scripted or exported; a scripted part of it is a finding, EK104.

    Warns:
        UnpredictedWarning: shifts or variances could not be predicted, with the reason.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    >>> for finding in lint(model, torch.zeros(2, 4), guideline="li2018"):
    ...     print(finding.code, finding.path, finding.message)
    EK201 1 dropout p=0.5 is fed to the norm 2 with no weight layer in between.
    >>> lint(model, torch.zeros(2, 4), guideline="kim2023")
    []
    """
    return findings_of(model, example, wanted(guideline, select, ignore))


def wanted(guideline: str | None, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> Settings:
    """The settings that a caller's arguments make.

    Raises:
        EvenkeelError: there is no such guideline or code.
    """
    known = [rule.code for rule in ALL]
    if guideline is not None and guideline not in GUIDELINES:
        raise EvenkeelError(f"there is no guideline {guideline!r}: choose {', '.join(GUIDELINES)}")
    return Settings(
        guideline, require_codes(select, known, place="select"), require_codes(ignore, known, place="ignore")
    )


def findings_of(model: nn.Module, example: Any, settings: Settings) -> Findings:
    """What `lint` finds, by settings."""
    with unwrapped(model) as plain, at_ending_rates(plain) as later:
        context = Context(plain, example.example if later and isinstance(example, LayerGraph) else example)
        every = joined(examine(context, settings))
        repaired = [finding for finding in every if context.is_repaired(finding.norm)]
        found = [
            finding if finding.norm is None else _predicted(finding, finding.norm, context)
            for finding in every
            if finding not in repaired
        ]
        notes = [*map(_repaired_note, repaired), *([_SCHEDULED] if later else [])]
        notes += [f"{path} is {what}: no rule looks at it" for path, what in foreign_norms(plain).items()]
        notes += stochastic_depth(context) if settings.guideline in (None, "li2018") and not settings.select else []
        network, ratios = outline(context.graph), context.shifts
    if context.unpredicted:
        reasons = "; ".join(context.unpredicted)
        warnings.warn(UnpredictedWarning(f"findings may be missing, or lack their shift: {reasons}"), stacklevel=3)
    return Findings(found, notes, network=network, ratios=ratios)


def _repaired_note(finding: Finding) -> str:
    """That what a finding is about does no harm in eval mode any more, since its norm was repaired."""
    where = f" ({finding.where})" if finding.where else ""
    return (
        f"{finding.code} {finding.path}{where} is no finding: the norm {finding.norm} is repaired, and stores what "
        "eval mode feeds it; change the place of dropout before you train again, not for these weights."
    )


def _predicted(finding: Finding, norm: str, context: Context) -> Finding:
    """A finding with the shift at its norm; where dropout is the finding, with what of it is inherited, too."""
    inherited = context.inherited(norm) if finding.guideline == "li2018" else None
    return replace(finding, shift=context.shift(norm), inherited=inherited)


def examine(context: Context, settings: Settings) -> list[Finding]:
    """The findings that settings ask for, without the shifts predicted for them."""
    rules = [r for r in ALL if settings.guideline in (None, r.guideline) and is_asked(r.code, settings)]
    if settings.select and not rules:
        codes, whose = ", ".join(settings.select), settings.guideline or "those not ignored"
        raise EvenkeelError(f"select {codes}: none of these rules is of {whose}: leave one of the two out")
    found = [finding for rule in rules for finding in rule.findings(context)]
    unseen = [f for f in unseen_parts(context) if chosen(f.code, f.path, replace(settings, select=()))]
    return unseen + [
        finding
        for finding in found
        if chosen(finding.code, finding.path, settings) and not is_ignored(finding.code, finding.file, finding.line)
    ]
