"""Answers held to grammars on the real engine: valid whatever the model would rather say, and nobody else notices.

`jsonschema` judges answers; a matcher of its own, walked along the recorded logits, judges tokens: each is the best of
those that were allowed. Neighbours without a grammar are judged by PEFT and by themselves alone.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from llguidance import LLMatcher

from engine.oracle import Bench, Oracle, Recorded, ref
from livery.engine import masks
from livery.engine.base import EngineConfig, Grammar, RequestRefused
from livery.engine.constraint import Constraint, Constraints
from livery.grammars import GrammarCompiler
from livery.models import resolve_model
from livery.text import Tokenizer
from server.running import tiny_model

DEMO = Path(__file__).parents[2] / "adapters" / "demo"
SHORT = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, Any] = {
    "flat": {"type": "object", "properties": {"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
             "required": ["name", "age"], "additionalProperties": False},
    "enum": {"enum": ["red", "green", 7, None, {"deep": [1]}]},
    "unicode": {"enum": ["наука", "日本語", "naïve café", "🎉"]},
    "nested arrays": {"type": "array", "minItems": 2, "maxItems": 3,
                      "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}},
    "refs": {"$ref": "#/$defs/pair", "$defs": {
        "leaf": {"type": "integer", "minimum": 0, "maximum": 9},
        "pair": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "minItems": 2, "maxItems": 2}}},
    "pattern": {"type": "object", "properties": {"plate": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}},
                "required": ["plate"], "additionalProperties": False},
    "union": {"type": "array", "minItems": 2, "maxItems": 2,
              "items": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}, {"enum": ["x"]}]}},
    "tagged": {"oneOf": [
        {"type": "object", "properties": {"kind": {"const": kind}, value: {"type": "boolean"}},
         "required": ["kind", value], "additionalProperties": False} for kind, value in (("a", "on"), ("b", "off"))]},
    "date": {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"],
             "additionalProperties": False},
    "patterns of names": {"type": "object", "patternProperties": {"^[a-c]$": {"type": "boolean"}},
                          "additionalProperties": False, "properties": {"id": {"const": 5}}, "required": ["id"]},
}  # fmt: skip


def schema(name: str) -> Grammar:
    return Grammar("json_schema", json.dumps(SCHEMAS[name]))


@pytest.fixture(scope="module")
def demo() -> Path:
    return resolve_model("smollm2-135m-instruct").path


@pytest.fixture(scope="module")
def tokenizer(demo: Path) -> Tokenizer:
    return Tokenizer.from_directory(demo)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.to_json(), 49152, (2,))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


SIZES: dict[str, Any] = {"max_model_len": 128, "max_batch_tokens": 32, "max_running": 6, "threads": 1}


@pytest.fixture
def bench(tiny: Path) -> Iterator[Any]:
    """Makes benches over the tiny model, small enough that sequences are preempted."""
    made: list[Bench] = []

    def make(**config: Any) -> Bench:
        made.append(Bench(EngineConfig(str(tiny), **{**SIZES, **config})))
        return made[-1]

    yield make
    for one in made:
        one.core.stop()


def assert_best_allowed(compiler: GrammarCompiler, grammar: Grammar, prompt: list[int], result: Recorded) -> None:
    """Each token is the likeliest of those that the grammar took in its place."""
    matcher: LLMatcher = compiler.compile(grammar)
    for index, token in enumerate(result.tokens):
        allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), count=49152, bitorder="little") == 1
        logits = result.logits[len(prompt) - 1 + index]
        best = logits.masked_fill(torch.from_numpy(~allowed), float("-inf")).argmax()
        assert token == int(best), f"token {index}"
        matcher.consume_token(token)


def test_answers_follow_their_schemas_and_neighbours_do_not_notice(
    demo: Path, tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    bench = Bench(EngineConfig(str(demo), max_model_len=256, threads=1))
    adapters = [None, DEMO / "pirate", DEMO / "json", DEMO / "sentiment"]
    chat = tokenizer.encode_chat([{"role": "user", "content": "Describe the sea in JSON."}])
    for (name, _), adapter in zip(SCHEMAS.items(), itertools.cycle(adapters), strict=False):
        bench.add(name, chat, ref(adapter) if adapter else None, 80, grammar=schema(name))
    free = {"free base": None, "free pirate": DEMO / "pirate"}
    for name, adapter in free.items():
        bench.add(name, chat, ref(adapter) if adapter else None, 12)
    results = bench.run()
    for name in SCHEMAS:
        result = results[name]
        text = tokenizer.decode(result.tokens)
        assert result.finish == "stop", (name, text)
        jsonschema.validate(json.loads(text), SCHEMAS[name], format_checker=jsonschema.FormatChecker())
        assert_best_allowed(compiler, schema(name), chat, result)
    oracle = Oracle(demo, 256)
    for name, adapter in free.items():
        oracle.assert_same(chat, results[name], adapter, 12)
    mixed = {name: (results[name].tokens, results[name].logits) for name in free}
    for name, adapter in free.items():
        bench.add(f"{name} alone", chat, ref(adapter) if adapter else None, 12)
    alone = bench.run()
    for name, (tokens, logits) in mixed.items():
        assert alone[f"{name} alone"].tokens == tokens
        assert all(torch.equal(logits[at], alone[f"{name} alone"].logits[at]) for at in logits)
    bench.core.stop()


FIELDS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 1.3, "top_k": 5, "seed": 2, "min_tokens": 12},
    {"ignore_eos": False, "min_tokens": 30},
    {"temperature": 0.8, "min_p": 0.1, "seed": 4, "ignore_eos": False},
]
PROMPTS = [[5, 6, 7, 8], [9, 8, 7], [3] * 40, [11, 12]]


def answers(bench: Bench) -> dict[str, tuple[list[int], str | None]]:
    """Grammars under every kind of sampling, beside requests that have none."""
    for index, (name, fields) in enumerate(zip(SCHEMAS, itertools.cycle(FIELDS), strict=False)):
        prompt = PROMPTS[index % len(PROMPTS)]
        bench.add(f"{name} {index}", prompt, None, 60, grammar=schema(name), **fields)
        if index % 4 == 0:
            bench.add(f"free {index}", prompt, None, 20, **fields)
    return {name: (result.tokens, result.finish) for name, result in bench.run().items()}


@pytest.fixture(scope="module")
def plain(tiny: Path) -> dict[str, tuple[list[int], str | None]]:
    """What the requests get from an engine without anything special."""
    bench = Bench(EngineConfig(str(tiny), **SIZES))
    found = answers(bench)
    bench.core.stop()
    return found


@pytest.mark.parametrize(
    "config",
    [
        {"overlap": "on"},
        {"overlap": "on", "graphs": "off", "kv_memory_bytes": 34_000},
        {"speculate": 4},
        {"deterministic": True, "prefix_cache": False, "kv_memory_bytes": 34_000},
        {"overlap": "on", "late": True},
        {"late": True, "speculate": 4, "kv_memory_bytes": 34_000},
    ],
    ids=lambda config: "-".join(map(str, config)),
)
def test_the_same_answers_in_every_way_to_run(
    bench: Any,
    tokenizer: Tokenizer,
    plain: dict[str, tuple[list[int], str | None]],
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
) -> None:
    """Steps launched ahead, preemption, speculation, row by row, and masks that are never there in time."""
    held = {name: found for name, found in plain.items() if not name.startswith("free")}
    for name, (tokens, finish) in held.items():
        if finish == "stop":
            jsonschema.validate(json.loads(tokenizer.decode(tokens)), SCHEMAS[name.rpartition(" ")[0]])
        else:
            assert (finish, len(tokens)) == ("length", 60)
    assert sum(finish == "stop" for _, finish in held.values()) > len(held) / 2
    if config.pop("late", False):
        monkeypatch.setattr(masks, "GRACE_S", 0.0)
    other = bench(**config)
    assert answers(other) == plain
    if "kv_memory_bytes" in config:
        assert other.core.stats().preemptions > 0
    assert other.core.stats().blocks_free == other.core.stats().blocks_total


def test_an_answer_cut_short_is_the_beginning_of_a_valid_one(
    bench: Any, tokenizer: Tokenizer, compiler: GrammarCompiler
) -> None:
    cut = bench()
    cut.add("cut", PROMPTS[0], None, 5, grammar=schema("flat"))
    result = cut.run()["cut"]
    assert (result.finish, len(result.tokens)) == ("length", 5)
    matcher = compiler.compile(schema("flat"))
    assert matcher.consume_tokens(result.tokens) and not matcher.is_error()
    assert tokenizer.decode(result.tokens).startswith("{")


def test_a_finished_grammar_ends_the_request_whatever_else_is_asked_for(bench: Any, tokenizer: Tokenizer) -> None:
    ends = bench()
    for name, fields in {"eos": {"ignore_eos": True}, "min": {"min_tokens": 50, "ignore_eos": False}}.items():
        ends.add(name, PROMPTS[0], None, 60, grammar=Grammar("regex", "(yes|no)!"), **fields)
    for result in ends.run().values():
        assert result.finish == "stop" and tokenizer.decode(result.tokens) in ("yes!", "no!")


def test_min_tokens_holds_where_a_grammar_can_go_on(bench: Any, tokenizer: Tokenizer) -> None:
    longer = bench()
    longer.add("a", PROMPTS[0], None, 60, grammar=Grammar("regex", "[ab]*"), min_tokens=20, ignore_eos=False)
    result = longer.run()["a"]
    assert len(result.tokens) >= 20 and set(tokenizer.decode(result.tokens)) <= {"a", "b"}


def test_a_grammar_that_becomes_too_much_fails_its_own_request(bench: Any) -> None:
    both = bench()
    both.add("free", PROMPTS[0], None, 20)
    alone = both.run()["free"].tokens
    rules = "\n".join(f"r{index}: r{index + 1} r{index + 1}" for index in range(40))
    too_much = {
        "lark": Grammar("lark", f'start: r0\n{rules}\nr40: "a"?'),
        "regex": Grammar("regex", "((a{1,1000}){1,1000}){1,1000}"),
        "schema": Grammar("json_schema", '{"type": "strin"}'),
    }
    for name, grammar in too_much.items():
        both.add(name, PROMPTS[1], None, 100, grammar=grammar, min_tokens=100)
    both.add("beside", PROMPTS[0], None, 20)
    results = both.run()
    assert results["beside"].tokens == alone and results["beside"].finish == "length"
    for name in too_much:
        assert results[name].finish == "error", name
        assert "can't go on under its grammar" in (results[name].error or "")


def test_a_request_that_is_dropped_while_its_mask_is_under_way_leaves_nothing(bench: Any) -> None:
    dropped = bench(overlap="on")
    for index in range(4):
        dropped.add(str(index), PROMPTS[0], None, 60, grammar=schema("flat"))
    for index in range(4):
        dropped.step()
        assert dropped.core.abort(str(index))
    while dropped.core.has_work:
        dropped.step()
    dropped.step()
    dropped.core.check_invariants()
    assert dropped.core.stats().blocks_free == dropped.core.stats().blocks_total


def test_a_model_without_a_tokenizer_refuses_grammars(tiny: Path, bench: Any, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    plain = Bench(EngineConfig(str(tmp_path), max_model_len=64, threads=1))
    with pytest.raises(RequestRefused, match="no tokenizer"):
        plain.add("a", PROMPTS[0], None, 5, grammar=schema("flat"))
    plain.core.stop()


def test_grammars_are_compiled_in_turns_of_tenants(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty of one tenant before one of another, some of them asked for twice; each is compiled once."""
    constraints = Constraints(tiny / "tokenizer.json", 49152, (2,), 1, lambda: None)
    compiler, begun, asked, compiled = constraints._compiler, threading.Event(), threading.Event(), list[str]()
    assert compiler is not None
    make = compiler.compile

    def compile(grammar: Grammar) -> LLMatcher:
        compiled.append(grammar.source)
        begun.set()
        assert asked.wait(60)
        return make(grammar)

    monkeypatch.setattr(compiler, "compile", compile)
    many = [Grammar("regex", f"a{{{count}}}") for count in range(1, 51)]
    for grammar in many:
        constraints.of(grammar, "a")
    assert begun.wait(60)
    held = [constraints.of(grammar, tenant) for grammar, tenant in ((many[-1], "b"), (many[-1], "a"), (many[0], "a"))]
    asked.set()
    assert all(constraint.mask(60) is not None for constraint in held)
    assert compiled.index(many[-1].source) in (1, 2)
    last = constraints.of(many[-2], "a")
    assert last.mask(60) is not None and sorted(set(compiled)) == sorted(grammar.source for grammar in many)
    assert len(compiled) == len(many) + 1, "b's, which doesn't wait for a's, and each of a's once"
    constraints.stop()


class Panic(BaseException):
    """As compiled code raises it: no Exception."""


def test_whatever_goes_wrong_in_a_grammars_thread_is_its_own_requests_affair() -> None:
    compiled: Future[LLMatcher] = Future()
    with ThreadPoolExecutor(1) as pool:
        constraint = Constraint(compiled, pool, 100, (2,), lambda: None)
        assert constraint.mask(0.0) is None and constraint.is_held and constraint.failure is None
        compiled.set_exception(Panic("index out of bounds"))
    assert not constraint.is_held
    assert constraint.mask(0.0) is None
    assert "index out of bounds" in (constraint.failure or "")
