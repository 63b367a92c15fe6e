"""Who may come in: the key, and routes that only this machine may call."""

from __future__ import annotations

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup

KEY = "sk-secret-1"
PUBLIC = {"/health", "/ready", "/ping"}


@pytest.fixture
def locked(serve: Serve) -> LiveServer:
    return serve(Setup(api_key=KEY))


def test_every_route_but_the_probes_asks_for_the_key(locked: LiveServer) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    routes = httpx.get(f"{locked.url}/openapi.json", headers=headers).json()["paths"]
    bodies: dict[bool, set[str]] = {True: set(), False: set()}
    client = httpx.Client()
    for path, methods in {**routes, "/openapi.json": ["get"], "/nowhere": ["get"], "/v1/models/": ["get"]}.items():
        for method in methods:
            for wrong in ({}, {"authorization": "Bearer nope"}, {"authorization": KEY}, {"authorization": "Basic x"}):
                answer = client.request(
                    method.upper(), locked.url + path.replace("{", "").replace("}", ""), headers=wrong
                )
                if path in PUBLIC:
                    assert answer.status_code == 200, path
                else:
                    assert answer.status_code == 401, path
                    assert answer.headers["www-authenticate"] == "Bearer"
                    bodies[path.startswith("/v1/messages")].add(answer.text)
    # Nothing to learn from how it fails, in OpenAI's words or Anthropic's.
    assert {len(told) for told in bodies.values()} == {1}
    assert set(routes) > PUBLIC


def test_the_client_gets_in_with_the_key_only(locked: LiveServer) -> None:
    assert locked.client(KEY).models.list().data[0].id == BASE
    with pytest.raises(openai.AuthenticationError) as caught:
        locked.client("wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("route", ["load_lora_adapter", "unload_lora_adapter"])
@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "10.0.0.9"},  # through a proxy on this machine
        {"x-forwarded-for": "127.0.0.1"},  # which may pass on what the caller made up
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 proxy"},
        {"x-real-ip": "127.0.0.1"},
        {"host": "evil.example"},  # a web page whose name was pointed at this machine
        {"host": "127.0.0.1.evil.example:8000"},
    ],
)
def test_management_is_for_this_machine_only(server: LiveServer, route: str, headers: dict[str, str]) -> None:
    body = {"lora_name": "x", "lora_path": "x"}
    answer = httpx.post(f"{server.url}/v1/{route}", json=body, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "loopback_only"


def test_the_key_does_not_open_management_to_other_machines(locked: LiveServer) -> None:
    headers = {"authorization": f"Bearer {KEY}", "x-forwarded-for": "10.0.0.9"}
    answer = httpx.post(f"{locked.url}/v1/unload_lora_adapter", json={"lora_name": "x"}, headers=headers)
    assert answer.status_code == 403
    del headers["x-forwarded-for"]
    answer = httpx.post(f"{locked.url}/v1/unload_lora_adapter", json={"lora_name": "x"}, headers=headers)
    assert answer.status_code == 404


def test_a_page_in_a_browser_cannot_send_a_management_request(server: LiveServer) -> None:
    """A form can only send these content types without the browser asking first; none is read as JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = httpx.post(
            f"{server.url}/v1/unload_lora_adapter", content=b'{"lora_name": "x"}', headers={"content-type": kind}
        )
        assert answer.status_code == 400


PAGE = "https://app.example"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": PAGE},  # which --cors-origins lists
        {"origin": "http://127.0.0.1:1"},  # another server of this machine
        {"origin": "null"},  # a sandboxed frame or a file
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_web_pages_of_other_origins_cannot_manage(serve: Serve, headers: dict[str, str]) -> None:
    """Browsers send uploads and bodiless requests to 127.0.0.1 without asking; the Host header is this machine's."""
    server = serve(Setup(cors_origins=(PAGE,)))
    for path, content in (
        ("rollback", {}),
        ("versions", {"files": {"adapter_config.json": ("adapter_config.json", b"{}")}}),
    ):
        answer = httpx.post(f"{server.url}/v1/adapters/x/{path}", headers=headers, **content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "loopback_only")
        assert "web pages of other origins" in answer.json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_a_page_may_read_what_its_client_goes_by(serve: Serve) -> None:
    """openai-js tries a 504 again unless x-should-retry says no, which a browser hides from it unless it is exposed."""
    answer = httpx.get(f"{serve(Setup(cors_origins=(PAGE,))).url}/v1/models", headers={"origin": PAGE})
    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    assert {"x-should-retry", "retry-after", "x-request-id", "request-id", "etag", "x-next-after"} <= exposed


def test_the_servers_own_origin_and_programs_can_manage(server: LiveServer) -> None:
    own = {"origin": server.url, "sec-fetch-site": "same-origin"}
    for headers in ({}, {"sec-fetch-site": "none"}, own):
        assert httpx.post(f"{server.url}/v1/adapters/x/rollback", headers=headers).status_code == 404


def test_a_proxy_that_says_nothing_needs_a_key_to_manage(serve: Serve) -> None:
    """Some proxies send no forwarding header and the address of this server as the Host: only --root-path tells."""
    open_to_all, locked = serve(Setup(root_path="/llm")), serve(Setup(root_path="/llm", api_key=KEY))
    for prefix in ("", "/llm"):
        refused = httpx.post(f"{open_to_all.url}{prefix}/v1/adapters/x/rollback")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "loopback_only")
        assert "--api-key" in refused.json()["error"]["message"]
        headers = {"authorization": f"Bearer {KEY}"}
        assert httpx.post(f"{locked.url}{prefix}/v1/adapters/x/rollback").status_code == 401
        assert httpx.post(f"{locked.url}{prefix}/v1/adapters/x/rollback", headers=headers).status_code == 404


def test_the_prefix_alone_is_not_prefixed_again(serve: Serve) -> None:
    server = serve(Setup(root_path="/llm"))
    answer = httpx.get(f"{server.url}/llm")
    assert answer.status_code == 404
    assert "/llm;" in answer.json()["error"]["message"]
    assert "/llm/llm" not in answer.text


@pytest.mark.parametrize("key", ["schlüssel", "鍵", "with inner spaces"])
def test_a_key_may_have_any_characters(serve: Serve, key: str) -> None:
    server = serve(Setup(api_key=key))
    url = f"{server.url}/v1/models"
    assert httpx.get(url, headers={b"authorization": f"Bearer {key}".encode()}).status_code == 200
    assert httpx.get(url, headers={b"authorization": b"Bearer \xff\xfe"}).status_code == 401
