"""NoisyCall: one call of a function with noise, which can be made again without it, with other noise, or the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenkeel.graph.kinds import Kind, function_name, kind_of_function
from evenkeel.graph.layer_graph import Layer
from evenkeel.graph.randomness import Law
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.prediction.replicas import COUNT, row_dim

_SEED = 0


@dataclass(frozen=True)
class NoisyCall:
    """A call with noise, and what it was given, which it may have written over since.

    Attributes:
        call: makes the call, given arguments such as `given`.
        name: of the function.
        given: positional and named arguments.
        noises: the tensors among them that are random and carry no signal.
    """

    call: Callable[..., Any]
    name: str
    given: tuple[tuple[Any, ...], dict[str, Any]]
    noises: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        copied: Callable[[Tensor], Tensor],
        look: Callable[[Tensor], Law | None],
    ) -> NoisyCall:
        """Remember a call that is about to be made: `copied` copies tensors, and `look` says which are noise."""
        given = map_tensors(copied, (args, kwargs))
        return cls(call, function_name(call), given, tuple(t for t in tensors(given) if look(t) is not None))

    @property
    def signal(self) -> Tensor:
        """The first tensor that is no noise."""
        return next(t for t in tensors(self.given) if not self._is_noise(t))

    def run(self, given: Any) -> Any:
        """Make the call, given other arguments, which stay as they are."""
        args, kwargs = map_tensors(torch.clone, given)
        return self.call(*args, **kwargs)

    def quiet(self, layer: Layer) -> Tensor:
        """What it returns without noise: with 0 in the place of what is added, and a factor's mean in that of a factor.

        Of what is drawn by a law, or put in a signal's place, that is what the law, or the place, was given.
        """
        if kind_of_function(self.name) is Kind.DROPOUT:
            args, kwargs = self.given
            off = {name: 0.0 if name == "p" else value for name, value in kwargs.items()}
            return tensors(self.run(((args[0], *(0.0 if i == 1 else a for i, a in enumerate(args) if i)), off)))[0]
        if layer.kind is Kind.DROPOUT:
            return self.signal if layer.scaled or layer.p is None else self.signal * (1 - layer.p)
        if not self.noises or any(noise.dtype is torch.bool for noise in self.noises):
            return self.signal
        return tensors(self.run(self._with_noise(torch.zeros_like)))[0]

    def factor(self) -> Tensor:
        """What it multiplies the signal by: what it returns of ones."""
        signal = self.signal
        return tensors(self.run(map_tensors(lambda t: torch.ones_like(t) if t is signal else t, self.given)))[0]

    def drawn_again(self) -> Tensor:
        """What it returns with other noise of the same law."""
        shuffled = self._with_noise(lambda t: t.flatten()[torch.randperm(t.numel(), device=t.device)].view_as(t))
        return tensors(self.run(shuffled))[0]

    def alike(self, out: Tensor, samples: int, *, calm: bool) -> Tensor:
        """What it returns with the same noise in all replicas; if `calm`, with noise that any other pass has, too."""
        dim = row_dim(out, samples)
        seed = _SEED if calm else int(torch.randint(1 << 31, ()))
        results: list[Tensor] = []
        for replica in range(COUNT):
            torch.manual_seed(seed)
            results.append(self._of_replica(replica, samples, calm=calm))
        return torch.cat(results, 0 if dim is None else dim)

    def calmed(self) -> Tensor:
        """What it returns with the noise that any other pass has, too."""
        torch.manual_seed(_SEED)
        return tensors(self.run(self._with_noise(torch.zeros_like)))[0]

    def has_rows(self, dim: int, rows: int) -> bool:
        """Whether its noise differs from sample to sample."""
        signal = self.signal.dim()
        shapes = [(*(1,) * (signal - noise.dim()), *noise.shape) for noise in self.noises]
        return all(shape[dim] == rows for shape in shapes if dim < len(shape))

    def _of_replica(self, replica: int, samples: int, *, calm: bool) -> Tensor:
        def part(tensor: Tensor) -> Tensor:
            dim = row_dim(tensor, samples)
            noise = self._is_noise(tensor)
            tensor = torch.zeros_like(tensor) if noise and calm else tensor
            return tensor if dim is None else tensor.chunk(COUNT, dim)[0 if noise else replica]

        return tensors(self.run(map_tensors(part, self.given)))[0]

    def _with_noise(self, change: Callable[[Tensor], Tensor]) -> Any:
        return map_tensors(lambda t: change(t) if self._is_noise(t) else t, self.given)

    def _is_noise(self, tensor: Tensor) -> bool:
        return any(tensor is noise for noise in self.noises)


def is_unknown_factor(layer: Layer) -> bool:
    """Whether noise multiplies a signal by what nothing is known of, such as the angle of diffusion."""
    by = layer.noise
    return layer.kind is Kind.NOISE and kind_of_function(layer.function) is Kind.GATE and not (by and by.is_centered)
