"""Requests as traces, sent by a real server to a collector.

python -m server.test_traces    # in tests/: prints that of a request on a cold adapter
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from peft import LoraConfig

from engine.oracle import save_tuned
from server.collector import collecting, shown
from server.running import SMALL, livery_serve, tiny_model

SECRET = "xylophone-canary"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Traced:
    """The spans of some requests by their ids, each request's own first."""

    by_request: dict[str, list[Span]]
    services: set[str]


def traced(folder: Path) -> Traced:
    """Requests on an adapter that the engine has not read yet: a chat, then several answers, then vectors."""
    model = tiny_model(folder / "model")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    save_tuned(model, folder / "adapters" / "pirate", 1, config)
    with livery_serve(model, folder / "adapters", folder, "--adapter-memory", "64MB", *SMALL) as first:
        ask(first.url, "proven")  # on its first use; the next server knows that and reads it for a request
    with (
        collecting() as collector,
        livery_serve(model, folder / "adapters", folder, "--otlp-endpoint", collector.url, *SMALL) as server,
    ):
        ask(server.url, "chat", traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=1")
        ask(server.url, "several", n=3)
        post(server.url, "/v1/embeddings", {"model": "pirate", "input": ["one", "two words"]}, "vectors")
        ask(server.url, "unsampled", traceparent=f"00-{TRACE}-{PARENT}-00")
        server.process.terminate()
        server.process.wait(60)  # what it has not sent it sends at its end
        return Traced(requests_of(collector.all()), collector.services)


def ask(url: str, request_id: str, *, n: int = 1, **headers: str) -> None:
    said = [{"role": "user", "content": f"My secret is {SECRET}."}]
    body = {"model": "pirate", "messages": said, "max_tokens": 8, "ignore_eos": True, "n": n}
    post(url, "/v1/chat/completions", body, request_id, **headers)


def post(url: str, path: str, body: dict[str, Any], request_id: str, **headers: str) -> None:
    answer = httpx.post(f"{url}{path}", json=body, headers={"x-request-id": request_id, **headers}, timeout=60)
    assert answer.status_code == 200, answer.text


def requests_of(spans: list[Span]) -> dict[str, list[Span]]:
    found = {}
    for root in spans:
        if request := attributes(root).get("livery.request_id"):
            found[str(request)] = [root, *(span for span in spans if span.parent_span_id == root.span_id)]
    assert sum(map(len, found.values())) == len(spans)
    return found


def attributes(span: Span) -> dict[str, str | int]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced(tmp_path_factory.mktemp("traced"))


def test_a_request_on_a_cold_adapter_is_a_trace(told: Traced) -> None:
    root, *inside = told.by_request["chat"]
    assert told.services == {"livery"}
    assert root.name == "/v1/chat/completions" and root.kind == Span.SPAN_KIND_SERVER
    assert root.trace_id.hex() == TRACE and root.parent_span_id.hex() == PARENT and root.trace_state == "vendor=1"
    assert [span.name for span in inside] == ["admit", "tokenise", "load", "queue", "prefill", "decode"]
    for before, span in zip([root, *inside], inside, strict=False):
        assert span.trace_id == root.trace_id
        assert span.start_time_unix_nano >= before.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    assert abs(root.start_time_unix_nano / 1e9 - time.time()) < 600
    facts = attributes(root)
    assert facts["gen_ai.response.model"] == "pirate" and len(str(facts["livery.version"])) == 12
    assert facts["gen_ai.usage.output_tokens"] == 8 and int(facts["gen_ai.usage.input_tokens"]) > 8
    assert (facts["http.response.status_code"], facts["livery.outcome"]) == (200, "length")


def test_several_answers_have_their_own_spans(told: Traced) -> None:
    root, admit, tokenise, *inside = told.by_request["several"]
    assert (root.parent_span_id, admit.name, tokenise.name, attributes(tokenise)) == (b"", "admit", "tokenise", {})
    assert root.trace_id.hex() != TRACE and any(root.trace_id)
    for number in range(3):
        own = [span.name for span in inside if attributes(span)["livery.sequence"] == number]
        assert own == ["queue", "prefill", "decode"]
    assert attributes(root)["livery.sequences"] == 3


def test_a_request_for_vectors_is_a_trace_without_decoding(told: Traced) -> None:
    root, admit, tokenise, *inside = told.by_request["vectors"]
    assert (root.name, admit.name, tokenise.name) == ("/v1/embeddings", "admit", "tokenise")
    for number in range(2):
        assert [one.name for one in inside if attributes(one)["livery.sequence"] == number] == ["queue", "prefill"]
    assert all(one.end_time_unix_nano <= root.end_time_unix_nano for one in inside)


def test_traces_hold_no_text_and_keep_to_what_their_clients_want(told: Traced) -> None:
    assert set(told.by_request) == {"chat", "several", "vectors"}
    assert all(SECRET not in str(span) for spans in told.by_request.values() for span in spans)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(shown(traced(Path(scratch)).by_request["chat"]), file=sys.stdout)
