"""vLLM's tensor parallelism under Livery: each process has a third of the model, and of the adapters; PEFT judges."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from engine_vllm.both import ADAPTERS, DEMO, MODEL, check_greedy, ids
from server.running import livery_serve

pytestmark = pytest.mark.vllm

RANKS = 3  # by which the demo base's nine heads, and three of keys, can be divided; two can't
# By itself vLLM has each rank on a NUMA node of its own, which a small machine hasn't got.
ANYWHERE = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@pytest.mark.timeout(600)
def test_adapters_on_a_model_in_three_processes_answer_as_peft_does(tmp_path: Path) -> None:
    for name in ADAPTERS:
        shutil.copytree(DEMO / name, tmp_path / "adapters" / name)
    flags = ("--engine", "vllm", "--kv-memory", "64MiB", "--max-model-len", "128", "--max-running", "4")
    told = ("--vllm-arg", "enforce_eager=true", "--vllm-arg", f"tensor_parallel_size={RANKS}")
    with livery_serve(MODEL, tmp_path / "adapters", tmp_path, *flags, *told, environ=ANYWHERE) as running:
        processes = psutil.Process(running.pid).children(recursive=True)
        assert sum("Worker_TP" in " ".join([one.name(), *one.cmdline()]) for one in processes) == RANKS
        asked: dict[str, Any] = {"prompt": "The weather today is", "max_tokens": 12, "temperature": 0}
        body = {"return_token_ids": True, "ignore_eos": True}
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            for name in (MODEL.name, *ADAPTERS):
                choice: Any = client.completions.create(model=name, **asked, extra_body=body).choices[0]
                check_greedy(name if name in ADAPTERS else None, ids(asked["prompt"]), choice.token_ids)
