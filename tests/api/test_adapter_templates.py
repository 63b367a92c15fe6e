"""Adapters with chat templates and tokens of their own: only when asked, told of when not, harmless when hostile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.live_server import LiveServer, Serve, Setup, saying
from api.peft_files import make_adapter
from livery.engine.fake import Behaviour
from livery.models import resolve_model
from livery.text import Tokenizer

HI: list[Any] = [{"role": "user", "content": "hi"}]
TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[assistant]"
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("saved") / "one", seed=1)


@pytest.fixture
def live(serve: Serve, saved: Path, tokenizer: Tokenizer, tmp_path: Path) -> LiveServer:
    """The adapter at `.pool/one` has a template of its own beside it."""
    pool = tmp_path / "adapters" / ".pool" / "one"
    shutil.copytree(saved, pool)
    (pool / "chat_template.jinja").write_text(TEMPLATE)
    return serve(Setup(behaviour=saying(tokenizer, "one two three four")), folder=tmp_path)


def put(live: LiveServer, name: str, profile: dict[str, Any] | None) -> httpx.Response:
    body = {"source": ".pool/one", "profile": profile}
    return httpx.put(f"{live.url}/v1/adapters/{name}", json=body, timeout=30)


def prompt_of(live: LiveServer, name: str, messages: list[Any]) -> list[int]:
    live.client().chat.completions.create(model=name, messages=messages, max_tokens=1)
    return live.engine.requests[-1].prompt_token_ids


def test_a_template_beside_the_weights_is_used_when_asked_for_and_told_of_when_not(
    live: LiveServer, tokenizer: Tokenizer
) -> None:
    plain = put(live, "pirate", None).json()
    assert prompt_of(live, "pirate", HI) == tokenizer.encode_chat(HI)
    (said,) = plain["unused"]
    assert "chat template differs" in said
    assert "--use-template" in said
    checked = httpx.post(f"{live.url}/v1/adapters:check", json={"source": ".pool/one"}, timeout=30).json()
    assert checked["unused"] == plain["unused"]
    asked = put(live, "pirate", {"chat_template": "adapter"}).json()
    assert asked["unused"] == []
    assert asked["profile"] == {"chat_template": TEMPLATE}, "the version holds what was there, not where it was"
    assert asked["digest"] != plain["digest"]
    assert prompt_of(live, "pirate", HI) == tokenizer.encode("[user] hi\n[assistant]")
    url = f"{live.url}/v1/adapters/pirate/profile"
    assert httpx.put(url, json={"profile": {}}, timeout=30).json()["digest"] == plain["digest"]
    again = httpx.put(url, json={"profile": {"chat_template": "adapter"}}, timeout=30).json()
    assert again["digest"] == asked["digest"], "the folder's template is remembered with the version"


def test_the_bases_own_template_beside_the_weights_is_no_news(live: LiveServer, tmp_path: Path) -> None:
    base = resolve_model("smollm2-135m-instruct").path
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path / "adapters" / ".pool" / "one" / name)
    added = put(live, "pirate", {"chat_template": "adapter", "tokenizer": "adapter"}).json()
    assert (added["unused"], added["profile"]) == ([], {})


def test_whole_numbers_of_any_length_reach_an_adapters_template(live: LiveServer, tokenizer: Tokenizer) -> None:
    calls = "{% for message in messages %}{{ message.tool_calls | tojson if message.tool_calls }}{% endfor %}"
    shown = calls + "{{ tools | tojson }} {{ serial }}"
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 2**256}}}
    call: Any = {"id": "a", "type": "function", "function": {"name": "count", "arguments": f'{{"n": {10**21}}}'}}
    answer = put(live, "counting", {"chat_template": shown, "tool_parser": "hermes"})
    assert answer.status_code == 200, answer.text
    live.client().chat.completions.create(
        model="counting",
        messages=[*HI, {"role": "assistant", "content": None, "tool_calls": [call]}],
        tools=[{"type": "function", "function": {"name": "count", "parameters": schema}}],
        extra_body={"chat_template_kwargs": {"serial": 2**64}},
        max_tokens=1,
    )
    text = tokenizer.decode_all(live.engine.requests[-1].prompt_token_ids)
    assert all(str(number) in text for number in (10**21, 2**256, 2**64))


def test_special_tokens_in_messages_stay_text_under_an_adapters_template(
    live: LiveServer, tokenizer: Tokenizer
) -> None:
    put(live, "pirate", {"chat_template": "<|im_start|>{{ messages[0].content }}<|im_end|>"})
    ids = prompt_of(live, "pirate", [{"role": "user", "content": "<|im_end|>"}])
    assert (ids[0], ids[-1]) == (1, 2)
    assert 2 not in ids[1:-1]
    assert tokenizer.decode(ids[1:-1]) == "<|im_end|>"


def test_a_template_that_can_not_be_used_is_refused_when_it_comes(live: LiveServer) -> None:
    for template in ("{% for %}", LOOPS, "{{ 'a' * 10 ** 9 }}"):
        answer = put(live, "pirate", {"chat_template": template})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_template")
    none = httpx.put(
        f"{live.url}/v1/adapters/pirate", json={"source": ".pool/one", "profile": {"tokenizer": "adapter"}}, timeout=30
    )
    assert (none.status_code, none.json()["error"]["code"]) == (422, "bad_profile")


def test_a_hostile_template_hurts_only_its_own_request(
    serve: Serve, saved: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """It behaves when it is tried, and loops for a word; a stream beside it goes on meanwhile."""
    shutil.copytree(saved, tmp_path / "adapters" / ".pool" / "one")
    speaking = saying(tokenizer, "one two three four", stepped=True)
    live = serve(Setup(behaviour=speaking, keep_alive_s=0.01), folder=tmp_path)  # so that the stream begins at once
    trap = "{% if 'now' in messages[0].content %}" + LOOPS + "{% endif %}{{ messages[0].content }}"
    assert put(live, "hostile", {"chat_template": trap}).status_code == 200
    put(live, "victim", {"chat_template": TEMPLATE})
    stream = live.client().chat.completions.create(model="victim", messages=HI, stream=True, max_tokens=4)
    live.wait_until(lambda engine: len(engine.requests) == 1)
    words = iter(stream)
    live.step()
    next(words)
    with pytest.raises(openai.BadRequestError, match="was stopped: it took over") as refused:
        prompt_of(live, "hostile", [{"role": "user", "content": "now"}])
    assert refused.value.code == "invalid_value"
    assert len(live.engine.requests) == 1, "it never reached the engine"
    live.step(10)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in words)
    assert text.endswith("four")


def test_what_a_template_renders_for_one_tenant_is_apart_from_anothers(live: LiveServer) -> None:
    put(live, "pirate", {"chat_template": TEMPLATE})
    for key in [live.make_key(tenant) for tenant in ("acme", "zeta")] * 2:
        live.client(key).chat.completions.create(model="pirate", messages=HI, max_tokens=1)
    rendered = [worker for worker in live.service._text._workers._idle if worker.renders]
    assert [worker.renders.tenant.partition("~")[0] for worker in rendered if worker.renders] == ["", "acme", "zeta"]
    assert len({worker.pid for worker in rendered}) == 3  # the first is that of trying it out


def grown(folder: Path, *tokens: dict[str, Any]) -> bytes:
    """The base's tokenizer.json with tokens added."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{**flags, **token} for token in tokens]
    return json.dumps(tokenizer).encode()


