"""NormCalls: what really reaches torch's batch and instance norm with a norm layer's own statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from evenkeel.model.norms import Norm

# Functions that normalise, each with the place of the running mean among its arguments; the variance's is the next.
_NORMALISING: dict[Any, int] = {
    F.batch_norm: 1,
    F.instance_norm: 1,
    torch.batch_norm: 3,
    torch.instance_norm: 3,
    torch.native_batch_norm: 3,
    torch.ops.aten.batch_norm: 3,
    torch.ops.aten.instance_norm: 3,
    torch.ops.aten.native_batch_norm: 3,
    torch.ops.aten.cudnn_batch_norm: 3,
    torch.ops.aten.miopen_batch_norm: 3,
}
OnCall = Callable[[str, Norm, Tensor], None]


class NormCalls(TorchFunctionMode):
    """While entered, calls back before anything is normalised by the running statistics of one of the norms.

    What a norm layer is given need not be what it normalises: a masked norm hands on valid positions only, a sparse
    one the features of an object, and a norm with an auxiliary branch may hand everything to that.

    Args:
        norms: the norms to watch, by path.
        on_call: called with path, norm and the tensor that is about to be normalised, shape (samples, channels, ...).
        on_read: called with the path of a norm whose statistics are read by anything else, such as a convolution that
            is fused with it; watched only if given.

    >>> norm = torch.nn.BatchNorm1d(2).eval()
    >>> with NormCalls({"bn": norm}, lambda path, norm, x: print(path, tuple(x.shape))):
    ...     _ = norm(torch.ones(3, 2))
    bn (3, 2)
    """

    def __init__(
        self, norms: Mapping[str, Norm], on_call: OnCall, on_read: Callable[[str], None] | None = None
    ) -> None:
        super().__init__()
        self._norms = norms
        self._paths = {id(t): path for path, n in norms.items() for t in (n.running_mean, n.running_var)}
        self._on_call = on_call
        self._on_read = on_read

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (place := _NORMALISING.get(getattr(func, "overloadpacket", func))) is not None:
            x = args[0] if args else kwargs.get("input")
            named = [kwargs.get("running_mean"), kwargs.get("running_var"), *args[place : place + 2]]
            path = self._path_of(named)
            if path is not None and isinstance(x, Tensor):
                self._on_call(path, self._norms[path], x)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if self._on_read is not None and isinstance(result, Tensor):
            path = self._path_of((*args, *kwargs.values()))
            if path is not None:
                self._on_read(path)
        return result

    def _path_of(self, values: Iterable[Any]) -> str | None:
        """The norm that owns one of the values."""
        return next((self._paths[id(value)] for value in values if id(value) in self._paths), None)
