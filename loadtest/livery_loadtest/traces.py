"""Traces of real traffic: a CSV file's times and lengths, and the shipped summary of the public Azure traces."""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from livery_loadtest.kinds import MOST_REQUESTS, MOST_TOKENS
from livery_loadtest.spec import SpecInvalid

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOST_LINE = 10_000  # characters: a file that isn't a CSV may have no line ends at all

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class TraceRows:
    """Requests of a trace: `times` in seconds after its first, prompts' and answers' lengths in tokens."""

    times: Floats
    prompts: Ints
    outputs: Ints


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution by its values at rising probabilities from 0 to 1, and its mean and coefficient of variation."""

    mean: float
    cv: float
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One trace without its requests: how many in how many seconds, their lengths, the seconds between them."""

    requests: int
    seconds: float
    prompt: Quantiles
    output: Quantiles
    gap_s: Quantiles


@dataclass(frozen=True, slots=True)
class AzureSummary:
    """The shipped file: where it comes from, the probabilities of all its quantiles, and the two traces."""

    source: str
    licence: str
    attribution: str
    computed_by: str
    probabilities: Sequence[float]
    conv: TraceSummary
    code: TraceSummary


@cache
def azure_2023() -> AzureSummary:
    """The quantiles of the Azure LLM inference traces of 2023 that come with this package."""
    text = (files("livery_loadtest") / "data" / "azure-2023.json").read_bytes()
    return msgspec.json.decode(text, type=AzureSummary)


def draw(quantiles: Quantiles, count: int, rng: np.random.Generator) -> Floats:
    """`count` values by inverting the distribution function, straight lines between its quantiles, with its mean.

    The lines alone would have another mean where few values are much of the sum, as in the last ten thousandth.
    """
    probabilities, values = np.array(azure_2023().probabilities), np.array(quantiles.values)
    mean = float(np.diff(probabilities) @ (values[1:] + values[:-1]) / 2)
    drawn: Floats = np.interp(rng.random(count), probabilities, values) * (quantiles.mean / mean)
    return drawn


def read_trace(path: Path, start_s: float = 0.0, until_s: float = float("inf"), most: int = MOST_REQUESTS) -> TraceRows:
    """The requests of a CSV file from `start_s` seconds after its first up to `until_s`, and `most` of them at most.

    Reads no further than that. Raises SpecInvalid, with the file, the line and what is wrong there.
    """
    try:
        with _opened(path) as file:
            rows = list(itertools.islice(_rows(path, _lines(path, file), start_s, until_s), most))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SpecInvalid(f"{path}: {why}; a trace is a CSV file with the columns {', '.join(COLUMNS)}") from error
    if not rows:
        raise SpecInvalid(f"{path}: no request after second {start_s:g} and before {until_s:g} of it; start earlier")
    times, prompts, outputs = zip(*rows, strict=True)
    return TraceRows(np.array(times), np.array(prompts), np.array(outputs))


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """The file's lines, none longer than is read at once."""
    for number in itertools.count(1):
        line = file.readline(MOST_LINE)
        if len(line) == MOST_LINE:
            raise SpecInvalid(f"{path}, line {number}: over {MOST_LINE:,} characters; a trace is a CSV file")
        if not line:
            return
        yield line


def _rows(path: Path, lines: Iterator[str], start_s: float, until_s: float) -> Iterator[tuple[float, int, int]]:
    """Time, prompt tokens and output tokens of each request in the window."""
    reader = csv.reader(lines)
    head = [name.strip().lower() for name in next(reader, [])]
    missing = [name for name in COLUMNS if name.lower() not in head]
    if missing:
        raise SpecInvalid(f"{path}, line 1: no column {', '.join(missing)}; a trace has {', '.join(COLUMNS)}")
    time_at, prompt_at, output_at = (head.index(name.lower()) for name in COLUMNS)
    first = before = float("nan")
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if not row:
            continue
        if len(row) < len(head):
            raise SpecInvalid(f"{where}: {len(row)} values, {len(head)} columns; is the file cut off?")
        at = _seconds(row[time_at], where)
        if at < before:
            raise SpecInvalid(f"{where}: TIMESTAMP {row[time_at]!r} is before that of the line above; sort by it")
        first, before = at if first != first else first, at
        if at - first >= until_s:
            return
        if at - first >= start_s:
            yield at - first, _tokens(row[prompt_at], where, COLUMNS[1]), _tokens(row[output_at], where, COLUMNS[2])


def _seconds(text: str, where: str) -> float:
    """A time as seconds of any origin: a number, or a date and time (without a zone: UTC)."""
    try:
        at = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            told = f"{where}: TIMESTAMP is {text[:40]!r}; expected seconds, or a time such as 2023-11-16 18:15:46.68"
            raise SpecInvalid(told) from None
        # As local time it would jump where clocks are set.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not abs(at) < 1e12:
        raise SpecInvalid(f"{where}: TIMESTAMP is {text[:40]!r}; expected seconds")
    return at


def _tokens(text: str, where: str, column: str) -> int:
    """A length in tokens. Some traces have answers of none, which can't be asked for: they count as one."""
    try:
        tokens = int(text)
    except ValueError:
        tokens = -1
    if not 0 <= tokens <= MOST_TOKENS:
        raise SpecInvalid(f"{where}: {column} is {text[:40]!r}; expected tokens, 0 to {MOST_TOKENS:,}")
    return max(tokens, 1)
