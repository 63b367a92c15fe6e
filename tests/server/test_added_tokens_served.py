"""An adapter with tokens of its own over HTTP: its template writes them, its answers hold them, nobody else can."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import LoraConfig

from engine.oracle import save_grown
from server.running import SMALL, RunningServer, livery_serve, tiny_model

BASE_ROWS = 49152
TOOL, NOTE, END = BASE_ROWS, BASE_ROWS + 1, BASE_ROWS + 2
ROWS = {"embed_tokens": [TOOL, NOTE, END], "lm_head": [TOOL, NOTE, END]}
CONTENTS = {TOOL: ("<|tool|>", True), NOTE: ("<note>", False), END: ("<|done|>", True)}
PROFILE = "tokenizer: adapter\nchat_template: adapter\nstop: ['<|done|>']\n"


def own_tokenizer(model: Path) -> str:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] += [
        {**flags, "id": id, "content": content, "special": special} for id, (content, special) in CONTENTS.items()
    ]
    return json.dumps(tokenizer)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("served")
    model = tiny_model(folder / "tiny")
    adapters = folder / "adapters"
    adapters.mkdir()
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=ROWS)
    own = save_grown(model, folder / "own", 5, config, BASE_ROWS + len(CONTENTS), save_embedding_layers=False)
    (own / "tokenizer.json").write_text(own_tokenizer(model))
    (own / "chat_template.jinja").write_text("{% for m in messages %}<|tool|>{{ m.content }}{% endfor %}")
    (own / "profile.yaml").write_text(PROFILE)
    shutil.move(own, adapters / "own")
    torch.manual_seed(1)
    plain = LoraConfig(r=2, target_modules=["q_proj"])
    save_grown(model, adapters / "plain", 6, plain, BASE_ROWS, save_embedding_layers=False)
    with livery_serve(model, adapters, folder, *SMALL) as running:
        yield running


@pytest.fixture
def client(served: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=60)


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_template_writes_tokens_of_the_adapters_own(served: RunningServer, client: openai.OpenAI) -> None:
    def ids(model: str, **body: Any) -> list[int]:
        root = client.with_options(base_url=served.url)
        found: Any = root.post("/tokenize", body={"model": model, **body}, cast_to=object)
        return list(found["tokens"])

    own = ids("own", messages=asked("Hi <|tool|>"))
    assert own[0] == TOOL
    assert own.count(TOOL) == 1, "a user's text never becomes a special token"
    assert ids("own", prompt="a<note>b")[1] == NOTE
    assert max(ids("plain", prompt="a<note>b")) < BASE_ROWS
    with pytest.raises(openai.BadRequestError, match=f"Token id {NOTE} is outside the vocabulary of {BASE_ROWS}"):
        client.completions.create(model="plain", prompt=[5, NOTE], max_tokens=1)


def test_streamed_text_holds_them_and_ends_at_one(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="own", messages=asked("Hi"), max_tokens=3, logit_bias={str(NOTE): 100}, stream=True, temperature=0
    )
    text = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(text) == "<note>" * 3
    hidden = client.chat.completions.create(
        model="own", messages=asked("Hi"), max_tokens=3, logit_bias={str(TOOL): 100}, temperature=0
    ).choices[0]
    assert (hidden.message.content or "", hidden.finish_reason) == ("", "length")
    ended = client.chat.completions.create(
        model="own", messages=asked("Hi"), max_tokens=9, logit_bias={str(END): 100}, temperature=0
    )
    assert (ended.choices[0].message.content or "", ended.choices[0].finish_reason) == ("", "stop")
    assert ended.usage is not None
    assert ended.usage.completion_tokens == 1


def test_scores_and_grammars_know_whose_tokens_they_are(client: openai.OpenAI) -> None:
    told = client.completions.create(
        model="own", prompt="a<note>b", max_tokens=1, logprobs=2, echo=True, logit_bias={str(NOTE): 100}
    ).choices[0]
    assert told.text == "a<note>b<note>"
    assert told.logprobs is not None
    assert (told.logprobs.tokens or [])[1] == "<note>"
    held = client.chat.completions.create(
        model="own",
        messages=asked("Hi"),
        max_tokens=40,
        logit_bias={str(NOTE): 100},
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}}},
    ).choices[0]
    assert json.loads(held.message.content or "") in ("yes", "no")
    for model in ("plain", "tiny"):
        with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
            client.chat.completions.create(model=model, messages=asked("Hi"), logit_bias={str(NOTE): 1})


def test_what_an_adapter_adds_is_shown(served: RunningServer, client: openai.OpenAI) -> None:
    found: Any = client.get("/adapters/own", cast_to=object)
    assert found["coverage"]["added_tokens"] == len(CONTENTS)
    with pytest.raises(openai.BadRequestError, match="tokens of its own"):
        client.completions.create(model="0.5*own+0.5*plain", prompt="a", max_tokens=1)
