"""What a batch is: how a model is called on it, how many samples it holds, on which device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError, brief
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.sample_lists import listed_samples

Forward = Callable[[nn.Module, Any], Any]
_NO_LENGTH = (TypeError, NotImplementedError, RuntimeError)  # of generators, streams and collections of loaders


def call(model: nn.Module, batch: Any) -> Any:
    """Call the model on a batch: a tensor b as `model(b)`, a tuple or list as `model(b[0])`, a mapping as `model(**b)`.

    Raises:
        BatchError: the batch is none of these; `forward=lambda model, batch: ...` is the way for anything else.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)) and batch:
        return model(batch[0])
    raise BatchError(
        f"a batch is a tensor, a non-empty tuple or list, or a mapping, not {type(batch).__name__}: "
        "pass forward=lambda model, batch: ..."
    )


def inputs(batch: Any) -> Any:
    """The part of a batch that `call` passes to the model: a pair without its labels.

    >>> inputs((torch.ones(2), "labels"))
    (tensor([1., 1.]),)
    """
    return type(batch)(batch[:1]) if type(batch) in (tuple, list) and batch else batch


def forward_pass(model: nn.Module, batch: Any, number: int, forward: Forward | None = None) -> Any:
    """Run the model on a batch, naming the batch and the layer if that raises.

    Raises:
        BatchError: the forward pass raised.
    """
    try:
        return call(model, batch) if forward is None else forward(model, batch)
    except BatchError:
        raise
    except Exception as error:
        path = _path_of_failure(error, model)
        layer = f" in layer {path!r}" if path else ""
        advice = ": use drop_last=True or another batch size" if "more than 1 value per channel" in str(error) else ""
        if forward is None and "required positional argument" in str(error) and not isinstance(batch, Mapping):
            advice = ": of a tuple only the first item is given to the model; yield mappings of arguments by name, or "
            advice += "pass forward=lambda model, batch: ..."
        raise BatchError(f"the forward pass on batch {number} raised {brief(error)}{layer}{advice}") from error


def samples(batch: Any) -> int:
    """How many samples a batch holds: the leading dimension of its first tensor that has one.

    Of a list of images, or of anything else of which each entry is a sample, the length of the list.

    >>> samples((torch.ones(32, 3, 8, 8), torch.ones(32))), samples([[torch.ones(3, 8, 8), torch.ones(3, 8, 9)]])
    (32, 2)
    """
    listed = listed_samples(batch)
    if listed is not None:
        return listed
    return next((tensor.size(0) for tensor in tensors(batch) if tensor.ndim), 0)  # nested ones have no shape


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter, or buffer; the CPU if it has neither."""
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def each(
    batches: Iterable[Any], model: nn.Module, max_batches: int | None, *, may_be_empty: bool = False
) -> Iterator[Any]:
    """Yield the batches on the model's device; any failure of the iterable is a BatchError.

    Args:
        batches: any iterable.
        model: the model whose device the tensors are moved to.
        max_batches: how many batches to take; all if None.
        may_be_empty: whether an iterable without batches is accepted.

    Yields:
        The batches, moved.

    Raises:
        BatchError: the iterable raised, held no batch, or ended before `max_batches`, each with the batch's number.
    """
    if isinstance(batches, (Mapping, str)) or not hasattr(batches, "__iter__"):
        raise BatchError(f"batches must be an iterable of batches, not one {type(batches).__name__}: pass [batch]")
    if max_batches is not None and (max_batches < 1 or max_batches != int(max_batches)):
        raise BatchError(f"max_batches must be a whole number of at least 1, not {max_batches}")
    device = device_of(model)
    iterator, number = None, 0
    while max_batches is None or number < max_batches:
        try:
            iterator = iter(batches) if iterator is None else iterator
            batch = next(iterator)
        except StopIteration:
            break
        except BatchError:  # of batches that were taken from here before
            raise
        except Exception as error:
            raise BatchError(f"the loader raised {brief(error)} when asked for batch {number + 1}") from error
        number += 1
        if (sizes := [tensor.size(0) for tensor in tensors(batch) if tensor.ndim]) and not any(sizes):
            raise BatchError(f"batch {number} holds no samples: its tensors are empty")
        try:
            batch = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)
        except Exception as error:
            raise BatchError(f"batch {number} cannot be moved to {device}: {brief(error)}") from error
        yield batch
    if number == 0 and not may_be_empty:
        raise BatchError("the loader is empty: it yielded no batch")
    if max_batches is not None and number < max_batches:
        raise BatchError(f"the loader ran short: {number} of max_batches={max_batches}; ask for fewer or pass None")
    _check_length(batches, number, max_batches)


def length(batches: Iterable[Any]) -> float:
    """The length of an iterable of batches; infinite if it has none.

    >>> length([1, 2]), length(iter([1, 2]))
    (2, inf)
    """
    try:
        return len(batches)  # type: ignore[arg-type]
    except _NO_LENGTH:
        return math.inf


def _check_length(batches: Iterable[Any], number: int, max_batches: int | None) -> None:
    """Raise if a loader yielded fewer batches than its length."""
    promised = length(batches)
    if max_batches is None and number < promised < math.inf:
        raise BatchError(f"the loader ran short: it has length {promised} but ended after {number} batches")


def _path_of_failure(error: Exception, model: nn.Module) -> str | None:
    """Path of the innermost module of the model whose code was running when the error was raised."""
    paths = {id(module): path for path, module in model.named_modules()}
    owners = (frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__))
    found = [paths[id(owner)] for owner in owners if id(owner) in paths]
    return found[-1] if found else None
