"""trace: read a model into a LayerGraph by recording one forward pass, on fake tensors wherever they can go."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from traceback import extract_tb
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from evenkeel.batches import device_of, map_tensors, tensors
from evenkeel.errors import TraceError
from evenkeel.graph import Layer, LayerGraph
from evenkeel.kinds import (
    ENTERING,
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
from evenkeel.modes import eager, restored
from evenkeel.norms import has_running_statistics

_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_HERE = os.path.join(os.path.dirname(__file__), "")


def trace(model: nn.Module, example: Any) -> LayerGraph:
    """Read a model into a `LayerGraph` by recording one forward pass.

    The pass runs on fake tensors, which have shapes but no data, with the model in train mode, so that every dropout
    is seen, functional ones too (modules in eval mode inside a model in train mode stay so: they are frozen). Where
    that fails it is repeated in eval mode, and where fake tensors cannot go (control flow that depends on data) with
    the example itself, in eval mode. The model is given back exactly as it was found.

    Args:
        model: the model, in train or eval mode, on any device, its parameters in any floating dtype.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments; shapes matter, values do
            not. Tensors are moved to the model's device, and floating ones to its dtype if it has only one.

    Returns:
        The graph of what ran: a branch that the example does not take is not in it.

    Raises:
        TraceError: the forward pass itself raises; names the layer that it had come to.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
    >>> print(trace(model, torch.ones(2, 4)))
    i W A D W N o
    """
    if isinstance(example, Mapping):
        return record(model, lambda inputs: model(**inputs), dict(example))
    inputs = example if isinstance(example, tuple) else (example,)
    return record(model, lambda inputs: model(*inputs), inputs)


def record(model: nn.Module, run: Callable[[Any], Any], inputs: Any) -> LayerGraph:
    """Record the pass that `run(inputs)` makes through the model: `trace` with the call left to the caller.

    Args:
        model: the model.
        run: makes one forward pass of the model and returns its outputs.
        inputs: what `run` is given, in any nesting; its tensors are the graph's inputs.

    Returns:
        The graph.

    Raises:
        TraceError: as for `trace`.
    """
    inputs = _prepared(inputs, model)
    failure: Exception | None = None
    recorder = _Recorder(model, training=True)
    for training, fake in ((True, True), (False, True), (False, False)):
        recorder = _Recorder(model, training=training)
        try:
            with restored(model, parameters=not fake), eager(model), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as of checkpointing, that there are no gradients
                _set_modes(model, training)
                with _fake_tensors(model) if fake else nullcontext(torch.clone) as convert:
                    return recorder.run(run, map_tensors(convert, inputs))
        except Exception as error:
            failure = error
    raise TraceError(recorder.explain(failure)) from failure


def _prepared(inputs: Any, model: nn.Module) -> Any:
    """The inputs on the model's device, floating ones in its dtype if all of its parameters share one."""
    device = device_of(model)
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    return map_tensors(lambda t: t.detach().to(device, dtype if t.is_floating_point() else None), inputs)


def _set_modes(model: nn.Module, training: bool) -> None:
    """Train mode with the norms in eval mode, since in train mode they refuse single values; or eval mode."""
    if not (training and model.training):
        model.train(training)
    for module in model.modules():
        if has_running_statistics(module):
            module.training = False  # on the object itself: .eval() would reach a dropout nested in it


