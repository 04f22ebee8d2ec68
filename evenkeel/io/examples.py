"""What a model is called with, from the command line: shapes with a dtype and a range, or a function that makes it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import EvenkeelError, raised, similar
from evenkeel.io.resolving import resolve
from evenkeel.io.targets import parse_shape
from evenkeel.model.nested import tensors

_FORM = "3x224x224, int64:128, or int64:128:0-29999 for whole numbers from 0 to 29999"
_DTYPES = {
    name: getattr(torch, name)
    for name in "float32 float64 float16 bfloat16 complex64 int64 int32 int16 int8 uint8 bool".split()
}
_SAMPLES = 16  # of whole numbers: those of one sample alone would be the same in every input that is drawn


@dataclass(frozen=True)
class InputSpec:
    """One input as the command line describes it, without the batch dimension.

    Attributes:
        shape: of one sample; no sizes for one number a sample.
        dtype: of its values.
        limits: the least and the largest of whole numbers; None if none were given.
        name: of the argument that it is; "" if it is given by position.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    limits: tuple[int, int] | None = None
    name: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers, whose values count, as those of tokens do."""
        return not (self.dtype.is_floating_point or self.dtype.is_complex)

    def drawn(self, samples: int, most: int, generator: torch.Generator) -> Tensor:
        """Zeros, or whole numbers at random: within the limits, or else from 0 to `most`."""
        if not self.is_whole:
            return torch.zeros(samples, *self.shape, dtype=self.dtype)
        low, high = self.limits or (0, 1 if self.dtype is torch.bool else most)
        return torch.randint(low, high + 1, (samples, *self.shape), generator=generator).to(self.dtype)


def parse_input(text: str) -> InputSpec:
    """Read how one input is described: a shape, with a dtype before it and a range after it, if need be.

    Args:
        text: `3x224x224`, `int64:128`, `int64:128:0-29999` (both ends included), each with `name=` before it if it is
            given by name.

    Raises:
        EvenkeelError: the text is not of that form, or the dtype cannot hold the range.

    >>> parse_input("3x224x224").shape
    (3, 224, 224)
    >>> parse_input("tokens=int64:128:0-29999")
    InputSpec(shape=(128,), dtype=torch.int64, limits=(0, 29999), name='tokens')
    """
    named = re.fullmatch(r"([^\W\d]\w*)=(.*)", text)
    name, rest = (named[1], named[2]) if named else ("", text)
    parts = rest.split(":")
    if len(parts) == 1:
        return InputSpec(parse_shape(rest), name=name)
    dtype = _DTYPES.get(parts[0].strip())
    if dtype is None:
        advice = similar(parts[0], _DTYPES) or f"dtypes are {', '.join(_DTYPES)}"
        raise EvenkeelError(f"--input {text}: there is no dtype {parts[0]!r}: {advice}")
    if len(parts) > 3:
        raise EvenkeelError(f"--input {text} has {len(parts)} parts: write {_FORM}")
    shape = parse_shape(parts[1]) if parts[1] else ()
    spec = InputSpec(shape, dtype, name=name)
    return spec if len(parts) == 2 else InputSpec(shape, dtype, _limits(text, parts[2], spec), name)


def _limits(text: str, range_text: str, spec: InputSpec) -> tuple[int, int]:
    found = re.fullmatch(r"(-?\d+)-(-?\d+)", range_text)
    if not found or int(found[1]) > int(found[2]):
        raise EvenkeelError(f"--input {text}: {range_text!r} is no range: write the least and the largest, as 0-29999")
    if not spec.is_whole:
        raise EvenkeelError(f"--input {text}: a range is for whole numbers; values of {spec.dtype} do not matter")
    low, high = int(found[1]), int(found[2])
    bounds = (0, 1) if spec.dtype is torch.bool else (torch.iinfo(spec.dtype).min, torch.iinfo(spec.dtype).max)
    if low < bounds[0] or high > bounds[1]:
        raise EvenkeelError(f"--input {text}: {spec.dtype} holds {bounds[0]} to {bounds[1]}")
    return low, high


def inputs_of(example: Any) -> list[str]:
    """How the command line describes what a model is called with: the other way round of `parse_input`.

    Args:
        example: a tensor, a tuple of several, or a mapping of them by name, each with one row a sample.

    Returns:
        A text for each tensor; none where there is something else than tensors, or rows are no samples, as in a graph.

    >>> inputs_of((torch.zeros(2, 3, 8, 8), torch.tensor([[0, 7], [3, 1]])))
    ['3x8x8', 'int64:2:0-7']
    >>> inputs_of({"mask": torch.ones(2, 5, dtype=torch.bool)}), inputs_of({"length": 5})
    (['mask=bool:5'], [])
    """
    named: Mapping[Any, Any] = example if isinstance(example, Mapping) else {}
    given: list[Any] = list(named.values()) or (list(example) if isinstance(example, tuple) else [example])
    found = [tensor for tensor in given if isinstance(tensor, Tensor) and tensor.dtype in _DTYPES.values()]
    counts = {len(tensor) if tensor.ndim and tensor.numel() else 0 for tensor in found}
    if len(found) < len(given) or len(counts) != 1 or counts == {0}:
        return []
    if not all(str(name).isidentifier() for name in named):
        return []
    texts = [_described(tensor) for tensor in found]
    return [f"{name}={text}" for name, text in zip(named, texts, strict=True)] if named else texts


def _described(tensor: Tensor) -> str:
    """The text of one input."""
    sizes, dtype = "x".join(map(str, tensor.shape[1:])), str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype is torch.float32 and sizes:
        return sizes
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool:
        return f"{dtype}:{sizes}"
    return f"{dtype}:{sizes}:{int(tensor.min())}-{int(tensor.max())}"


def example_of(specs: Sequence[InputSpec], model: nn.Module) -> Any:
    """What a model is called with, of the inputs described: zeros, and whole numbers drawn with a fixed seed.

    Whole numbers without a range are from 0 to what the smallest `nn.Embedding` of the model takes; 0 if it has none.

    Returns:
        A tensor, a tuple of several, or a dict of those that have names.

    Raises:
        EvenkeelError: some have names and others not, a name comes twice, or they do not fit into memory.

    >>> example_of([InputSpec((3, 8, 8))], nn.Identity()).shape
    torch.Size([1, 3, 8, 8])
    >>> example_of([InputSpec((4,), torch.int64)], nn.Embedding(10, 2)).max() < 10
    tensor(True)
    """
    names = [spec.name for spec in specs if spec.name]
    if names and (len(names) < len(specs) or len(set(names)) < len(names)):
        raise EvenkeelError("--input: give every input a name, each another, or none: tokens=int64:128 mask=bool:128")
    rows = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    samples = _SAMPLES if any(spec.is_whole and spec.shape for spec in specs) else 1
    generator = torch.Generator().manual_seed(0)
    made = [_drawn(spec, samples, min(rows, default=1) - 1, generator) for spec in specs]
    return dict(zip(names, made, strict=True)) if names else made[0] if len(made) == 1 else tuple(made)


def _drawn(spec: InputSpec, samples: int, most: int, generator: torch.Generator) -> Tensor:
    size = samples * math.prod(spec.shape) * spec.dtype.itemsize
    if size > memory():  # asked before, since a system may promise more than it has, and then end the program
        sizes = "x".join(map(str, (samples, *spec.shape)))
        raise EvenkeelError(
            f"--input: {sizes} of {spec.dtype} is {size / 1e9:,.1f} GB, and this machine has {memory() / 1e9:,.1f}: "
            "ask for smaller sizes"
        )
    return spec.drawn(samples, most, generator)


def memory() -> int:
    """Bytes of memory that this machine has; where that is not known, 64 GB.

    >>> memory() > 1 << 20
    True
    """
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a Unix
        return 1 << 36


def load_example(name: str) -> Any:
    """What `package.module:callable` returns: what the model is called with.

    Args:
        name: of a function without arguments, or of the example itself.

    Returns:
        A tensor or other object (called as `model(x)`), a tuple of positional arguments, or a dict of keyword
        arguments; lists are taken for tuples.

    Raises:
        EvenkeelError: nothing of that name, it raised, or there is no tensor in what it returned.

    >>> load_example("torch:rand")
    Traceback (most recent call last):
    ...
    evenkeel.errors.EvenkeelError: --example torch:rand raised TypeError: rand() received an invalid combination of ...
    """
    found = resolve(name)
    made = found
    if callable(found) and not isinstance(found, (Tensor, nn.Module)):
        try:
            made = found()
        except (Exception, SystemExit) as error:
            raise EvenkeelError(
                f"--example {name} {raised(error)}: name what returns what the model is called with, without arguments"
            ) from error
    made = tuple(made) if isinstance(made, list) else made
    if not tensors(made) and not hasattr(made, "__dict__"):
        held = f" with {', '.join(map(str, made))[:80]}" if isinstance(made, Mapping) else ""
        raise EvenkeelError(
            f"--example {name} returned a {type(made).__name__}{held}, without a tensor: return what the model is "
            "called with: a tensor, a tuple of arguments, or a dict of them by name"
        )
    return made
