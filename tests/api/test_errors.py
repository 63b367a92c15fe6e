"""Every refusal has one shape, whatever raised it; the official client understands it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import openai
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup
from livery import chat_template, refusals, tenancy
from livery.api import errors
from livery.engine import base
from livery_adapters import refusal
from service.few_descriptors import only

CHAT = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TEXT = {"model": BASE, "prompt": "Hi", "max_tokens": 2}


def check_shape(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert isinstance(body["error"]["code"], str)
    assert answer.headers["x-request-id"]
    return dict(body["error"])


def post(server: LiveServer, path: str, body: object, **headers: str) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers=headers, timeout=30)


@pytest.mark.parametrize("module", [refusals, chat_template, tenancy, base, refusal])
def test_every_domain_exception_is_in_the_table(module: ModuleType) -> None:
    raised = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and f"{kind.__module__}.".startswith(f"{module.__name__}.")
    ]
    assert raised
    start_up = {tenancy.OpenDoor}  # ends the command line, never a request
    assert not [kind for kind in raised if kind not in errors.TABLE and kind not in start_up]


def test_an_unknown_model_is_the_same_404_everywhere(server: LiveServer) -> None:
    name = "no/such:model"
    answers = [
        post(server, "/v1/chat/completions", {**CHAT, "model": name}),
        post(server, "/v1/chat/completions", {**CHAT, "model": name, "stream": True}),
        post(server, "/v1/completions", {**TEXT, "model": name}),
        httpx.get(f"{server.url}/v1/models/no%2Fsuch:model"),
        post(server, "/v1/embeddings", {"model": name, "input": "a"}),
        post(server, "/classify", {"model": name, "input": "a"}),
        post(server, "/v1/score", {"model": name, "text_1": "a", "text_2": "b"}),
    ]
    assert {answer.status_code for answer in answers} == {404}
    first = check_shape(answers[0])
    assert first["code"] == "model_not_found"
    assert "model_not_found" in first["message"] and first["type"] == "invalid_request_error"
    assert all(check_shape(answer) == first for answer in answers)


def test_routes_that_take_a_model_are_all_known_here(server: LiveServer) -> None:
    """A new route must be looked at: does it refuse an unknown model, does it ask for the key?"""
    paths = set(httpx.get(f"{server.url}/openapi.json").json()["paths"])
    assert paths == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/adapters",
        "/v1/adapters:check",
        "/v1/adapters/{name}",
        *(
            f"/v1/adapters/{{name}}/{verb}"
            for verb in ("activate", "pin", "prefetch", "profile", "rollback", "share", "unpin", "unshare", "versions")
        ),
        "/v1/aliases",
        "/v1/aliases/{name}",
        "/v1/status",
        "/v1/usage",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/health",
        "/ready",
        "/ping",
        "/load",
        "/version",
        "/metrics",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/v1/embeddings",
        "/v1/score",
        "/classify",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/v1/rerank", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions/", 404, "unknown_url"),
    ],
)
def test_unknown_urls_and_methods(server: LiveServer, method: str, path: str, status: int, code: str) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status
    assert check_shape(answer)["code"] == code


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "; use POST /v1/chat/completions."),
        ("/v1/v1/chat/completions", "; use POST /v1/chat/completions."),
        ("/openai/v1/completions/", "; use POST /v1/completions."),
        ("/v1//models", "; use GET /v1/models."),
        ("/v1/tokenize", "; use POST /tokenize."),
        ("/v1/chat/completion", "; did you mean POST /v1/chat/completions?"),
        ("/v1/images/generations", "generates text"),
        ("/v1/responses/resp_1", "responses aren't stored"),
        ("/api/chat", "; use POST /v1/chat/completions."),
        ("/", "GET /openapi.json"),
        ("/v1/" + "x/" * 50_00, "GET /openapi.json"),
    ],
)
def test_an_unknown_url_is_told_the_nearest_route(server: LiveServer, path: str, hint: str) -> None:
    answer = post(server, path, {"model": BASE})
    assert answer.status_code == 404
    message = check_shape(answer)["message"]
    assert hint in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/models/pirate", "DELETE, GET"),
        ("GET", "/v1/completions", "POST"),
        ("PUT", "/ping", "GET, HEAD, POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(server: LiveServer, method: str, path: str, allowed: str) -> None:
    answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert allowed.replace(", ", " and ") in check_shape(answer)["message"]


def test_a_route_behind_a_prefix_is_found_without_it(serve: Serve) -> None:
    server = serve(Setup(root_path="/llm"))
    assert "; use POST /v1/chat/completions." in check_shape(post(server, "/llm/chat/completions", CHAT))["message"]


def test_the_schema_describes_the_errors_that_are_answered(server: LiveServer) -> None:
    schema = httpx.get(f"{server.url}/openapi.json").json()
    parts = schema["components"]["schemas"]
    assert not {"HTTPValidationError", "ValidationError"} & set(parts)
    assert set(parts["ErrorFacts"]["required"]) == {"message", "type", "param", "code"}
    for path, methods in schema["paths"].items():
        shape = "AnthropicError" if path.startswith("/v1/messages") else "ErrorAnswer"
        for operation in methods.values():
            assert "422" not in operation["responses"]
            for status in ("4XX", "5XX"):
                content = operation["responses"][status]["content"]["application/json"]
                assert content["schema"] == {"$ref": f"#/components/schemas/{shape}"}


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
def test_probes_may_ask_for_the_status_alone(server: LiveServer, path: str) -> None:
    answer = httpx.head(server.url + path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_value"),
        ({"model": "x" * 2049}, "model", "invalid_value"),
        ({"adapter_id": "x" * 2049}, "adapter_id", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "messages.0.content.0",
            "unsupported_parameter",
        ),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "0.5"}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"top_logprobs": False}, "top_logprobs", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"seed": 1 << 70}, "seed", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", 1]}, "stop", "invalid_value"),
        ({"stop_token_ids": [49152]}, "stop_token_ids", "invalid_value"),
        ({"min_tokens": 3}, "min_tokens", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"49152": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty", "invalid_value"),
        ({"allowed_token_ids": [49152]}, "allowed_token_ids", "invalid_value"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "invalid_value"),
        ({"allowed_token_ids": [5], "stop_token_ids": [5], "min_tokens": 1}, "allowed_token_ids", "invalid_value"),
        ({"allowed_token_ids": [504], "bad_words": ["The"]}, "allowed_token_ids", "invalid_value"),
        (
            {"allowed_token_ids": [504, 5], "bad_words": ["The"], "min_tokens": 1, "stop_token_ids": [5]},
            "allowed_token_ids",
            "invalid_value",
        ),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "invalid_value"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "invalid_value"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"tools": []}, "tools", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"lora_path": "x"}, "lora_path", "unsupported_parameter"),
        ({"chat_template": "{{ messages }}"}, "chat_template", "unsupported_parameter"),
    ],
)
def test_bad_chat_fields_name_the_parameter(
    server: LiveServer, change: dict[str, object], param: str, code: str
) -> None:
    answer = post(server, "/v1/chat/completions", {**CHAT, **change})
    assert answer.status_code == 400
    error = check_shape(answer)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [49152]}, "prompt"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_bad_completion_fields_name_the_parameter(server: LiveServer, change: dict[str, object], param: str) -> None:
    answer = post(server, "/v1/completions", {**TEXT, **change})
    assert answer.status_code == 400
    assert check_shape(answer)["param"] == param


@pytest.mark.parametrize("most", [(1 << 31) + 1, 1 << 63, 10**20, 10**400])
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", CHAT, "max_tokens"),
        ("/v1/chat/completions", CHAT, "max_completion_tokens"),
        ("/v1/completions", TEXT, "max_tokens"),
        ("/v1/messages", CHAT, "max_tokens"),
        ("/v1/responses", {"model": BASE, "input": "Hi"}, "max_output_tokens"),
    ],
)
def test_more_tokens_than_can_be_counted_are_refused_by_every_route(
    server: LiveServer, path: str, body: dict[str, object], param: str, most: int
) -> None:
    """They would fail on their way between processes, or in the sums of a tenant's limits."""
    answer = post(server, path, {**body, param: most})
    assert answer.status_code == 400
    assert param in answer.json()["error"]["message"] + str(answer.json()["error"].get("param"))


