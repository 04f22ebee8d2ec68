"""Context managers that lend out a model and give it back exactly as it was, whatever happens in between."""

from __future__ import annotations

import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from evenkeel.errors import ModelError

_MARK = "evenkeel_written"  # attribute of modules: by buffer, the sum of what was written


@contextmanager
def restored(model: nn.Module, *, parameters: bool = True) -> Generator[None]:
    """Restore, on leaving, all that a forward pass or a verb may have touched, also after an exception.

    Restored are, of every module, its attributes (train/eval flags, momentum, hooks, caches, counters), the contents
    of the built-in containers, tensors and generators among them, however deep, and which parameters, buffers and
    modules it holds; and the random number generators of torch (CPU and, where in use, CUDA), numpy and Python.

    Args:
        model: the model to watch over.
        parameters: also the contents of parameters, which costs a copy of them; without need where the pass cannot
            reach them.

    Raises:
        ModelError: the model has lazy modules that have not seen an input yet.

    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    >>> with restored(model):
    ...     _ = model.eval()(torch.ones(2, 2)), model[1].running_mean.add_(1)
    >>> model[0].training, model[1].running_mean
    (True, tensor([0., 0.]))
    """
    _refuse_lazy(model)
    memory = _Memory(parameters=parameters)
    memory.keep(model)
    with _random_state():
        try:
            yield
        finally:
            memory.restore()


@contextmanager
def flagged(flags: Mapping[nn.Module, bool]) -> Generator[None]:
    """Set modules' train/eval flags, each by itself, and put back those found.

    >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).eval()
    >>> with flagged({net[1]: True}):
    ...     print(net.training, net[0].training, net[1].training)
    False False True
    >>> net[1].training
    False
    """
    found = {module: module.training for module in flags}
    try:
        for module, flag in flags.items():
            module.training = flag
        yield
    finally:
        for module, flag in found.items():
            module.training = flag


@contextmanager
def unwrapped(model: nn.Module) -> Generator[nn.Module]:
    """Lend out a model without what runs it: compiled parts as plain Python, parallel replicas and shards as one whole.

    So hooks and recorders see every call, and no call waits for other processes.

    Args:
        model: a model, perhaps one that `torch.compile`, DistributedDataParallel or DataParallel returned, or with
            parts that `fully_shard` (FSDP2) shards; then every process must call this.

    Yields:
        The model inside.

    Raises:
        ModelError: a part is wrapped by FullyShardedDataParallel, whose shards each forward pass gathers by itself.
    """
    original = model
    while (inner := _inside(original)) is not None:
        original = inner
    if sharded := [path for path, m in original.named_modules() if type(m).__name__ == "FullyShardedDataParallel"]:
        raise ModelError(
            f"{sharded[0] or 'the model'!r} is wrapped by FullyShardedDataParallel, whose ranks must all run each "
            "forward pass: shard it by torch.distributed.fsdp.fully_shard, or load its weights into a plain model"
        )
    with _eager(original, original is not model), _gathered(original):
        yield original


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return model.module
    return getattr(model, "_orig_mod", None)


@contextmanager
def _eager(model: nn.Module, wrapped: bool) -> Generator[None]:
    if wrapped or any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()):
        with torch.compiler.set_stance("force_eager"):  # imports the compiler: only where it may be in use already
            yield
    else:
        yield


@contextmanager
def _gathered(model: nn.Module) -> Generator[None]:
    """Hold whole, meanwhile, the parameters that FSDP2 shards."""
    sharded: list[Any] = [module for module in model.modules() if hasattr(type(module), "set_reshard_after_forward")]
    groups = [group for module in sharded for group in module._get_fsdp_state()._fsdp_param_groups]
    before = [group.post_forward_mesh_info for group in groups]
    for module in sharded:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for group, info in zip(groups, before, strict=True):
            group.post_forward_mesh_info = info
        for module in sharded:
            module.reshard()


