"""One cell of load by three instruments: our client, vLLM's own benchmark, and inference-perf.

    python tests/benchmarks/cross_check.py --out cross-check.json

A Livery server with the demo base and random adapters is asked by each in turn, round after round: a closed loop of 8
streams, 64 tokens in, 32 out, models in turn, drawn at temperature 1, as inference-perf names none. Instruments that
agree differ by no more than one of them differs from itself between rounds; where that is much, nothing is said. Peers'
environments are those of `make bench-peers` and `make conformance`, built once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from conformance.environments import PartMissing, suites
from livery import __version__
from livery_loadtest.commands.ending import Exit
from livery_loadtest.origin import Origin, document, write_json
from livery_loadtest.peers import EnvironmentFailed
from livery_loadtest.peers.launching import livery_command, model_directory
from livery_loadtest.peers.vllm import VllmEnvironment, default_environment
from livery_loadtest.random_adapters import write_random_adapters
from livery_loadtest.servers import LaunchedServer, LaunchSpec, free_port

MODEL = "smollm2-135m-instruct"
STREAMS, REQUESTS, PROMPT, OUTPUT, ADAPTERS = 8, 48, 64, 32, 3
TEMPERATURE = 1.0
NOISY = 0.2  # a spread beyond which rounds are too unlike each other to compare anything by them
SAID = 400  # characters of what an instrument wrote, where it failed
# vLLM's command line looks for a distribution by a name that the CPU build doesn't have; its module is whole.
VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
say = Console(stderr=True).print


@dataclass(frozen=True)
class Reading:
    """What one instrument said of one round: output tokens a second, and mean times in milliseconds."""

    tokens_per_second: float
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True)
class Cell:
    """The server under test and what of it is asked for."""

    url: str
    base: Path
    adapters: tuple[str, ...]
    folder: Path


Instrument = Callable[[Cell, int], Reading]


def ours(cell: Cell, round_: int) -> Reading:
    workload = {
        "name": f"round-{round_}",
        "seed": round_,
        "arrivals": {"kind": "closed", "streams": STREAMS},
        "requests": REQUESTS,
        "warm_up": 0,
        "popularity": {"kind": "distinct"},
        "prompt": {"kind": "fixed", "tokens": PROMPT},
        "output": {"kind": "fixed", "tokens": OUTPUT},
        "temperature": TEMPERATURE,
    }
    file, out = cell.folder / f"round-{round_}.yaml", cell.folder / "ours"
    file.write_text(yaml.safe_dump(workload))
    command = [sys.executable, "-m", "livery_loadtest", "run", str(file), "--repeats", "1", "--out", str(out)]
    run([*command, "--target", f"livery={cell.url}"], fine=(Exit.FINE, Exit.INVALID))
    result = json.loads((out / f"round-{round_}.json").read_bytes())
    for reason in result["repeats"][0]["health"]["reasons"]:
        say(f"[yellow]our own client doubts itself: {reason}[/]")
    (summary,) = result["summary"]
    expect(summary["completed"], "our client")
    means = [summary[name]["mean"]["value"] for name in ("ttft_ms", "tpot_ms")]
    return Reading(summary["tokens_per_second"]["value"], *means)


def vllm_bench(cell: Cell, round_: int) -> Reading:
    file = cell.folder / f"vllm-{round_}.json"
    options = [
        "--backend",
        "openai",
        "--base-url",
        cell.url,
        "--endpoint",
        "/v1/completions",
        "--model",
        str(cell.base),
    ]
    options += ["--served-model-name", MODEL, "--tokenizer", str(cell.base), "--dataset-name", "random"]
    options += ["--random-input-len", str(PROMPT), "--random-output-len", str(OUTPUT), "--ignore-eos"]
    options += ["--max-concurrency", str(STREAMS), "--num-prompts", str(REQUESTS), "--seed", str(round_)]
    options += ["--lora-modules", *cell.adapters, "--lora-assignment", "round-robin"]
    options += ["--temperature", str(TEMPERATURE)]
    options += ["--save-result", "--result-filename", str(file), "--disable-tqdm"]
    run([str(VllmEnvironment(default_environment()).python), "-c", VLLM_BENCH, *options])
    result = json.loads(file.read_text())
    expect(result["completed"], "vLLM's benchmark")
    return Reading(result["output_throughput"], result["mean_ttft_ms"], result["mean_tpot_ms"])


def inference_perf(cell: Cell, round_: int) -> Reading:
    folder = cell.folder / f"inference-perf-{round_}"
    folder.mkdir()

    def fixed(length: int) -> dict[str, Any]:
        return {"type": "fixed", "min": length, "max": length, "mean": length, "std_dev": 0, "total_count": REQUESTS}

    split = [{"name": name, "split": 1 / len(cell.adapters)} for name in cell.adapters]
    load = {
        "type": "concurrent",
        "stages": [{"num_requests": REQUESTS, "concurrency_level": STREAMS}],
        "num_workers": 1,
        "base_seed": round_,
        "lora_traffic_split": split,
    }
    config = {
        "load": load,
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": MODEL, "base_url": cell.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(cell.base)},
        "data": {"type": "random", "input_distribution": fixed(PROMPT), "output_distribution": fixed(OUTPUT)},
        "storage": {"local_storage": {"path": str(folder / "reports")}},
        # by default it encodes the answers' text anew, which can take fewer tokens than the server gave
        "report": {"request_lifecycle": {"summary": True, "use_server_output_tokens": True}},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    program = inference_perf_suite().folder / "bin" / "inference-perf"
    run([str(program), "--config_file", str(folder / "config.yml")], folder)
    good = json.loads((folder / "reports" / "summary_lifecycle_metrics.json").read_text())["successes"]
    expect(good["count"], "inference-perf")
    latency = good["latency"]
    per_token = latency["time_per_output_token"]["mean"]
    return Reading(
        good["throughput"]["output_tokens_per_sec"], 1e3 * latency["time_to_first_token"]["mean"], 1e3 * per_token
    )


INSTRUMENTS: Mapping[str, Instrument] = {
    "livery": ours,
    "vllm bench serve": vllm_bench,
    "inference-perf": inference_perf,
}


def inference_perf_suite() -> Any:
    return next(suite for suite in suites() if suite.name == "inference-perf")


def run(command: Sequence[str], folder: Path | None = None, fine: Sequence[int] = (0,)) -> None:
    """Raises SystemExit with what the instrument said last, unless it ended as is `fine`."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode not in fine:
        raise SystemExit(
            f"{' '.join(command[:3])} … ended with {done.returncode}: {done.stdout[-SAID:]}{done.stderr[-SAID:]}"
        )


