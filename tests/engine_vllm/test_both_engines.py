"""What the seam says, on both engines: the same tests, with PEFT as the judge of what is computed."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engine_vllm.both import ADAPTERS, JUDGE, adapter, answer, ask, check_greedy, ids, logits, started, tokens_of
from livery.engine.base import Engine, EngineInfo, Grammar, RequestRefused
from livery.engine.codes import DEADLINE_EXCEEDED

pytestmark = pytest.mark.vllm

PROMPT = "The weather today is"


@dataclass
class Subject:
    kind: str
    engine: Engine
    info: EngineInfo


@pytest_asyncio.fixture(scope="module", params=["livery", "vllm"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with started(request.param) as (engine, info):
        yield Subject(request.param, engine, info)


async def test_greedy_tokens_are_pefts(subject: Subject) -> None:
    """With an adapter in every slot, and the base beside them: vLLM's own CPU kernels give it the last one's."""
    names: list[str | None] = [None, *ADAPTERS]
    for name in ADAPTERS:
        await subject.engine.load_adapter(adapter(name))
    requests = [ask(f"greedy-{name}", PROMPT, adapter(name) if name else None) for name in names]
    answers = await asyncio.gather(*(answer(subject.engine, request) for request in requests))
    for name, deltas in zip(names, answers, strict=True):
        check_greedy(name, ids(PROMPT), tokens_of(deltas))
        assert deltas[-1].finish_reason == "length"
    assert len({tuple(tokens_of(deltas)) for deltas in answers}) == len(names)


async def test_what_engines_turn_out_to_be(subject: Subject) -> None:
    assert subject.info.architecture == "LlamaForCausalLM"
    assert subject.info.vocab_size == logits(None, ids(PROMPT)).shape[-1]
    assert subject.info.max_model_len == 512
    assert subject.info.eos_token_ids == (JUDGE.tokenizer.eos_token_id,)
    assert subject.info.shapes.modules["model.layers.0.self_attn.q_proj"].kind == "linear"


async def test_stop_tokens_end_an_answer_and_are_its_last(subject: Subject) -> None:
    free = tokens_of(await answer(subject.engine, ask("free", PROMPT)))
    deltas = await answer(subject.engine, ask("stopped", PROMPT, stop_token_ids=(free[3],)))
    assert tokens_of(deltas) == free[: free.index(free[3]) + 1]
    assert deltas[-1].finish_reason == "stop"
    late = await answer(subject.engine, ask("late", PROMPT, stop_token_ids=(free[0],), min_tokens=4))
    assert len(tokens_of(late)) >= 4 and free[0] not in tokens_of(late)[:3]


async def test_the_models_own_end_counts_unless_ignored(subject: Subject) -> None:
    end = subject.info.eos_token_ids[0]
    deltas = await answer(subject.engine, ask("ends", PROMPT, ignore_eos=False, logit_bias={end: 100.0}))
    assert (tokens_of(deltas), deltas[-1].finish_reason) == ([end], "stop")
    deltas = await answer(subject.engine, ask("goes-on", PROMPT, logit_bias={end: 100.0}, max_tokens=3))
    assert (tokens_of(deltas), deltas[-1].finish_reason) == ([end] * 3, "length")


async def test_biases_allowed_tokens_and_bad_words(subject: Subject) -> None:
    free = tokens_of(await answer(subject.engine, ask("free-2", PROMPT)))
    biased = tokens_of(await answer(subject.engine, ask("biased", PROMPT, logit_bias={free[0]: -100.0})))
    assert biased[0] != free[0]
    allowed = tokens_of(await answer(subject.engine, ask("allowed", PROMPT, allowed_token_ids=(11, 12, 13))))
    assert set(allowed) <= {11, 12, 13}
    word = tuple(free[2:4])
    without = tokens_of(await answer(subject.engine, ask("worded", PROMPT, bad_words=(word,))))
    assert without[:3] == free[:3] and without[3] != free[3]


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.8}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}]
)
async def test_penalties_change_logits_as_written(subject: Subject, penalty: dict[str, float]) -> None:
    """The tokens that plain arithmetic on PEFT's logits gives."""
    prompt = ids("one two one two one two one two")
    found = tokens_of(await answer(subject.engine, ask(f"penalty-{penalty}", prompt, **penalty)))
    for place, token in enumerate(found):
        row = logits(None, prompt + found[:place])[-1]
        seen, answered = set(prompt + found[:place]), found[:place]
        factor = penalty.get("repetition_penalty", 1.0)
        for other in seen:
            row[other] = row[other] / factor if row[other] > 0 else row[other] * factor
        for other in set(answered):
            row[other] -= penalty.get("presence_penalty", 0.0)
            row[other] -= penalty.get("frequency_penalty", 0.0) * answered.count(other)
        assert float(row.max() - row[token]) < 1e-2


