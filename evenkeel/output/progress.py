"""A progress bar on the terminal, and none where there is no terminal."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Bar(Generic[T]):
    """An iterable that shows on standard error how far it is; it has a length if what it wraps has one.

    Args:
        items: what to iterate over.
        description: what is being done, in a few words.
        total: how many there are, if the iterable does not know.

    >>> list(Bar([1, 2, 3], "counting"))
    [1, 2, 3]
    """

    def __init__(self, items: Iterable[T], description: str, *, total: int | None = None) -> None:
        self._items = items
        self._description = description
        self._total = total
        self._running: Generator[T] | None = None

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]

    def __iter__(self) -> Generator[T]:
        self._running = self._run()
        return self._running

    def close(self) -> None:
        """Take the bar off the terminal, even if what iterates over it has stopped half-way."""
        if self._running is not None:
            self._running.close()

    def _run(self) -> Generator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(self._description, total=self._known_total())
            for item in self._items:
                progress.advance(task)
                yield item

    def _known_total(self) -> int | None:
        try:
            return self._total or len(self)
        except TypeError:  # a generator, or a loader over an iterable data set
            return None
