"""What residency knows of one adapter version, and what it has the core do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livery.engine.pages import PageAllocator, PageCount, Run


@dataclass(frozen=True, slots=True)
class Placement:
    """A version's way into device memory: its image's piece i goes to `runs[i]`."""

    digest: str
    runs: tuple[Run, ...]


@dataclass(slots=True)
class Version:
    """What is known of a version that is in any tier. Written by residency alone."""

    sizes: tuple[int, ...]  # bytes of its pieces
    pages: int
    nbytes: int
    read_seconds: float  # from the store
    copy_seconds: float = 0.0  # from the host
    runs: tuple[Run, ...] = ()  # its pages, neighbouring pieces as one
    on_device: bool = False  # resident or placing, and so with runs
    placed_before: bool = False

    def would_fit(self, pages: PageAllocator | PageCount, gone: Sequence[Version]) -> bool:
        """Whether its pieces find room, each in one run, once these have left the device."""
        if pages.num_free + sum(other.pages for other in gone) < self.pages:
            return False
        return pages.would_fit(self.sizes, (run for other in gone for run in other.runs))