def test_what_ends_an_adapters_texts_is_told_of_and_ends_its_answers_when_asked_for(
    serve: Serve, saved: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """As trainers leave it over a base that isn't for chats: the configuration names a special token of the base's."""
    (end,) = tokenizer.special_tokens(["<file_sep>"])
    ids = [*tokenizer.encode("Ahoy!"), end, *tokenizer.encode("User: and then?")]
    pool = tmp_path / "adapters" / ".pool" / "one"
    shutil.copytree(saved, pool)
    shutil.copy(resolve_model("smollm2-135m-instruct").path / "tokenizer.json", pool / "tokenizer.json")
    (pool / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<file_sep>"}}))
    live = serve(Setup(behaviour=Behaviour(script=lambda _: ids)), folder=tmp_path)
    (said,) = put(live, "pirate", None).json()["unused"]
    assert "its texts end with <file_sep>" in said and "--use-tokenizer" in said
    assert put(live, "pirate", {"stop": ["<file_sep>"]}).json()["unused"] == []

    def answer(**fields: Any) -> dict[str, Any]:
        body = {"model": "pirate", "messages": HI, "max_tokens": 64, **fields}
        found: dict[str, Any] = httpx.post(f"{live.url}/v1/messages", json=body, timeout=30).json()
        return found

    template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    asked = put(live, "pirate", {"tokenizer": "adapter", "chat_template": template}).json()
    assert (asked["unused"], asked["profile"]["eos_token"]) == ([], "<file_sep>")
    told = answer()
    assert (told["content"][0]["text"], told["stop_reason"], told["stop_sequence"]) == ("Ahoy!", "end_turn", None)
    assert live.engine.requests[-1].prompt_token_ids == [*tokenizer.encode("hi"), end]
    assert answer(max_tokens=len(ids), ignore_eos=True)["usage"]["output_tokens"] == len(ids)
    refused = put(live, "pirate", {"eos_token": "Ahoy"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "bad_profile")
    assert "no special token" in refused.json()["error"]["message"]


@pytest.mark.parametrize("spare", [True, False], ids=["spare rows", "no rows"])
def test_tokens_that_an_adapter_adds_need_rows(
    serve: Serve, saved: Path, tokenizer: Tokenizer, tmp_path: Path, spare: bool
) -> None:
    pool = tmp_path / "adapters" / ".pool" / "one"
    shutil.copytree(saved, pool)
    added = grown(resolve_model("smollm2-135m-instruct").path, {"id": 49152, "content": "<call>"})
    (pool / "tokenizer.json").write_bytes(added)
    vocab = 49160 if spare else 49152
    live = serve(Setup(behaviour=saying(tokenizer, "one"), vocab_size=vocab), folder=tmp_path)
    plain = put(live, "pirate", None).json()
    assert "adds 1 tokens to the base's (<call>)" in plain["unused"][0]
    assert "--use-tokenizer" in plain["unused"][0]
    answer = put(live, "pirate", {"tokenizer": "adapter"})
    if not spare:
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "resized_vocabulary")
        assert "'<call>' has id 49152" in answer.json()["error"]["message"]
        return
    assert answer.json()["profile"]["added_tokens"][0]["content"] == "<call>"
    live.client().completions.create(model="pirate", prompt="a<call>b", max_tokens=1)
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    assert live.engine.requests[-1].prompt_token_ids == [a, 49152, b]
    live.client().completions.create(model=live.service.base_name, prompt="a<call>b", max_tokens=1)
    assert 49152 not in live.engine.requests[-1].prompt_token_ids


def test_a_tokenizer_that_reads_text_otherwise_is_told_and_not_taken(live: LiveServer, tmp_path: Path) -> None:
    pool = tmp_path / "adapters" / ".pool" / "one"
    base = json.loads((resolve_model("smollm2-135m-instruct").path / "tokenizer.json").read_text())
    for change, says in (
        ({"normalizer": {"type": "Lowercase"}}, "normalizer differs"),
        ({"model": {**base["model"], "vocab": {"a": 0}}}, "model.vocab differs"),
        ({"added_tokens": base["added_tokens"][1:]}, "its token 0 isn't"),
    ):
        (pool / "tokenizer.json").write_text(json.dumps({**base, **change}))
        assert says in put(live, "pirate", None).json()["unused"][-1]
        answer = put(live, "pirate", {"tokenizer": "adapter"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unusable_tokenizer")
        assert says in answer.json()["error"]["message"]
    (pool / "tokenizer.json").write_text("[" * 100000)
    assert "not JSON" in put(live, "pirate", None).json()["unused"][-1]


def test_a_server_may_render_no_templates_of_adapters(
    serve: Serve, saved: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "adapters" / ".pool" / "one")
    live = serve(Setup(behaviour=saying(tokenizer, "one")), folder=tmp_path)
    put(live, "pirate", {"chat_template": TEMPLATE})
    live.stop()
    strict = serve(Setup(behaviour=saying(tokenizer, "one"), adapter_templates=False), folder=tmp_path)
    answer = put(strict, "other", {"chat_template": TEMPLATE})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "template_not_allowed")
    with pytest.raises(openai.BadRequestError, match="--no-adapter-templates"):
        prompt_of(strict, "pirate", HI)
