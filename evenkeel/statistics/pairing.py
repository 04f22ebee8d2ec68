"""Pairing: groups run with noise on first; what reached the norms is paired with what does with noise off."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evenkeel.errors import BatchError, ModelError
from evenkeel.model.batches import Forward
from evenkeel.model.buffers import write_
from evenkeel.model.evaluation import is_regression
from evenkeel.model.norm_calls import NormCalls
from evenkeel.model.norms import Norm, pools_batch
from evenkeel.model.restoring import seed_all
from evenkeel.statistics.batch_merging import MOST_PARTS, Group
from evenkeel.statistics.noise import Noise
from evenkeel.statistics.noise_trial import NoiseTrial, Run
from evenkeel.statistics.pairs import Match, Pairs, paired_statistics
from evenkeel.statistics.population import Statistics
from evenkeel.statistics.stretching import has_class_labels

UNPAIRED = "with dropout on it is not fed the same samples and positions as with dropout off: left as it was"
_ALWAYS_ON = (
    "the model draws at random in eval mode, too, as by dropout that stays on: what is noise in it cannot be told, so "
    "pass match='variance', or switch that off"
)
_SAMPLES, _MOST_DRAWS = 2048, 64  # with masks of their own, that fewer samples make up for by so many draws at most
_KEPT = 1 << 28  # bytes of what was held for groups that may run again
_FEWEST = 8  # batches from which on standard errors are told by batches, not by parts of them
Held = dict[str, list[Tensor]]  # of each norm, by path, its inputs call by call


class Pairing:
    """Pairs what reaches norms with noise on and off; noise on, norms normalise by what training left in them.

    Args:
        model: the model.
        noise: of the model.
        norms: by path.
        match: what to preserve; None preserves the mean of a regression, and of other models needs no pairs.
        seed: of the masks.
        rank: of this process, whose masks are its own.

    Attributes:
        match: as given.
        unpaired: paths of norms that were fed something else with noise on, and stay as they were.
        is_shared: whether the samples of a batch share masks, as far as was tried: then only batches are independent.
        is_running: whether noise is on now.
    """

    def __init__(
        self,
        model: nn.Module,
        noise: Noise,
        norms: Mapping[str, Norm],
        match: Match | None,
        *,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.match: Match | None = match
        self.unpaired: set[str] = set()
        self.is_shared = False
        self.is_running = False
        self._model = model
        self._noise = noise
        self._norms = norms
        self._seed = 1_000_003 * seed + rank
        self._draws: list[dict[str, deque[Tensor]]] = []  # of the group that runs now, what is still to be paired
        self._kept: dict[tuple[Any, ...], list[Held]] = {}
        self._room = _KEPT

    def is_ruled_out(self, batch: Any) -> bool:
        """Whether the batch says that there is no need: only regressions are paired, and it holds class labels."""
        return self.match is None and has_class_labels(batch)

    def is_needed(self, run: Run, batch: Any, forward: Forward | None, *, is_divisible: bool) -> bool:
        """Whether to pair: there is noise, and, if only of a regression, the model looks like one.

        Args:
            run: runs a batch of samples and returns the outputs.
            batch: some samples with their targets, as the loader gave them.
            forward: as for `evaluate`.
            is_divisible: whether samples lie along the leading dimension of every tensor.

        Raises:
            ModelError: eval mode is random, too.
        """
        if self.is_ruled_out(batch):
            return False
        self.is_running = True
        try:
            trial = NoiseTrial(self._noise, self._norms, run, batch)
            if self.match is None and not is_regression(batch, trial.outputs, forward):
                return False
            if trial.is_random():
                if self.match is None:
                    return False
                raise ModelError(_ALWAYS_ON)
            has_noise = trial.has_noise()
            self.is_shared = has_noise and is_divisible and trial.shares_masks()
            return has_noise
        finally:
            self.is_running = False

    def hold(self, run: Callable[[], Any], group: Group, total: float) -> None:
        """Run a group with noise on, and hold what reaches the norms; several times where there are few samples in all.

        Args:
            run: runs the group.
            group: the group.
            total: samples in all.
        """
        wanted = min(max(math.ceil(_SAMPLES / max(total, 1)), 1), _MOST_DRAWS)
        key = (group.key, wanted)
        found = self._kept.get(key)
        if found is None:
            found = [self._drawn(run, group, 0)]
            size = sum(x.numel() * x.element_size() for calls in found[0].values() for x in calls)
            of_all = max(size * max(total / max(group.samples, 1), 1), 1)
            count = max(min(wanted, int(_KEPT // of_all)), 1)  # so many of all samples can be kept
            found += [self._drawn(run, group, draw) for draw in range(1, count)]
            if count * size <= self._room:
                self._kept[key] = found
                self._room -= count * size
        self._draws = [{path: deque(calls) for path, calls in held.items()} for held in found]

    def _drawn(self, run: Callable[[], Any], group: Group, draw: int) -> Held:
        """What reaches the norms with masks of a draw."""
        held: Held = defaultdict(list)

        def hold(path: str, _norm: Norm, x: Tensor) -> None:
            if x.numel():
                held[path].append(x.detach().clone())

        with self._noise.running(), self._buffers_kept(), NormCalls(self._norms, hold):
            self._seed_all(self._seed + 65_537 * group.first + 104_729 * draw)
            try:
                run()
            except BatchError as error:
                raise BatchError(f"in train mode, as slopes need it, {error}") from error
        return dict(held)

    def _seed_all(self, seed: int) -> None:
        """Seed the generators in use, those that modules keep among them."""
        seed_all(seed)
        for value in (value for module in self._model.modules() for value in vars(module).values()):
            if isinstance(value, torch.Generator):
                value.manual_seed(seed)

    @contextmanager
    def _buffers_kept(self) -> Generator[None]:
        """What train mode writes into buffers, as norms made by hand do, is taken back."""
        modules = [m for m in self._model.modules() if m not in self._noise.trained]
        found = [(m, dict(m._buffers), {n: b.clone() for n, b in m._buffers.items() if b is not None}) for m in modules]
        self.is_running = True
        try:
            yield
        finally:
            self.is_running = False
            for module, buffers, values in found:
                module._buffers.clear()
                module._buffers.update(buffers)
                for name, value in values.items():
                    buffer = buffers[name]
                    if buffer is not None and not (buffer.shape == value.shape and torch.equal(buffer, value)):
                        write_(buffer, value)

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
            expected: how many batches there are in all, infinite if that is not known; of few, parts of each tell
                standard errors.
        """
        draws = [_counterpart(held.get(path, deque()), x) for held in self._draws]
        noisy = [draw for draw in draws if draw is not None]
        if len(noisy) < len(draws):
            self.unpaired.add(path)
            noisy = [x]
        is_told_by_batches = self.is_shared or _FEWEST <= expected < math.inf
        pieces = 1 if is_told_by_batches else MOST_PARTS // min(len(group.sizes), MOST_PARTS)
        pooled = pools_batch(self._norms[path])
        found: list[tuple[int, Statistics]] = []
        for (number, off), *others in zip(group.parts(x), *map(group.parts, noisy), strict=True):
            split = zip(_split(off, pieces), *(_split(part, pieces) for _, part in others), strict=True)
            for place, (one, *several) in enumerate(split):
                off_and_on = torch.cat([one] * len(several)), torch.cat(several)
                found.append((number * MOST_PARTS + place, paired_statistics(*off_and_on, pooled=pooled)))
        return found


def _counterpart(queue: deque[Tensor], x: Tensor) -> Tensor | None:
    """What was held for the same samples and positions; a norm may take them in other pieces with noise on."""
    found, size = list[Tensor](), 0
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


def _split(x: Tensor, pieces: int) -> list[Tensor]:
    """A tensor's samples in so many pieces, or as many as there are samples."""
    return list(x.tensor_split(min(pieces, len(x)))) if pieces > 1 else [x]
