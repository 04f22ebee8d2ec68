"""EK101: dropout that stays on in eval mode.

## What it does
Looks at the pass in eval mode for a dropout that drops there, too: `training=True` written out, or left out (it is
the default of `F.dropout`), a random mask that nobody switches off, attention with a `dropout_p` that does not depend
on the mode, or `F.dropout` frozen by tracing the model in train mode. Two passes with different seeds must differ
there, on the way to the output.

## Why it matters
Predictions are random then, and running statistics re-estimated with dropout off are not those that eval mode meets.

## Who disagrees
Some dropout stays on by design: Monte Carlo dropout (Gal & Ghahramani 2016), the prenet of Tacotron 2, whose decoder
fails without it, and the generator of pix2pix, whose only noise it is. Say so on the line of the call:
`x = F.dropout(x, 0.5)  # evenkeel: ignore[EK101] on by design`. Norms behind it are then predicted with it on.

## Known limits
Noise that is no dropout (a sample of a variational autoencoder, added noise, tokens drawn) is no offence: what eval
mode draws there is the signal. The fix changes what the model computes in eval mode, so it needs `unsafe=True`. Masks
made by hand, and rates given to attention, are edited by hand.

## References
Hendrycks & Gimpel 2016, section 3: statistics are to be those of the network without dropout, the one that is tested.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx, nn
from torch.nn import functional as F

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer
from evenkeel.linting.context import Context
from evenkeel.linting.dropout_module import dropout_like
from evenkeel.linting.edits import Swap
from evenkeel.linting.findings import Finding
from evenkeel.linting.placement import in_words
from evenkeel.linting.rule import rule

EXAMPLE = (2, 4)


@rule("EK101", guideline="hendrycks2016")
def dropout_stays_on(context: Context) -> Iterator[Finding]:
    """Dropouts that drop in eval mode."""
    modules = dict(context.model.named_modules())
    for layer in context.eval_graph:
        if layer.name in context.random_in_eval:
            frozen = isinstance(modules.get(layer.path), fx.GraphModule)
            why = "frozen by tracing in train mode" if frozen else "whatever the mode"
            twins, module = [twin for twin in context.graph if twin.site == layer.site], dropout_like(layer)
            edits = [Swap(twins[0], module, safe=False)] if len(twins) == 1 and module else []
            yield Finding.at(
                layer,
                f"{in_words(layer)} stays on in eval mode, {why}.",
                _advice(layer, frozen=frozen),
                *edits,
            )


def _advice(layer: Layer, *, frozen: bool) -> str:
    if frozen:
        return "Trace it in eval mode."
    if layer.kind is Kind.OPAQUE:
        return "Pass dropout_p=0.0 in eval mode."
    if isinstance(layer.module, nn.Dropout):
        return "Let eval() switch it off: do not override train(), or set its flag."
    if layer.noise is not None and layer.noise.mean is not None and layer.noise.peak is None:
        return "Multiply by it in train mode only: if self.training."
    return "Make it nn.Dropout, or pass training=self.training."


def bad() -> nn.Module:
    """A rate that is never switched off."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.dropout(self.hidden(x).relu(), 0.5))

    return Net()


def good() -> nn.Module:
    """The same, with the mode passed on."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.dropout(self.hidden(x).relu(), 0.5, self.training))

    return Net()
