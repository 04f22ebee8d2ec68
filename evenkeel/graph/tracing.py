"""trace: read a model into a LayerGraph by recording one forward pass, on fake tensors where possible."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import TraceError
from evenkeel.graph.blind_recorder import BlindRecorder
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.recorder import Recorder
from evenkeel.model.batches import device_of
from evenkeel.model.flags import set_modes
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped

_SMALL, _FEW = 1 << 12, 1 << 28  # elements of the inputs; times those that the model holds


def trace(model: nn.Module, example: Any) -> LayerGraph:
    """Read a model into a `LayerGraph` by recording one forward pass.

    The pass runs on fake tensors, which have shapes but no data, with the model in train mode, so that every dropout
    is seen, functional ones too (modules in eval mode inside a model in train mode stay so: they are frozen). Where
    that fails it is repeated in eval mode, and where fake tensors fail (control flow that depends on data) with
    the example itself, in eval mode. Of a small model, copies of its own tensors serve as fake ones, which take longer,
    unless control flow depends on them. The model is restored exactly.

    Args:
        model: the model, in train or eval mode, on any device, its parameters in any floating dtype.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments; shapes matter, values do
            not. Tensors are moved to the model's device, and floating ones to its dtype if it has only one.

    Returns:
        The graph of what ran: a branch that the example does not take is not in it.

    Raises:
        TraceError: the forward pass itself raises; names the layer that it had come to.
        ModelError: the model is scripted or exported, and shows no layers.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
    >>> print(trace(model, torch.ones(2, 4)))
    i W A D W N o
    """
    with unwrapped(model) as plain:
        graph = record_call(plain, example)
    return replace(graph, model=plain, example=example)


def graph_of(model: nn.Module, example: Any) -> LayerGraph:
    """The graph of a model, traced unless it is given in the example's place.

    Args:
        model: the model, without wrappers.
        example: as for `trace`, or what `trace` made of it.

    Raises:
        TraceError: the forward pass raised, or the graph is of another model or out of date.
    """
    if not isinstance(example, LayerGraph):
        return trace(model, example)
    example.require_of(model)
    return example


def runner(model: nn.Module, example: Any) -> tuple[Callable[[Any], Any], Any]:
    """How the model is run on an example, and the inputs to run it with: what `record` takes."""
    if isinstance(example, Mapping):
        return lambda inputs: model(**inputs), dict(example)
    return lambda inputs: model(*inputs), example if isinstance(example, tuple) else (example,)


def record_call(model: nn.Module, example: Any, *, training: bool = True) -> LayerGraph:
    """Record the pass that a model makes when it is called on an example, and on nothing else.

    A small one is run as it is, on copies of its tensors, unless their values decide how the pass goes on.

    Args:
        model: the model, without wrappers.
        example: as for `trace`.
        training: as for `record`.

    Raises:
        TraceError: as for `trace`.
    """
    run, inputs = runner(model, example)
    inputs = prepared(inputs, model)
    with suppress(Exception):  # whatever it is, the pass on fake tensors will say
        if _is_small(model, inputs):
            return _pass(BlindRecorder(model, training=training), run, inputs, _copies)
    return record(model, run, inputs, training=training)


def record(model: nn.Module, run: Callable[[Any], Any], inputs: Any, *, training: bool = True) -> LayerGraph:
    """Record the pass that `run(inputs)` makes through the model.

    Args:
        model: the model.
        run: makes one forward pass of the model and returns its outputs.
        inputs: what `run` is given, in any nesting; its tensors are the graph's inputs.
        training: in train mode, if that succeeds; or in eval mode.

    Raises:
        TraceError: as for `trace`.
    """
    inputs = prepared(inputs, model)
    recorder, failure = Recorder(model, training=training), Exception()
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    attempts = ((False, False),) if scripted else ((True, True), (False, True), (False, False))
    for mode, fake in attempts if training else (a for a in attempts if not a[0]):
        recorder = Recorder(model, training=mode)
        try:
            return _pass(recorder, run, inputs, _fake_tensors if fake else _own)
        except Exception as error:
            failure = error
    raise TraceError(recorder.explain(failure)) from failure


def _pass(recorder: Recorder, run: Callable[[Any], Any], inputs: Any, held: Holding) -> LayerGraph:
    """Record one pass, in the recorder's mode."""
    model = recorder.model
    with (
        restored(model, parameters=held is not _fake_tensors),
        unwrapped(model),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # such as of checkpointing, that there are no gradients
        set_modes(model, recorder.training)
        with held(model) as convert:
            return recorder.run(run, map_tensors(convert, inputs, objects=True))


def prepared(inputs: Any, model: nn.Module) -> Any:
    """The inputs on the model's device, floating ones in its dtype if all of its parameters share one."""
    device = device_of(model)
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    return map_tensors(lambda t: t.detach().to(device, dtype if t.is_floating_point() else None), inputs, objects=True)


# What a model holds as parameters and buffers while a pass is made; yields how tensors of the inputs are made alike.
Holding = Callable[[nn.Module], AbstractContextManager[Callable[[Tensor], Tensor]]]


@contextmanager
def _own(model: nn.Module) -> Generator[Callable[[Tensor], Tensor]]:
    """The model's own."""
    yield torch.clone


@contextmanager
def _copies(model: nn.Module) -> Generator[Callable[[Tensor], Tensor]]:
    """Copies, which the pass may write to."""
    memo: dict[int, Any] = {}
    _hold_(model, lambda tensor: copy.deepcopy(tensor, memo))
    yield torch.clone


@contextmanager
def _fake_tensors(model: nn.Module) -> Generator[Callable[[Tensor], Tensor]]:
    """Fake ones, in their mode."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True  # it prints a traceback for errors that are handled here
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            _hold_(model, mode.from_tensor)
            yield mode.from_tensor
    finally:
        logger.disabled = disabled


def _hold_(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> None:
    """Make the model hold others in place of its parameters and buffers: in-place updates never reach its own then."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                held[name] = None if tensor is None else convert(tensor)  # type: ignore[assignment]


def _is_small(model: nn.Module, inputs: Any) -> bool:
    """Whether a pass on real tensors takes milliseconds, whatever the model does with them."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return False
    held, given = [*model.parameters(), *model.buffers()], tensors(inputs)
    real = all(t.device.type == "cpu" and t.layout is torch.strided for t in (*held, *given))
    elements = sum(t.numel() for t in given)
    return real and elements <= _SMALL and elements * sum(t.numel() for t in held) <= _FEW
