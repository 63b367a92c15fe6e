"""A progress bar for whoever waits at a terminal, on standard error; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn


class Tell(Protocol):
    """Hears how much is done and, where that wasn't known before, of how much."""

    def __call__(self, done: int, total: int | None = None, /) -> None: ...


@contextmanager
def bar(what: str, total: int, *, pieces: bool = False) -> Iterator[Tell]:
    """Shows how much of `total` bytes, or of as many pieces, is done."""
    count: ProgressColumn = MofNCompleteColumn() if pieces else DownloadColumn()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), count)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def tell(done: int, total: int | None = None, /) -> None:
            progress.update(task, completed=done, total=total)

        yield tell
