"""GET /v1/status and its neighbours to tenants: what they do themselves, and nothing of what others do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api.live_server import BASE, Serve, Setup
from api.peft_files import make_adapter
from api.tenants import People, ask, call
from livery.adding import AddOptions
from livery.engine.fake import Behaviour
from livery.status_rows import FAILED_FOR_OTHERS

WHO = ("acme", "zeta", "ours", "operator")


def people(serve: Serve, folder: Path, behaviour: Behaviour) -> People:
    """acme/sql, which zeta may use too, and poet, which everybody may; `ours` is a user of the operator's tenant."""
    make_adapter(folder / "adapters" / ".pool" / "one", seed=1)
    server = serve(Setup(behaviour=behaviour, api_key="sk-operator", keep_alive_s=0.05), folder=folder)
    keys = {
        "acme": server.make_key("acme", role="owner"),
        "zeta": server.make_key("zeta"),
        "ours": server.make_key("default"),
        "operator": "sk-operator",
    }
    for name in ("acme/sql", "poet"):
        server.call(server.management.put(name, ".pool/one", AddOptions()))
    server.call(server.management.share("acme/sql", "zeta"))
    return People(server, keys)


def status(who: People, key: str) -> dict[str, Any]:
    answer = call(who, key, "GET", "/v1/status")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Adapters by the last part of their names."""
    return {one["name"].rpartition("/")[2]: one for one in found["adapters"]["data"]}


@pytest.fixture
def busy(serve: Serve, tmp_path: Path) -> People:
    """zeta has asked all there is, acme nothing."""
    who = people(serve, tmp_path, Behaviour())
    for model in ("acme/sql", "acme/sql", "poet", BASE):
        assert ask(who, "zeta", model).status_code == 200
    return who


def test_figures_are_ones_own_also_of_what_others_use_too(busy: People) -> None:
    found = {key: status(busy, key) for key in WHO}
    requests = {key: {name: row["requests"] for name, row in rows(one).items()} for key, one in found.items()}
    assert requests == {
        "acme": {"sql": 0, "poet": 0},
        "zeta": {"sql": 2, "poet": 1},
        "ours": {"poet": 0},
        "operator": {"sql": 2, "poet": 1},
    }
    idle = rows(found["acme"])["sql"]
    assert (idle["tokens"], idle["last_used_s"], idle["ttft_p50_s"], idle["ttft_p95_s"]) == (0, None, None, None)
    assert {key: one["base"]["requests"] for key, one in found.items()} == {
        "acme": 0,
        "zeta": 1,
        "ours": 0,
        "operator": 1,
    }
    assert {key: len(one["requests"]) for key, one in found.items()} == {"acme": 0, "zeta": 4, "ours": 0, "operator": 4}


def test_tokens_a_second_and_memory_of_all_are_the_operators_to_see(busy: People) -> None:
    while sum(status(busy, "operator")["throughput"]["prompt_by_second"]) < 4:
        pass  # of complete seconds alone, and the four requests may lie in two of them
    found = {key: status(busy, key) for key in WHO}
    sums = {key: sum(one["throughput"]["prompt_by_second"]) for key, one in found.items()}
    assert sums == {"acme": 0, "zeta": 4, "ours": 0, "operator": 4}
    assert {key for key, one in found.items() if one["memory"] is None} == {"acme", "zeta", "ours"}
    assert {key: one["caller"]["sees"] for key, one in found.items()} == {
        **dict.fromkeys(("acme", "zeta", "ours"), "tenant"),
        "operator": "all",
    }
    assert all(one["engine"]["answers"] for one in found.values()), "which isn't why there are no figures of memory"
    everybodys = ("steps", "step_seconds", "preemptions")
    assert {found[key]["load"][name] for key in ("acme", "zeta", "ours") for name in everybodys} == {None}


def test_what_runs_now_is_told_to_whose_it_is(serve: Serve, tmp_path: Path) -> None:
    who = people(serve, tmp_path, Behaviour(stepped=True))
    stream = who.server.client(who.keys["zeta"]).completions.create(
        model="acme/sql", prompt=[3], max_tokens=9, stream=True
    )
    who.server.wait_until(lambda engine: engine.open_requests == 1)
    found = {key: status(who, key) for key in WHO}
    assert {key: one["load"]["running"] for key, one in found.items()} == {
        "acme": 0,
        "zeta": 1,
        "ours": 0,
        "operator": 1,
    }
    kv = found["operator"]["memory"]["kv"]
    assert 0 < kv["used_tokens"] < kv["total_tokens"] / 2  # those of one short request
    running = {key: rows(found[key])["sql"]["running"] for key in ("acme", "zeta", "operator")}
    assert running == {"acme": 0, "zeta": 1, "operator": 1}
    shown = {key: call(who, key, "GET", f"/v1/adapters/{name}").json()["requests"] for key, name in SQL.items()}
    assert shown == {"acme": 0, "operator": 1}
    listed = {one["name"]: one.get("requests") for one in call(who, "acme", "GET", "/v1/adapters").json()["data"]}
    assert listed == {"sql": 0, "poet": None}
    left = call(who, "acme", "DELETE", "/v1/adapters/sql").json()
    assert (left["state"], left["requests"]) == ("draining", 0)
    who.server.step(100)
    stream.close()


SQL = {"acme": "sql", "operator": "acme/sql"}


def test_why_a_request_failed_is_told_to_whose_it_was_and_in_fixed_words_of_others_adapters(
    serve: Serve, tmp_path: Path
) -> None:
    who = people(serve, tmp_path, Behaviour(fail_after=1))
    for model in ("acme/sql", "poet"):
        assert ask(who, "zeta", model, max_tokens=3).status_code == 500
    errors = {
        key: {name: row["error"] and row["error"]["message"] for name, row in rows(status(who, key)).items()}
        for key in WHO
    }
    told = "the fake engine was told to fail"
    assert errors == {
        "acme": {"sql": None, "poet": None},
        "zeta": {"sql": FAILED_FOR_OTHERS, "poet": FAILED_FOR_OTHERS},
        "ours": {"poet": None},
        "operator": {"sql": told, "poet": told},
    }
    assert ask(who, "acme", "sql", max_tokens=3).status_code == 500
    error = rows(status(who, "acme"))["sql"]["error"]
    assert (error["code"], error["message"]) == ("request_failed", told)