def expect(completed: int, instrument: str) -> None:
    if completed != REQUESTS:
        raise SystemExit(f"{instrument} completed {completed} of {REQUESTS} requests; its figures can't be compared")


def agreement(readings: Mapping[str, Sequence[Reading]]) -> list[dict[str, Any]]:
    """For each figure and each other instrument: the ratio of means, and how far one instrument is from itself.

    `spread` is two standard deviations of a ratio of two single rounds, from both instruments' own rounds.
    """
    rows = []
    for figure in Reading.__dataclass_fields__:
        values = {name: [getattr(one, figure) for one in taken] for name, taken in readings.items()}
        mine = values["livery"]
        for name, theirs in values.items():
            if name == "livery":
                continue
            spread = 2 * ((stdev(mine) / mean(mine)) ** 2 + (stdev(theirs) / mean(theirs)) ** 2) ** 0.5
            ratio = mean(mine) / mean(theirs)
            rows.append(
                {
                    **{"figure": figure, "with": name, "ratio": ratio, "spread": spread},
                    "agrees": abs(ratio - 1) <= spread <= NOISY,
                }
            )
    return rows


def show(readings: Mapping[str, Sequence[Reading]], rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(
        "instrument", "tokens/s", "TTFT ms, mean", "time per token ms, mean", title="One cell, three instruments"
    )
    for name, taken in readings.items():
        cells = [[getattr(one, figure) for one in taken] for figure in Reading.__dataclass_fields__]
        table.add_row(name, *(f"{mean(cell):.1f} ({min(cell):.1f} to {max(cell):.1f})" for cell in cells))
    Console().print(table)
    for row in rows:
        verdict = "within" if row["agrees"] else "BEYOND" if row["spread"] <= NOISY else "TOO NOISY TO SAY:"
        text = f"{row['figure']}: {row['ratio']:.3f} of {row['with']}'s, {verdict} the spread of ±{row['spread']:.3f}"
        Console().print(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write what was measured to this JSON file")
    given = parser.parse_args()
    try:
        VllmEnvironment(default_environment()).ensure(Console(stderr=True))
        inference_perf_suite().ensure(Console(stderr=True))
    except (EnvironmentFailed, PartMissing) as missing:
        raise SystemExit(str(missing)) from missing
    base = model_directory(MODEL)
    readings: dict[str, list[Reading]] = {name: [] for name in INSTRUMENTS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        adapters = write_random_adapters(base, root / "adapters", ADAPTERS, 16)
        port = free_port()
        command = livery_command(MODEL, root / "adapters", root / "data", port)
        spec = LaunchSpec(
            *("livery", command, f"http://127.0.0.1:{port}", root / "livery.log"),
            ready="/ready",
            expects=frozenset(adapters),
        )
        with LaunchedServer(spec) as server:
            server.wait_ready(600, Console(stderr=True))
            cell = Cell(spec.url, base, tuple(sorted(adapters)), root)
            for round_ in range(given.rounds + 1):  # the first is to warm up, and not counted
                for name, instrument in INSTRUMENTS.items():
                    say(f"round {round_} of {given.rounds}: {name}")
                    reading = instrument(cell, round_)
                    if round_:
                        readings[name].append(reading)
    rows = agreement(readings)
    show(readings, rows)
    if given.out:
        measured = {"readings": {name: [asdict(one) for one in taken] for name, taken in readings.items()}}
        write_json(
            document("livery-cross-check/1", Origin.here(__version__), ("numpy",), measured | {"agreement": rows}),
            given.out,
        )
    return 0 if all(row["agrees"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
