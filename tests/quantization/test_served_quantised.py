"""A whole server over a base that bitsandbytes quantised as it loaded, asked by the official client; and the doctor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import openai
import pytest
import torch
from checkpoints import quantized_base
from peft import PeftModel
from transformers import AutoTokenizer

from cli.processes import run
from livery.models import DEMO_MODEL, resolve_model
from server.running import livery_serve

pytestmark = [pytest.mark.quantization, pytest.mark.filterwarnings("ignore")]

DEMO = Path(__file__).parent.parent.parent / "adapters" / "demo"
PROMPT = "The weather today is"


def test_a_server_over_four_bits_answers_as_peft_does(tmp_path: Path) -> None:
    base = resolve_model(DEMO_MODEL).path
    shutil.copytree(DEMO / "pirate", tmp_path / "adapters" / "pirate")
    flags = ("--quantization", "bnb-nf4", "--kv-memory", "64MiB", "--max-model-len", "256")
    with livery_serve(base, tmp_path / "adapters", tmp_path, *flags) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        found = {}
        for name in (base.name, "pirate"):
            body = {"return_token_ids": True, "ignore_eos": True}
            answer = client.completions.create(
                model=name, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=1, extra_body=body
            )
            found[name] = answer.choices[0].model_dump()
        held = httpx.get(f"{server.url}/v1/status").json()["base"]
    ids = AutoTokenizer.from_pretrained(base)(PROMPT)["input_ids"]
    model = quantized_base(base, "bnb-nf4")
    for name, choice in found.items():
        judge = model if name != "pirate" else PeftModel.from_pretrained(model, DEMO / "pirate").eval()
        tokens = ids + choice["token_ids"]
        with torch.no_grad():
            logprobs = judge(torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
        expected = [float(logprobs[at - 1, tokens[at]]) for at in range(len(ids), len(tokens))]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=2e-3)
    findings = {
        entry["what"]: entry
        for entry in json.loads(run("doctor", "--json", "--model", DEMO_MODEL, "--quantization", "bnb-nf4").stdout)
    }
    assert findings["quantization"]["found"] == "bitsandbytes nf4"
    assert held["weight_bytes"] < 0.35 * 4 * 134_515_008
    told = float(findings["base"]["found"].removeprefix("at most ").removesuffix("MiB")) * 2**20
    assert held["weight_bytes"] == pytest.approx(told, rel=0.03)  # the tied head fits into 8 bits, and it knows
