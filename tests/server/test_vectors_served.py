"""Embedding and classification adapters through a whole server: what the official client gets is what PEFT gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from openai import OpenAI

from engine.pooled import class_logits, embedding, save_classifier, save_embedding_adapter
from livery.text import Tokenizer
from server.running import SMALL, livery_serve, tiny_model

TEXTS = ["Ahoy, matey!", "The harbour is calm this morning.", "parrots"]
LINEAR = ["q_proj", "v_proj", "down_proj"]


def test_vectors_and_classes_beside_text_are_pefts(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    adapters = tmp_path / "adapters"
    embeds = save_embedding_adapter(model, adapters / "embeds", 1, target_modules=LINEAR)
    sorts = save_classifier(model, adapters / "sorts", 2, labels=4, target_modules=LINEAR)
    tokenizer = Tokenizer.from_directory(model)
    ids = [tokenizer.encode(text) for text in TEXTS]
    with livery_serve(model, adapters, tmp_path, *SMALL) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60)
        with ThreadPoolExecutor(3) as pool:  # in one batch, as far as the machine lets them be
            text = pool.submit(lambda: client.completions.create(model="tiny", prompt="Ahoy", max_tokens=40))
            vectors = pool.submit(lambda: client.embeddings.create(model="embeds", input=TEXTS))
            body = {"model": "sorts", "input": TEXTS}
            classes = pool.submit(lambda: httpx.post(f"{server.url}/classify", json=body, timeout=60).json())
        base = client.embeddings.create(model="tiny", input=TEXTS[:1], extra_body={"pooling": "mean"})
        similar = {"model": "embeds", "text_1": TEXTS[0], "text_2": TEXTS[1:]}
        scores = httpx.post(f"{server.url}/v1/score", json=similar, timeout=60).json()["data"]
    assert text.result().usage.completion_tokens > 0
    expected = [embedding(model, embeds, one, "last") for one in ids]
    for item, right, one in zip(vectors.result().data, expected, ids, strict=True):
        assert item.embedding == pytest.approx(right.tolist(), abs=1e-5)
        assert (right - embedding(model, None, one, "last")).abs().max() > 1e-2, "the test would prove nothing"
    assert base.data[0].embedding == pytest.approx(embedding(model, None, ids[0], "mean").tolist(), abs=1e-5)
    for item, one in zip(classes.result()["data"], ids, strict=True):
        right = torch.softmax(class_logits(model, sorts, one, labels=4), dim=0)
        assert item["probs"] == pytest.approx(right.tolist(), abs=1e-5)
        assert item["label"] == f"LABEL_{int(right.argmax())}"
    assert [item["score"] for item in scores] == pytest.approx(
        [float(expected[0] @ other) for other in expected[1:]], abs=1e-5
    )
