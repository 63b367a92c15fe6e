"""Computes the shipped summary of the public Azure traces from their files.

    python -m livery_loadtest.trace_summary AzureLLMInferenceTrace_conv.csv AzureLLMInferenceTrace_code.csv

prints what lies in data/azure-2023.json. The files: https://github.com/Azure/AzurePublicDataset, folder `data`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from livery_loadtest.spec import SpecInvalid
from livery_loadtest.traces import AzureSummary, Floats, Quantiles, TraceRows, TraceSummary, read_trace

# Percents, and closer together where few requests make up much of the load.
TAIL = (0.995, 0.999, 0.9995, 0.9999, 1.0)
PROBABILITIES = (*(percent / 100 for percent in range(100)), *TAIL)


def summarise(conv: Path, code: Path) -> AzureSummary:
    """Both traces in few numbers. Raises SpecInvalid where a file can't be read."""
    return AzureSummary(
        source="https://github.com/Azure/AzurePublicDataset: AzureLLMInferenceTrace_{conv,code}.csv (2023)",
        licence="CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/",
        attribution="Azure LLM inference traces 2023, Microsoft Corporation, described in: P. Patel et al., "
        "Splitwise: Efficient generative LLM inference using phase splitting, ISCA 2024. "
        "Changed: only quantiles of lengths and of times between requests are kept.",
        computed_by="python -m livery_loadtest.trace_summary CONV.csv CODE.csv",
        probabilities=PROBABILITIES,
        conv=_summary(read_trace(conv)),
        code=_summary(read_trace(code)),
    )


def _summary(rows: TraceRows) -> TraceSummary:
    return TraceSummary(
        requests=len(rows.times),
        seconds=round(float(rows.times[-1]), 3),
        prompt=_quantiles(rows.prompts.astype(float), 1),
        output=_quantiles(rows.outputs.astype(float), 1),
        gap_s=_quantiles(np.diff(rows.times), 6),
    )


def _quantiles(values: Floats, digits: int) -> Quantiles:
    mean = float(values.mean())
    found = np.quantile(values, PROBABILITIES)
    return Quantiles(round(mean, 6), round(float(values.std()) / mean, 4), [round(float(one), digits) for one in found])


def main() -> int:
    """Print the summary of the two files named on the command line; the exit status."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        summary = summarise(Path(sys.argv[1]), Path(sys.argv[2]))
    except SpecInvalid as error:
        print(error, file=sys.stderr)
        return 1
    print(msgspec.json.format(msgspec.json.encode(summary), indent=1).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
