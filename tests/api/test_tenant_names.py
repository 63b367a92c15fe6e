"""Tenants side by side over HTTP: whose adapter answers, whose cache is read, what names can't do."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from api.live_server import BASE, LiveServer, Serve
from api.peft_files import make_adapter
from api.tenants import OPERATOR, People, ask, call, code_of, people, served_by, upload
from livery.engine.base import Asker
from livery.engine.fake import PAGE_BYTES
from livery.tenancy import EVERYTHING
from livery_adapters.manifest import read_manifest

PROMPT = list(range(100, 140))  # two blocks and a half: 32 tokens to find again
HOSTILE = (
    "..", "../bob", "a/../b", "a//b", "/etc", "bob\\x", "%2e%2e", "%2f", "x\r\nx-injected: 1", "x\nINFO forged", "x\0y",
    "рirate", "pirate\u200b", "\uff0e\uff0e", "x" * 300, "pirate ", " pirate", "pirate@@1", "pi+rate*", "'; DROP TABLE",
    "{{7*7}}", "\x1b[31mred", "\ud7ff", "💥", "mine/activate",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("saved")
    return [make_adapter(folder / str(seed), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def live(module_serve: Serve, saved: list[Path]) -> People:
    """Everybody has a pirate, each another one; bob lends his second adapter to acme."""
    who = people(module_serve())
    for key, folder in zip((OPERATOR, "acme-owner", "bob-owner"), saved, strict=True):
        assert upload(who, key, "pirate", folder).status_code == 200
    assert upload(who, OPERATOR, "common", saved[0]).status_code == 200
    assert upload(who, "bob-owner", "lent", saved[0]).status_code == 200
    assert call(who, "bob-owner", "POST", "/v1/adapters/lent/share", json={"tenant": "acme"}).status_code == 200
    return who


def digest(folder: Path) -> str:
    return read_manifest(folder).digest[:12]


def listed(who: People, key: str) -> list[str]:
    return [model["id"] for model in call(who, key, "GET", "/v1/models").json()["data"]]


def cached(who: People, key: str, model: str, **more: object) -> int:
    answer = ask(who, key, model, **{"prompt": PROMPT, **more})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_one_name_is_everybodys_own(live: People, saved: list[Path]) -> None:
    assert served_by(live, "acme-user", "pirate") == f"pirate@{digest(saved[1])}"
    assert served_by(live, "bob-user", "pirate") == f"pirate@{digest(saved[2])}"
    assert served_by(live, "cora-user", "pirate") == f"pirate@{digest(saved[0])}"  # it has none
    assert served_by(live, OPERATOR, "acme/pirate") == f"acme/pirate@{digest(saved[1])}"
    assert served_by(live, "acme-user", "bob/lent") == f"bob/lent@{digest(saved[0])}"
    assert served_by(live, "acme-user", f"pirate@{digest(saved[1])}") == f"pirate@{digest(saved[1])}"
    for key, model in (("acme-user", "bob/pirate"), ("acme-user", "acme/pirate"), ("cora-user", "bob/lent")):
        assert code_of(ask(live, key, model)) == (404, "model_not_found")
    assert code_of(ask(live, "acme-user", f"pirate@{digest(saved[2])}")) == (404, "model_not_found")


def test_lists_show_what_may_be_asked_as_its_asker_knows_it(live: People) -> None:
    assert listed(live, "acme-user") == [BASE, "bob/lent", "common", "pirate"]
    assert listed(live, "bob-user") == [BASE, "common", "lent", "pirate"]
    assert listed(live, "cora-user") == [BASE, "common", "pirate"]
    assert listed(live, OPERATOR) == [BASE, "acme/pirate", "bob/lent", "bob/pirate", "common", "pirate"]
    shown = {item["name"]: item for item in call(live, "acme-owner", "GET", "/v1/adapters").json()["data"]}
    assert {name: item["owner"] for name, item in shown.items()} == {
        **{"bob/lent": "bob", "common": "default", "pirate": "acme"},
    }
    assert "origin" in shown["pirate"]
    for name, field in itertools.product(("bob/lent", "common"), ("origin", "profile", "coverage", "requests")):
        assert field not in shown[name]


def test_every_part_of_a_composition_must_be_ones_to_use(live: People) -> None:
    assert served_by(live, "acme-user", "0.5*pirate+0.5*bob/lent").startswith("0.5*pirate+0.5*bob/lent@")
    for model in ("0.5*pirate+0.5*bob/pirate", "0.5*pirate+0.5*nobody", "bob/pirate+pirate"):
        assert code_of(ask(live, "acme-user", model)) == (404, "model_not_found")


def test_a_key_asks_what_its_allow_list_lets_it(live: People) -> None:
    def narrow(*allow: str) -> People:
        return People(live.server, {"key": live.server.make_key("acme", allow=list(allow))})

    who = narrow("own", "bob/*")
    assert listed(who, "key") == ["bob/lent", "pirate"]
    assert served_by(who, "key", "pirate").startswith("pirate@")
    for model in (BASE, "common", "", "pirate+common"):
        assert code_of(ask(who, "key", model)) == (404, "model_not_found")
    assert listed(narrow("base"), "key") == [BASE]
    assert listed(narrow("common"), "key") == ["common"]
    # What hides behind a name of its own isn't reached by a key that may not ask that.
    assert code_of(ask(narrow("public"), "key", "pirate")) == (404, "model_not_found")


def test_an_alias_leads_where_its_owner_may_go(live: People) -> None:
    def alias(key: str, name: str, *targets: str) -> int:
        body = {"targets": [{"adapter": target} for target in targets], "sticky": "none"}
        return call(live, key, "PUT", f"/v1/aliases/{name}", json=body).status_code

    assert alias("acme-owner", "crew", "bob/lent") == 200
    assert alias("acme-owner", "crew", "bob/pirate") == alias("acme-owner", "crew", "nobody") == 400
    assert served_by(live, "acme-user", "crew").startswith("bob/lent@")
    assert code_of(ask(live, "bob-user", "crew")) == (404, "model_not_found")
    shown = call(live, "acme-owner", "GET", "/v1/aliases").json()["data"]
    assert [(one["name"], one["owner"], one["targets"][0]["adapter"]) for one in shown] == [
        ("crew", "acme", "bob/lent")
    ]
    call(live, "bob-owner", "POST", "/v1/adapters/lent/unshare", json={"tenant": "acme"})
    assert code_of(ask(live, "acme-user", "crew")) == (404, "model_not_found")
    assert code_of(ask(live, "acme-user", "bob/lent")) == (404, "model_not_found")
    call(live, "bob-owner", "POST", "/v1/adapters/lent/share", json={"tenant": "acme"})
    assert served_by(live, "acme-user", "crew").startswith("bob/lent@")
    assert call(live, "acme-owner", "DELETE", "/v1/aliases/crew").json() == {"name": "crew", "deleted": True}


def test_the_cache_is_never_anothers(live: People) -> None:
    """Equal prompts of two tenants, adapters, versions and salts: nothing is found, but by those who asked before."""
    asked = [
        *((key, model, {}) for key in ("acme-user", "bob-user", "cora-user") for model in (BASE, "common", "pirate")),
        ("acme-user", "bob/lent", {}),
        ("bob-user", "lent", {}),
        ("acme-user", "common", {"cache_salt": "one"}),
        ("acme-user", "common", {"cache_salt": "acme"}),
    ]
    # cora's pirate and common have the same files, so they are one adapter to one tenant.
    same = {("cora-user", "pirate"), ("acme-user", "bob/lent"), ("bob-user", "lent")}
    for key, model, more in asked:
        first = cached(live, key, model, **more)
        assert first == (32 if (key, model) in same else 0), (key, model, more)
    for key, model, more in asked:
        assert cached(live, key, model, **more) == 32
    assert cached(live, "acme-owner", "common") == 32  # another key of the same tenant


def test_a_new_version_reads_nothing_of_the_old_one(live: People, saved: list[Path]) -> None:
    prompt = [7, *PROMPT]
    assert upload(live, "acme-owner", "turning", saved[0]).status_code == 200
    assert [cached(live, "acme-user", "turning", prompt=prompt) for _ in range(2)] == [0, 32]
    assert upload(live, "acme-owner", "turning", saved[1]).status_code == 200
    assert [cached(live, "acme-user", "turning", prompt=prompt) for _ in range(2)] == [0, 32]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_reach_nothing(live: People, saved: list[Path], name: str) -> None:
    path = quote(name, safe="")
    for key in ("acme-user", "acme-owner"):
        answer = ask(live, key, name)
        assert answer.status_code in (400, 404)
        assert "x-injected" not in answer.headers
    for method, where in (("GET", "adapters"), ("DELETE", "adapters"), ("PUT", "aliases"), ("GET", "models")):
        body = {"json": {"targets": [{"adapter": BASE}]}} if method == "PUT" else {}
        answer = call(live, "acme-owner", method, f"/v1/{where}/{path}", **body)
        assert answer.status_code in (400, 404, 405), (method, where, answer.text)
        assert "x-injected" not in answer.headers
    assert upload(live, "acme-owner", path, saved[0]).status_code in (400, 404, 405)
    assert all(item.startswith(("acme/", "bob/", "common", "pirate", BASE)) for item in listed(live, OPERATOR))


def test_names_that_change_hands_while_requests_run_never_answer_for_another(live: People, saved: list[Path]) -> None:
    """bob adds and deletes a name that acme asks by its full form and by its own, and acme does so too."""
    stop = threading.Event()
    wrong: list[object] = []
    served: list[str] = []

    def asking(key: str, name: str, own: str) -> None:
        while not stop.is_set():
            answer = ask(live, key, name)
            if answer.status_code == 200:
                served.append(name)
                if answer.headers["x-livery-adapter"] != f"{name}@{own}":
                    wrong.append((key, name, answer.headers["x-livery-adapter"]))
            elif answer.status_code not in (404, 503):
                wrong.append((key, name, answer.text))

    def turning(key: str, folder: Path) -> None:
        for _ in range(8):
            assert upload(live, key, "hot", folder).status_code == 200
            assert call(live, key, "DELETE", "/v1/adapters/hot").status_code in (200, 202)

    with ThreadPoolExecutor(6) as pool:
        askers = [
            pool.submit(asking, "acme-user", "hot", digest(saved[1])),
            pool.submit(asking, "bob-user", "hot", digest(saved[2])),
            pool.submit(asking, "acme-user", "bob/hot", "never"),
            pool.submit(asking, "cora-user", "hot", "never"),
        ]
        changers = [pool.submit(turning, "acme-owner", saved[1]), pool.submit(turning, "bob-owner", saved[2])]
        for changer in changers:
            changer.result()
        stop.set()
        for asker in askers:
            asker.result()
    assert not wrong
    assert "hot" in served


def test_a_tenants_quota_is_told_and_holds(live: People, saved: list[Path]) -> None:
    server: LiveServer = live.server
    key = server.make_key("dora", role="owner", allow=list(EVERYTHING))
    server.tenants.update_tenant("dora", limits={"adapters": 1})
    server.call(server.keys.refresh())
    who = People(server, {"dora": key})
    assert upload(who, "dora", "one", saved[0]).status_code == 200
    refused = upload(who, "dora", "two", saved[1])
    assert code_of(refused) == (403, "quota_exceeded")
    assert "2 adapters would be kept" in refused.json()["error"]["message"]
    assert upload(who, "dora", "one", saved[1]).status_code == 200
    assert call(who, "dora", "DELETE", "/v1/adapters/one").status_code == 200
    assert upload(who, "dora", "two", saved[1]).status_code == 200


def test_the_engine_is_told_whose_an_adapter_read_ahead_is(live: People) -> None:
    assert call(live, "acme-owner", "POST", "/v1/adapters/pirate/prefetch").status_code == 200
    assert live.server.engine.askers[-1].tenant == "acme"


def test_what_a_tenant_brings_is_proven_within_what_it_may_have_in_memory(live: People, tmp_path: Path) -> None:
    server, engine = live.server, live.server.engine
    heavy = make_adapter(tmp_path / "heavy", seed=11)
    server.tenants.update_tenant("cora", weight=2.0, limits={"resident_bytes": 1})
    server.call(server.keys.refresh())
    asked, proven = len(engine.askers), len(engine.proofs)
    refused = upload(live, "cora-owner", "heavy", heavy)
    assert code_of(refused) == (422, "resident_bytes_exceeded")
    assert "bytes of device memory" in refused.json()["error"]["message"]
    server.tenants.update_tenant("cora", limits={"resident_bytes": PAGE_BYTES})
    server.call(server.keys.refresh())
    assert upload(live, "cora-owner", "heavy", heavy).status_code == 200
    kept = [Asker("cora", 2.0, limit) for limit in (1, PAGE_BYTES, PAGE_BYTES)]  # tried, tried, and where it lies now
    assert engine.askers[asked:] == kept
    runs = [(run.tenant, run.weight, run.resident_bytes) for run in engine.proofs[proven:]]
    assert runs == [("cora", 2.0, 1), ("cora", 2.0, PAGE_BYTES)]
    server.tenants.update_tenant("cora", weight=1.0, limits={"resident_bytes": None})
    server.call(server.keys.refresh())


def test_aliases_are_listed_page_by_page_under_the_names_that_their_owner_knows(live: People) -> None:
    for name in ("c", "a", "b"):
        body = {"targets": [{"adapter": "pirate"}]}
        assert call(live, "acme-owner", "PUT", f"/v1/aliases/{name}", json=body).status_code == 200
    assert call(live, OPERATOR, "PUT", "/v1/aliases/b", json=body).status_code == 200
    first = call(live, "acme-owner", "GET", "/v1/aliases?limit=2").json()
    assert ([one["name"] for one in first["data"]], first["next_after"], first["has_more"]) == (["a", "b"], "b", True)
    rest = call(live, "acme-owner", "GET", "/v1/aliases?limit=2&after=b").json()
    assert ([one["name"] for one in rest["data"]], rest["next_after"], rest["has_more"]) == (["c"], None, False)
    everybodys = call(live, OPERATOR, "GET", "/v1/aliases?limit=3&after=acme/a").json()
    assert [one["name"] for one in everybodys["data"]] == ["acme/b", "acme/c", "b"]
    assert call(live, "acme-owner", "GET", "/v1/aliases?limit=0").status_code == 400
    for key, names in (("acme-owner", "abc"), (OPERATOR, "b")):
        for name in names:
            assert call(live, key, "DELETE", f"/v1/aliases/{name}").status_code == 200


def test_profiles_and_aliases_are_held_to_a_quota_too(live: People, saved: list[Path]) -> None:
    server = live.server
    who = People(server, {"eve": server.make_key("eve", role="owner")})
    server.tenants.update_tenant("eve", limits={"adapters": 1, "versions": 1})
    server.call(server.keys.refresh())
    assert upload(who, "eve", "one", saved[0]).status_code == 200
    other = call(who, "eve", "PUT", "/v1/adapters/one/profile", json={"profile": {"temperature": 0.5}})
    assert code_of(other) == (403, "quota_exceeded")
    answers = [
        call(who, "eve", "PUT", f"/v1/aliases/{name}", json={"targets": [{"adapter": "one"}]}) for name in ("a", "b")
    ]
    assert answers[0].status_code == 200, answers[0].text
    assert code_of(answers[1]) == (403, "quota_exceeded")
