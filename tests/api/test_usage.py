"""Usage over HTTP: what clients saw adds up to what is reported, and everybody sees what is theirs."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from api.live_server import BASE, LiveServer, Serve, Setup
from api.peft_files import make_adapter
from api.tenants import ask, call, people, upload
from livery.engine.fake import Behaviour
from livery.text import Tokenizer

COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")


@dataclass
class Scene:
    """A server, keys of two tenants, and what each key's clients saw."""

    server: LiveServer
    keys: dict[str, str]
    seen: dict[str, Counter[str]] = field(default_factory=dict)

    def report(self, who: str, **params: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[who]}"}
        return httpx.get(f"{self.server.url}/v1/usage", params=params, headers=headers, timeout=30)

    def lines(self, who: str, **params: Any) -> list[dict[str, Any]]:
        answer = self.report(who, **params)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    def id_of(self, who: str) -> str:
        return self.keys[who].split("-")[1]

    def saw(self, who: str, usage: Any, requests: int = 1) -> None:
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        counts = {
            "requests": requests,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": cached,
            "completion_tokens": usage.completion_tokens,
        }
        self.seen.setdefault(who, Counter()).update(counts)


@pytest.fixture(scope="module")
def scene(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    server = LiveServer(Setup(behaviour=Behaviour()), tokenizer, tmp_path_factory.mktemp("usage"))
    server.start()
    keys = {
        "user": server.make_key("acme", role="user"),
        "owner": server.make_key("acme", role="owner"),
        "other": server.make_key("other", role="owner"),
        "admin": server.make_key("default", role="admin"),
    }
    scene = Scene(server, keys)
    for who in ("user", "owner", "other"):
        client = server.client(keys[who])
        whole = client.completions.create(model=BASE, prompt=[[3] * 40, [4] * 20], max_tokens=5, n=2)
        scene.saw(who, whole.usage)
        for _ in range(2):  # the second one finds the first one's prompt
            *_, last = client.completions.create(
                model=BASE, prompt=[5] * 40, max_tokens=7, stream=True, stream_options={"include_usage": True}
            )
            scene.saw(who, last.usage)
    assert scene.seen["user"]["cached_tokens"] > 0
    server.client(keys["other"]).embeddings.create(model=BASE, input=[[3], [4, 5]])
    scene.seen["other"].update({"requests": 1, "prompt_tokens": 3})
    refused = httpx.post(
        f"{server.url}/v1/completions",
        json={"model": BASE, "prompt": [3] * 300},
        headers={"authorization": f"Bearer {keys['other']}"},
        timeout=30,
    )
    assert refused.status_code == 400, "which is no request that was computed"
    server.call(server.flusher.flush())
    yield scene
    server.stop()


def test_everybody_sees_what_is_theirs(scene: Scene) -> None:
    def counted(who: str) -> dict[str, int]:
        return {name: scene.seen[who][name] for name in COUNTS}

    by_key = {line["key"]: {name: line[name] for name in COUNTS} for line in scene.lines("admin", by="key")}
    assert by_key == {scene.id_of(who): counted(who) for who in ("user", "owner", "other")}
    assert [line["key"] for line in scene.lines("user", by="key")] == [scene.id_of("user")]
    assert {line["key"] for line in scene.lines("owner", by="key")} == {scene.id_of("user"), scene.id_of("owner")}
    (line,) = scene.lines("other", by="tenant,adapter,version")
    assert {name: line[name] for name in COUNTS} == counted("other")
    assert (line["tenant"], line["adapter"], line["version"]) == ("other", BASE, "fa" * 32)
    for who, params in (("owner", {"tenant": "other"}), ("user", {"key": scene.id_of("owner")})):
        answer = scene.report(who, **params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(params)))
    assert httpx.get(f"{scene.server.url}/v1/usage").status_code == 401


