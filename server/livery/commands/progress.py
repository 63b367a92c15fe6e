"""A progress bar for whoever waits at a terminal, on standard error; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


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


_TOLD = 20  # lines of a run that no terminal watches


class TellLoss(Protocol):
    """Hears how many steps are done, of how many, and the loss of the last."""

    def __call__(self, done: int, total: int, loss: float, /) -> None: ...


@contextmanager
def loss_bar(what: str, total: int) -> Iterator[TellLoss]:
    """Shows steps, the time that is left and the loss; where no terminal is, a line now and then for the job's log."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    every = max(1, total // _TOLD)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, loss="")

        def tell(done: int, of: int, loss: float, /) -> None:
            progress.update(task, completed=done, total=of, loss=f"loss {loss:.3f}")
            if not console.is_terminal and (done % every == 0 or done == of):
                console.print(f"{what}: step {done} of {of}, loss {loss:.4f}", highlight=False, soft_wrap=True)

        yield tell
