"""Formats that answers are held to, as clients ask for them: what reaches the engine, and what is refused before it.

The corpus of nasty grammars is refused, or taken, within its limits while another client's stream goes on.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from api.live_server import BASE, VOCAB, LiveServer, Setup
from livery.engine.base import Grammar
from livery.grammar_process import BROKE, TOO_LONG, TOO_MUCH, Verdict, verdict
from livery.grammars import GrammarCompiler
from livery.text import Tokenizer

CHAT: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": BASE, "prompt": "Hi", "max_tokens": 2}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["é", "/"]}}, "required": ["b"]}
OBJECT = Grammar("json_schema", '{"type": "object"}')
PATIENCE_S = 240  # for a machine that is busy: grammars are tried one after another


def formatted(schema: object, **more: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}}


@pytest.fixture(scope="module")
def held(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(Setup(eos_token_ids=(2,)), tokenizer, tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


def post(server: LiveServer, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=PATIENCE_S)


ASKED: list[tuple[dict[str, Any], Grammar | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "guided_json": None, "structured_outputs": {}}, None),
    ({"response_format": {"type": "json_object"}}, OBJECT),
    (formatted(SCHEMA, strict=True), Grammar("json_schema", json.dumps(SCHEMA, ensure_ascii=False))),
    (formatted(SCHEMA, strict=False), Grammar("json_schema", json.dumps(SCHEMA, ensure_ascii=False))),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "it"}}}, OBJECT),
    ({"structured_outputs": {"json": '{"type":"string"}'}}, Grammar("json_schema", '{"type":"string"}')),
    ({"structured_outputs": {"json_object": True}}, OBJECT),
    ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
    ({"structured_outputs": {"choice": ["a|b", "c d"]}}, Grammar("regex", "a\\x{7C}b|c d")),
    ({"structured_outputs": {"grammar": 'start: "a" | "b"'}}, Grammar("lark", 'start: "a" | "b"')),
    ({"guided_json": SCHEMA}, Grammar("json_schema", json.dumps(SCHEMA, ensure_ascii=False))),
    ({"guided_regex": "[ab]{3}"}, Grammar("regex", "[ab]{3}")),
    ({"guided_choice": ["yes", "no"]}, Grammar("regex", "yes|no")),
]


@pytest.mark.parametrize("route", ["chat", "text"])
def test_every_way_to_ask_reaches_the_engine(held: LiveServer, route: str) -> None:
    body, path = (CHAT, "/v1/chat/completions") if route == "chat" else (TEXT, "/v1/completions")
    for change, grammar in ASKED:
        for more in ({}, {"n": 2}):
            answer = post(held, {**body, **change, **more}, path)
            assert answer.status_code == 200, (change, answer.text)
            assert held.engine.requests[-1].sampling.grammar == grammar, change


def test_a_grammar_in_ebnf_is_turned_into_larks(held: LiveServer) -> None:
    assert post(held, {**CHAT, "guided_grammar": 'root ::= ("yes" | "no") [0-9]+'}).status_code == 200
    grammar = held.engine.requests[-1].sampling.grammar
    assert grammar is not None and grammar.kind == "lark" and "start:" in grammar.source


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        (formatted({"type": "strin"}), "response_format", "Invalid schema for response_format: Invalid type: strin"),
        (formatted({"type": "integer", "minimum": 3, "maximum": 2}), "response_format", "Unsatisfiable"),
        (formatted({"not": {"type": "string"}}), "response_format", '"not"'),
        (formatted({"$ref": "http://example.com/x.json"}), "response_format", "Invalid schema for response_format"),
        (formatted({"$ref": "#"}), "response_format", "no answer can satisfy it"),
        (formatted({"enum": ["x" * 200_000]}), "response_format", "at most 131072"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing required"),
        (formatted({}, name="has spaces"), "response_format.json_schema.name", "pattern"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
        ({"guided_json": "{"}, "guided_json", "Invalid schema for response_format"),
        ({"guided_choice": []}, "guided_choice", "at least 1"),
        ({"structured_outputs": {"grammar": "start: missing"}}, "structured_outputs.grammar", "missing"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not supported"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "guided_regex and guided_choice"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_runs(
    held: LiveServer, change: dict[str, Any], param: str, words: str
) -> None:
    ran = len(held.engine.requests)
    for more in ({}, {"stream": True}):
        answer = post(held, {**CHAT, **change, **more})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert words in error["message"] and len(error["message"]) < 1000
    assert len(held.engine.requests) == ran


def nasty() -> list[dict[str, Any]]:
    """Grammars that take long, grow large, never end or can't be met."""
    wide = {f"p{index}": {"type": "string"} for index in range(2500)}
    either = [
        {"anyOf": [{"type": "object", "required": [f"{side}{index}"], "properties": {f"{side}{index}": {}}}
                   for side in "pq"]}
        for index in range(14)
    ]  # fmt: skip
    nested: Any = {"type": "string"}
    for _ in range(40):
        nested = {"type": "array", "items": nested}
    schemas = [
        {"enum": [f"value-{index * 7919}" for index in range(7000)]},
        {"type": "object", "properties": wide, "additionalProperties": False},
        {"allOf": either},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
        {"allOf": [{"type": "string", "pattern": f".*[a-z]{{{n}}}[0-9]{{{n}}}.*"} for n in range(1, 12)]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        nested,
    ]
    regexes = ["(a{1,1000}){1,1000}", "|".join(f"w{n * 7919}" for n in range(10000)), "(.*a.{200}b.*){3}"]
    regexes += ["a" * 130_000, "(" * 30_000 + "a" + ")" * 30_000, "[^\\s\\S]", "((((a*)*)*)*)*"]
    grammars = ["start: start", 'start: e\ne: e e | "a"', "start: " + " | ".join(f'"w{n}"' for n in range(9000))]
    grammars += ['start: "a"\n//' + "\x01" * 60_000]  # a verdict that holds it again is six times as long
    return [
        *(formatted(schema) for schema in schemas),
        *({"guided_regex": regex} for regex in regexes),
        *({"guided_grammar": grammar} for grammar in grammars),
    ]


def test_nasty_grammars_hurt_nobody_beside_them(held: LiveServer) -> None:
    """Each is answered, by a refusal or by an answer, and so is everybody else meanwhile."""
    beside = 0
    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(post, held, {**CHAT, **change}) for change in nasty()]
        while not all(answer.done() for answer in asked):
            assert post(held, TEXT, "/v1/completions").status_code == 200
            beside += 1
    answers = [answer.result() for answer in asked]
    refused = [answer.json()["error"] for answer in answers if answer.status_code == 400]
    assert {answer.status_code for answer in answers} <= {200, 400, 503}
    untried = [answer.json()["error"]["code"] for answer in answers if answer.status_code == 503]
    assert set(untried) <= {"grammar_untried"}  # a machine that is busy enough has no time for some
    assert {error["param"] for error in refused} == {"response_format", "guided_regex", "guided_grammar"}
    assert beside and post(held, {**CHAT, **formatted(SCHEMA)}).status_code == 200


class Broken(GrammarCompiler):
    """A compiler with the faults that a fork is there for."""

    def prove(self, grammar: Grammar) -> None:
        match grammar.source:
            case "loop":
                while True:
                    pass
            case "memory":
                bytearray(1 << 40)
            case "crash":
                os.kill(os.getpid(), signal.SIGTERM)
            case "idle":
                signal.pause()


def test_what_a_grammar_does_to_the_compiler_ends_with_its_trial(tokenizer: Tokenizer) -> None:
    broken = Broken(tokenizer.to_json(), VOCAB, (2,))
    said = {source: verdict(broken, Grammar("regex", source)).refusal for source in ("loop", "memory", "crash", "fine")}
    assert said == {"loop": TOO_LONG, "memory": TOO_MUCH, "crash": BROKE, "fine": ""}
    assert verdict(broken, Grammar("regex", "idle"), wall_s=0.01) == Verdict(late=True)
