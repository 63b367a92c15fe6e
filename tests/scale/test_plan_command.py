"""`livery plan` as people call it: tables, JSON, a GPU by file, this machine, refusals, and the simulation's files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cli.conftest import Livery, livery
from livery.commands.plan import serve_options
from livery.engine.quantization import SCHEMES
from livery.engine.vllm_args import parse_args
from livery.running.engines import check_knobs
from livery.scale.plan.accelerators import Accelerator, accelerator
from livery.scale.plan.planner import make_plan
from livery.scale.plan.question import Question
from livery.scale.plan.shapes import known_models
from livery.scale.simulation.policies import POLICIES
from livery.settings import Settings

__all__ = ["livery"]  # the fixture

ASKED = ("plan", "--model", "llama-3.1-8b", "--adapters", 1000)


def test_a_plan_says_gpus_limit_and_what_would_change_it(livery: Livery) -> None:
    done = livery(*ASKED, "--gpu", "h200", "--rps", 50, "--price-per-hour", 4)
    assert done.code == 0, done.err
    for words in (
        *("keys and values", "distinct adapters among them", "time to first token, p95", "price of a million output"),
        *("4 GPUs.", "one replica fewer fails by compute", "--kv-memory", "What would change it", "GPU b200"),
    ):
        assert words in done.out, words


def test_json_has_every_number_with_its_formula(livery: Livery) -> None:
    found = livery(*ASKED, "--gpu", "H200", "--rps", 50, "--json").json()
    assert found["schema"] == "livery-plan/1"
    figures = {one["name"]: one for rows in found["figures"].values() for one in rows}
    assert figures["one adapter (a)"]["value"] == 83_886_080
    assert figures["GPUs"]["value"] == found["gpus"] == 4
    assert all(one["how"] for one in figures.values())
    parts = ("weights", "working memory", "adapters on the device", "keys and values")
    assert sum(figures[name]["value"] for name in parts) == pytest.approx(figures["device memory"]["value"])
    assert found["limit"] == "compute"
    assert {"what", "gpus", "capacity", "limit", "rate"} == set(found["changes"][0])


def test_a_gpu_and_a_model_by_file(livery: Livery, tmp_path: Path) -> None:
    gpu, model = tmp_path / "mine.yaml", tmp_path / "config.json"
    gpu.write_text("memory_gb: 16\nbandwidth_gb_s: 320\ntflops: 65\n")
    model.write_text(
        json.dumps(
            {
                **{"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4},
                **{"num_attention_heads": 8, "vocab_size": 1000, "torch_dtype": "bfloat16"},
            }
        )
    )
    found = livery("plan", "--gpu", gpu, "--model", model, "--adapters", 3, "--json").json()
    assert found["gpu"]["name"] == "mine"
    assert found["model"] == tmp_path.name


def test_this_machine_is_measured(livery: Livery) -> None:
    found = livery("plan", "--gpu", "cpu", "--model", "smollm2-135m", "--adapters", 8, "--weights", "int4", "--json")
    gpu = found.json()["gpu"]
    assert gpu["kind"] == "cpu"
    assert 0.1 < gpu["bandwidth_gb_s"] < 10_000
    assert 0.001 < gpu["tflops"] < 100


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--gpu", "h20"), "--gpu h20: unknown; did you mean h200"),
        (("--gpu", "h200", "--model", "lama-3.1-8b"), "did you mean llama-3.1-8b"),
        (("--gpu", "h200", "--adapters", 0), "--adapters 0"),
        (("--gpu", "h200", "--rank", 5000), "--rank 5000: expected 1 to 1,024"),
        (("--gpu", "h200", "--store-gb-s", 0), "--store-gb-s 0: expected 0.001"),
        (("--gpu", "h200", "--host-memory", "nan"), "--host-memory nan"),
        (("--gpu", "h200", "--host-memory", -1), "--host-memory -1"),
        (("--gpu", "h200", "--adapter-memory", "inf"), "--adapter-memory inf"),
        (("--gpu", "h200", "--price-per-hour", -4), "--price-per-hour -4"),
        (("--gpu", "h200", "--context", -1), "--context -1"),
        (("--gpu", "h200", "--slo-ttft-ms", -5), "--slo-ttft-ms -5"),
        (("--gpu", "h200", "--slo-tpot-ms", "nan"), "--slo-tpot-ms nan"),
        (("--gpu", "h200", "--rps", "nan"), "--rps nan"),
        (("--gpu", "h200", "--targets", "qproj"), "did you mean q_proj"),
        (("--gpu", "h200", "--simulate", "--policy", "afinity"), "did you mean affinity"),
        (("--gpu", "h200", "--simulate", "--load", 3), "--load 3"),
        (("--gpu", "h200", "--simulate", "--replicas", 0), "--replicas 0"),
        (("--gpu", "h200", "--simulate", "--requests", 1), "--requests 1"),
        (("--gpu", "h200", "--simulate", "--trace", "gone.csv"), "gone.csv"),
        (("--gpu", "h200", "--simulate", "--plot", "x.svg"), "give --load twice"),
        (("--gpu", "h200", "--out", "x.json"), "--simulate"),
    ],
)
def test_bad_input_is_told_in_a_line(livery: Livery, options: tuple[object, ...], told: str) -> None:
    done = livery(*ASKED, *options)
    assert done.code == 1
    assert told in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({}, "livery"),
        ({"weights": "int4"}, "livery"),
        ({"weights": "fp8"}, "livery"),
        ({"kv_dtype": "fp8"}, "vllm"),
        ({"tensor_parallel": 4}, "vllm"),
        ({"tensor_parallel": 2, "weights": "int4", "kv_dtype": "fp8"}, "vllm"),
        ({"tensor_parallel": 2, "weights": "int8"}, "vllm"),
    ],
)
def test_what_is_printed_to_serve_with_is_taken_by_a_server(options: dict[str, Any], engine: str) -> None:
    question = Question(gpu=accelerator("h200"), model=known_models()["llama-3.1-8b"], adapters=1000, **options)
    found = make_plan(question)
    told: dict[str, Any] = {}
    args: list[str] = []
    for flag, value in re.findall(r"--([a-z-]+)[ =](\S+)", serve_options(found)):
        if flag == "vllm-arg":
            args.append(value)
        else:
            told[flag.replace("-", "_")] = value
    settings = Settings(model="m", vllm_arg=tuple(args), **told)
    assert settings.engine == engine
    check_knobs(settings)
    assert settings.quantization in ("auto", *SCHEMES)
    given = parse_args(args, {"tensor_parallel_size", "kv_cache_dtype", "quantization"})
    gpus = given.get("tensor_parallel_size", 1)
    assert gpus == found.memory.gpus
    assert settings.kv_memory is not None
    assert settings.kv_memory * found.memory.gpus <= found.memory.device, "vLLM counts by the GPU"


@pytest.mark.parametrize(("prompt", "rows"), [(128, 137), (4000, 11)])
def test_prompts_are_read_in_the_steps_of_a_server_that_is_started_so(prompt: int, rows: int) -> None:
    """On a CPU 64 tokens beside one for each running sequence, of which keys and values may allow few."""
    cpu = Accelerator(name="cpu", kind="cpu", memory_gb=8, bandwidth_gb_s=30, tflops=0.2)
    model = known_models()["smollm2-135m"]
    question = Question(
        gpu=cpu, model=model, adapters=8, weights="int4", dtype="float32", kv_dtype="bfloat16", prompt_tokens=prompt
    )
    found = make_plan(question)
    told = int(re.findall(r"--max-running (\d+)", serve_options(found))[0])
    assert told == rows == 2**30 // (2 * 30 * 3 * 64 * 2) // (prompt + 211)
    assert found.floor.chunk == found.expected.chunk == rows + 64
    assert found.service.prompt == found.expected.prefill(prompt)
    on_gpu = make_plan(replace(question, gpu=accelerator("l40s"), weights="bf16", dtype="bfloat16"))
    assert on_gpu.floor.chunk == on_gpu.expected.chunk == 2048


def test_the_simulation_leaves_a_document_and_a_picture(livery: Livery, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{index * 0.3},{200 + index},{5 + index % 40}\n" for index in range(60))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    out, plot = tmp_path / "a" / "routing.json", tmp_path / "a" / "routing.svg"
    options = ("--gpu", "l40s", "--simulate", "--replicas", 3, "--requests", 200, "--load", 0.4, "--load", 0.8)
    done = livery(*ASKED, *options, "--trace", trace, "--out", out, "--plot", plot)
    assert done.code == 0, done.err
    assert "80% of the planned capacity" in done.out
    document = json.loads(out.read_text())
    assert document["schema"] == "livery-routing/1"
    assert document["trace"] == "trace.csv"
    assert [run["load"] for run in document["runs"]] == [0.4, 0.8]
    for run in document["runs"]:
        assert [one["policy"] for one in run["outcomes"]] == [kind.name for kind in POLICIES]
        assert all(one["requests"] == 160 for one in run["outcomes"])
    picture = ElementTree.fromstring(plot.read_text())
    texts = {element.text for element in picture.iter() if element.text}
    assert {kind.name for kind in POLICIES} <= texts
    assert len([element for element in picture.iter() if element.tag.endswith("circle")]) == 4 * 2 * len(POLICIES)


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_played(
    option: str, livery: Livery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("kept")
    wrong = tmp_path / "file" / "new"
    monkeypatch.setattr("livery.commands.plan.run_simulation", pytest.fail)
    done = livery(*ASKED, "--gpu", "l40s", "--simulate", "--load", 0.4, "--load", 0.8, option, wrong)
    assert done.code == 1
    assert done.err == f"error: {option} {wrong} can't be written: Not a directory; name another place\n"
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_disk_that_is_full_by_then_is_told_too(option: str, livery: Livery) -> None:
    options = ("--gpu", "l40s", "--simulate", "--replicas", 3, "--requests", 20, "--load", 0.4, "--load", 0.8)
    done = livery(*ASKED, *options, "--policy", "affinity", option, "/dev/full")
    assert "80% of the planned capacity" in done.out
    assert done.code == 1
    assert done.err.endswith(
        f"error: {option} /dev/full can't be written: No space left on device; name another place\n"
    )


def test_a_seed_makes_the_same_simulation_again(livery: Livery) -> None:
    options = ("--gpu", "l40s", "--simulate", "--replicas", 3, "--requests", 100, "--policy", "affinity", "--json")
    first = livery(*ASKED, *options, "--seed", 5).json()
    assert livery(*ASKED, *options, "--seed", 5).json() == first
    assert livery(*ASKED, *options, "--seed", 6).json() != first
