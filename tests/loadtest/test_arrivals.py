"""Requests come as the workload says: rates, burstiness, traces; and a bad trace is refused by line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livery_loadtest.arrivals import open_times, replayed
from livery_loadtest.spec import AzureGaps, Gamma, Poisson, SpecInvalid, Trace
from livery_loadtest.traces import azure_2023

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaps(times: np.ndarray) -> tuple[float, float]:
    """Mean and coefficient of variation of the times between requests, the first counting from 0."""
    between = np.diff(times, prepend=0.0)
    return float(between.mean()), float(between.std() / between.mean())


@given(rate=st.floats(0.01, 1000), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_poisson_has_its_rate_and_a_cv_of_one(rate: float, seed: int) -> None:
    mean, cv = gaps(open_times(Poisson(rate=rate), 20_000, 0, rng(seed)))
    assert mean * rate == pytest.approx(1, rel=0.05)  # seven standard errors
    assert cv == pytest.approx(1, rel=0.07)


@given(rate=st.floats(0.1, 100), cv=st.floats(0.25, 8), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_gamma_has_its_rate_and_its_cv(rate: float, cv: float, seed: int) -> None:
    mean, found = gaps(open_times(Gamma(rate=rate, cv=cv), 200_000, 0, rng(seed)))
    assert mean * rate == pytest.approx(1, rel=0.02 * max(cv, 1))
    assert found == pytest.approx(cv, rel=0.1)


def test_gamma_with_a_cv_of_one_is_poisson() -> None:
    """Compared at ten quantiles of the exponential distribution."""
    between = np.diff(open_times(Gamma(rate=2, cv=1), 50_000, 0, rng()))
    for share in np.arange(0.1, 1, 0.1):
        assert (between < -np.log(1 - share) / 2).mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("trace", ["conv", "code"])
def test_azure_gaps_have_their_own_rate_or_the_one_asked_for(trace: str) -> None:
    summary = getattr(azure_2023(), trace)
    own, cv = gaps(open_times(AzureGaps(trace=trace), 400_000, 0, rng()))
    assert own == pytest.approx(summary.gap_s.mean, rel=0.1)
    assert cv == pytest.approx(summary.gap_s.cv, rel=0.2)
    asked, _ = gaps(open_times(AzureGaps(trace=trace, rate=40), 400_000, 0, rng()))
    assert asked == pytest.approx(1 / 40, rel=0.1)


@given(rate=st.floats(0.5, 50), duration=st.floats(20, 100), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_times_rise_and_end_with_the_duration(rate: float, duration: float, seed: int) -> None:
    times = open_times(Poisson(rate=rate), 0, duration, rng(seed))
    assert (np.diff(times) >= 0).all()
    assert times[0] > 0 and times[-1] < duration
    assert abs(len(times) - rate * duration) < 6 * np.sqrt(rate * duration)


def test_a_run_ends_with_what_comes_first_and_a_longer_one_begins_the_same() -> None:
    few = open_times(Poisson(rate=10), 50, 1000, rng())
    short = open_times(Poisson(rate=10), 10**6, 5, rng())
    assert len(few) == 50 and len(short) == pytest.approx(50, abs=40) and short[-1] < 5
    long = open_times(Poisson(rate=10), 0, 5000, rng())
    assert (long[:50] == few).all() and (long[: len(short)] == short).all()


def test_no_request_and_too_many_are_refused() -> None:
    with pytest.raises(SpecInvalid, match=r"no request arrives within duration_s 1; raise it"):
        open_times(Poisson(rate=1e-6), 0, 1, rng())
    with pytest.raises(SpecInvalid, match=r"over 2,000,000 requests.*lower `duration_s`"):
        open_times(Poisson(rate=1e9), 0, 1e9, rng())


def test_a_trace_is_replayed_from_where_and_as_fast_as_asked(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    lines = [f"2023-11-16 23:59:{50 + second}.5000000,{10 * second + 1},{second}\n" for second in range(10)]
    file.write_text(HEAD + "".join(lines) + "2023-11-17 00:00:00.5000000,101,10\n")
    rows = replayed(Trace(file=str(file), start_s=2, speed=2), 0, 3)
    assert rows.times.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert rows.prompts.tolist() == [21, 31, 41, 51, 61, 71]
    assert rows.outputs.tolist() == [2, 3, 4, 5, 6, 7]
    whole = replayed(Trace(file=str(file)), 0, 0)
    assert whole.times.tolist() == list(range(11)) and whole.outputs.tolist() == [1, *range(1, 11)]
    assert replayed(Trace(file=str(file)), 4, 0).times.tolist() == [0, 1, 2, 3]


def test_a_packed_trace_with_seconds_other_columns_and_another_order_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv.gz"
    file.write_bytes(
        gzip.compress(b"generatedtokens, model ,TimeStamp,contexttokens\r\n3,x,100.5,7\r\n\r\n4,y,101,8\r\n")
    )
    rows = replayed(Trace(file=str(file)), 0, 0)
    assert rows.times.tolist() == [0, 0.5]
    assert rows.prompts.tolist() == [7, 8] and rows.outputs.tolist() == [3, 4]


def test_only_as_much_of_a_trace_is_read_as_a_run_needs(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(HEAD + "1,1,1\n2,1,1\nbroken\n")
    assert len(replayed(Trace(file=str(file)), 2, 0).times) == 2
    with pytest.raises(SpecInvalid, match=r"line 4: 1 values, 3 columns"):
        replayed(Trace(file=str(file)), 3, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"line 1: no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("TIMESTAMP,ContextTokens\n1,2\n", r"line 1: no column GeneratedTokens; a trace has TIMESTAMP"),
        (HEAD, r"no request after second 0 .*start earlier"),
        (HEAD + "1,1,1\nyesterday,1,1\n", r"line 3: TIMESTAMP is 'yesterday'; expected seconds, or a time such as"),
        (HEAD + "nan,1,1\n", r"line 2: TIMESTAMP is 'nan'; expected seconds"),
        (HEAD + "1e300,1,1\n", r"line 2: TIMESTAMP is '1e300'"),
        (HEAD + "2,1,1\n1,1,1\n", r"line 3: TIMESTAMP '1' is before that of the line above; sort"),
        (HEAD + "1,-1,1\n", r"line 2: ContextTokens is '-1'; expected tokens, 0 to 1,000,000"),
        (HEAD + "1,1,9999999\n", r"line 2: GeneratedTokens is '9999999'"),
        (HEAD + "1,1,1.5\n", r"line 2: GeneratedTokens is '1\.5'"),
        (HEAD + "1,1\n", r"line 2: 2 values, 3 columns; is the file cut off"),
        (HEAD + "x" * 20_000, r"line 2: over 10,000 characters"),
    ],
)
def test_a_bad_trace_is_refused_with_file_line_and_value(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(SpecInvalid, match=rf"trace\.csv.*{said}"):
        replayed(Trace(file=str(file)), 0, 0)


def test_a_trace_that_is_no_text_no_archive_cut_off_or_not_there_is_refused(tmp_path: Path) -> None:
    contents = {
        "binary.csv": b"\xff\xfe\x00",
        "plain.csv.gz": HEAD.encode(),
        "cut.csv.gz": gzip.compress(HEAD.encode() + b"1,1,1\n" * 5000)[:-40],
        "spoilt.csv.gz": gzip.compress(HEAD.encode() + b"1,1,1\n" * 5000)[:20] + b"\xff" * 200,
        "bomb.csv.gz": gzip.compress(HEAD.encode() + b"0" * 10_000_000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "nowhere.csv", "."):
        with pytest.raises(SpecInvalid, match=rf"^{tmp_path / name}.*a trace is a CSV file"):
            replayed(Trace(file=str(tmp_path / name)), 0, 0)
