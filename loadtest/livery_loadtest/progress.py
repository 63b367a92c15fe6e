"""The one progress bar of a run."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RequestBar:
    """Counts finished requests of the whole run and says what is running now; on standard error."""

    def __init__(self, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("requests,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            # Redrawing shares the cores with the servers being measured.
            refresh_per_second=2,
        )
        self._task = self._progress.add_task("starting", total=total)

    def __enter__(self) -> RequestBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, what: str) -> None:
        """Name what runs now."""
        self._progress.update(self._task, description=what)

    def advance(self) -> None:
        """One request is done."""
        self._progress.advance(self._task)