def test_a_sum_of_adapters_is_one_line_whatever_its_weights(
    serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Else a client's weights were as many lines, kept for as long as usage is."""
    folder = tmp_path_factory.mktemp("sums")
    public, own = make_adapter(folder / "adapters" / "writes", seed=1), make_adapter(folder / "own", seed=2)
    server = serve(Setup(), folder)
    assert public.name in [model.id for model in server.client().models.list()]
    who = people(server)
    assert upload(who, "acme-owner", "sings", own).status_code == 200
    for number in range(20):
        answer = ask(who, "acme-user", f"{1 + number / 1000}*writes+0.5*sings")
        assert answer.status_code == 200 and f"{1 + number / 1000}*writes" in answer.headers["x-livery-adapter"]
    ask(who, "acme-user", "sings+writes")
    for alone in ("1*sings", "0.5*sings", "sings"):
        ask(who, "acme-user", alone)
    server.call(server.flusher.flush())

    def lines(key: str, **params: Any) -> dict[str, int]:
        found = call(who, key, "GET", "/v1/usage", params={"by": ["adapter", "version"], **params}).json()["data"]
        assert len({line["version"] for line in found}) == len(found)
        return {line["adapter"]: line["requests"] for line in found}

    assert lines("acme-owner") == {"sings+writes": 21, "sings": 3}
    assert lines("operator", tenant="acme") == {"acme/sings+writes": 21, "acme/sings": 3}
    for written in ("sings+writes", "writes+sings", "acme/sings+writes"):
        assert lines("acme-user", adapter=written) == {"sings+writes": 21}
    assert lines("acme-user", adapter="+".join("abcdefghijkl")) == {}


def test_pages_are_bounded_and_lead_on(scene: Scene) -> None:
    everything = scene.lines("admin", by=["key", "hour"])
    found, after = [], {}
    while True:
        page = scene.report("admin", by=["key", "hour"], limit=1, **after).json()
        found += page["data"]
        assert len(page["data"]) == 1
        if not page["has_more"]:
            break
        after = {"after": page["next_after"]}
    assert found == everything and page["next_after"] is None


def test_csv_says_the_same(scene: Scene) -> None:
    answer = scene.report("admin", by="tenant,day", format="csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    lines = scene.lines("admin", by="tenant,day")
    assert rows == [{name: str(value) for name, value in line.items()} for line in lines]
    headers = {"authorization": f"Bearer {scene.keys['admin']}", "accept": "text/csv"}
    paged = httpx.get(f"{scene.server.url}/v1/usage", params={"by": "tenant", "limit": 1}, headers=headers)
    assert len(paged.text.splitlines()) == 2 and paged.headers["x-next-after"]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"by": "colour"}, "by"),
        ({"by": "day,day"}, "by"),
        ({"from": "yesterday"}, "from"),
        ({"to": "9999-99-99"}, "to"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"after": "x"}, "after"),
        ({"after": "WzFd", "by": "tenant"}, "after"),
        ({"after": "WzE4NDQ2NzQ0MDczNzA5NTUxNjE2XQ==", "by": "day"}, "after"),
        ({"after": "W3RydWVd", "by": "day"}, "after"),
        ({"format": "xml"}, "format"),
        ({"tenant": "a" * 2000}, "tenant"),
    ],
)
def test_what_is_wrong_is_named(scene: Scene, params: dict[str, Any], param: str) -> None:
    answer = scene.report("admin", **params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_times_are_whole_hours_in_utc(scene: Scene) -> None:
    (line,) = scene.lines("admin", by="day")
    day = line["day"]
    assert scene.lines("admin", by="day", **{"from": day, "to": f"{day}T23:59+00:00"}) == [line]
    assert scene.lines("admin", by="day", to=day) == []
    (hour,) = scene.lines("admin", by="hour")
    assert hour["hour"].startswith(f"{day}T") and hour["hour"].endswith(":00:00Z")
    assert scene.lines("admin", by="hour", **{"from": hour["hour"]}) == [hour]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("to", "9999-12-31T23:30"),
        ("from", "0001-01-01T00:00+23:59"),
        ("from", "1969-12-31"),
        ("adapter", "a\0b"),
        ("key", "\0"),
        ("tenant", "a\n"),
        ("after", base64.urlsafe_b64encode(json.dumps(["\ud800"]).encode()).decode()),
        ("after", base64.urlsafe_b64encode(json.dumps(["\0"]).encode()).decode()),
    ],
)
def test_what_no_database_or_calendar_knows_is_a_400(scene: Scene, param: str, value: str) -> None:
    answer = scene.report("admin", by="tenant", **{param: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
