"""One request on a cold adapter as a trace, sent by a real server to a real collector.

python -m server.test_traces    # in tests/: prints it
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import httpx
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from peft import LoraConfig

from engine.oracle import save_tuned
from server.collector import collecting, shown
from server.running import livery_serve, tiny_model

SECRET = "xylophone-canary"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def traced(folder: Path) -> tuple[list[Span], set[str]]:
    """The spans of a chat on an adapter that the engine has not read yet."""
    model = tiny_model(folder / "model")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    save_tuned(model, folder / "adapters" / "pirate", 1, config)
    with livery_serve(model, folder / "adapters", folder, "--adapter-memory", "64MB") as first:
        ask(first.url)  # it is proven on its first use; the next server knows that and reads it for a request
    with (
        collecting() as collector,
        livery_serve(model, folder / "adapters", folder, "--otlp-endpoint", collector.url) as server,
    ):
        ask(server.url)
        server.process.terminate()
        server.process.wait(60)  # what it has not sent it sends at its end
        return collector.all(), collector.services


def ask(url: str) -> None:
    said = [{"role": "user", "content": f"My secret is {SECRET}."}]
    body = {"model": "pirate", "messages": said, "max_tokens": 8, "ignore_eos": True}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def test_a_request_on_a_cold_adapter_is_a_trace(tmp_path: Path) -> None:
    spans, services = traced(tmp_path)
    root, *inside = spans
    assert services == {"livery"}
    assert root.name == "/v1/chat/completions"
    assert root.trace_id.hex() == TRACE and root.parent_span_id.hex() == PARENT
    assert [span.name for span in inside] == ["tokenise", "load", "queue", "prefill", "decode"]
    for before, span in zip([root, *inside], inside, strict=False):
        assert span.trace_id == root.trace_id and span.parent_span_id == root.span_id
        assert span.start_time_unix_nano >= before.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    told = {one.key: one.value.string_value or one.value.int_value for one in root.attributes}
    assert told["livery.request_id"] == "mine"
    assert told["gen_ai.response.model"] == "pirate" and len(str(told["livery.version"])) == 12
    assert told["gen_ai.usage.output_tokens"] == 8 and int(told["gen_ai.usage.input_tokens"]) > 8
    assert all(SECRET not in str(span) for span in spans)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(shown(traced(Path(scratch))[0]), file=sys.stdout)
