"""The one progress bar of a run, with the figures of this moment."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from livery_loadtest.drive import Glance, Observer


class LiveBar:
    """Says what runs now, how far it is, and how it goes; on standard error.

    Where that is no terminal, such as a file, nothing can be redrawn: each thing gets a line as it begins.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[figures]}[/]"),
            console=self._console,
            disable=not self._console.is_terminal,
            # Redrawing shares the cores with the servers being measured.
            refresh_per_second=2,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> LiveBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, what: str, total: int) -> Observer:
        """Name what runs now, of `total` requests; the line before it goes."""
        if not self._console.is_terminal:
            at = self._console.get_datetime().strftime("%H:%M:%S")
            self._console.print(f"{at} {what}, requests: {total}", soft_wrap=True, markup=False, highlight=False)
        if self._task is not None:
            self._progress.remove_task(self._task)
        task = self._task = self._progress.add_task(what, total=total, figures="")
        last = Glance(0.0, 0, 0, 0, 0, 0)

        def observe(now: Glance) -> None:
            nonlocal last
            self._progress.update(task, completed=now.done, figures=in_words(last, now))
            last = now

        return observe


def in_words(before: Glance, now: Glance) -> str:
    """The figures of the time between two looks, such as `4.0/s · 12 running · 180 tokens/s · TTFT 84 ms`."""
    passed = now.at - before.at
    if passed <= 0:
        return ""
    parts = [f"{(now.sent - before.sent) / passed:.1f}/s", f"{now.running} running"]
    parts.append(f"{max(now.tokens - before.tokens, 0) / passed:,.0f} tokens/s")
    if now.ttft_s:
        parts.append(f"TTFT {1000 * sorted(now.ttft_s)[len(now.ttft_s) // 2]:,.0f} ms")
    if now.failed:
        parts.append(f"{now.failed} failed")
    return " · ".join(parts)
