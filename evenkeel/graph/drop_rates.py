"""DropRates: the places where a model's modules hold drop rates, set together and put back."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from evenkeel.errors import EvenkeelError, ModelError
from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import RATES, LayerGraph
from evenkeel.graph.tracing import graph_of, record_call
from evenkeel.model.wrappers import unwrapped

Place = tuple[nn.Module, str]  # a module and the attribute in which it holds a rate

_DROPS = re.compile(r"drop|stochastic_?depth", re.IGNORECASE)  # in the name of a class, or of an attribute
# What an attribute named after dropping is that is no rate to drop: a rate to keep, a count, a point in time.
_NO_RATE = re.compile(
    r"keep|dropped|(^|_)(last|count|value|scale|threshold|temperature|start|end|every|step|epoch)s?(_|$)", re.IGNORECASE
)
# The rates that modules end training with, while a schedule sets them; copies of a model are under no schedule.
_ENDING: WeakKeyDictionary[nn.Module, dict[str, float]] = WeakKeyDictionary()


class DropRates:
    """The drop rates that a model's modules hold and their forward passes read.

    These are `p` of torch's dropouts and of classes whose name says that they drop, `beta` of `Uout`, and numbers from
    0 to 1 in attributes named after dropping, such as `dropout` of `nn.LSTM` and `nn.MultiheadAttention`, `drop_prob`
    or `attention_dropout`, unless the name says something else, as `drop_keep_prob` does. With an example the model is
    traced twice, with rates as they are and all set to 0: what holds the rate of a dropout seen is added, and what
    drops still is in `untouched`.

    Args:
        model: the model.
        example: as for `trace`, or what `trace` made of it; None if functional dropout is not looked for.

    Attributes:
        found: the rates found, by path and attribute, such as "drop.p".
        untouched: dropouts whose rate cannot be set, by layer, each with the reason.
        notes: what is not known.

    Raises:
        ModelError: no module holds a rate.

    >>> import torch
    >>> rates = DropRates(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.ones(2, 4))
    >>> rates.found, rates.untouched
    ({'1.p': 0.5}, {})
    """

    def __init__(self, model: nn.Module, example: Any = None) -> None:
        unseen = "dropout called as a function was not looked for: pass example="
        with unwrapped(model) as plain:
            graph = None if example is None else graph_of(plain, example)
            self._places = _places_in(plain) | (_places_seen(plain, graph) if graph else {})
            self.found: dict[str, float] = {name: getattr(*place) for name, place in self._places.items()}
            self.untouched = self._left_at_zero(plain, graph) if graph and self._places else {}
        if not self._places:
            raise ModelError(
                f"no module of {type(model).__name__} holds a drop rate that can be set: build it with dropout, such "
                "as nn.Dropout(0.3); a rate written into the source of a forward pass is set there alone"
                + ("" if graph else f"; {unseen}")
            )
        self.notes = () if graph else (unseen,)

    def write(self, rates: Mapping[str, float]) -> None:
        """Set rates by path and attribute; all of them or, if one makes no sense, none.

        Raises:
            EvenkeelError: a rate is not within 0 and 1, or no number.
        """
        require_rates(rates)
        for name, rate in rates.items():
            setattr(*self._places[name], rate)

    def announce(self, ending: Mapping[str, float]) -> None:
        """Say which rates training ends with, for `lint` to read.

        Raises:
            EvenkeelError: a schedule sets one of these rates already.
        """
        if taken := [name for name, (module, _) in self._places.items() if module in _ENDING]:
            raise EvenkeelError(f"a schedule sets the rate of {taken[0]} already: undo() it first")
        for name, rate in ending.items():
            module, attribute = self._places[name]
            _ENDING.setdefault(module, {})[attribute] = rate

    def withdraw(self) -> None:
        """Take back what was announced."""
        for module, _ in self._places.values():
            _ENDING.pop(module, None)

    def _left_at_zero(self, model: nn.Module, graph: LayerGraph) -> dict[str, str]:
        """What drops still once all rates found are 0, by layer, each with the reason."""
        try:
            self.write(dict.fromkeys(self.found, 0.0))
            silent = record_call(model, graph.example, training=True)
        finally:
            self.write(self.found)
        return {
            layer.label: f"drops by p={'?' if layer.p is None else f'{layer.p:g}'}, a rate that no module holds"
            for layer in silent
            if layer.drops or (layer.kind is Kind.OPAQUE and layer.p)
        }


def require_rates(rates: Mapping[str, float]) -> None:
    """Refuse what is no rate to drop.

    Raises:
        EvenkeelError: a rate is not within 0 and 1, or no number.

    >>> require_rates({"drop.p": 0.5})
    """
    for name, rate in rates.items():
        if not _is_number(rate) or not 0 <= rate <= 1:  # not a number is neither
            raise EvenkeelError(f"the rate of {name} would be {rate}: rates to drop are 0 to 1")


@contextmanager
def at_ending_rates(model: nn.Module) -> Generator[bool]:
    """The model with the rates that its schedule ends with, if it is under one, while entered.

    Yields:
        Whether any rate differs.

    >>> with at_ending_rates(nn.Dropout(0.5)) as differs:
    ...     print(differs)
    False
    """
    ending = {(m, name): rate for m in model.modules() for name, rate in _ENDING.get(m, {}).items()}
    found = {place: getattr(*place) for place in ending}
    try:
        for place, rate in ending.items():
            setattr(*place, rate)
        yield found != ending
    finally:
        for place, rate in found.items():
            setattr(*place, rate)


def is_scheduled(module: nn.Module) -> bool:
    """Whether a schedule, of which the end is known, sets a rate of the module."""
    return module in _ENDING


def _places_in(model: nn.Module) -> dict[str, Place]:
    """The rates that modules hold by what classes and attributes are called."""
    return {
        _name(path, attribute): (module, attribute)
        for path, module in model.named_modules()
        for attribute, value in vars(module).items()
        if _is_number(value) and _holds_rate(module, attribute, value)
    }


def _places_seen(model: nn.Module, graph: LayerGraph) -> dict[str, Place]:
    """The rates that modules hold by what a trace saw them drop."""
    modules = dict(model.named_modules())
    return {
        _name(layer.path, attribute): (modules[layer.path], attribute)
        for layer in graph
        if layer.p and layer.path in modules
        for attribute in RATES
        if _is_number(value := vars(modules[layer.path]).get(attribute)) and value == layer.p
    }


def _holds_rate(module: nn.Module, attribute: str, value: float) -> bool:
    if not 0 <= value <= 1 or _NO_RATE.search(attribute):
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return attribute == "p"
    if getattr(module, "evenkeel_kind", None) is Kind.DROPOUT or _DROPS.search(type(module).__name__):
        return attribute in RATES or bool(_DROPS.search(attribute))
    return bool(_DROPS.search(attribute)) and (attribute in RATES or isinstance(value, float))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(path: str, attribute: str) -> str:
    return f"{path}.{attribute}" if path else attribute