async def test_log_probabilities_are_the_models_own(subject: Subject) -> None:
    asked: dict[str, Any] = {
        "logprobs": 3,
        "prompt_logprobs": 2,
        "temperature": 0.7,
        "seed": 5,
        "logit_bias": {400: 5.0},
    }
    deltas = await answer(subject.engine, ask("scored", PROMPT, adapter("pirate"), **asked))
    prompt, found = ids(PROMPT), tokens_of(deltas)
    rows = logits("pirate", prompt + found).log_softmax(-1)
    told = [entry for delta in deltas for entry in delta.logprobs]
    assert len(told) == len(found)
    for place, (entry, token) in enumerate(zip(told, found, strict=True)):
        row = rows[len(prompt) - 1 + place]
        assert math.isclose(entry.logprob, float(row[token]), abs_tol=2e-3)
        assert entry.rank == int((row > row[token]).sum()) + 1
        assert [other for other, _ in entry.top] == row.topk(3).indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(row.topk(3).values.tolist(), abs=2e-3)
    scored = [entry for delta in deltas for entry in delta.prompt_logprobs]
    assert len(scored) == len(prompt) - 1
    for place, (entry, token) in enumerate(zip(scored, prompt[1:], strict=True)):
        assert math.isclose(entry.logprob, float(rows[place][token]), abs_tol=2e-3)
        assert len(entry.top) == 2


async def test_a_seed_gives_the_same_answer_again(subject: Subject) -> None:
    asked = {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    first, again = [tokens_of(await answer(subject.engine, ask(f"seed-{n}", PROMPT, **asked))) for n in range(2)]
    other = tokens_of(await answer(subject.engine, ask("seed-other", PROMPT, **(asked | {"seed": -1}))))
    assert first == again != other


async def test_answers_are_held_to_grammars(subject: Subject) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    held = {"max_tokens": 40, "ignore_eos": False}
    json_ = ask("json", PROMPT, grammar=Grammar("json_schema", json.dumps(schema)), **held)
    text = JUDGE.tokenizer.decode(tokens_of(await answer(subject.engine, json_)), skip_special_tokens=True)
    assert isinstance(json.loads(text)["n"], int)
    regex = ask("regex", PROMPT, grammar=Grammar("regex", "(yes|no)[0-9]{2}"), **held)
    deltas = await answer(subject.engine, regex)
    assert re.fullmatch("(yes|no)[0-9]{2}", JUDGE.tokenizer.decode(tokens_of(deltas), skip_special_tokens=True))
    assert deltas[-1].finish_reason == "stop"
    lark = ask("lark", PROMPT, grammar=Grammar("lark", 'start: "a" | "b" "c"'), **held)
    text = JUDGE.tokenizer.decode(tokens_of(await answer(subject.engine, lark)), skip_special_tokens=True)
    assert text in ("a", "bc")


async def test_a_deadline_ends_a_request_with_its_code(subject: Subject) -> None:
    deltas = await answer(subject.engine, ask("late-one", PROMPT, max_tokens=400, _deadline_s=0.3))
    assert (deltas[-1].finish_reason, deltas[-1].code) == ("error", DEADLINE_EXCEEDED)
    assert "0.3 seconds" in (deltas[-1].error or "")


async def test_an_aborted_request_ends_and_its_id_is_free(subject: Subject) -> None:
    stream = subject.engine.generate(ask("aborted", PROMPT, max_tokens=400))
    await anext(stream)
    with pytest.raises(RequestRefused, match="already in use"):
        await anext(subject.engine.generate(ask("aborted", PROMPT)))
    await subject.engine.abort("aborted")
    rest = [delta async for delta in stream]
    assert rest[-1].finish_reason == "abort"
    await subject.engine.abort("nobody's")
    assert len(tokens_of(await answer(subject.engine, ask("aborted", PROMPT)))) == 12


async def test_a_stream_that_is_closed_early_leaves_nothing_running(subject: Subject) -> None:
    stream = subject.engine.generate(ask("closed", PROMPT, adapter("sql"), max_tokens=400))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await answer(subject.engine, ask("after", PROMPT, max_tokens=2))
    stats = await subject.engine.stats()
    assert (stats.running, stats.waiting, stats.running_adapters) == (0, 0, ())


async def test_prefixes_are_shared_within_a_tenant_and_salt_and_adapter_only(subject: Subject) -> None:
    prompt = ids("once upon a time " * 100)

    async def cached(name: str, **own: Any) -> int:
        request = msgspec.structs.replace(ask(name, prompt, own.pop("adapter", None), max_tokens=2), **own)
        return max(delta.cached_tokens for delta in await answer(subject.engine, request))

    assert await cached("first", tenant="acme") == 0
    assert await cached("same", tenant="acme") > 0
    assert await cached("other", tenant="globex") == 0
    assert await cached("salted", tenant="acme", cache_salt="x") == 0
    assert await cached("another-account", tenant="acme", account="acme~1") == 0
    assert await cached("adapted", tenant="acme", adapter=adapter("sql")) == 0
    assert await cached("adapted-again", tenant="acme", adapter=adapter("sql")) > 0


async def test_counts_grow_by_what_was_done(subject: Subject) -> None:
    before = await subject.engine.stats()
    await answer(subject.engine, ask("counted", "a prompt that no other test has", adapter("pirate"), max_tokens=5))
    after = await subject.engine.stats()
    assert after.generated_tokens - before.generated_tokens == 5
    assert after.prompt_tokens - before.prompt_tokens == len(ids("a prompt that no other test has"))
    assert after.steps > before.steps
    assert adapter("pirate").digest in after.resident_adapters
    assert after.blocks_total > 0 and after.blocks_free <= after.blocks_total
    assert after.pid > 0 and await subject.engine.ready()
