"""Whose a name is is settled when it is written, and looked at whenever a verb is called, over a live server."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.live_server import LiveServer, Serve, Setup
from api.peft_files import make_adapter
from api.tenants import People, ask, call, upload
from livery.adding import AddOptions
from livery_adapters.incoming import Incoming
from livery_adapters.library import Fill, from_directory
from livery_adapters.registry import OwnerChanged


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "one", seed=1)


@pytest.fixture
def live(serve: Serve, tmp_path: Path) -> LiveServer:
    return serve(Setup(api_key="sk-operator"), folder=tmp_path)


def slow(server: LiveServer, folder: Path, tenant: str, *, deleted: bool = False) -> Fill:
    """An upload during which a tenant is made, or deleted, by another process."""
    fill = from_directory(folder, [folder.parent])

    async def meanwhile(incoming: Incoming) -> str:
        if deleted:
            server.tenants.delete_tenant(tenant, occupied=lambda _: None)
        else:
            server.tenants.create_tenant(tenant, occupied=lambda _: None)
        return await fill(incoming)

    return meanwhile


def test_an_upload_of_the_operators_never_becomes_public_below_a_tenant_made_meanwhile(
    live: LiveServer, saved: Path
) -> None:
    with pytest.raises(OwnerChanged, match="'acme/late'"):
        live.call(live.management.take("acme/late", slow(live, saved, "acme"), "upload", AddOptions()))
    who = People(live, {"acme": live.make_key("acme", role="owner"), "bob": live.make_key("bob")})
    for key in ("acme", "bob"):
        assert call(who, key, "GET", "/v1/models").text.count("late") == 0
    assert upload(who, "acme", "late", saved).status_code == 200
    assert live.management.library.registry.get("acme/late").owner == "acme"


def test_an_upload_of_a_deleted_tenants_is_nobodys(live: LiveServer, saved: Path) -> None:
    live.make_key("acme", role="owner")
    fill = slow(live, saved, "acme", deleted=True)
    with pytest.raises(OwnerChanged):
        live.call(live.management.take("acme/late", fill, "upload", AddOptions(owner="acme")))
    assert live.management.library.registry.find("acme/late") is None


def test_what_is_the_operators_below_a_tenants_name_is_not_the_tenants_to_change(live: LiveServer, saved: Path) -> None:
    """As such a name may be there since before tenants had names of their own."""
    live.call(live.management.take("acme/old", from_directory(saved, [saved.parent]), "upload", AddOptions()))
    live.call(live.management.set_alias("acme/way", [("acme/old", 1.0)], "none"))
    who = People(live, {"acme": live.make_key("acme", role="owner"), "operator": "sk-operator"})
    before = call(who, "operator", "GET", "/v1/adapters/acme/old").json()
    for method, path, sent in (
        ("GET", "adapters/old/versions", None),
        ("GET", "adapters/old/profile", None),
        ("PUT", "adapters/old/profile", {"profile": {"temperature": 0.5}}),
        ("POST", "adapters/old/activate", {"version": 1}),
        ("POST", "adapters/old/rollback", None),
        ("POST", "adapters/old/prefetch", None),
        ("POST", "adapters/old/share", {"tenant": "zoe"}),
        ("POST", "adapters/old/unshare", {"tenant": "zoe"}),
        ("DELETE", "adapters/old", None),
        ("DELETE", "models/old", None),
        ("GET", "aliases/way", None),
        ("DELETE", "aliases/way", None),
    ):
        answer = call(who, "acme", method, f"/v1/{path}", json=sent)
        assert (answer.status_code, "no a" in answer.text or "not exist" in answer.text) == (404, True), (
            path,
            answer.text,
        )
    assert upload(who, "acme", "old", saved).status_code == 409
    assert call(who, "acme", "PUT", "/v1/aliases/way", json={"targets": [{"adapter": "base-model"}]}).status_code == 409
    assert call(who, "operator", "GET", "/v1/adapters/acme/old").json() == before


def test_an_owner_of_the_operators_tenant_has_no_way_below_anothers_name(live: LiveServer, saved: Path) -> None:
    who = People(live, {"acme": live.make_key("acme", role="owner"), "ours": live.make_key("default", role="owner")})
    assert upload(who, "acme", "one", saved).status_code == 200
    for name in ("acme/one", "acme/new"):
        assert upload(who, "ours", name, saved).status_code == 404
        to_base = {"targets": [{"adapter": "base-model"}]}
        assert call(who, "ours", "PUT", f"/v1/aliases/{name}-way", json=to_base).status_code == 404
        assert call(who, "ours", "DELETE", f"/v1/adapters/{name}").status_code == 404
    assert upload(who, "ours", "one", saved).status_code == 200  # public, and another one
    assert [one["name"] for one in call(who, "acme", "GET", "/v1/adapters").json()["data"]] == ["one"]
    assert live.management.library.registry.find_alias("acme/new-way") is None


def test_what_is_on_its_way_in_shows_to_its_owners_alone(live: LiveServer, saved: Path) -> None:
    who = People(live, {tenant: live.make_key(tenant, role="owner") for tenant in ("acme", "zeta")})
    fill, arrived, go_on = from_directory(saved, [saved.parent]), threading.Event(), threading.Event()

    async def slow(incoming: Incoming) -> str:
        arrived.set()
        await asyncio.to_thread(go_on.wait, 30)
        return await fill(incoming)

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lambda: live.call(live.management.take("acme/x", slow, "upload", AddOptions(owner="acme"))))
        try:
            assert arrived.wait(30)
            asked = {
                (key, model): ask(who, key, model)
                for key, model in (("acme", "x"), ("zeta", "acme/x"), ("zeta", "acme/y"), ("zeta", "x"))
            }
        finally:
            go_on.set()
        assert taken.result(30)["name"] == "acme/x"
    assert {one: answer.status_code for one, answer in asked.items()} == {
        ("acme", "x"): 503,
        **dict.fromkeys((("zeta", "acme/x"), ("zeta", "acme/y"), ("zeta", "x")), 404),
    }
    assert asked["zeta", "acme/x"].text.replace("acme/x", "acme/y") == asked["zeta", "acme/y"].text
