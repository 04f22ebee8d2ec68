"""Recorder: turns the calls of one forward pass into layers."""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from operator import attrgetter
from traceback import extract_tb
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from evenkeel.errors import PACKAGE, brief
from evenkeel.graph import unseen_calls
from evenkeel.graph.call_kinds import kind_of_call
from evenkeel.graph.call_sites import TORCH, location_of_call
from evenkeel.graph.extents import Extent, base_of
from evenkeel.graph.kinds import (
    ENTERING,
    HIDDEN_DROPOUT,
    LEAVING,
    LIKE_SECOND,
    RANDOM,
    REPLACING,
    SAMPLES,
    SHAPE_ONLY,
    UNKNOWN,
    Kind,
    function_name,
    hidden_rate,
    is_own_call,
    kind_of_function,
)
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.graph.randomness import Law, dropped, law_of
from evenkeel.graph.unseen_calls import attention_opened, hidden_calls, is_vectorizing, unchecked_laws
from evenkeel.model import hooks
from evenkeel.model.flags import frozen_in
from evenkeel.model.nested import map_tensors, tensors

_NO_SIGNAL = SHAPE_ONLY | RANDOM


class Recorder(TorchFunctionMode):
    """Records every call of a torch function in one forward pass as a layer.

    Args:
        model: the model, as the caller gave it.
        training: whether the pass is made in train mode.
    """

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        super().__init__()
        self.training = training
        # Code that calls, or is called, between the model's source and torch.
        self.files = {inspect.getfile(base) for base in type(self).__mro__ if base.__module__.startswith("evenkeel.")}
        self.files |= {inspect.getfile(hooks), inspect.getfile(unseen_calls)}
        self.files |= {inspect.getfile(type(m)) for m in model.modules() if hasattr(m, "evenkeel_layer")}
        self.frozen = frozen_in(model)
        self.layers: list[Layer] = []
        self.position: dict[Layer, int] = {}
        self.failure: tuple[BaseException | None, str] = (None, "")  # the last error seen, and the module it left first
        self.names: Counter[str] = Counter()
        self.paths = {module: path for path, module in model.named_modules()}
        self.given: set[Layer] = set()  # layers whose signals the model, or a part that is called alone, was given
        # The modules entered and not left, each with the layers whose signals it was given.
        self.stack: list[tuple[nn.Module, tuple[Layer, ...]]] = []
        self.whole: nn.Module | None = None  # the module entered that declares its kind: recorded as one call
        # Of every tensor seen, the layer that made it, or None if it carries no signal of the inputs.
        self.producers = WeakIdKeyDictionary()
        self.laws = WeakIdKeyDictionary()  # of tensors without signal: what is known of their elements
        self.learned = WeakIdKeyDictionary()  # tensors without signal that come from parameters
        self.rootless: set[Layer] = set()  # that read no signal: dropout and noise on parameters, and what follows
        # Of every tensor written to in place, itself or through a view: where in it, by which layer.
        self.writes: Any = WeakIdKeyDictionary()
        self.escaped: list[Layer] = []  # layers whose signals left torch: what enters it may come from them
        # Parameters and buffers as the caller knows them, by the ones that the pass sees.
        self.held = dict([*model.named_parameters(), *model.named_buffers()])
        self.originals = WeakIdKeyDictionary()
        self.parts = WeakIdKeyDictionary()  # likewise, by what was selected from them or rearranged
        self.model = model

    def run(self, run: Callable[[Any], Any], inputs: Any) -> LayerGraph:
        """Record the pass that `run(inputs)` makes, the model's modes being set, its parameters perhaps fake by now."""
        given = self._begin(inputs)
        with self, hidden_calls(self._add_scripted), unchecked_laws():
            outputs = run(inputs)
        return self._end(given, outputs)

    def _begin(self, inputs: Any) -> tuple[Layer, ...]:
        """Watch the model's modules and parameters; return the layers of the inputs."""
        for path, seen in (*self.model.named_parameters(), *self.model.named_buffers()):
            self.originals[seen] = self.held[path]
            self.producers[seen] = None
            if isinstance(self.held[path], nn.Parameter):
                self.learned[seen] = True
        for tensor in tensors(inputs):
            self._add(Kind.INPUT, "input", [tensor], shape=tuple(tensor.shape))
        given = self._signals(inputs)
        for module in self.paths:
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks, and shows no calls
                self.escaped = list(given)
                self.given.update(given)
            else:
                module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
                module.register_forward_hook(self._leave, always_call=True)
        return given

    def _end(self, given: tuple[Layer, ...], outputs: Any) -> LayerGraph:
        """The graph of what was recorded, given the layers of the inputs."""
        self._add_unseen(self.model, given, outputs)
        self._add(Kind.OUTPUT, "output", [], inputs=self._signals(outputs))
        return LayerGraph(tuple(self._without_strangers()))

    def _without_strangers(self) -> list[Layer]:
        """The layers but for inputs that nothing reads and the model is not given, such as the labels of a batch."""
        known = self.given.union(*(layer.inputs for layer in self.layers))
        layers = [layer for layer in self.layers if layer.kind is not Kind.INPUT or layer in known]
        names = [layer.name for layer in self.layers if layer.kind is Kind.INPUT]
        for layer, name in zip((layer for layer in layers if layer.kind is Kind.INPUT), names, strict=False):
            object.__setattr__(layer, "name", name)  # those that are left close up
        return layers

    def explain(self, failure: Exception) -> str:
        """What the pass raised, where, and what to do."""
        seen, path = self.failure
        layer = f"in layer {path!r}" if seen is failure and path else "in the model's forward"
        frames = [f for f in extract_tb(failure.__traceback__) if not f.filename.startswith((TORCH, PACKAGE))]
        where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames and seen is failure else ""
        return (
            f"the forward pass raised {brief(failure)} {layer}{where}, after {len(self.layers)} layers: "
            "check that the example has the shape and dtype that the model takes"
        )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward and self.whole is None:
            with attention_opened(), self:
                return func(*args, **kwargs)
        result = self._make(func, args, kwargs)
        if self.whole is None:
            name = function_name(func)
            outputs = tensors(args[0] if name == "setitem" else result)
            if outputs:
                self._record(name, func, args, kwargs, outputs)
            elif name in LEAVING:
                self.escaped.extend(self._signals(args))
        return result

    def _make(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call."""
        return func(*args, **kwargs)

    def _record(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> None:
        """Record one call, unless what it returns carries no signal, and no noise is put on a parameter."""
        operands = tensors((args, kwargs))
        read = tensors(args[:1]) if name in LIKE_SECOND else tensors(args[1:]) if name == "copy" else operands
        in_place = bool(args) and outputs[0] is args[0] and func.__name__.endswith("_")
        drawn = name in SAMPLES and not in_place
        signals = () if name in _NO_SIGNAL and not drawn else self._signals(read)
        noise = [law for tensor in read if (law := self._noise_in(tensor)) is not None]
        if not signals and not self._is_on_parameters(name, args, kwargs, noise):
            self._record_constant(name, args, kwargs, operands, outputs, in_place=in_place)
            return
        values = self._signals([tensor for tensor in operands if tensor.is_floating_point()])
        data = tuple(layer for layer in signals if layer not in self.rootless)
        factor = self._factor(name, args, noise)
        kind = Kind.NOISE if drawn else kind_of_call(name, data or signals, len(values), len(operands), factor)
        location = self._location()
        dropped = self._drop_probability(name, args, kwargs, factor) if kind is Kind.DROPOUT else None
        self._add(
            kind,
            name,
            outputs,
            inputs=(*data, *(layer for layer in signals if layer not in data)),
            call=attrgetter(name) if func.__name__ == "__get__" else func,  # a getter is not to be copied
            args=map_tensors(self._without_data, args),
            kwargs=map_tensors(self._without_data, kwargs),
            shape=tuple(outputs[0].shape),
            p=dropped if kind is Kind.DROPOUT else self._hidden_drop_probability(name, args, kwargs),
            scaled=factor is None or factor.scaled,
            noise=factor,
            **location,
        )
        if args and outputs[0] is args[0]:
            self.writes.setdefault(base_of(outputs[0]), []).append((Extent.of(outputs[0]), self.layers[-1]))

    def _record_constant(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Tensor],
        outputs: list[Tensor],
        *,
        in_place: bool,
    ) -> None:
        """Remember that tensors carry no signal, and what noise they carry."""
        if name in ENTERING and self.escaped:
            return  # left unknown: it may be a signal that left torch
        if kind_of_function(name) is Kind.DROPOUT:  # of one value: a mask
            kept = self.laws.get(args[0]) if args else None
            law = dropped(kept, self._drop_probability(name, args, kwargs, None) or 0.0) if kept else None
        else:
            given = args[1:] if name == "copy" else args
            law = law_of(name, given, kwargs, self.laws.get, in_place=in_place)
        stored = [held for tensor in operands if (held := self._stored(tensor)) is not None]
        learned = name not in _NO_SIGNAL and any(tensor in self.learned for tensor in operands)
        for output in outputs:
            self.producers[output] = None
            self.laws.pop(output, None)
            if law is not None:
                self.laws[output] = law
            if learned:
                self.learned[output] = True
            if stored and (name == "embedding" or kind_of_function(name) is Kind.PASS):
                self.parts[output] = stored[0]

    def _noise_in(self, tensor: Tensor) -> Law | None:
        """The law of a random tensor without signal."""
        law = self.laws.get(tensor)
        return law if law is not None and law.is_random and self.producers.get(tensor) is None else None

    def _is_on_parameters(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], noise: list[Law]) -> bool:
        """Whether a call puts dropout or noise on a parameter: it is a layer, though no signal comes in."""
        if name in _NO_SIGNAL:
            return False
        if kind_of_function(name) is Kind.DROPOUT:  # of one value, it is a mask
            return bool(args) and isinstance(args[0], Tensor) and self.laws.get(args[0]) is None
        held = [tensor for tensor in tensors((args, kwargs)) if tensor in self.learned and tensor not in self.laws]
        if not noise or not held:
            return False
        kind = kind_of_function(name)
        return kind is Kind.JOIN or name in REPLACING or (kind is Kind.GATE and not noise[0].is_centered)

    def _factor(self, name: str, args: tuple[Any, ...], noise: list[Law]) -> Law | None:
        """The law of what noise multiplies a signal by, or of what is added or put in its place; None without noise."""
        if not noise or name not in REPLACING:
            return noise[0] if noise else None
        place = REPLACING[name]
        mask = self._noise_in(args[place]) if isinstance(args[place], Tensor) else None
        others = [other for i, other in enumerate(args) if i != place]
        values = [self.laws.get(other) if isinstance(other, Tensor) else Law(other, 0.0) for other in others]
        zeros = [value is not None and Law(value.mean, value.variance) == Law(0.0, 0.0) for value in values]
        if mask is None or not any(zeros):
            return Law(0.0, None)  # something else is put in its place: noise, that keeps nothing of the signal
        kept = name == "where" and zeros[-1]
        return mask if kept else mask.inverted()

    def _stored(self, tensor: Tensor) -> Tensor | None:
        """The parameter or buffer, as the caller knows it, that a tensor is, or is a part of."""
        return self.originals.get(tensor, self.parts.get(tensor))

    def _add(self, kind: Kind, function: str, outputs: Iterable[Tensor], **details: Any) -> None:
        module = self.stack[-1][0] if self.stack else self.model
        path = self.paths[module]
        own = bool(self.stack) and (module is self.whole or is_own_call(module, kind))
        name = path if own and path else f"{path}.{function}".lstrip(".")
        self.names[name] += 1
        if self.names[name] > 1:
            name = f"{name}#{self.names[name]}"
        caller = self.paths[self.stack[-2][0]] if own and len(self.stack) > 1 else "" if own else path
        details |= {"caller": caller, "frozen": module in self.frozen}
        layer = Layer(name, kind, path, module if own else None, function=function, **details)
        if kind is not Kind.INPUT and self.rootless.issuperset(layer.inputs):
            self.rootless.add(layer)
        self.position[layer] = len(self.layers)
        self.layers.append(layer)
        for output in outputs:
            self.producers[output] = layer

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if is_vectorizing():
            return
        with torch._C.DisableTorchFunction():  # what the recorder itself asks of tensors is no call of the model
            if not self.stack:
                self._add_inputs((args, kwargs))
            signals = self._signals((args, kwargs))
            self.given.update(() if self.stack else signals)
            self.stack.append((module, signals))
        if self.whole is None and getattr(module, "evenkeel_kind", None) is not None:
            self.whole = module

    def _add_inputs(self, given: Any) -> None:
        """Add an INPUT for every tensor given to the model that the caller made, out of sight, of its own inputs."""
        for tensor in tensors(given):
            if self.producers.get(tensor) is None and tensor not in self.originals:
                self._add(Kind.INPUT, "input", [tensor], shape=tuple(tensor.shape))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if is_vectorizing():
            return
        error = sys.exc_info()[1]
        with torch._C.DisableTorchFunction():
            if error is not None:
                if error is not self.failure[0]:
                    self.failure = (error, self.paths[module])
            elif module is self.whole:
                self._add_whole(module, self.stack[-1][1], tensors(output))
            elif self.whole is None:
                self._add_unseen(module, self.stack[-1][1], output)
        self.whole = None if module is self.whole else self.whole
        self.stack.pop()

    def _add_whole(self, module: nn.Module, signals: tuple[Layer, ...], outputs: list[Tensor]) -> None:
        """Add the one layer of a module that declares its own kind."""
        kind, name = cast("Kind", module.evenkeel_kind), type(module).__name__
        p = 0.0 if module in self.frozen else cast("float | None", getattr(module, "p", None))
        shape = tuple(outputs[0].shape) if outputs else ()
        self._add(kind, name, outputs, inputs=signals, shape=shape, p=p, **self._location())

    def _add_unseen(self, module: nn.Module, signals: tuple[Layer, ...], output: Any) -> None:
        """Add an OPAQUE layer for what a module returns but no torch function was seen to make."""
        unseen = [tensor for tensor in tensors(output) if tensor not in self.producers]
        if signals and unseen:
            self._add(Kind.OPAQUE, type(module).__name__, unseen, inputs=signals, shape=tuple(unseen[0].shape))

    def _add_scripted(self, scripted: Any, given: Any, output: Any) -> None:
        """Add an OPAQUE layer for the call of what is scripted, or of torch.vmap, which shows none of its own calls."""
        name = getattr(scripted, "name", None) or scripted.original_name
        with torch._C.DisableTorchFunction():
            outputs = [tensor for tensor in tensors(output) if tensor not in self.producers]
            if (signals := self._signals(given)) and outputs and self.whole is None:
                details: dict[str, Any] = {"inputs": signals, "shape": tuple(outputs[0].shape), "call": scripted}
                self._add(Kind.OPAQUE, name, outputs, **details, **self._location())

    def _signals(self, value: Any) -> tuple[Layer, ...]:
        found = (self._producer(tensor) for tensor in tensors(value))
        return tuple(layer for layer in found if layer is not None)

    def _producer(self, tensor: Tensor) -> Layer | None:
        """The layer that made a tensor, once that has been brought up to date."""
        if tensor not in self.producers:  # of unknown origin
            self.producers[tensor] = None
            if not self.layers:  # the inputs came in some object that does not show its tensors
                self._add(Kind.INPUT, "input", [tensor], shape=tuple(tensor.shape))
            elif self.escaped:
                inputs = tuple(dict.fromkeys(self.escaped))
                self._add(Kind.OPAQUE, UNKNOWN, [tensor], inputs=inputs, shape=tuple(tensor.shape))
        made = self.producers[tensor]
        since = self.position[made] if made else -1
        writes = [(e, layer) for e, layer in self.writes.get(base_of(tensor), ()) if self.position[layer] > since]
        extent = Extent.of(tensor) if writes else None
        later = [layer for written, layer in writes if extent and written.overlaps(extent)]
        if later:  # it views, or is viewed by, what was written to in place after it was made
            inputs = (made, *later) if made else tuple(later)
            kind = Kind.PASS if len(inputs) == 1 else Kind.CONCAT
            self._add(kind, "view", [tensor], inputs=inputs, shape=tuple(tensor.shape))
        return self.producers[tensor]

    def _without_data(self, tensor: Tensor) -> Any:
        """What a call was given: a signal as its layer, a parameter or buffer, or its transpose, as the model's own.

        Of a part of one, and of any other tensor, only the size counts; but the part has the same mean square.
        """
        layer = self.producers.get(tensor)
        stored = self._stored(tensor)
        if layer is not None or tensor in self.originals or stored is None:
            return layer or (tensor.shape if stored is None else stored)
        with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
            if stored.dim() == 2 and tensor.shape == stored.T.shape and tensor.stride() == stored.T.stride():
                return stored.T
            row = stored.flatten()[: tensor.shape[-1] if tensor.dim() else 1].double()
            scale = (stored.double().square().mean() / row.square().mean()).sqrt().nan_to_num(0.0, 0.0)
            return (row * scale if len(row) in tensor.shape[-1:] else scale).expand(tensor.shape)

    def _drop_probability(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], factor: Law | None
    ) -> float | None:
        if factor is not None:  # a product with a random tensor
            attributes = (getattr(self.stack[-1][0], a, None) for a in ("p", "drop_prob")) if self.stack else ()
            return next((a for a in (factor.p, *attributes) if isinstance(a, float)), None)
        given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        training = given.get("training", given.get("train", True))  # torch.dropout's word
        counts = training or not (self.training or (self.stack and self.stack[-1][0] in self.frozen))
        return float(given.get("p", 0.5)) if counts else 0.0

    def _hidden_drop_probability(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
        """The rate of a dropout inside a call that is not understood; None if there is none."""
        if name not in HIDDEN_DROPOUT:
            return None
        place = hidden_rate(name, args)
        p = kwargs.get("dropout_p", None if place is None else args[place])
        off = kwargs.get("training") is False or (self.stack and not self.stack[-1][0].training)
        return p if isinstance(p, float) and not (off and self.training) else None

    def _location(self) -> dict[str, Any]:
        return location_of_call(self.stack[0][0], self.files) if self.stack else {}
