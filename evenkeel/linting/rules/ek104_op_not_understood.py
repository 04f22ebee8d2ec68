"""EK104: an operation that is not understood between a dropout and a norm.

## What it does
Finds calls that no table knows (OPAQUE, `?` in a graph's picture) which the noise of a dropout passes on its way to a
norm with running statistics; modules that torch.jit made, whatever they hold, also those in a plain list, since none of
their dropouts and norms is seen; scripted functions with a dropout, norm or random numbers inside; calls of torch.vmap;
and, before a norm, custom operators and detours out of torch, as through numpy, either of which may be a dropout. What
is not seen is found by every guideline, and whichever codes are selected, unless EK104 is ignored.

## Why it matters
The graph does not show whether the dropout's noise reaches the norm, or how much of it: the other rules' findings on
this dropout are a guess. In a scripted module no rule finds anything, which must not pass for a clean result.

## Who disagrees
Nobody. Where the operation must stay, declare its kind: a module that only makes this call, with the attribute
`evenkeel_kind = evenkeel.Kind.PASS`, or whichever kind fits. Lint a module before it is scripted.

## Known limits
The fix moves the dropout behind the norm, to the next weight layer, which no guideline prescribes: it needs
`unsafe=True`.

## References
Li et al. 2018, section 3: what follows is derived for weights and identities between dropout and norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from evenkeel.graph.kinds import UNKNOWN, Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.queries import norms_behind
from evenkeel.graph.unseen_calls import Vectorized, noisy_calls_in
from evenkeel.linting.context import Context
from evenkeel.linting.edits import Move
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import in_words
from evenkeel.linting.rule import rule
from evenkeel.model.opacity import opaque_parts

EXAMPLE = (2, 8)
_TORCH = ("aten", "prims", "torchvision", "torchaudio", "quantized")  # libraries whose operators are no dropouts
_UNSEEN = "what dropouts and norms are inside is not seen."


@rule("EK104", guideline="hendrycks2016")
def op_not_understood(context: Context) -> Iterator[Finding]:
    """OPAQUE calls between a dropout and a norm."""
    graph = context.graph
    for layer in graph.of(Kind.OPAQUE):
        before = [d for d in graph.upstream(layer, until=Kind.NORM) if d in context.dropouts]
        norms = norms_behind(graph, layer, through_weights=True)
        if before and norms:
            weights = [x for x in graph.downstream(norms[-1]) if x.kind is Kind.WEIGHT]
            edits = [Move(dropout, weights[0], safe=False) for dropout in before] if weights else []
            yield Finding.at(
                layer,
                f"{layer.function or 'a call'} is not understood, and is between {before[-1].name} "
                f"({in_words(before[-1])}) and the norm {norms[0].name}.",
                "Move the dropout behind the norm, or wrap the call in a module that declares evenkeel_kind.",
                *edits,
                norm=norms[0].path,
            )


def unseen_parts(context: Context) -> Iterator[Finding]:
    """What torch.jit made, which no rule can look into, unless a module around it declares its kind."""
    declared = [path for path, m in context.model.named_modules() if getattr(m, "evenkeel_kind", None) is not None]
    for finding in _unseen(context, declared):
        yield replace(finding, code=op_not_understood.code, guideline=op_not_understood.guideline)


def _unseen(context: Context, declared: list[str]) -> Iterator[Finding]:
    for path, what in opaque_parts(context.model).items():
        if not any(not outer or path.startswith(f"{outer}.") for outer in declared):
            yield Finding(path, f"{path} is {what}: {_UNSEEN}", "Lint the model as it is before torch.jit.")
    held = {id(module) for module in context.model.modules()}
    graph = context.graph
    known = (*opaque_parts(context.model), *declared)
    for layer in graph.of(Kind.OPAQUE):
        inside = any(not path or f"{layer.path}.".startswith(f"{path}.") for path in known)
        if id(layer.call) not in held and (what := _scripted(layer)):
            yield Finding.at(layer, what, "Lint the model with the Python that it was made from.")
        elif (what := _out_of_sight(layer, known=inside)) and (
            layer.function == Vectorized.name or norms_behind(graph, layer, through_weights=True)
        ):
            yield Finding.at(layer, what, "Wrap it in a module that declares evenkeel_kind.")


def _scripted(layer: Layer) -> str:
    """What a call of a scripted function, or of a scripted module outside of the model's tree, may hide."""
    if isinstance(layer.call, torch.jit.ScriptModule):
        return f"{layer.function} is a scripted module that is no part of the model's modules: {_UNSEEN}"
    inside = noisy_calls_in(layer.call) if isinstance(layer.call, torch.jit.ScriptFunction) else []
    return f"{layer.function} is a scripted function with {', '.join(inside)} inside: {_UNSEEN}" if inside else ""


def _out_of_sight(layer: Layer, *, known: bool) -> str:
    """What a call that torch.vmap makes, or that is made outside of torch, may hide.

    Args:
        layer: the call.
        known: whether it is in a part that is declared, or scripted and found as such.
    """
    if layer.function == Vectorized.name:
        return f"torch.vmap is called here: {_UNSEEN}"
    if layer.function == UNKNOWN or (layer.call is None and not known):
        return "signals leave torch and come back, as through numpy: what is done to them there is not seen."
    if (space := _namespace(layer.call)) and space not in _TORCH:
        return f"{layer.function} is a custom operator ({space}): whether it is a dropout is not seen."
    return ""


def _namespace(call: object) -> str:
    """The library of an operator, such as aten; empty for other functions."""
    if isinstance(call, torch._ops.OpOverloadPacket):
        call = getattr(call, call.overloads()[0])
    return call.namespace if isinstance(call, torch._ops.OpOverload) else ""


def bad() -> nn.Module:
    """A Fourier transform between dropout and norm."""

    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).abs()

    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), Spectrum(), nn.BatchNorm1d(8), nn.Linear(8, 2))


def good() -> nn.Module:
    """Dropout behind both."""

    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).abs()

    return nn.Sequential(nn.Linear(8, 8), Spectrum(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
