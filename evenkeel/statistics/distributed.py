"""Ranks: the processes of torch.distributed that measure together, and the messages between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from evenkeel.errors import BatchError, EvenkeelError
from evenkeel.statistics.population import Statistics

T = TypeVar("T")


class RankError(BatchError):
    """Another rank reported that it failed, and sends nothing more."""


class Retry(BatchError):
    """A pass failed, on this rank or on another, and may be run again in a more careful way."""

    def __init__(self, reason: str, *, own: bool) -> None:
        super().__init__(f"a batch that had run before failed when it was run again: {reason}")
        self.own = own


class State(IntEnum):
    """The state of a rank in a pass."""

    MEASURED = 0  # at a norm; the message holds its input's statistics
    DONE = 1
    RETRY = 2  # it failed, and will try once more in a more careful way
    FAILED = 3


class Message(NamedTuple):
    """What one rank sends to all.

    Attributes:
        state: of the rank.
        norm: which norm was measured, by its place among the norms.
        parts: statistics of the parts of its batch, each with the number of the part.
        sizes: when done, how many batches and samples it ran.
    """

    state: State
    norm: int = 0
    parts: Sequence[tuple[int, Statistics]] = ()
    sizes: tuple[int, int] = (0, 0)


class Ranks:
    """The processes that measure together; without arguments, this one alone.

    Args:
        group: the process group of torch.distributed.
        channels: that a message may hold.
        parts: how many parts of a batch a message may hold.

    Attributes:
        size: how many ranks there are.
        rank: which one this is.

    >>> Ranks().exchange(Message(State.DONE)), list(Ranks().rounds("ab"))
    ([Message(state=<State.DONE: 1>, norm=0, parts=(), sizes=(0, 0))], ['a', 'b'])
    """

    def __init__(self, group: Any = None, *, channels: int = 0, parts: int = 1) -> None:
        self._group = group
        self._channels = channels
        self._parts = parts
        self.size, self.rank = 1, 0
        if group is not None:
            from torch import distributed

            self.size, self.rank = distributed.get_world_size(group), distributed.get_rank(group)
            nccl = distributed.get_backend(group) == "nccl"
            self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def gather(self, row: Tensor) -> list[Tensor]:
        """The rows of all ranks, in their order, float64 on the CPU."""
        from torch import distributed

        row = row.to(self._device, torch.float64)
        rows = [torch.empty_like(row) for _ in range(self.size)]
        distributed.all_gather(rows, row, group=self._group)
        return [one.cpu() for one in rows]

    def first(self, row: Tensor) -> Tensor:
        """The first rank's row."""
        return self.gather(row)[0] if self.size > 1 else row

    def largest(self, value: float) -> float:
        """The largest of the ranks' values."""
        return max(float(row) for row in self.gather(torch.tensor([float(value)]))) if self.size > 1 else float(value)

    def total(self, value: float) -> float:
        """The sum of the ranks' values."""
        return sum(float(row) for row in self.gather(torch.tensor([float(value)]))) if self.size > 1 else float(value)

    def exchange(self, message: Message) -> list[Message]:
        """Send to all ranks and receive from each, in their order; every rank has to take part."""
        if self.size == 1:
            return [message]
        width = len(message.parts[0][1].mean) if message.parts else 0
        header = torch.tensor([message.state, message.norm, len(message.parts), *message.sizes, width])
        table = torch.zeros(self._parts, 2, 1 + self._channels, dtype=torch.float64)
        for lines, (number, (count, mean, variance)) in zip(table, message.parts, strict=False):
            lines[:, 0] = torch.tensor([number * self.size + self.rank, count])
            lines[0, 1 : 1 + len(mean)], lines[1, 1 : 1 + len(mean)] = mean.cpu(), variance.cpu()
        rows = self.gather(torch.cat([header.double(), table.flatten()]))
        return [self._read(row[:6].long().tolist(), row[6:].view_as(table)) for row in rows]

    def _read(self, header: list[int], table: Tensor) -> Message:
        state, norm, count, *sizes, width = header
        end = 1 + width
        parts = [
            (int(lines[0, 0]), Statistics(float(lines[1, 0]), lines[0, 1:end], lines[1, 1:end]))
            for lines in table[:count]
        ]
        return Message(State(state), norm, parts, (sizes[0], sizes[1]))

    def rounds(self, items: Iterable[T]) -> Iterator[T | None]:
        """This rank's items, and then None as long as any other rank still has one.

        Raises:
            RankError: another rank failed to get its next item.
        """
        iterator = iter(items)
        while True:
            item, error = None, None
            try:
                item = next(iterator, None)
            except BatchError as raised:
                error = raised
            states = [(error is not None, item is not None)]
            if self.size > 1:
                states = [tuple(map(bool, row.tolist())) for row in self.gather(torch.tensor(states[0]))]
            if error is not None:
                raise error
            self.require([State.FAILED if failed else State.DONE for failed, _ in states])
            if not any(has for _, has in states):
                return
            yield item

    def require(self, states: Sequence[State]) -> None:
        """Raise RankError where another rank has failed."""
        failed = [rank for rank, state in enumerate(states) if state is State.FAILED]
        if failed:
            raise RankError(f"rank {failed[0]} of {self.size} failed, whose own error says why: nothing was changed")

    def collectively(self, work: Callable[[], T]) -> T:
        """Run work on each rank, and fail on all if it fails on one.

        Raises:
            RankError: it failed on another rank.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        states = self.gather(torch.tensor([State.FAILED if error else State.DONE])) if self.size > 1 else []
        if error is not None:
            raise error
        self.require([State(int(state)) for state in states])
        return cast(T, result)


def default_group(group: Any = None) -> Any:
    """The process group given, or that of all processes; None where torch.distributed is not set up."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    group = distributed.group.WORLD if group is None else group
    if distributed.get_rank(group) < 0:
        raise EvenkeelError("this process is not in the process group given: only its members may call this")
    return group
