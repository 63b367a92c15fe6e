"""Times between events of very many answers in little memory: a histogram of one percent's resolution."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

LOWEST_S = 1e-5  # what is shorter came with one read, or as good as
GROWTH = 1.01
BUCKETS = 1850  # up to 16 minutes


class Gaps:
    """How many gaps were how long: bucket 0 up to LOWEST_S, bucket k up to LOWEST_S * GROWTH**k seconds."""

    def __init__(self, counts: Sequence[int] = ()) -> None:
        self._counts = np.zeros(BUCKETS, np.int64)
        self._counts[: len(counts)] = counts

    def add(self, events: Sequence[float]) -> None:
        """Count the gaps between the events of one answer, whose times are in seconds and in order."""
        if len(events) > 1:
            gaps = np.maximum(np.diff(np.asarray(events)), LOWEST_S)
            buckets = np.ceil(np.log(gaps / LOWEST_S) / np.log(GROWTH)).astype(int)
            np.add.at(self._counts, np.minimum(buckets, BUCKETS - 1), 1)

    def merge(self, other: Gaps) -> None:
        """Count those of another process too."""
        self._counts += other._counts

    @property
    def counts(self) -> array[int]:
        return array("q", self._counts.tobytes())

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    def percentile(self, percent: float) -> float | None:
        """Seconds that `percent` of the gaps don't exceed, a percent too long at most; None where there are none."""
        if not self.total:
            return None
        bucket = int(np.searchsorted(np.cumsum(self._counts), percent / 100 * self.total))
        return LOWEST_S * GROWTH ** min(bucket, BUCKETS - 1)
