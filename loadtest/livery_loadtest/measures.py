"""Percentiles and paired ratios. Pure functions; seconds go in, milliseconds come out under names that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Spread:
    """One number over several rounds."""

    median: float
    low: float
    high: float


def percentiles(seconds: Sequence[float]) -> Percentiles | None:
    """p50, p90 and p99 in milliseconds, linear between neighbours; None for no values."""
    if not seconds:
        return None
    p50, p90, p99 = np.percentile(np.asarray(seconds, dtype=float) * 1000, [50, 90, 99])
    return Percentiles(float(p50), float(p90), float(p99))


def over_rounds(values: Sequence[float]) -> Spread | None:
    """Median, lowest and highest; None for no values."""
    if not values:
        return None
    return Spread(float(np.median(values)), min(values), max(values))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread | None:
    """Ratios round by round, so that drift of the machine cancels; a round with a zero below is left out."""
    pairs = zip(numerators, denominators, strict=True)
    return over_rounds([above / below for above, below in pairs if below > 0])
