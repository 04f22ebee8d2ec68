"""Units: the weight layers whose outputs can be matched by their own weights, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from evenkeel.graph.kinds import CONVOLUTIONS, EMBEDDINGS, Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.merging.folds import Fold
from evenkeel.signals.weights import Weights, weights_of

NORM_FOLLOWS = "a norm with stored statistics follows: what a unit's scale and shift do is undone there"
_FUNCTIONS = frozenset({"linear", "bilinear"}) | (CONVOLUTIONS - {"conv_tbc"})
_COMPUTED = (
    "its weights are computed from other parameters, as by weight norm or pruning: merge and match those that it "
    "computes, made parameters first"
)
_TABLE = "an embedding: rows of a table, not units that sum"
_NOT_READ = (
    "read whole by no linear layer or convolution in a pass, as those that are cut, those of recurrent layers, which "
    "torch runs as one call, and those that the batches do not reach"
)
_FROZEN = "frozen (requires_grad=False), as others are not"
_QUANTIZED = "quantized: its weights are whole numbers; match before quantizing"


@dataclass(frozen=True)
class Units:
    """The units of one weight layer.

    Attributes:
        path: of the layer.
        name: of its weight among the model's parameters.
        weights: its weights and bias.
        is_last: whether its channels are the last dimension of what it returns, as a linear layer's are.
    """

    path: str
    name: str
    weights: Weights
    is_last: bool

    @property
    def count(self) -> int:
        """How many there are."""
        return self.weights.rows().shape[0]

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias to shift means by."""
        return self.weights.bias is not None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Its weight, and its bias if there is one."""
        bias = self.weights.bias
        return [self.weights.parameter] if bias is None else [self.weights.parameter, bias]

    def folded(self, held: Mapping[nn.Parameter, Tensor], fold: Fold) -> dict[nn.Parameter, Tensor]:
        """What weight and bias become if they are to do to outputs what a fold says.

        Args:
            held: what weight and bias are without it.
            fold: of these units.
        """
        scale, shift = (values.to(held[self.weights.parameter].device) for values in fold)
        parameter, bias = self.weights.parameter, self.weights.bias
        value = held[parameter].to(torch.float64, copy=True)
        view = replace(self.weights, parameter=nn.Parameter(value, requires_grad=False)).units_first()
        sizes = view.shape[: len(self.weights.units)]
        view.mul_(scale.reshape(*sizes, *[1] * (view.dim() - len(sizes))))
        new = {parameter: value} if bias is None else {parameter: value, bias: scale * held[bias].double() + shift}
        return {parameter: values.to(parameter.dtype) for parameter, values in new.items()}


def units_of(model: nn.Module, graph: LayerGraph) -> tuple[dict[str, Units], dict[str, str]]:
    """The weight layers to match, by path in execution order, and those left as they are, with the reason.

    Args:
        model: the model.
        graph: of it.

    >>> import torch, evenkeel as ek
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> units, untouched = units_of(net, ek.trace(net, torch.ones(2, 4)))
    >>> list(units), list(untouched)
    (['3'], ['0'])
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    sites: dict[nn.Parameter, list[Layer]] = {}
    untouched = {path: _QUANTIZED for path, module in model.named_modules() if _is_quantized(module)}
    for layer in graph.of(Kind.WEIGHT):
        weights = weights_of(layer)
        if weights is None or weights.parameter not in names:
            untouched[layer.name] = _COMPUTED
        else:
            sites.setdefault(weights.parameter, []).append(layer)
    are_some_free = any(parameter.requires_grad for parameter in names)
    units: dict[str, Units] = {}
    for parameter, layers in sites.items():
        name, path = names[parameter], _path_of(names[parameter])
        found = weights_of(layers[0])
        assert found is not None
        if reason := _why_not(graph, found, layers, are_some_free=are_some_free):
            untouched[path] = reason
        else:
            units[path] = Units(path, name, found, layers[0].function not in CONVOLUTIONS)
    tables = (name for p, name in names.items() if p.dim() > 1 and p not in sites)
    computed = {path for path, reason in untouched.items() if reason == _COMPUTED}
    left = (name for name in tables if not any(name.startswith(f"{path}.") for path in computed))
    return units, untouched | {_path_of(name): _NOT_READ for name in left}


def _path_of(name: str) -> str:
    return "" if name == "weight" else name.removesuffix(".weight")


def _why_not(graph: LayerGraph, weights: Weights, layers: Sequence[Layer], *, are_some_free: bool) -> str:
    """Why a layer cannot, or need not, be matched by its own weights; empty if it can."""
    if reason := _misread(graph, weights, layers):
        return reason
    if are_some_free and not all(p.requires_grad for p in (weights.parameter, weights.bias) if p is not None):
        return _FROZEN
    return NORM_FOLLOWS if all(map(_meets_norm, layers)) else ""


def _misread(graph: LayerGraph, weights: Weights, layers: Sequence[Layer]) -> str:
    """What reads weights, or their bias, so that nothing can be folded into them, in words; empty if nothing does."""
    parameter, bias = weights.parameter, weights.bias
    tables = [layer for layer in layers if layer.function in EMBEDDINGS]
    odd = [layer for layer in layers if layer.function not in _FUNCTIONS]
    parts = [layer for layer in layers if layer.arguments.get("weight") is not parameter]
    biased = [layer for layer in layers if layer.arguments.get("bias") is not bias]
    others = [*_readers(graph, parameter, layers), *_readers(graph, bias, layers)]
    reasons = [
        (_TABLE, tables if len(tables) == len(layers) else ()),
        ("shared with an embedding ({}), whose rows would be scaled, too", tables),
        ("read at {}, which is no linear layer and no convolution", odd),
        ("its transpose, or a part of it, is read at {}", parts),
        ("its bias at {} is another one, or computed: no shift can be folded into it", biased),
        ("it, or its bias, is read at {}, too, which would change with it", others),
    ]
    return next((reason.format(found[0].label) for reason, found in reasons if found), "")


def _readers(graph: LayerGraph, parameter: nn.Parameter | None, layers: Sequence[Layer]) -> Iterator[Layer]:
    """The other layers that read a parameter."""
    if parameter is not None:
        yield from (x for x in graph if x not in layers and any(c is parameter for c in x.constants))


def _meets_norm(layer: Layer) -> bool:
    """Whether all that reads a layer normalises it by stored statistics."""
    passing = (Kind.PASS, Kind.DROPOUT)
    return bool(layer.users) and all(_meets_norm(user) if user.kind in passing else user.stores for user in layer.users)


def _is_quantized(module: nn.Module) -> bool:
    return ".quantized" in type(module).__module__ and not isinstance(getattr(module, "weight", None), nn.Parameter)


def unlike(reference: nn.Module, units: Mapping[str, Units]) -> str:
    """In what a network differs from the one that the units are of, in words; empty if in nothing that counts."""
    theirs = dict(reference.named_parameters())
    for one in units.values():
        shape, own = getattr(theirs.get(one.name), "shape", None), one.weights.parameter.shape
        if shape != own:
            found = "none" if shape is None else f"shape {tuple(shape)}"
            return f"{one.name!r} has shape {tuple(own)} in the model, and {found} there"
    return ""
