"""Speculation through the whole server: a text is copied in runs of tokens, and counters say so."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from openai import OpenAI

from server.running import SMALL, livery_serve

MODEL = "smollm2-135m-instruct"
TEXT = 'def area(width, height):\n    """Area of a rectangle."""\n    return width * height\n'
COPY = [{"role": "user", "content": f"Repeat this code exactly:\n\n{TEXT * 2}"}]


def test_a_text_is_copied_in_runs(tmp_path: Path) -> None:
    with livery_serve(MODEL, tmp_path, tmp_path, "--speculate", "8", "--max-model-len", "512", *SMALL) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120).chat.completions
        for sampling in ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 4}):
            asked = {"model": MODEL, "messages": COPY, "max_tokens": 48, **sampling}
            whole = client.create(**asked)  # type: ignore[call-overload]
            parts = list(client.create(**asked, stream=True))  # type: ignore[call-overload]
            text = "".join(part.choices[0].delta.content or "" for part in parts)
            assert text == whole.choices[0].message.content
            assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
            assert len(parts) < whole.usage.completion_tokens, "several tokens in a part"
        metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    drafted, accepted = (
        float(re.findall(rf"^vllm:spec_decode_num_{kind}_tokens_total{{.*}} (\S+)$", metrics, re.MULTILINE)[0])
        for kind in ("draft", "accepted")
    )
    assert 0 < accepted <= drafted