def test_a_missing_field_has_its_own_code(server: LiveServer) -> None:
    error = check_shape(post(server, "/v1/chat/completions", {"model": BASE}))
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")


def test_nulls_unknown_and_harmless_fields_are_fine(server: LiveServer) -> None:
    extra = {
        "logprobs": None, "seed": None, "n": 1, "stop": None, "temperature": None, "stream": None, "user": "me",
        "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "tools": None, "tool_choice": "none",
        "response_format": {"type": "text"}, "metadata": {"a": "b"}, "store": False, "something_new": [1, 2],
        "top_k": -1, "top_p": 0, "stream_options": None, "top_logprobs": 0,
    }  # fmt: skip
    answer = post(server, "/v1/chat/completions", {**CHAT, **extra})
    assert answer.status_code == 200
    assert server.engine.requests[-1].sampling.top_p == 0.0
    assert answer.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{not json", {"content-type": "application/json"}),
        (b"[1]", {"content-type": "application/json"}),
        (json.dumps(CHAT).encode(), {"content-type": "text/plain"}),
        (b"\xff\xfe", {"content-type": "application/json"}),
        (b"", {}),
    ],
)
def test_bodies_that_are_no_json_objects(server: LiveServer, content: bytes, headers: dict[str, str]) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert "JSON" in check_shape(answer)["message"]


