"""restored: a model's whole state put back exactly as it was, even after an exception."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from evenkeel.errors import ModelError
from evenkeel.model.buffers import write_
from evenkeel.model.nested import is_holder
from evenkeel.model.sharding import gathered


@contextmanager
def restored(model: nn.Module, *, parameters: bool = True) -> Generator[None]:
    """Restore on leaving, also after an exception, all that a forward pass or a verb may change.

    Restored are, of every module, its attributes (train/eval flags, momentum, hooks, caches, counters), the contents
    of the built-in containers, however deep, with tensors, arrays and generators in them, and of objects that hold
    tensors or arrays; which parameters, buffers and modules it holds; and the random number generators of torch (CPU
    and, where in use, CUDA), numpy and Python.
    A sharded model is a plain one meanwhile (see `gathered`).

    Args:
        model: the model.
        parameters: also the contents of parameters, which costs a copy of them; not needed where the pass cannot
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
    with gathered(model), _random_state():
        memory.keep(model)
        try:
            yield
        finally:
            memory.restore()


class _Memory:
    """The state of modules, containers, tensors and generators, as it was when they were kept."""

    def __init__(self, *, parameters: bool) -> None:
        self._parameters = parameters
        self._seen: dict[int, Any] = {}  # objects by id, held so that no id is reused
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
        elif isinstance(value, np.ndarray):
            if value.flags.writeable and not isinstance(value, np.memmap):
                self._undo.append(partial(np.copyto, value, value.copy()))
        elif is_holder(value):
            self._undo.append(partial(_refill, vars(value), dict(vars(value))))
            self._keep_all(vars(value).values())
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
    """The bytes of a tensor, eight at a time where that can be."""
    flat = tensor.detach().flatten()
    whole = all(count * flat.element_size() % 8 == 0 for count in (flat.numel(), flat.storage_offset()))
    return flat.view(torch.int64 if whole else torch.uint8)


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


def seed_all(seed: int) -> None:
    """Seed the generators that are in use; torch.manual_seed would seed those, too, that are not yet."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _refuse_lazy(model: nn.Module) -> None:
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(f"{path!r} belongs to a lazy module without a shape: run one forward pass first")
