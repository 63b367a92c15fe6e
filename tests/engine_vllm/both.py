"""Engines under the same tests: this project's own, and vLLM; and PEFT, who says what is right."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from livery.engine.base import (
    AdapterRef,
    Engine,
    EngineConfig,
    EngineInfo,
    GenerationRequest,
    SamplingParams,
    TokenDelta,
)
from livery.engine.client import EngineClient
from livery.engine.vllm import VllmEngine, VllmOptions
from livery_adapters.manifest import read_manifest
from peft_judge import Judge

MODEL = Path(os.environ.get("LIVERY_TEST_MODEL", "."))
DEMO = Path(__file__).parent.parent.parent / "adapters" / "demo"
ADAPTERS = ("pirate", "sql")
KV = 256 << 20
MAX_LEN = 512
JUDGE = Judge(MODEL, DEMO)
ids, logits, check_greedy = JUDGE.ids, JUDGE.logits, JUDGE.check_greedy


def config(**changed: Any) -> EngineConfig:
    told = {
        "model_path": str(MODEL),
        "kv_memory_bytes": KV,
        "max_model_len": MAX_LEN,
        "max_running": 8,
        "dtype": "float32",
    }
    return EngineConfig(**(told | changed))


def vllm_engine(**changed: Any) -> VllmEngine:
    ranks = tuple(read_manifest(DEMO / name, digest="unread").max_rank for name in ADAPTERS)
    return VllmEngine(config(**changed), VllmOptions(("enforce_eager=true",), ranks, max_loras=2, max_cpu_loras=3))


@asynccontextmanager
async def started(kind: str) -> AsyncIterator[tuple[Engine, EngineInfo]]:
    engine: Engine = vllm_engine() if kind == "vllm" else EngineClient(config())
    try:
        yield engine, await engine.start()
    finally:
        await engine.stop()


def adapter(name: str) -> AdapterRef:
    return ref(DEMO / name)


def ref(folder: Path) -> AdapterRef:
    return AdapterRef.of(read_manifest(folder).digest, str(folder))


def ask(name: str, prompt: str | list[int], adapter: AdapterRef | None = None, **asked: Any) -> GenerationRequest:
    """A greedy request unless `asked` says otherwise; fields of the request itself begin with an underscore there."""
    own = {key.removeprefix("_"): asked.pop(key) for key in list(asked) if key.startswith("_")}
    sampling = SamplingParams(**({"max_tokens": 12, "temperature": 0.0, "ignore_eos": True} | asked))
    tokens = ids(prompt) if isinstance(prompt, str) else prompt
    return GenerationRequest(name, tokens, sampling, adapter, **own)


async def answer(engine: Engine, request: GenerationRequest) -> list[TokenDelta]:
    return [delta async for delta in engine.generate(request)]


def tokens_of(deltas: Sequence[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]
