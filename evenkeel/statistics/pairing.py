"""Pairing: groups run with noise on first; what reached the norms is paired with what does with noise off."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from evenkeel.errors import BatchError
from evenkeel.model.batches import Forward
from evenkeel.model.evaluation import is_regression
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.model.norm_calls import NormCalls
from evenkeel.model.norms import Norm, pools_batch
from evenkeel.model.restoring import seed_all
from evenkeel.statistics.batch_merging import MOST_PARTS, Group
from evenkeel.statistics.noise import Noise
from evenkeel.statistics.pairs import Match, Pairs, paired_statistics
from evenkeel.statistics.population import Statistics
from evenkeel.statistics.stretching import has_class_labels

HELD = 4  # times as much memory as the largest input of a norm may take, for the inputs of all norms
UNPAIRED = "with dropout on it is not fed the same samples and positions as with dropout off: left as it was"
_TRIES = 8  # draws of masks that show whether there are any
_FEWEST = 8  # batches from which on standard errors are told by batches, not by parts of them
_COPIES = 16  # of one sample, which show whether masks are shared by the samples of a batch
_SHARED = 12.0  # times as far apart as independent masks are expected to leave two draws' averages over copies
Run = Callable[[Any], Any]


class Pairing:
    """Pairs what reaches norms with noise on and off; noise on, norms normalise by what training left in them.

    Args:
        noise: of the model.
        norms: by path.
        match: what to preserve; None preserves the mean of a regression, and of other models needs no pairs.
        seed: of the masks.
        rank: of this process, whose masks are its own.

    Attributes:
        match: as given.
        unpaired: paths of norms that were fed something else with noise on, and stay as they were.
        is_shared: whether the samples of a batch share masks, as far as was tried: then only batches are independent.
    """

    def __init__(
        self, noise: Noise, norms: Mapping[str, Norm], match: Match | None, *, seed: int = 0, rank: int = 0
    ) -> None:
        self.unpaired: set[str] = set()
        self.is_shared = False
        self._noise = noise
        self._norms = norms
        self.match: Match | None = match
        self._seed = 1_000_003 * seed + rank
        self._held: dict[str, deque[Tensor]] = defaultdict(deque)

    def is_needed(self, run: Run, batch: Any, forward: Forward | None) -> bool:
        """Whether to pair: there is noise, and, if only of a regression, the model is none that is known to classify.

        Args:
            run: runs a batch of samples and returns the outputs.
            batch: these samples with their targets, as the loader gave them.
            forward: as for `evaluate`.
        """
        quiet, outputs = self._fed(run, batch, noise=False)
        if self.match is None and not is_regression(batch, outputs, forward):
            return False
        for seed in range(_TRIES):
            seed_all(seed)
            before = torch.get_rng_state()
            noisy, _ = self._fed(run, batch, noise=True)
            if len(quiet) != len(noisy) or not all(map(_is_same, quiet, noisy)):
                return True
            if torch.equal(before, torch.get_rng_state()) and not torch.cuda.is_initialized():
                break
        return False

    def is_ruled_out(self, batch: Any) -> bool:
        """Whether the batch says that there is no need: only regressions are paired, and it holds class labels."""
        return self.match is None and has_class_labels(batch)

    def try_sharing(self, run: Run, batch: Any) -> None:
        """Find out whether masks are shared, from copies of one sample: two draws then differ in what all copies have.

        Args:
            run: as for `is_needed`.
            batch: of samples along the leading dimension of every tensor.
        """
        copies = map_tensors(lambda t: t[:1].expand(_COPIES, *t.shape[1:]).clone() if t.ndim else t, batch)
        draws: list[list[Tensor]] = []
        for seed in range(2):
            seed_all(seed)
            draws.append(self._fed(run, copies, noise=True)[0])
        pairs = list(zip(*draws, strict=False))
        self.is_shared = len(draws[0]) != len(draws[1]) or any(itertools.starmap(_is_shared, pairs))

    def hold(self, run: Callable[[], Any], group: Group) -> None:
        """Run a group with noise on, and hold what reaches the norms."""
        self._held.clear()
        with self._noise.running(), NormCalls(self._norms, self._hold):
            seed_all(self._seed + 65_537 * group.first)
            try:
                run()
            except BatchError as error:
                raise BatchError(f"in train mode, as slopes need it, {error}") from error

    def population(self, path: str) -> Pairs:
        """A new population of pairs."""
        norm = self._norms[path]
        mean, variance = self._noise.trained[norm]
        match: Match = "variance" if self.match == "variance" else "mean"
        return Pairs(mean, variance, eps=norm.eps, match=match, pooled=pools_batch(norm))

    def parts(self, group: Group, path: str, x: Tensor, expected: float) -> list[tuple[int, Statistics]]:
        """Statistics of the parts of a norm's input and of what was held for it, each with a number of its own.

        Args:
            group: that was held.
            path: of the norm.
            x: its input with noise off.
            expected: how many batches there are in all; of few, parts of each tell standard errors.
        """
        on = self._counterpart(path, x)
        if on is None:
            self.unpaired.add(path)
            on = x
        parts = zip(group.parts(x), group.parts(on), strict=True)
        pieces = 1 if expected >= _FEWEST or self.is_shared else MOST_PARTS // min(len(group.sizes), MOST_PARTS)
        pooled = pools_batch(self._norms[path])
        return [
            (number * MOST_PARTS + place, paired_statistics(off, noisy, pooled=pooled))
            for (number, part), (_, other) in parts
            for place, (off, noisy) in enumerate(zip(_split(part, pieces), _split(other, pieces), strict=True))
        ]

    def _hold(self, path: str, _norm: Norm, x: Tensor) -> None:
        if x.numel():
            self._held[path].append(x.detach().clone())

    def _counterpart(self, path: str, x: Tensor) -> Tensor | None:
        """What was held for the same samples and positions; a norm may take them in other pieces with noise on."""
        queue, found, size = self._held[path], list[Tensor](), 0
        while queue and size < len(x) and queue[0].shape[1:] == x.shape[1:]:
            found.append(queue.popleft())
            size += len(found[-1])
        if size > len(x):
            whole = torch.cat(found)
            queue.appendleft(whole[len(x) :])
            return whole[: len(x)]
        if size < len(x):
            return None
        return torch.cat(found) if len(found) > 1 else found[0]

    def _fed(self, run: Run, batch: Any, *, noise: bool) -> tuple[list[Tensor], Any]:
        """What reaches the norms, and what comes out; and the outputs as they are."""
        fed: list[Tensor] = []
        with self._noise.running(noise=noise), NormCalls(self._norms, lambda path, norm, x: fed.append(x.clone())):
            outputs = run(batch)
        return [*fed, *tensors(outputs)], outputs


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _is_shared(one: Tensor, other: Tensor) -> bool:
    """Whether two draws differ in what all copies of a sample share, by more than independent masks explain."""
    if one.shape != other.shape or not one.is_floating_point() or len(one) % _COPIES:
        return one.shape != other.shape
    one, other = (t.double().unflatten(0, (_COPIES, -1)) for t in (one, other))
    apart = float((one.mean(0) - other.mean(0)).square().sum())
    by_chance = float(one.var(0).sum() + other.var(0).sum()) / _COPIES
    return apart > _SHARED * by_chance and apart > 1e-9 * float(one.square().mean(0).sum())


def _split(x: Tensor, pieces: int) -> list[Tensor]:
    """A tensor's samples in so many pieces, or as many as there are samples."""
    return list(x.tensor_split(min(pieces, len(x)))) if pieces > 1 else [x]
