"""A replica whose engine is vLLM, in the environment that `make test-vllm` has, with Ray beside it; PEFT judges."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.oracle import Oracle
from foreign_parts import lacking
from livery.models import resolve_model
from ray_serve.cluster import MOST, OWN_PORTS
from ray_serve.config_file import serve_run
from ray_serve.vllm_environment import vllm_beside_ray

DEMO = Path(__file__).parent.parent.parent / "adapters" / "demo"
GAP = 1e-3  # tokens must agree where the two likeliest logits are further apart


@pytest.mark.timeout(900)
def test_tokens_of_a_replica_with_vllm_are_those_of_peft(tmp_path: Path) -> None:
    environment = vllm_beside_ray()
    if environment is None:
        lacking("vLLM's environment is not there; make test-vllm builds it")
    python, variables = environment
    shutil.copytree(DEMO / "pirate", tmp_path / "adapters" / "pirate")
    model = resolve_model("smollm2-135m-instruct")
    args = {
        "model": str(model.path),
        "adapters": str(tmp_path / "adapters"),
        "data": str(tmp_path / "data"),
        "engine": "vllm",
        "vllm_arg": ["enforce_eager=true"],
        "dtype": "float32",
        "kv_memory": "256MiB",
        "max_model_len": 512,
        "max_running": 8,
        "num_cpus": 0.1,
        "replica_port": OWN_PORTS + MOST - 1,
    }
    oracle, prompt = Oracle(model.path, 512), list(range(300, 312))
    with serve_run(tmp_path / "vllm.yaml", args, {}, str(python), {**variables, "LIVERY_REGISTRY": ""}) as http:
        for name, adapter in ((model.path.name, None), ("pirate", DEMO / "pirate")):
            body: dict[str, Any] = {"model": name, "prompt": prompt, "max_tokens": 12, "temperature": 0}
            with http() as client:
                answer = client.post("/v1/completions", json={**body, "return_token_ids": True, "ignore_eos": True})
            assert answer.status_code == 200, answer.text
            tokens = answer.json()["choices"][0]["token_ids"]
            rows = oracle.logits(prompt + tokens, adapter)[len(prompt) - 1 : -1]
            best = rows.topk(2)
            clear = best.values[:, 0] - best.values[:, 1] > GAP
            assert [t for t, is_clear in zip(tokens, clear, strict=True) if is_clear] == best.indices[clear, 0].tolist()
            assert int(clear.sum()) > 6
