"""NoiseTrial: what some samples show of a model's noise: whether there is any, and whether samples share masks."""

from __future__ import annotations

import pickle
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evenkeel.errors import BatchError
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.norm_calls import NormCalls
from evenkeel.model.norms import Norm
from evenkeel.model.restoring import seed_all
from evenkeel.statistics.noise import Noise

_TRIES = 8  # draws of masks that show whether there are any
_COPIES, _DRAWS = 16, 24  # of one sample, and of masks for them, that show whether samples share these
_FEW, _MANY = 5, 7  # copies, for which as many numbers are drawn as there are, or not
_SHARED = 3.0  # times as far apart as masks of their own would leave the draws' averages over copies
Run = Callable[[Any], Any]
Fed = dict[str, list[Tensor]]  # what reaches each norm, by path, call by call


class NoiseTrial:
    """Runs some samples with noise on and off, norms normalising by what training left in them.

    Args:
        noise: of the model.
        norms: by path.
        run: runs a batch of samples and returns the outputs.
        batch: the samples.

    Attributes:
        outputs: with noise off.
    """

    def __init__(self, noise: Noise, norms: Mapping[str, Norm], run: Run, batch: Any) -> None:
        self._noise = noise
        self._norms = norms
        self._run = run
        self._batch = batch
        self._quiet, self.outputs = self._fed(batch, 0, noise=False)

    def is_random(self) -> bool:
        """Whether norms are fed something else the second time with noise off, too."""
        return _differ(self._quiet, self._fed(self._batch, 1, noise=False)[0])

    def has_noise(self) -> bool:
        """Whether norms are fed something else with noise on, or as many outputs as before differ."""
        outputs = tensors(self.outputs)
        for seed in range(_TRIES):
            seed_all(seed)
            before = _random_state()
            noisy, found = self._fed(self._batch, seed, noise=True)
            others = tensors(found)
            if _differ(self._quiet, noisy) or (len(outputs) == len(others) and _unlike(outputs, others)):
                return True
            if before == _random_state():
                break
        return False

    def shares_masks(self) -> bool:
        """Whether samples of a batch share masks: then copies of one sample have much in common that draws have not.

        Not if torch draws as many numbers for every sample, and nothing else does. Needs samples along the leading
        dimension of every tensor of the batch.
        """
        if self._draws_by_sample():
            return False
        copies = self._copies(_COPIES)
        draws = [self._fed(copies, seed, noise=True)[0] for seed in range(_DRAWS)]
        if any(draw.keys() != draws[0].keys() for draw in draws):
            return True  # a norm is reached in some draws alone, by all samples or none
        calls = (call for path in draws[0] for call in zip(*(draw[path] for draw in draws), strict=False))
        return any(map(_is_shared, calls))

    def _draws_by_sample(self) -> bool:
        """Whether torch draws random numbers in proportion to the samples, and no other generator does."""
        try:
            few, many = (self._drawn(count) for count in (_FEW, _MANY))
        except BatchError:  # a model may not run while its operations are watched
            return False
        return bool(few) and [_MANY * size for size in few] == [_FEW * size for size in many]

    def _drawn(self, count: int) -> list[int]:
        """How many numbers each of torch's random operations draws for copies of a sample; none if others draw, too."""
        before = _state_of_others()
        with Draws() as draws:
            self._fed(self._copies(count), 0, noise=True)
        return draws.sizes if before == _state_of_others() else []

    def _copies(self, count: int) -> Any:
        """A batch of copies of the first sample."""
        return map_tensors(lambda t: t[:1].expand(count, *t.shape[1:]).clone() if t.ndim else t, self._batch)

    def _fed(self, batch: Any, seed: int, *, noise: bool) -> tuple[Fed, Any]:
        """What reaches the norms, and what comes out."""
        fed: Fed = defaultdict(list)
        with self._noise.running(noise=noise), NormCalls(self._norms, lambda path, _, x: fed[path].append(x.clone())):
            seed_all(seed)
            outputs = self._run(batch)
        return dict(fed), outputs


class Draws(TorchDispatchMode):
    """While entered, counts what torch draws at random.

    Attributes:
        sizes: how many numbers each random operation made.

    >>> with Draws() as draws:
    ...     _ = torch.nn.functional.dropout(torch.ones(5, 2)), torch.ones(3).exp()
    >>> draws.sizes
    [10]
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.sizes.append(sum(tensor.numel() for tensor in tensors(result)))
        return result


def _differ(quiet: Fed, noisy: Fed) -> bool:
    """Whether norms that are fed something in the one are fed something else in the other."""
    return any(_unlike(calls, noisy.get(path, [])) for path, calls in quiet.items())


def _unlike(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) != len(other) or not all(
        a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(one, other, strict=True)
    )


def _random_state() -> tuple[Any, ...]:
    """The states of the generators that masks may be drawn from; those on other devices count as moved."""
    elsewhere = [object()] if torch.cuda.is_initialized() else []
    return torch.get_rng_state().numpy().tobytes(), *_state_of_others(), *elsewhere


def _state_of_others() -> tuple[Any, ...]:
    """The states of the generators that are not torch's."""
    return random.getstate(), pickle.dumps(np.random.get_state())


def _is_shared(draws: tuple[Tensor, ...]) -> bool:
    """Whether draws differ in what all copies of a sample have in common, by more than masks of their own explain."""
    first = draws[0]
    if any(draw.shape != first.shape for draw in draws):
        return True
    if not first.is_floating_point() or len(first) % _COPIES:
        return False
    stacked = torch.stack(list(draws)).double().unflatten(1, (_COPIES, -1))  # (draws, copies, ...)
    between = float(stacked.mean(1).var(0).sum())
    within = float(stacked.var(1).mean(0).sum()) / _COPIES
    return between > _SHARED * within and between > 1e-9 * float(stacked.square().mean((0, 1)).sum())
