"""Lengths are as the workload says, and the shipped summary is of the public traces."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livery_loadtest import trace_summary
from livery_loadtest.lengths import Side, lengths
from livery_loadtest.spec import Azure, Between, Fixed, Length, Lognormal, OfTrace
from livery_loadtest.traces import Quantiles, TraceRows, azure_2023

COUNT = 100_000


def drawn(length: Length, side: Side = Side.PROMPT, seed: int = 0, rows: TraceRows | None = None) -> np.ndarray:
    count = len(rows.times) if rows else COUNT
    found = lengths(length, side, count, rows, np.random.default_rng(seed))
    assert found.dtype == np.int64 and len(found) == count and found.min() >= 1
    return found


def test_fixed_is_fixed_and_uniform_has_both_ends_alike() -> None:
    assert set(drawn(Fixed(tokens=17)).tolist()) == {17}
    counts = np.bincount(drawn(Between(low=8, high=12)))
    assert counts[:8].sum() == 0 and counts[8:] / COUNT == pytest.approx(np.full(5, 0.2), abs=0.01)


@given(median=st.floats(5, 2000), sigma=st.floats(0, 1.5), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_lognormal_has_its_median_and_spread_within_its_cut(median: float, sigma: float, seed: int) -> None:
    found = drawn(Lognormal(median=median, sigma=sigma, low=1, high=1_000_000), seed=seed)
    assert np.median(found) == pytest.approx(median, rel=0.03, abs=0.6)
    upper = np.quantile(found, 0.8413)  # one standard deviation above
    assert upper == pytest.approx(median * math.exp(sigma), rel=0.05, abs=0.6)
    cut = drawn(Lognormal(median=median, sigma=sigma, low=4, high=1000), seed=seed)
    assert cut.min() >= 4 and cut.max() <= 1000


@pytest.mark.parametrize("trace", ["conv", "code"])
@pytest.mark.parametrize("side", list(Side))
def test_azure_lengths_have_the_means_and_quantiles_of_the_trace(trace: str, side: Side) -> None:
    summary: Quantiles = getattr(getattr(azure_2023(), trace), side)
    found = drawn(Azure(trace=trace, high=1_000_000), side)
    assert found.mean() == pytest.approx(summary.mean, rel=0.03)
    assert found.std() / found.mean() == pytest.approx(summary.cv, rel=0.05)
    for share, value in zip(azure_2023().probabilities, summary.values, strict=True):
        assert (found <= value * 1.03 + 1).mean() >= share - 0.01
        assert (found < value * 0.97 - 1).mean() <= share + 0.01
    scaled = drawn(Azure(trace=trace, scale=0.01, high=20), side)
    assert scaled.min() == 1 and scaled.max() <= 20


def test_lengths_of_the_trace_are_its_rows() -> None:
    rows = TraceRows(np.arange(3.0), np.array([10, 2000, 7]), np.array([1, 50, 3]))
    assert drawn(OfTrace(scale=0.5, high=400), Side.PROMPT, rows=rows).tolist() == [5, 400, 4]
    assert drawn(OfTrace(), Side.OUTPUT, rows=rows).tolist() == [1, 50, 3]


def test_the_shipped_summary_is_that_of_the_published_figures() -> None:
    """19,366 and 8,819 requests within an hour, and their medians."""
    azure = azure_2023()
    assert (azure.conv.requests, azure.code.requests) == (19_366, 8_819)
    median = list(azure.probabilities).index(0.5)
    assert [azure.conv.prompt.values[median], azure.conv.output.values[median]] == [1020, 129]
    assert [azure.code.prompt.values[median], azure.code.output.values[median]] == [1469, 13]
    assert "CC-BY-4.0" in azure.licence and "Azure" in azure.attribution and "AzurePublicDataset" in azure.source
    for trace in (azure.conv, azure.code):
        for quantiles in (trace.prompt, trace.output, trace.gap_s):
            assert len(quantiles.values) == len(azure.probabilities)
            assert sorted(quantiles.values) == quantiles.values


def test_the_summary_is_computed_from_files_by_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace.csv"
    rows = "".join(f"{second * second},{second},{2 * second}\n" for second in range(1, 202))
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    monkeypatch.setattr("sys.argv", ["trace_summary", str(file), str(file)])
    assert trace_summary.main() == 0
    summary = msgspec.json.decode(capsys.readouterr().out, type=trace_summary.AzureSummary)
    assert summary.code.requests == 201 and summary.code.seconds == 201**2 - 1
    assert summary.conv.prompt.mean == 101 and summary.conv.gap_s.mean == 202
    assert summary.conv.output.values[:2] == [2, 6] and summary.conv.output.values[-1] == 402
    monkeypatch.setattr("sys.argv", ["trace_summary", str(file), str(tmp_path / "nowhere")])
    assert trace_summary.main() == 1
    assert "nowhere: No such file" in capsys.readouterr().err
