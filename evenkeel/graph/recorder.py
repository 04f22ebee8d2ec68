"""Recorder: turns the calls of one forward pass into layers."""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from traceback import extract_tb
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from evenkeel.errors import PACKAGE, brief
from evenkeel.graph.kinds import (
    AFFINE,
    ENTERING,
    HIDDEN_DROPOUT,
    LEAVING,
    LIKE_SECOND,
    PRODUCTS,
    RANDOM,
    SHAPE_ONLY,
    Kind,
    function_name,
    is_own_call,
    kind_of_function,
)
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.model import hooks
from evenkeel.model.flags import frozen_in
from evenkeel.model.nested import map_tensors, tensors

_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_NO_SIGNAL = SHAPE_ONLY | RANDOM
_ASKED: Any = vars(functional)["has_torch_function"]


@dataclass(frozen=True)
class _Noise:
    """A random tensor without signal: its probability of keeping a value, if known, and what it is where it does."""

    keep: float | None
    scale: float = 1.0


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
        self.files.add(inspect.getfile(hooks))
        self.files |= {inspect.getfile(type(m)) for m in model.modules() if hasattr(m, "evenkeel_layer")}
        self.frozen = frozen_in(model)
        self.layers: list[Layer] = []
        self.position: dict[Layer, int] = {}
        self.failure: tuple[BaseException | None, str] = (None, "")  # the last error seen, and the module it left first
        self.names: Counter[str] = Counter()
        self.paths = {module: path for path, module in model.named_modules()}
        # The modules entered and not left, each with the layers whose signals it was given.
        self.stack: list[tuple[nn.Module, tuple[Layer, ...]]] = []
        self.whole: nn.Module | None = None  # the module entered that declares its kind: recorded as one call
        # Of every tensor seen, the layer that made it, or None if it carries no signal of the inputs.
        self.producers = WeakIdKeyDictionary()
        self.noise = WeakIdKeyDictionary()  # of every random tensor without signal
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
        with self, scripted_calls(self._add_scripted):
            outputs = run(inputs)
        return self._end(given, outputs)

    def _begin(self, inputs: Any) -> tuple[Layer, ...]:
        """Watch the model's modules and parameters; return the layers of the inputs."""
        for path, seen in (*self.model.named_parameters(), *self.model.named_buffers()):
            self.originals[seen] = self.held[path]
            self.producers[seen] = None
        for tensor in tensors(inputs):
            self._add(Kind.INPUT, "input", [tensor], shape=tuple(tensor.shape))
        given = self._signals(inputs)
        for module in self.paths:
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks, and shows no calls
                self.escaped = list(given)
            else:
                module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
                module.register_forward_hook(self._leave, always_call=True)
        return given

    def _end(self, given: tuple[Layer, ...], outputs: Any) -> LayerGraph:
        """The graph of what was recorded, given the layers of the inputs."""
        self._add_unseen(self.model, given, outputs)
        self._add(Kind.OUTPUT, "output", [], inputs=self._signals(outputs))
        return LayerGraph(tuple(self.layers))

    def explain(self, failure: Exception) -> str:
        """What the pass raised, where, and what to do."""
        seen, path = self.failure
        layer = f"in layer {path!r}" if seen is failure and path else "in the model's forward"
        frames = [f for f in extract_tb(failure.__traceback__) if not f.filename.startswith((_TORCH, PACKAGE))]
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
            with _attention_opened(), self:
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if self.whole is None:
            name = function_name(func)
            outputs = tensors(args[0] if name == "setitem" else result)
            if outputs:
                self._record(name, func, args, kwargs, outputs)
            elif name in LEAVING:
                self.escaped.extend(self._signals(args))
        return result

    def _record(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> None:
        """Record one call, unless what it returns carries no signal."""
        read = args[:1] if name in LIKE_SECOND else args[1:] if name == "copy" else (args, kwargs)
        signals = () if name in _NO_SIGNAL else self._signals(read)
        noise = [self.noise[tensor] for tensor in tensors(read) if tensor in self.noise]
        if not signals:
            self._record_constant(name, args, kwargs, noise, outputs)
            return
        operands = tensors((args, kwargs))
        values = self._signals([tensor for tensor in operands if tensor.is_floating_point()])
        kind = _kind(name, signals, values=len(values), operands=len(operands), noise=bool(noise))
        location = self._location()
        dropped = self._drop_probability(name, args, kwargs, noise) if kind is Kind.DROPOUT else None
        self._add(
            kind,
            name,
            outputs,
            inputs=signals,
            call=attrgetter(name) if func.__name__ == "__get__" else func,  # a getter is not to be copied
            args=map_tensors(self._without_data, args),
            kwargs=map_tensors(self._without_data, kwargs),
            shape=tuple(outputs[0].shape),
            p=dropped if kind is Kind.DROPOUT else self._hidden_drop_probability(name, args, kwargs),
            scaled=not noise or (dropped is not None and abs(noise[0].scale * (1 - dropped) - 1) < 1e-6),
            **location,
        )
        if args and outputs[0] is args[0]:
            self.writes.setdefault(_base(outputs[0]), []).append((_Extent.of(outputs[0]), self.layers[-1]))

    def _record_constant(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], noise: list[_Noise], outputs: list[Tensor]
    ) -> None:
        """Remember that tensors carry no signal, and what noise they carry."""
        if name in ENTERING and self.escaped:
            return  # left unknown: it may be a signal that left torch
        keep = (*args[1:], kwargs.get("p"))[0]
        if name in RANDOM:
            noise = [_Noise(keep if name == "bernoulli" and isinstance(keep, float) else None)]
        elif kind_of_function(name) is Kind.DROPOUT:  # of a constant: a mask
            keep = 1 - (self._drop_probability(name, args, kwargs, []) or 0)
            noise = [_Noise(keep, 1 / keep if keep else 1.0)]
        elif noise and kind_of_function(name) is Kind.GATE and isinstance(args[-1], (int, float)):
            factor = 1 / args[-1] if "div" in name and args[-1] else args[-1]
            noise = [_Noise(noise[0].keep, noise[0].scale * factor)]
        elif noise and name == "rsub" and args[-1] == 1 and noise[0].keep is not None:
            noise = [_Noise(1 - noise[0].keep)]  # 1 - mask keeps what the mask drops
        elif noise and kind_of_function(name) is not Kind.PASS:
            noise = [_Noise(None, noise[0].scale)]
        stored = [self._stored(tensor) for tensor in tensors((args, kwargs)) if self._stored(tensor) is not None]
        for output in outputs:
            self.producers[output] = None
            if noise:
                self.noise[output] = noise[0]
            if stored and (name == "embedding" or kind_of_function(name) is Kind.PASS):
                self.parts[output] = stored[0]

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
        self.position[layer] = len(self.layers)
        self.layers.append(layer)
        for output in outputs:
            self.producers[output] = layer

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():  # what the recorder itself asks of tensors is no call of the model
            if not self.stack:
                self._add_inputs((args, kwargs))
            self.stack.append((module, self._signals((args, kwargs))))
        if self.whole is None and getattr(module, "evenkeel_kind", None) is not None:
            self.whole = module

    def _add_inputs(self, given: Any) -> None:
        """Add an INPUT for every tensor given to the model that the caller made, out of sight, of its own inputs."""
        for tensor in tensors(given):
            if self.producers.get(tensor) is None and tensor not in self.originals:
                self._add(Kind.INPUT, "input", [tensor], shape=tuple(tensor.shape))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
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

    def _add_scripted(self, name: str, given: Any, output: Any) -> None:
        """Add an OPAQUE layer for the call of a scripted function, which shows none of its own calls."""
        with torch._C.DisableTorchFunction():
            outputs = [tensor for tensor in tensors(output) if tensor not in self.producers]
            if (signals := self._signals(given)) and outputs and self.whole is None:
                shape = tuple(outputs[0].shape)
                self._add(Kind.OPAQUE, name, outputs, inputs=signals, shape=shape, **self._location())

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
                self._add(Kind.OPAQUE, "unknown", [tensor], inputs=inputs, shape=tuple(tensor.shape))
        made = self.producers[tensor]
        since = self.position[made] if made else -1
        extent, writes = _Extent.of(tensor), self.writes.get(_base(tensor), ())
        later = [layer for written, layer in writes if self.position[layer] > since and written.overlaps(extent)]
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
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], noise: list[_Noise]
    ) -> float | None:
        if noise:  # a product with a random tensor
            attributes = (getattr(self.stack[-1][0], a, None) for a in ("p", "drop_prob")) if self.stack else ()
            return next(
                (a for a in (*(1 - n.keep for n in noise if n.keep), *attributes) if isinstance(a, float)), None
            )
        given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        training = given.get("training", given.get("train", True))  # torch.dropout's word
        counts = training or not (self.training or (self.stack and self.stack[-1][0] in self.frozen))
        return float(given.get("p", 0.5)) if counts else 0.0

    def _hidden_drop_probability(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
        """The rate of a dropout inside a call that is not understood; None if there is none."""
        place = place_of_hidden_rate(name, args)
        p = kwargs.get("dropout_p", args[place] if place < len(args) else None)
        off = kwargs.get("training") is False or (self.stack and not self.stack[-1][0].training)
        return p if isinstance(p, float) and not (off and self.training) and name in HIDDEN_DROPOUT else None

    def _location(self) -> dict[str, Any]:
        """File, line and end of the model's source that makes the call: the innermost frame outside of torch."""
        frame = sys._getframe(1) if self.stack else None
        while frame is not None:
            code = frame.f_code
            if code is nn.Module._call_impl.__code__ and frame.f_locals["self"] is self.stack[0][0]:
                break  # what lies above is the caller's code, not the model's
            if code.co_filename not in self.files and not code.co_filename.startswith(_TORCH):
                return {"file": code.co_filename, "line": frame.f_lineno, "end": _end(frame)}
            frame = frame.f_back
        return {}


def _end(frame: FrameType) -> tuple[int, int] | None:
    """Line and column where the call that a frame makes ends."""
    if sys.version_info < (3, 11):
        return None
    _, line, _, column = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    return None if line is None or column is None else (line, column)


def place_of_hidden_rate(name: str, args: tuple[Any, ...]) -> int:
    """Where among its arguments a call holds the rate of a dropout inside: one later, of packed sequences."""
    place = HIDDEN_DROPOUT.get(name, len(args))
    return place + isinstance((*args[place + 1 :], None)[0], float)


def _kind(name: str, signals: tuple[Layer, ...], *, values: int, operands: int, noise: bool) -> Kind:
    """The kind of one call, by its name and by which of its operands are signals, constants or noise."""
    kind = kind_of_function(name)
    if name in PRODUCTS:
        return Kind.WEIGHT if len(signals) == 1 and operands > 1 else Kind.GATE if values > 1 else Kind.OPAQUE
    if noise:
        return Kind.DROPOUT if kind is Kind.GATE or name in ("where", "masked_fill") else Kind.OPAQUE
    if kind in (Kind.JOIN, Kind.GATE) and len(signals) == 1:
        return Kind.PASS  # a constant added or multiplied
    if name in AFFINE and len(signals) == 1:
        return Kind.PASS
    if kind is Kind.ACTIVATION and values > 1:  # one signal to the power of the other
        return Kind.OPAQUE
    return kind


@contextmanager
def _attention_opened() -> Generator[None]:
    """Make multi-head attention, one function to torch, run its inner calls under the recorder."""
    names: Any = vars(functional)
    names["has_torch_function"] = lambda tensors: False  # type: ignore[misc]
    try:
        yield
    finally:
        names["has_torch_function"] = _ASKED  # not what was found: another lane may be inside, too


@contextmanager
def scripted_calls(seen: Callable[[str, Any, Any], None]) -> Generator[None]:
    """Tell of every call of a scripted function, which no mode sees: its name, what it is given and what it returns."""
    scripted: Any = torch.jit.ScriptFunction
    call = scripted.__call__

    def told(function: Any, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # a mode would see some of the calls inside, and only the first time
            output = call(function, *args, **kwargs)
        seen(function.name, (args, kwargs), output)
        return output

    scripted.__call__ = told
    try:
        yield
    finally:
        scripted.__call__ = call


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


@dataclass(frozen=True)
class _Extent:
    """Where in memory a view of a tensor lies."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Extent:
        return cls(int(tensor.storage_offset()), tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride())))

    def overlaps(self, other: _Extent) -> bool:
        """Whether two views of one tensor may share memory."""
        if self.strides != other.strides:
            return True
        low, high = sorted((self, other), key=lambda extent: extent.offset)
        distance = high.offset - low.offset
        for stride, size in sorted(zip(low.strides, low.shape, strict=True), reverse=True):
            steps, distance = divmod(distance, stride) if stride else (0, distance)
            if steps >= size:
                return False
        return True