@contextmanager
def _fake_tensors(model: nn.Module) -> Generator[Callable[[Tensor], Tensor]]:
    """Yield the conversion to fake tensors, in a mode in which the model holds fake parameters and buffers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True  # it prints a traceback for errors that are handled here
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            for module in model.modules():  # in-place updates by the pass never reach the real ones then
                for held in (module._parameters, module._buffers):
                    for name, tensor in held.items():
                        held[name] = None if tensor is None else mode.from_tensor(tensor)  # type: ignore[assignment]
            yield mode.from_tensor
    finally:
        logger.disabled = disabled


class _Recorder(TorchFunctionMode):
    """Sees every call of a torch function in one forward pass, and writes the layers down."""

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        super().__init__()
        self.training = training
        self.frozen = {module for module in model.modules() if model.training and not module.training}
        self.layers: list[Layer] = []
        self.position: dict[Layer, int] = {}
        self.names: Counter[str] = Counter()
        self.paths = {module: path for path, module in model.named_modules()}
        # The modules entered and not left, each with the layers whose signals it was given.
        self.stack: list[tuple[nn.Module, tuple[Layer, ...]]] = []
        self.whole: nn.Module | None = None  # the module entered that declares its kind: recorded as one call
        # Of every tensor seen, the layer that made it, or None if it carries no signal of the inputs.
        self.producers = WeakIdKeyDictionary()
        # Of every random tensor without signal, its probability of keeping a value, or None if that is not known.
        self.noise = WeakIdKeyDictionary()
        # Of every tensor with views that was written to in place, or through a view, the layer that did it last.
        self.rewritten = WeakIdKeyDictionary()
        self.escaped: list[Layer] = []  # layers whose signals left torch: what enters it may come from them
        # Parameters and buffers as the caller knows them, by the ones that the pass sees.
        self.held = dict([*model.named_parameters(), *model.named_buffers()])
        self.originals = WeakIdKeyDictionary()
        self.model = model

    def run(self, run: Callable[[Any], Any], inputs: Any) -> LayerGraph:
        """Record the pass, the model's modes being set and its parameters perhaps fake by now."""
        for path, seen in (*self.model.named_parameters(), *self.model.named_buffers()):
            self.originals[seen] = self.held[path]
            self.producers[seen] = None
        for tensor in tensors(inputs):
            self._add(Kind.INPUT, "input", [tensor], shape=tuple(tensor.shape))
        given = self._signals(inputs)
        for module in self.paths:
            if not isinstance(module, torch.jit.ScriptModule):  # it takes no hooks, and shows no calls
                module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
                module.register_forward_hook(self._leave)
        with self:
            outputs = run(inputs)
        self._admit_loss(self.model, given, outputs)
        self._add(Kind.OUTPUT, "output", [], inputs=self._signals(outputs))
        return LayerGraph(tuple(self.layers))

    def explain(self, failure: Exception | None) -> str:
        """What the pass died of, where, and what to do."""
        modules = [self.paths[module] for module, _ in self.stack]
        layer = f"in layer {modules[-1]!r}" if modules and modules[-1] else "in the model's forward"
        frames = [
            f for f in extract_tb(failure and failure.__traceback__) if not f.filename.startswith((_TORCH, _HERE))
        ]
        where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames and modules else ""
        return (
            f"the forward pass raised {type(failure).__name__} {layer}{where}, after {len(self.layers)} layers: "
            f"{failure}; check that the example has the shape and dtype that the model takes"
        )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.whole is None:
            name = function_name(func)
            outputs = tensors(args[0] if name == "setitem" else result)
            if outputs:
                self._record(name, args, kwargs, outputs)
            elif name in LEAVING:
                self.escaped.extend(self._signals(args))
        return result

    def _record(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]) -> None:
        """Write down one call, unless what it returns carries no signal."""
        read = args[:1] if name in LIKE_SECOND else (args, kwargs)
        signals = () if name in SHAPE_ONLY | RANDOM else self._signals(read)
        noise = [self.noise[tensor] for tensor in tensors(read) if tensor in self.noise]
        if not signals:
            self._record_constant(name, args, kwargs, noise, outputs)
            return
        kind = _kind(name, signals, operands=len(tensors((args, kwargs))), noise=bool(noise))
        file, line = self._location()
        self._add(
            kind,
            name,
            outputs,
            inputs=signals,
            args=map_tensors(self._without_data, args),
            kwargs=map_tensors(self._without_data, kwargs),
            shape=tuple(outputs[0].shape),
            p=self._drop_probability(name, args, kwargs, noise) if kind is Kind.DROPOUT else None,
            file=file,
            line=line,
        )
        if args and outputs[0] is args[0]:
            self._write_back(outputs[0])

    def _record_constant(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], noise: list[float | None], outputs: list[Tensor]
    ) -> None:
        """Remember that tensors carry no signal, and what noise they carry."""
        if name in ENTERING and self.escaped:
            return  # left unknown: it may be a signal that left torch
        keep = (*args[1:], kwargs.get("p"))[0]
        if name in RANDOM:
            noise = [keep if name == "bernoulli" and isinstance(keep, float) else None]
        elif kind_of_function(name) is Kind.DROPOUT:  # of a constant: a mask
            noise = [1 - (self._drop_probability(name, args, kwargs, []) or 0)]
        for output in outputs:
            self.producers[output] = None
            if noise:
                self.noise[output] = noise[0]

    def _write_back(self, written: Tensor) -> None:
        """After an in-place call on a view, the tensor viewed carries the new signal too."""
        base, made = written._base, self.producers[written]
        if base is None:
            self.rewritten[written] = made
            return
        self.rewritten[base] = made
        if written.numel() == base.numel():
            self.producers[base] = made
        else:
            kept = (*self._signals(base), made)
            self._add(Kind.CONCAT, "setitem", [base], inputs=kept, shape=tuple(base.shape))

    def _add(self, kind: Kind, function: str, outputs: Iterable[Tensor], **details: Any) -> None:
        module = self.stack[-1][0] if self.stack else self.model
        path = self.paths[module]
        own = bool(self.stack) and (module is self.whole or is_own_call(module, kind))
        name = path if own and path else f"{path}.{function}".lstrip(".")
        self.names[name] += 1
        if self.names[name] > 1:
            name = f"{name}#{self.names[name]}"
        layer = Layer(name, kind, path, module if own else None, function=function, **details)
        self.position[layer] = len(self.layers)
        self.layers.append(layer)
        for output in outputs:
            self.producers[output] = layer

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():  # what the recorder itself asks of tensors is no call of the model
            self.stack.append((module, self._signals((args, kwargs))))
        if self.whole is None and getattr(module, "evenkeel_kind", None) is not None:
            self.whole = module

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self.stack[-1][0] is not module:  # its callee raised, and the model handled that
            self.stack.pop()
        signals = self.stack[-1][1]
        with torch._C.DisableTorchFunction():
            if module is self.whole:
                self._add_whole(module, signals, tensors(output))
                self.whole = None
            elif self.whole is None:
                self._admit_loss(module, signals, output)
        self.stack.pop()

    def _add_whole(self, module: nn.Module, signals: tuple[Layer, ...], outputs: list[Tensor]) -> None:
        """Add the one layer of a module that declares its own kind."""
        kind, name = cast("Kind", module.evenkeel_kind), type(module).__name__
        p = 0.0 if module in self.frozen else cast("float | None", getattr(module, "p", None))
        file, line = self._location()
        shape = tuple(outputs[0].shape) if outputs else ()
        self._add(kind, name, outputs, inputs=signals, shape=shape, p=p, file=file, line=line)

    def _admit_loss(self, module: nn.Module, signals: tuple[Layer, ...], output: Any) -> None:
        """Add an OPAQUE layer for what a module returns but no torch function was seen to make."""
        lost = [tensor for tensor in tensors(output) if tensor not in self.producers]
        if signals and lost:
            self._add(Kind.OPAQUE, type(module).__name__, lost, inputs=signals, shape=tuple(lost[0].shape))

    def _signals(self, value: Any) -> tuple[Layer, ...]:
        found = (self._producer(tensor) for tensor in tensors(value))
        return tuple(layer for layer in found if layer is not None)

    def _producer(self, tensor: Tensor) -> Layer | None:
        """The layer that made a tensor, once that has been brought up to date."""
        if tensor not in self.producers:  # of unknown origin
            self.producers[tensor] = None
            if self.escaped:
                inputs = tuple(dict.fromkeys(self.escaped))
                self._add(Kind.OPAQUE, "unknown", [tensor], inputs=inputs, shape=tuple(tensor.shape))
        made, base = self.producers[tensor], tensor._base
        change = self.rewritten.get(base) if base is not None else None
        if made is not None and change is not None and self.position[change] > self.position[made]:
            self._add(Kind.PASS, "view", [tensor], inputs=(self.producers[base],), shape=tuple(tensor.shape))
        return self.producers[tensor]

    def _without_data(self, tensor: Tensor) -> Any:
        """A signal as its layer, a parameter or buffer as the model's own, any other tensor as its size."""
        return self.producers.get(tensor) or self.originals.get(tensor, tensor.shape)

    def _drop_probability(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], noise: list[float | None]
    ) -> float | None:
        if self.stack and self.stack[-1][0] in self.frozen:
            return 0.0
        if noise:  # a product with a random tensor
            attributes = (getattr(self.stack[-1][0], a, None) for a in ("p", "drop_prob")) if self.stack else ()
            return next((a for a in (*(1 - k for k in noise if k), *attributes) if isinstance(a, float)), None)
        given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        on = given.get("training", given.get("train", "alpha" not in name))  # alpha dropouts default to off
        return float(given.get("p", 0.5)) if on or not self.training else 0.0

    def _location(self) -> tuple[str | None, int | None]:
        """File and line of the model's source that makes the call: the innermost frame outside of torch."""
        frame = sys._getframe(1) if self.stack else None
        while frame is not None:
            code = frame.f_code
            if code is nn.Module._call_impl.__code__ and frame.f_locals["self"] is self.stack[0][0]:
                break  # what lies above is the caller's code, not the model's
            if code.co_filename != __file__ and not code.co_filename.startswith(_TORCH):
                return code.co_filename, frame.f_lineno
            frame = frame.f_back
        return None, None


def _kind(name: str, signals: tuple[Layer, ...], *, operands: int, noise: bool) -> Kind:
    """The kind of one call, by its name and by which of its operands are signals, constants or noise."""
    kind = kind_of_function(name)
    if name in PRODUCTS:
        return Kind.WEIGHT if len(signals) == 1 and operands > 1 else Kind.OPAQUE
    if noise:
        return Kind.DROPOUT if kind is Kind.GATE or name in ("where", "masked_fill") else Kind.OPAQUE
    if kind in (Kind.JOIN, Kind.GATE) and len(signals) == 1:
        return Kind.PASS  # a constant added or multiplied
    if kind is Kind.POOL and len(signals) > 1:
        return Kind.OPAQUE  # the maximum of two signals
    return kind