def test_not_a_number_is_refused(server: LiveServer) -> None:
    body = json.dumps({**CHAT, "temperature": float("nan")})
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert check_shape(answer)["param"] == "temperature"


def test_validation_messages_are_bounded(server: LiveServer) -> None:
    messages = [{"role": "x" * 1000, "content": "y" * 1000} for _ in range(500)]
    answer = post(server, "/v1/chat/completions", {**CHAT, "messages": messages})
    assert answer.status_code == 400
    assert len(answer.content) < 4000


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(server: LiveServer) -> None:
    big = b" " * (2 << 20) + b"{}"
    url = f"{server.url}/v1/chat/completions"
    known = httpx.post(url, content=big, headers={"content-type": "application/json"})
    assert known.status_code == 413
    error = check_shape(known)
    assert error["code"] == "request_too_large"
    assert "2097152 bytes" in error["message"] and "--max-body" in error["message"]
    pieces = iter([big[: 1 << 20], big[: 1 << 20], b" "])  # no content-length: sent in chunks
    unknown = httpx.post(url, content=pieces, headers={"content-type": "application/json"})
    assert unknown.status_code == 413


def test_an_operator_says_how_long_a_body_may_be(serve: Serve) -> None:
    big = b" " * (1 << 16) + b"{}"
    url = f"{serve(Setup(max_body=1 << 16)).url}/v1/"
    headers = {"content-type": "application/json"}
    assert httpx.post(f"{url}chat/completions", content=big, headers=headers).status_code == 413
    assert httpx.post(f"{url}embeddings", content=big, headers=headers).status_code == 400
    assert httpx.post(f"{url}embeddings", content=4 * big, headers=headers).status_code == 413


def test_the_context_length_is_named(serve: Serve) -> None:
    server = serve(Setup(max_model_len=64))
    for body in ({**CHAT, "max_tokens": 64}, {**CHAT, "messages": [{"role": "user", "content": "word " * 100}]}):
        error = check_shape(post(server, "/v1/chat/completions", body))
        assert error["code"] == "context_length_exceeded"
        assert error["message"].startswith("This model's maximum context length is 64 tokens.")
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().completions.create(model=BASE, prompt=[1] * 64)
    assert caught.value.code == "context_length_exceeded"
    for path, long in (
        ("/v1/completions", {**TEXT, "prompt": "x" * 50_000}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "<|im_end|>" * 20_000}]}),
    ):
        answer = post(server, path, long)
        error = check_shape(answer)
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "at least" in error["message"]  # refused by its characters, not encoded to be counted
    # The default of 16 tokens is a wish, not a demand: it gives way to the context.
    assert server.client().completions.create(model=BASE, prompt=[1] * 60).choices[0].finish_reason == "length"


def test_too_many_open_requests_are_told_to_come_back(serve: Serve) -> None:
    server = serve(Setup(max_open=0))
    answer = post(server, "/v1/chat/completions", CHAT)
    assert answer.status_code == 503
    assert check_shape(answer)["code"] == "engine_overloaded"
    assert int(answer.headers["retry-after"]) >= 1


def test_request_ids_are_echoed_when_sane(server: LiveServer) -> None:
    url = f"{server.url}/v1/models"
    assert httpx.get(url, headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    assert httpx.get(url, headers={"x-request-id": "a b\tc"}).headers["x-request-id"].startswith("req_")
    assert httpx.get(url, headers={"x-request-id": "a" * 65}).headers["x-request-id"].startswith("req_")


def test_whatever_finds_no_descriptor_is_told_to_come_back(tmp_path: Path) -> None:
    with only(0), pytest.raises(OSError) as failed:
        (tmp_path / "file").open("w")
    told = errors.describe(failed.value)
    assert (told.status, told.headers["retry-after"]) == (503, "1")
    assert told.body["error"]["code"] == "engine_overloaded"
    assert str(tmp_path) not in told.body["error"]["message"]


def test_what_nobody_expected_is_a_500_without_details(serve: Serve) -> None:
    server = serve()

    def broken(_: object) -> object:
        raise RuntimeError("secret detail in /home/somebody")

    server.service.open = broken  # type: ignore[method-assign, assignment]
    answer = post(server, "/v1/chat/completions", CHAT)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert check_shape(answer)["code"] == "internal_error"
