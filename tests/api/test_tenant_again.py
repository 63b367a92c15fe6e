"""A tenant that is deleted, and another one of its name: nothing of the first is the second's."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup
from livery.engine.fake import Behaviour

PROMPT = [5] * 40


@pytest.fixture
def live(serve: Serve) -> LiveServer:
    return serve(Setup(api_key="sk-operator"))


def get(server: LiveServer, key: str, path: str) -> Any:
    answer = httpx.get(f"{server.url}{path}", headers={"authorization": f"Bearer {key}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json() if "json" in answer.headers["content-type"] else answer.text


def cached(server: LiveServer, key: str, model: str = BASE) -> int:
    usage = server.client(key).completions.create(model=model, prompt=PROMPT, max_tokens=1).usage
    assert usage is not None
    return (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0


def vectors(server: LiveServer, key: str) -> None:
    server.client(key).embeddings.create(model=BASE, input=[PROMPT])


def test_nothing_goes_by_a_tenants_name_alone(live: LiveServer) -> None:
    first = live.make_key("acme", role="owner")
    assert (cached(live, first), cached(live, first)) == (0, 32)
    vectors(live, first)
    seen = get(live, first, "/v1/status")
    assert (len(seen["requests"]), seen["base"]["requests"]) == (3, 3)
    assert 'livery_tenant_prompt_tokens_total{tenant="acme"}' in get(live, "sk-operator", "/metrics")
    live.call(live.flusher.flush())
    assert get(live, first, "/v1/usage")["data"][0]["requests"] == 3

    live.tenants.delete_tenant("acme", occupied=lambda _: None)
    second = live.make_key("acme", role="owner")  # in between no server had looked
    assert second != first
    seen = get(live, second, "/v1/status")
    assert (seen["requests"], seen["base"]["requests"], seen["base"]["last_used_s"]) == ([], 0, None)
    assert sum(seen["throughput"]["prompt_by_second"]) == 0
    assert 'tenant="acme"' not in get(live, "sk-operator", "/metrics")
    assert get(live, second, "/v1/usage")["data"] == []
    assert (cached(live, second), cached(live, second)) == (0, 32)
    assert get(live, "sk-operator", "/v1/status")["base"]["requests"] == 5


def test_a_stream_that_outlives_its_tenant_is_nobody_elses(serve: Serve) -> None:
    live = serve(Setup(behaviour=Behaviour(stepped=True), api_key="sk-operator", keep_alive_s=0.05))
    first = live.make_key("acme", role="owner")
    stream = live.client(first).completions.create(model=BASE, prompt=PROMPT, max_tokens=5, stream=True)
    live.wait_until(lambda engine: engine.open_requests == 1)
    live.tenants.delete_tenant("acme", occupied=lambda _: None)
    second = live.make_key("acme", role="owner")
    live.step(100)
    assert len(list(stream)) >= 5
    live.call(live.flusher.flush())
    seen = get(live, second, "/v1/status")
    assert (seen["requests"], seen["base"]["requests"], seen["base"]["tokens"]) == ([], 0, 0)
    assert get(live, second, "/v1/usage")["data"] == []
    (line,) = get(live, "sk-operator", "/v1/usage?by=tenant")["data"]
    assert line["tenant"].startswith("acme~")
    assert (line["requests"], line["completion_tokens"]) == (1, 5)