def write_(tensor: Tensor, value: Tensor) -> None:
    """Write values into a tensor in place, of the same shape, whether or not it was made in inference mode."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(value)


@dataclass(frozen=True)
class Held:
    """What modules held before `write_buffers_`.

    Attributes:
        buffers: what each buffer held, by module and name.
        marks: of every module, what it knew to have been written before; None if nothing.
    """

    buffers: Mapping[tuple[nn.Module, str], Tensor] = field(default_factory=dict)
    marks: Mapping[nn.Module, dict[str, float] | None] = field(default_factory=dict)


def write_buffers_(values: Mapping[tuple[nn.Module, str], Tensor]) -> Held:
    """Write values into modules' buffers in place, leave a mark there, and return what they held.

    >>> norm = nn.BatchNorm1d(2)
    >>> held = write_buffers_({(norm, "running_mean"): torch.ones(2)})
    >>> is_as_written(norm)
    True
    >>> put_back_(held)
    >>> norm.running_mean, is_as_written(norm)
    (tensor([0., 0.]), False)
    """
    held = Held(
        {(module, name): getattr(module, name).clone() for module, name in values},
        {module: getattr(module, _MARK, None) for module, _ in values},
    )
    for (module, name), value in values.items():
        write_(getattr(module, name), value)
    for module in held.marks:
        written = {name: _sum(getattr(module, name)) for owner, name in values if owner is module}
        module.__dict__[_MARK] = (held.marks[module] or {}) | written
    return held


def put_back_(held: Held) -> None:
    """Undo `write_buffers_`, in place."""
    for (module, name), value in held.buffers.items():
        write_(getattr(module, name), value)
    for module, mark in held.marks.items():
        module.__dict__.pop(_MARK, None)
        if mark is not None:
            module.__dict__[_MARK] = mark


def is_as_written(module: nn.Module) -> bool:
    """Whether a module's buffers hold what `write_buffers_` wrote there.

    `copy.deepcopy` and pickle keep the mark that tells; a state dict does not.
    """
    mark: dict[str, float] | None = getattr(module, _MARK, None)
    return mark is not None and all(
        math.isclose(_sum(getattr(module, name)), written, rel_tol=1e-3, abs_tol=1e-6) for name, written in mark.items()
    )


def _sum(tensor: Tensor) -> float:
    return float(tensor.detach().double().sum())


class _Memory:
    """The state of modules, containers, tensors and generators, as it was when they were kept."""

    def __init__(self, *, parameters: bool) -> None:
        self._parameters = parameters
        self._seen: dict[int, Any] = {}  # objects by identity, held so that no identity is taken by another
        self._undo: list[Callable[[], None]] = []

    def keep(self, value: Any) -> None:
        """Remember the state of a value and of all that it holds; immutable values need none."""
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._undo.append(partial(_restore_module, value, dict(value.__dict__), value.training))
            self._keep_all(value.__dict__.values())
        elif type(value) in (dict, OrderedDict, defaultdict, Counter):
            self._undo.append(partial(_refill, value, dict(value)))
            self._keep_all(value.values())
        elif type(value) in (list, deque, set):
            self._undo.append(partial(_refill, value, list(value)))
            self._keep_all(value)
        elif isinstance(value, tuple):
            self._keep_all(cast("tuple[Any, ...]", value))
        elif isinstance(value, torch.Generator):
            self._undo.append(partial(_restore_generator, value, value.get_state()))
        elif isinstance(value, Tensor) and self._can_change(value):
            self._undo.append(partial(_restore_tensor, value, value.detach().clone(), value.grad_fn))

    def restore(self) -> None:
        """Put everything back; what cannot be put back does not keep the rest from it."""
        failures: list[Exception] = []
        for undo in self._undo:
            try:
                undo()
            except Exception as error:
                failures.append(error)
        if failures:
            raise ModelError(f"{len(failures)} parts of the model's state could not be restored") from failures[0]

    def _keep_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.keep(value)

    def _can_change(self, tensor: Tensor) -> bool:
        strided = tensor.layout is torch.strided and not tensor.is_meta  # of others only the binding is kept
        return strided and (self._parameters or not isinstance(tensor, nn.Parameter))


def _restore_module(module: nn.Module, attributes: dict[str, Any], training: bool) -> None:
    module.__dict__.clear()
    module.__dict__.update(attributes)
    if module.training is not training:  # a scripted module keeps its flag elsewhere
        module.training = training


def _refill(container: Any, items: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(items)
    else:
        container.extend(items)


def _restore_generator(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _restore_tensor(tensor: Tensor, content: Tensor, origin: Any) -> None:
    if tensor.grad_fn is not None and origin is None and not tensor._is_view():  # written to from what has a gradient
        tensor.detach_()
    same = tensor.shape == content.shape and torch.equal(_bits(tensor), _bits(content))
    if not same:
        with torch.no_grad():
            if tensor.shape != content.shape:
                tensor.resize_(content.shape)
        write_(tensor, content)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().view(torch.uint8)


@contextmanager
def _random_state() -> Generator[None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _refuse_lazy(model: nn.Module) -> None:
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(f"{path!r} belongs to a lazy module without a shape: run one forward pass first")
